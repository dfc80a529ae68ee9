"""A rollout engine without a network, for trying an environment, an agent or the whole loop with known words.

engine = ScriptedRolloutEngine("scripted", tokenizer, itertools.cycle([Message("assistant", "42", "Hm.")]))
"""

from collections.abc import Iterable

from glm5.engine.records import SamplingParams
from glm5.rl.engines.base import Generation, gathered
from glm5.rl.weights import WeightUpdate, hash_tensors
from glm5.server.scripted import Reply, ScriptedEngine
from glm5.text.markers import Generation as ChatLayout
from glm5.text.tokenizer import Tokenizer


class ScriptedRolloutEngine:
    """Answers with `replies` one after the other; every log-probability is 0. Weights it only takes note of.

    Attributes:
        script: the engine underneath; `script.requests` is what was asked.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        replies: Iterable[Reply],
        *,
        generation: ChatLayout = "glm-5",
        seconds: float = 0.0,
    ) -> None:
        """Take the script; each reply takes `seconds`."""
        self.name = name
        self.script = ScriptedEngine(
            tokenizer, replies, generation=generation, tokens_per_step=1 << 30, seconds_per_step=seconds
        )
        self._hash = hash_tensors([])

    async def generate(self, prompt_ids: list[int], params: SamplingParams) -> Generation:
        """See `RolloutEngine`. Raises UsageError at the end of the script."""
        return await gathered(self.script.stream(prompt_ids, params.replace(logprobs=0)))

    async def update(self, source: WeightUpdate, version: int) -> str:
        """See `RolloutEngine`."""
        source.check_base(self.script.version)
        self.script.version = version
        self._hash = hash_tensors(source.tensors.items())
        return self._hash

    async def weight_hash(self) -> str:
        """Of the tensors of the last update."""
        return self._hash

    async def health(self) -> bool:
        """Always."""
        return True

    async def close(self) -> None:
        """There is nothing to give back."""
