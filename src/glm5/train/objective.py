"""What pre-training and fine-tuning minimise: next-token loss, multi-token-prediction losses, the experts' balance.

    L = L_main + lambda * mean_d L_d + alpha * L_balance            (GLM-5 report §2.1, GLM-4.5 §2.4)

L_d predicts token t + 1 + d from the hidden state of depth d - 1 and the embedding of token t + d; all depths share one
layer. A target that lies in another document, or beyond the row, is not counted. Fine-tuning counts only the targets
that its loss mask names; the others still stand in the prediction layer's input, as they do when it drafts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from glm5.data.rows import MaskedMicroBatch, MicroBatch
from glm5.model.experts import Routing
from glm5.model.transformer import Transformer
from glm5.ops.loss import IGNORE, linear_cross_entropy

AnyMicroBatch = MicroBatch | MaskedMicroBatch


def learned_targets(batch: AnyMicroBatch) -> Tensor:
    """The targets that count, `IGNORE` where there is none; int64 [B, T]."""
    if isinstance(batch, MicroBatch):
        return batch.targets
    return batch.targets.masked_fill(~batch.loss_mask, IGNORE)


class Losses(NamedTuple):
    """Losses of a micro-batch.

    Attributes:
        total: scalar with gradient; micro-batches of a step add up to the step's objective.
        main: sum over tokens of the next-token loss, nats.
        mtp: the same for each prediction depth; [depths].
        balance: mean sequence-level balance loss over MoE layers.
        load: fp32 [routers, E], slots each expert was given; the prediction layer's router is the last row.
    """

    total: Tensor
    main: Tensor
    mtp: Tensor
    balance: Tensor
    load: Tensor


def prediction_targets(
    targets: Tensor, document_ids: Tensor, depth: int, learned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of prediction depth `depth` >= 1.

    Args:
        targets: next tokens [B, T].
        learned: `learned_targets`, where they are fewer.

    Returns:
        next_ids: token t + depth at every position (any valid id where there is none), [B, T].
        ahead: token t + depth + 1, `IGNORE` where it is beyond the row or was cut off by a document border, [B, T].
    """
    length = targets.shape[1]
    next_ids, ahead = targets.clamp(min=0), torch.full_like(targets, IGNORE)
    if depth < length:
        next_ids = torch.cat(
            [targets[:, depth - 1 :].clamp(min=0), targets.new_zeros(targets.shape[0], depth - 1)], dim=1
        )
        ahead[:, : length - depth] = (targets if learned is None else learned)[:, depth:]
        # Position t may only predict what its own document continues with: position t + depth must still be in it.
        crosses = document_ids[:, : length - depth] != document_ids[:, depth:]
        ahead[:, : length - depth].masked_fill_(crosses, IGNORE)
    return next_ids, ahead


class PretrainingObjective:
    """Computes the losses of micro-batches, masked ones too.

    Args:
        mtp_steps: prediction depths; 0 turns multi-token prediction off.
        mtp_rows_fraction: share of the rows on which they are computed, as one in a whole number. Ours: every depth
        costs a layer and
            a head, which a four-layer network feels; rows are shuffled, so a share of them is an unbiased estimate.
        sparse: whether attention selects; a network that has no trained indexer yet is pre-trained dense.
    """

    def __init__(
        self,
        *,
        mtp_steps: int,
        mtp_loss_weight: float,
        mtp_rows_fraction: float,
        balance_loss_weight: float,
        loss_chunk_tokens: int,
        dtype: torch.dtype,
        sparse: bool = False,
    ) -> None:
        self.mtp_steps, self.mtp_loss_weight, self.mtp_rows_fraction = mtp_steps, mtp_loss_weight, mtp_rows_fraction
        self.balance_loss_weight, self.loss_chunk_tokens = balance_loss_weight, loss_chunk_tokens
        self.dtype, self.sparse = dtype, sparse

    @property
    def mtp_rows(self) -> slice:
        """The rows of a micro-batch that are predicted further ahead: spread evenly, so that halves have half of
        them."""
        return slice(None, None, max(1, round(1 / self.mtp_rows_fraction)))

    def counts(self, batch: AnyMicroBatch) -> Tensor:
        """Targets of the main loss and of each depth, fp32 [1 + depths]; summed over a step they normalise its
        losses."""
        learned, rows = learned_targets(batch), self.mtp_rows
        counted = [(learned != IGNORE).sum()]
        for depth in range(1, self.mtp_steps + 1):
            _, ahead = prediction_targets(batch.targets[rows], batch.document_ids[rows], depth, learned[rows])
            counted.append((ahead != IGNORE).sum())
        return torch.stack(counted).float()

    def __call__(self, model: Transformer, batch: AnyMicroBatch, step_counts: Tensor, share: float) -> Losses:
        """Losses of one micro-batch.

        Args:
            step_counts: `counts` summed over all micro-batches of the step, on all processes.
            share: this micro-batch's share of the step's rows.
        """
        output = model(
            batch.input_ids, batch.positions, same_document(batch.document_ids), sparse=self.sparse, dtype=self.dtype
        )
        main, main_nll = self._loss(model, output.hidden, learned_targets(batch), step_counts[0])
        predicted, mtp_nll, mtp_routing = self._predict_ahead(model, output.hidden, batch, step_counts[1:])
        routing = output.routing + mtp_routing
        balance = torch.stack([r.balance_loss for r in routing]).mean() if routing else main.new_zeros(())
        total = main + self.mtp_loss_weight * predicted + self.balance_loss_weight * share * balance
        load = [r.load for r in output.routing]
        if mtp_routing:
            load.append(torch.stack([r.load for r in mtp_routing]).sum(0))
        stacked = torch.stack(load) if load else main.new_zeros(0, 0)
        return Losses(total, main_nll, mtp_nll, balance.detach(), stacked)

    def _loss(self, model: Transformer, hidden: Tensor, targets: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Loss with gradient, normalised by the step's count, and the plain sum."""
        weights = (1.0 / count.clamp(min=1)).expand(targets.numel())
        loss, nll = linear_cross_entropy(
            hidden.flatten(0, 1), model.lm_head.weight, targets.flatten(), weights, self.loss_chunk_tokens
        )
        return loss, nll.sum()

    def _predict_ahead(
        self, model: Transformer, hidden: Tensor, batch: AnyMicroBatch, counts: Tensor
    ) -> tuple[Tensor, Tensor, list[Routing]]:
        """Mean of the depths' losses, their plain sums, and what the prediction layer's router did."""
        if not self.mtp_steps:
            return hidden.new_zeros((), dtype=torch.float32), torch.zeros(0, device=hidden.device), []
        assert model.mtp is not None
        rows = self.mtp_rows
        targets, documents, learned = batch.targets[rows], batch.document_ids[rows], learned_targets(batch)[rows]
        frame = model.frame(batch.input_ids[rows], batch.positions[rows], same_document(documents), sparse=self.sparse)
        hidden = hidden[rows]
        losses, sums, routing = [], [], []
        for depth in range(1, self.mtp_steps + 1):
            next_ids, ahead = prediction_targets(targets, documents, depth, learned)
            hidden, routed = model.mtp(hidden, model.embed(next_ids, self.dtype), frame)
            loss, nll = self._loss(model, hidden, ahead, counts[depth - 1])
            losses.append(loss)
            sums.append(nll)
            if routed is not None:
                routing.append(routed)
        return torch.stack(losses).mean(), torch.stack(sums), routing


def same_document(document_ids: Tensor) -> Tensor | None:
    """The documents to keep apart; None where every row is one document: plain causal attention needs no mask."""
    return None if bool((document_ids == document_ids[:, :1]).all()) else document_ids
