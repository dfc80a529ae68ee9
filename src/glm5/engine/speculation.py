"""Multi-token prediction as speculative decoding (GLM-5 report §2.1; Leviathan et al. 2023, arXiv 2211.17192).

    step:  network over [last token, draft 1, ..., draft k]  ->  k + 1 sampled tokens
           keep them up to the first that differs from its draft
           prediction layer over the kept positions, then k - 1 times over its own output  ->  new drafts

The prediction layer has its own rows in the same pages. Its row at position i is made from the hidden state of token i
and from token i + 1; in a page found by prefix lookup the last row knows the next token of whoever filled the page,
which can spoil a draft but never a token. Rejected drafts leave rows behind that the next step overwrites.
"""

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from glm5.engine.batch import Batch, Span, build_batch
from glm5.engine.forward import Network, Selections
from glm5.engine.scheduler import Scheduler
from glm5.engine.sequence import Sequence

_WORTH_VERIFYING = 0.35  # the least probability of being reached and right at which one more draft pays
_MEMORY = 0.9  # weight of the past in the running mean of acceptance
_FIRST_GUESS = 0.8


@dataclass(frozen=True, slots=True)
class Kept:
    """Positions of one sequence that this step computed for good: their first row in the batch, start and number."""

    sequence: Sequence
    first_row: int
    start: int
    count: int


class Speculator:
    """Proposes drafts and learns how many are worth while.

    Attributes:
        drafts: verification steps that had drafts; drafted, accepted: tokens; accepted_per_position: of them, by place.
    """

    def __init__(self, network: Network, scheduler: Scheduler) -> None:
        self._network, self._scheduler, self._settings = network, scheduler, scheduler.settings
        self.drafts = self.drafted = self.accepted = 0
        self.accepted_per_position = [0] * self._settings.max_drafts
        self._mean = _FIRST_GUESS

    def start(self, sequence: Sequence) -> None:
        """Decide how many drafts a new sequence begins with: at least one, so that there is something to measure."""
        if self._settings.max_drafts:
            sequence.acceptance = max(self._mean, 0.5)
            sequence.draft_limit = max(1, self._limit(sequence.acceptance))

    def verified(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Take note of one verification. Once a sequence's limit is 0 it stays so: its draft rows are not kept up."""
        self.drafts += 1
        self.drafted += drafted
        self.accepted += accepted
        sequence.drafted += drafted
        sequence.accepted += accepted
        for place in range(accepted):
            self.accepted_per_position[place] += 1
        for hit in [1.0] * accepted + [0.0] * (accepted < drafted):
            sequence.acceptance = _MEMORY * sequence.acceptance + (1 - _MEMORY) * hit
        self._mean = 0.99 * self._mean + 0.01 * sequence.acceptance
        sequence.draft_limit = self._limit(sequence.acceptance)

    def propose(self, kept: Items[Kept], hidden: Tensor) -> None:
        """Run the prediction layer behind the network and leave drafts in the sequences that go on decoding.

        Args:
            kept: of the sequences that draft; what they sampled is in their `ids` already.
            hidden: [N, d] of the step's batch.
        """
        if not kept:
            return
        spans = [
            Span(each.sequence.ids[each.start + 1 : each.start + each.count + 1], each.start, each.sequence.pages)
            for each in kept
        ]
        batch = self._batch(spans)
        inputs = hidden.new_empty(len(batch.ids), hidden.shape[1])
        for each, rows in zip(kept, batch.order):
            inputs[rows] = hidden[each.first_row : each.first_row + each.count]
        selections = Selections()
        outs = self._network.predict(batch, inputs, selections)
        drafting = []
        for each, rows in zip(kept, batch.order):
            sequence = each.sequence
            sequence.drafts = []
            if sequence.pending == 1:
                # Not more than there is room and reason for: the sampled token itself is one of those still allowed.
                limit = min(sequence.draft_limit, sequence.tokens_left - 1)
                limit = min(limit, self._scheduler.room_for(sequence, 1 + limit) - 1)
                if limit > 0:
                    drafting.append((sequence, limit, rows.stop - 1))
        state = outs[[row for _, _, row in drafting]]
        shared = self._shared(selections, batch, [row for _, _, row in drafting])
        while drafting:
            tokens = self._network.logits(state).argmax(-1).tolist()
            for (sequence, _, _), token in zip(drafting, tokens):
                sequence.drafts.append(token)
            going = [i for i, (sequence, limit, _) in enumerate(drafting) if len(sequence.drafts) < limit]
            if not going:
                return
            drafting, state = [drafting[i] for i in going], state[going]
            state, shared = self._deepen([sequence for sequence, _, _ in drafting], state, going, shared)

    def _deepen(
        self, sequences: list[Sequence], state: Tensor, going: list[int], shared: "_Shared | None"
    ) -> tuple[Tensor, "_Shared | None"]:
        """One more prediction depth for each sequence, from its newest draft."""
        spans = [Span(each.drafts[-1:], each.computed + len(each.drafts) - 1, each.pages) for each in sequences]
        batch = self._batch(spans)
        order = torch.tensor([rows.start for rows in batch.order], device=state.device)
        selections = Selections()
        if shared is not None:
            own = batch.slots[order][:, None]
            slots, bias = shared.slots[going], shared.bias[going]
            shared = _Shared(torch.cat([slots, own], 1), torch.cat([bias, bias.new_zeros(len(own), 1, 1)], 2))
            selections = Selections(few=(_placed(shared.slots, order), _placed(shared.bias, order)), is_final=True)
        return self._network.predict(batch, _placed(state, order), selections)[order], shared

    def _shared(self, selections: Selections, batch: Batch, rows: list[int]) -> "_Shared | None":
        """The first depth's selection, for the deeper ones (`index_share_for_mtp_iteration`); only where all made one
        in this very step and by single positions, which is what steady decoding looks like."""
        steady = selections.few is not None and not batch.dense and not batch.chunks
        if not (self._network.config.index_share_for_mtp_iteration and steady and rows):
            return None
        assert selections.few is not None
        return _Shared(selections.few[0][rows], selections.few[1][rows])

    def _batch(self, spans: list[Span]) -> Batch:
        return build_batch(spans, self._network.config, self._network.cache)

    def _limit(self, acceptance: float) -> int:
        """The deepest draft that is still likely enough to be kept, if acceptances are independent."""
        most = self._settings.max_drafts
        if self._settings.draft_tokens != "adaptive" or acceptance >= 1:
            return most
        return min(most, int(math.log(_WORTH_VERIFYING) / math.log(max(acceptance, 1e-6))))


class _Shared(NamedTuple):
    """Selected slots [m, k] and bias [m, 1, k] of each drafting sequence."""

    slots: Tensor
    bias: Tensor


def _placed(values: Tensor, order: Tensor) -> Tensor:
    """Row i of `values` moved to row order[i]."""
    out = torch.empty_like(values)
    out[order] = values
    return out
