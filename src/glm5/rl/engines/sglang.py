"""SGLang as a rollout engine, through the server's own HTTP interface (its guide "SGLang for RL Systems").

Start it with `SGLANG_RETURN_ORIGINAL_LOGPROB=1`, so that log-probabilities are those of temperature 1, and with
`--skip-tokenizer-init` if nothing else needs text. Written against the documented interface and tested with a small
server that holds requests to it; no SGLang has been run with it here.
"""

from pathlib import Path
from typing import Any

from glm5.engine.records import FinishReason, SamplingParams
from glm5.errors import GLM5Error
from glm5.rl.engines.base import Generation
from glm5.rl.engines.remote import RemoteEngine

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


class SglangEngine(RemoteEngine):
    """A server of SGLang; arguments as for `RemoteEngine`."""

    async def _complete(self, prompt_ids: list[int], params: SamplingParams, version: int) -> Generation:
        body = {
            "input_ids": prompt_ids,
            "sampling_params": _sampling(params),
            "return_logprob": True,
            "stream": False,
        }
        answer = await self._post("/generate", body)
        meta = answer["meta_info"]
        # Each entry is (log-probability, id, text); `output_ids` may lack the stop token, these never do.
        sampled = meta.get("output_token_logprobs") or []
        kind = (meta.get("finish_reason") or {}).get("type")
        if kind not in _REASONS:
            raise GLM5Error(f"engine {self.name}: /generate ended for the unknown reason {kind!r}")
        return Generation(
            [entry[1] for entry in sampled],
            [entry[0] for entry in sampled],
            [version] * len(sampled),
            _REASONS[kind],
            meta.get("cached_tokens") or 0,
        )

    async def _pause(self) -> None:
        await self._post("/pause_generation", {"mode": "abort"})

    async def _load(self, folder: Path, version: int) -> None:
        body = {"model_path": str(folder), "weight_version": str(version), "flush_cache": True}
        answer = await self._post("/update_weights_from_disk", body)
        if not answer.get("success"):
            raise GLM5Error(f"engine {self.name} did not load {folder}: {answer.get('message')}")
        await self._post("/flush_cache")  # an error when requests still run: their cache would be the old weights'

    async def _resume(self) -> None:
        await self._post("/continue_generation", {})


def _sampling(params: SamplingParams) -> dict[str, Any]:
    """The parameters as SGLang names them, those that are off left out."""
    body: dict[str, Any] = {
        "max_new_tokens": params.max_tokens,
        "min_new_tokens": params.min_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "stop_token_ids": list(params.stop_ids),
        "ignore_eos": params.ignore_eos,
        "skip_special_tokens": False,
    }
    if params.seed is not None:
        body["sampling_seed"] = params.seed
    if params.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    return body
