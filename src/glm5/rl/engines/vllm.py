"""vLLM as a rollout engine, through its OpenAI server and the routes it has for reinforcement learning.

Start it with `VLLM_SERVER_DEV_MODE=1`, which opens the routes that pause it and change its weights, and with
`--skip-tokenizer-init` where nothing else needs text. Log-probabilities are the raw ones (`--logprobs-mode
raw_logprobs`, its default). With `--enable-prompt-tokens-details` it also tells what its prefix cache had. Weights are
reloaded from a checkpoint folder by `reload_weights`, which every worker has.

Tested against vLLM 0.32 on a CPU, with GLM-5 weights relabelled as DeepSeek-V3 (its sparse attention needs a GPU).
There it reloads dense networks exactly and experts wrongly, and no hash of ours can see into its memory: on a new
installation compare log-probabilities before and after an update with the very weights it serves.
"""

from pathlib import Path
from typing import Any

from glm5.engine.records import FinishReason, SamplingParams
from glm5.errors import GLM5Error
from glm5.rl.engines.base import Generation
from glm5.rl.engines.remote import RemoteEngine

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort", "repetition": "repetition"}


class VllmEngine(RemoteEngine):
    """A server of vLLM; arguments as for `RemoteEngine`."""

    async def _complete(self, prompt_ids: list[int], params: SamplingParams, version: int) -> Generation:
        answer = await self._post("/v1/completions", {"prompt": prompt_ids, **_sampling(params)})
        [choice] = answer["choices"]
        reason = choice["finish_reason"]
        if reason not in _REASONS:
            raise GLM5Error(f"engine {self.name}: a completion ended for the unknown reason {reason!r}")
        ids = choice.get("token_ids") or []
        details = answer["usage"].get("prompt_tokens_details") or {}
        return Generation(
            ids,
            (choice.get("logprobs") or {}).get("token_logprobs") or [],
            [version] * len(ids),
            _REASONS[reason],
            details.get("cached_tokens") or 0,
        )

    async def _pause(self) -> None:
        await self._post("/pause", mode="abort")

    async def _load(self, folder: Path, version: int) -> None:
        await self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        forgotten = await self._post("/reset_prefix_cache")
        if not forgotten["success"]:
            raise GLM5Error(f"engine {self.name} still holds prefixes of the weights before version {version}")

    async def _resume(self) -> None:
        await self._post("/resume")


def _sampling(params: SamplingParams) -> dict[str, Any]:
    """The parameters as vLLM names them."""
    body: dict[str, Any] = {
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "stop_token_ids": list(params.stop_ids),
        "ignore_eos": params.ignore_eos,
        "logprobs": 0,  # of the sampled token alone
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
    }
    if params.seed is not None:
        body["seed"] = params.seed
    if params.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    return body
