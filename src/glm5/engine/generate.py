"""Plain generation: one batch, one cache, one token a row and step. The serving engine is built beside it.

Prompts of different lengths are padded on the left; padding is a document of its own, so no token ever sees it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glm5.errors import GLM5Error, UsageError
from glm5.model.cache import Cache
from glm5.model.transformer import Transformer

_PREFILL_TOKENS = 2048  # prompt tokens taken at a time: bounds the memory of their attention masks


@dataclass(slots=True)
class Completion:
    """What followed one prompt.

    Attributes:
        ids: new tokens, the one that stopped it included.
        logprobs: log-probability of each under the model itself (temperature 1), in nats.
        finish_reason: "stop" (a stop id) or "length".
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    sparse: bool = True,
    dtype: torch.dtype | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Continue every prompt.

    Args:
        temperature: 0 takes the most likely token.
        top_p: sample among the most likely tokens that together have this probability.
        stop_ids: tokens that end a completion.
        sparse: whether attention selects (see `Transformer.forward`).
        on_token: called with (row, token) as each token is made.

    Raises:
        UsageError: an empty prompt, an id outside the vocabulary, or more tokens than the model has positions.
        GLM5Error: the weights give numbers that are not finite.
    """
    _check(model, prompts, max_new_tokens, temperature, top_p)
    device = model.lm_head.weight.device
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64, device=device)
    documents = torch.full_like(ids, -1)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        documents[row, longest - len(prompt) :] = 0
    positions = (documents + 1).cumsum(1).sub(1).clamp(min=0)

    cache = Cache(len(prompts), longest + max_new_tokens)
    hidden = ids  # replaced below: every prompt has a token
    for start in range(0, longest, _PREFILL_TOKENS):
        part = slice(start, start + _PREFILL_TOKENS)
        hidden = model(
            ids[:, part], positions[:, part], documents[:, part], cache=cache, sparse=sparse, dtype=dtype
        ).hidden
    generator = torch.Generator(device).manual_seed(seed)
    completions = [Completion() for _ in prompts]
    running = set(range(len(prompts)))
    position = positions[:, -1:]
    for _ in range(max_new_tokens):
        logits = model.logits(hidden[:, -1])
        if not bool(torch.isfinite(logits).all()):
            raise GLM5Error("the network's output is not finite: its weights are damaged, or its training diverged")
        chosen = _choose(logits, temperature, top_p, generator)
        logprobs = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        for row in sorted(running):
            token = int(chosen[row])
            completions[row].ids.append(token)
            completions[row].logprobs.append(float(logprobs[row]))
            if on_token is not None:
                on_token(row, token)
            if token in stop_ids:
                completions[row].finish_reason = "stop"
                running.discard(row)
        if not running or len(completions[min(running)].ids) == max_new_tokens:
            break
        position = position + 1
        document = torch.zeros_like(position)
        hidden = model(
            chosen[:, None], position, document, cache=cache, sparse=sparse, absorbed=True, dtype=dtype
        ).hidden
    return completions


def _choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token a row: [B, V] -> int64 [B]."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # the most likely token is never beyond
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(beyond, 0.0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _check(
    model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, top_p: float
) -> None:
    if not prompts or not all(prompts):
        raise UsageError("a prompt needs at least one token")
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens = {max_new_tokens} must be at least 1")
    if temperature < 0 or not 0 < top_p <= 1:
        raise UsageError(f"temperature = {temperature} must be at least 0, top_p = {top_p} above 0 and at most 1")
    vocabulary = model.config.vocab_size
    for prompt in prompts:
        outside = next((token for token in prompt if not 0 <= token < vocabulary), None)
        if outside is not None:
            raise UsageError(f"token id {outside} is outside the vocabulary of {vocabulary}")
    needed = max(len(prompt) for prompt in prompts) + max_new_tokens
    if needed > model.config.max_position_embeddings:
        raise UsageError(
            f"{needed} tokens (prompt and completion) do not fit the context of {model.config.max_position_embeddings}"
        )
