"""From logits to a token: one pure function of the logits, the request's wishes, its history and a number.

The number is uniform in [0, 1) and belongs to (seed, index, position), not to a stream of draws. So a token does not
depend on what else is in the batch, on a preemption in between or on speculation: **a draft is right exactly when it is
the token that would have been sampled**. That is rejection sampling with a point mass as the proposal (Leviathan et al.
2023, arXiv 2211.17192): the draft x is accepted with probability p(x), and what replaces it follows p without x.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glm5.engine.records import SamplingParams, TokenOutput

if TYPE_CHECKING:
    from glm5.engine.grammar import GrammarGuide
    from glm5.text.thinking import ThinkingBudget


def uniform(seed: int, index: int, position: int) -> float:
    """The number in [0, 1) that decides the token at `position` of completion `index`."""
    key = f"{seed}/{index}/{position}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little") / 2**64


class SamplingState:
    """What one sequence remembers for sampling."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab_size: int,
        end_ids: frozenset[int],
        device: torch.device | None = None,
        guide: "GrammarGuide | None" = None,
        budget: "ThinkingBudget | None" = None,
    ) -> None:
        """Start behind `prompt`; `end_ids` may not be sampled before `min_tokens`. Logits come on `device`."""
        self.params, self.guide, self.budget = params, guide, budget
        self._end_ids = torch.tensor(sorted(end_ids), dtype=torch.int64, device=device)
        self._generated = 0
        self._counts = self._seen = None
        if params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1:
            self._counts = torch.zeros(vocab_size, device=device)
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(prompt, device=device)] = True
        self._bias: tuple[Tensor, Tensor] | None = None
        if params.logit_bias:
            tokens, values = list(params.logit_bias), list(params.logit_bias.values())
            self._bias = torch.tensor(tokens, device=device), torch.tensor(values, device=device)

    @property
    def is_plain(self) -> bool:
        """Whether the logits are sampled as they are at this point."""
        early = self._generated < self.params.min_tokens and len(self._end_ids) > 0
        return self._counts is None and self._bias is None and self.guide is None and self.budget is None and not early

    def adjust(self, logits: Tensor) -> Tensor:
        """Logits [V] with bias, penalties, grammar and forced tokens applied, as a new tensor."""
        params = self.params
        logits = logits.clone()
        if self._bias is not None:
            logits[self._bias[0]] += self._bias[1]
        if self._counts is not None and self._seen is not None:
            r = params.repetition_penalty
            logits = torch.where(self._seen, torch.where(logits > 0, logits / r, logits * r), logits)
            logits -= params.frequency_penalty * self._counts + params.presence_penalty * (self._counts > 0)
        if self._generated < params.min_tokens:
            logits[self._end_ids] = float("-inf")
        if self.guide is not None:
            self.guide.mask(logits)
        forced = None if self.budget is None else self.budget.forced
        if forced is not None:
            logits.fill_(float("-inf"))[forced] = 0.0
        return logits

    def observe(self, token: int) -> None:
        """Account for a token that has been sampled."""
        self._generated += 1
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True
        if self.guide is not None:
            self.guide.observe(token)
        if self.budget is not None:
            self.budget.observe(token)


def choose(logits: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]) -> list[int]:
    """One token a row.

    Args:
        logits: fp32 [n, V], adjusted.
        numbers: the uniform number of each row.
    """
    if all(each.temperature == 0 for each in params):
        return logits.argmax(-1).tolist()
    device = logits.device
    temperature = torch.tensor([each.temperature or 1.0 for each in params], device=device)
    logits = logits / temperature[:, None]
    filtered = any(each.top_p < 1 or each.top_k or each.min_p for each in params)
    order = None
    if filtered:
        logits, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = logits.softmax(-1)
    if filtered:
        probabilities = _filter(probabilities, params)
    # The inverse of the cumulative distribution at the row's number; in fp64, or a large vocabulary's tail is lost.
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    targets = torch.tensor(numbers, dtype=torch.float64, device=device)[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, targets, right=True).clamp(max=logits.shape[1] - 1)
    greedy = [row for row, each in enumerate(params) if each.temperature == 0]
    if greedy:
        chosen[greedy] = logits[greedy].argmax(-1, keepdim=True)
    return (chosen if order is None else order.gather(1, chosen))[:, 0].tolist()


def _filter(probabilities: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Zero what top-p, top-k and min-p exclude from rows in descending order; the first is never excluded."""
    width, device = probabilities.shape[1], probabilities.device
    top_p = torch.tensor([each.top_p for each in params], device=device)[:, None]
    top_k = torch.tensor([each.top_k or width for each in params], device=device)[:, None]
    min_p = torch.tensor([each.min_p for each in params], device=device)[:, None]
    before = probabilities.cumsum(-1) - probabilities
    excluded = (before >= top_p) & (top_p < 1) | (torch.arange(width, device=device) >= top_k)
    excluded |= probabilities < min_p * probabilities[:, :1]
    excluded[:, 0] = False
    return probabilities.masked_fill(excluded, 0.0)


def describe(logits: Tensor, tokens: Sequence[int], tops: Sequence[int | None], version: int) -> list[TokenOutput]:
    """Records of chosen tokens, with log-probabilities of the unadjusted logits [n, V] where asked for.

    Args:
        tops: for each row, how many of the most likely tokens to name; None for no log-probability at all.
    """
    outputs = [TokenOutput(token, version=version) for token in tokens]
    asked = [row for row, top in enumerate(tops) if top is not None]
    if not asked:
        return outputs
    logprobs = (logits if len(asked) == len(tops) else logits[asked]).log_softmax(-1)
    chosen = torch.tensor([[tokens[row]] for row in asked], device=logits.device)
    own = logprobs.gather(1, chosen)[:, 0].tolist()
    most = max(top or 0 for top in tops)
    best = logprobs.topk(most, dim=-1) if most else None
    for i, row in enumerate(asked):
        top = tops[row] or 0
        likely = [] if best is None else list(zip(best.indices[i, :top].tolist(), best.values[i, :top].tolist()))
        outputs[row] = TokenOutput(tokens[row], own[i], likely, version)
    return outputs
