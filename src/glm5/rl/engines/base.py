"""What reinforcement learning needs of an engine: token ids in, token ids out, and weights that change.

Every token comes with its log-probability under the weights that sampled it (temperature 1, nothing truncated) and with
their version. Weights may change between two generations and within one.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from glm5.engine.records import Completion, Delta, FinishReason, SamplingParams
from glm5.errors import GLM5Error
from glm5.rl.weights import WeightUpdate


@dataclass(frozen=True, slots=True)
class Generation:
    """One continuation of a prompt.

    Attributes:
        ids: sampled, the stop token included.
        logprobs, versions: one for each id.
        cached_tokens: of the prompt, found in a prefix cache.

    Raises:
        GLM5Error: the lists differ in length, which would train on the wrong tokens.
    """

    ids: list[int]
    logprobs: list[float]
    versions: list[int]
    finish_reason: FinishReason
    cached_tokens: int = 0

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.logprobs) == len(self.versions):
            raise GLM5Error(
                f"an engine gave {len(self.ids)} ids, {len(self.logprobs)} log-probabilities and "
                f"{len(self.versions)} weight versions; there must be one of each for every token"
            )


class RolloutEngine(Protocol):
    """`LocalEngine`, `VllmEngine`, `SglangEngine`, or `ScriptedRolloutEngine` where no network is wanted.

    Attributes:
        name: unique among the engines of a run; the router places rollouts by it.
    """

    name: str

    async def generate(self, prompt_ids: list[int], params: SamplingParams) -> Generation:
        """Continue a prompt. Cancelling the call ends the work and frees its memory.

        Raises:
            UsageError: the engine cannot do what `params` ask for.
            GLM5Error: it failed.
        """

    async def update(self, source: WeightUpdate, version: int) -> str:
        """Serve new weights as `version`; returns their hash afterwards (`rl.weights.hash_tensors`).

        Raises:
            UsageError: a delta on another version than the one served, or tensors that do not fit.
            GLM5Error: it failed.
        """

    async def weight_hash(self) -> str:
        """Hash of the weights being served."""

    async def health(self) -> bool:
        """Whether it can serve."""

    async def close(self) -> None:
        """Give back what it holds."""


async def gathered(deltas: AsyncGenerator[Delta, None]) -> Generation:
    """The one completion that a stream of our own engine consists of; closing it early aborts the work.

    Raises:
        GLM5Error: the engine failed.
    """
    whole = Completion(0)
    async with aclosing(deltas):
        async for delta in deltas:
            whole.add(delta)
    if whole.finish_reason in (None, "error"):
        raise GLM5Error("the engine failed while sampling; its log has the cause")
    return Generation(
        whole.ids,
        [token.logprob for token in whole.tokens if token.logprob is not None],
        [token.version for token in whole.tokens],
        whole.finish_reason or "error",
        whole.cached_tokens,
    )
