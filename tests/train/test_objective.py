"""What pre-training minimises, against loops that spell it out."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm5.model.experts import Routing
from glm5.model.transformer import Transformer
from glm5.ops.loss import IGNORE
from glm5.train.objective import MicroBatch, prediction_targets
from tests.train.small import LENGTH, batch_of, ignore_some, objective, small_model


@st.composite
def packed_rows(draw: st.DrawFn) -> MicroBatch:
    """Random documents laid end to end and cut, some of whose targets do not count."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 14))
    ids, documents, ignored = [], [], []
    for _ in range(rows):
        sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=length + 1))
        owners = [number for number, size in enumerate(sizes) for _ in range(size)]
        owners += [len(sizes)] * (length + 1 - len(owners))
        documents.append(owners[: length + 1])
        ids.append(draw(st.lists(st.integers(0, 9), min_size=length + 1, max_size=length + 1)))
        ignored.append(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    tokens, owner = torch.tensor(ids), torch.tensor(documents)
    targets = tokens[:, 1:].masked_fill(torch.tensor(ignored), IGNORE)
    return MicroBatch(tokens[:, :-1], targets, owner[:, :-1], torch.zeros_like(targets))


@settings(deadline=None, max_examples=150)
@given(batch=packed_rows(), depth=st.integers(1, 5))
def test_targets_of_every_depth_against_a_loop(batch: MicroBatch, depth: int) -> None:
    next_ids, ahead = prediction_targets(batch.targets, batch.document_ids, depth)
    rows, length = batch.targets.shape
    for row in range(rows):
        for t in range(length):
            wanted = IGNORE
            if t + depth < length and batch.document_ids[row, t] == batch.document_ids[row, t + depth]:
                wanted = int(batch.targets[row, t + depth])  # token t + depth + 1
            assert ahead[row, t] == wanted
            if ahead[row, t] != IGNORE and batch.targets[row, t + depth - 1] != IGNORE:
                assert next_ids[row, t] == batch.input_ids[row, t + depth]
    assert int(next_ids.min()) >= 0  # any valid id where there is none


@settings(deadline=None, max_examples=80)
@given(batch=packed_rows(), depth=st.integers(1, 5))
def test_nothing_is_predicted_from_inside_another_document(batch: MicroBatch, depth: int) -> None:
    """Every token a counted prediction reads, from t to t + depth, is of one document. What it predicts may be the
    border that ends this document, as in the main loss."""
    _, ahead = prediction_targets(batch.targets, batch.document_ids, depth)
    for row, t in (ahead != IGNORE).nonzero().tolist():
        assert len(set(batch.document_ids[row, t : t + depth + 1].tolist())) == 1


def gradients(model: Transformer, batch: MicroBatch, micro_batches: int, **changes: Any) -> dict[str, Tensor]:
    """Of one step, read in so many portions."""
    losses = objective(**changes)
    model.zero_grad(set_to_none=True)
    rows = len(batch.input_ids) // micro_batches
    portions = [MicroBatch(*(f[i * rows : (i + 1) * rows] for f in batch)) for i in range(micro_batches)]
    counts = torch.stack([losses.counts(portion) for portion in portions]).sum(0)
    for portion in portions:
        losses(model, portion, counts, 1 / micro_batches).total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_step_does_not_depend_on_its_micro_batches() -> None:
    """Portions with different numbers of targets: each token counts the same wherever it lies."""
    model, batch = small_model(), ignore_some(batch_of(8))
    batch.targets[:2, 3:] = IGNORE
    whole = gradients(model, batch, 1)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == whole.keys()
    for count in (2, 4, 8):
        portions = gradients(model, batch, count)
        for name, gradient in whole.items():
            torch.testing.assert_close(portions[name], gradient, atol=1e-6, rtol=1e-4, msg=f"{name} in {count}")


@torch.no_grad()
def test_losses_against_a_plain_loop() -> None:
    """Log-softmax of the logits, token by token; depth d from the hidden states of depth d - 1."""
    model, batch = small_model(), ignore_some(batch_of(3))
    losses = objective(mtp_steps=3)
    counts = losses.counts(batch)
    result = losses(model, batch, counts, 1.0)
    assert counts[0] == (batch.targets != IGNORE).sum()

    output = model(batch.input_ids, batch.positions, batch.document_ids, sparse=False)
    hidden, wanted = output.hidden, [plain_nll(model, output.hidden, batch.targets)]
    frame = model.frame(batch.input_ids, batch.positions, batch.document_ids, sparse=False)
    routing: list[Routing] = list(output.routing)
    for depth in (1, 2, 3):
        next_ids, ahead = prediction_targets(batch.targets, batch.document_ids, depth)
        assert model.mtp is not None
        hidden, routed = model.mtp(hidden, model.embed(next_ids), frame)
        assert routed is not None
        routing.append(routed)
        wanted.append(plain_nll(model, hidden, ahead))
        assert counts[depth] == (ahead != IGNORE).sum()
    assert float(result.main) == pytest.approx(wanted[0], rel=1e-5)
    assert result.mtp.tolist() == pytest.approx(wanted[1:], rel=1e-5)
    balance = torch.stack([r.balance_loss for r in routing]).mean()
    mtp = sum(nats / count for nats, count in zip(wanted[1:], counts[1:].tolist(), strict=True)) / 3
    assert float(result.balance) == pytest.approx(float(balance), rel=1e-5)
    assert float(result.total) == pytest.approx(wanted[0] / float(counts[0]) + 0.3 * mtp + 0.01 * float(balance), 1e-5)


def plain_nll(model: Transformer, hidden: Tensor, targets: Tensor) -> float:
    log_probs = model.logits(hidden).log_softmax(-1)
    return -sum(float(log_probs[row, t, targets[row, t]]) for row, t in (targets != IGNORE).nonzero().tolist())


def test_rows_of_one_document_need_no_mask_and_change_nothing() -> None:
    """Plain causal attention is taken where it is the same; here the same rows go both ways."""
    model, batch = small_model(), batch_of(2)
    one = batch._replace(
        document_ids=torch.zeros_like(batch.document_ids), positions=torch.arange(LENGTH).expand(2, LENGTH)
    )
    masked = one._replace(document_ids=one.document_ids.clone())
    masked.document_ids[:, -1] = 1  # a border that only cuts the last position off, whose target does not count
    one.targets[:, -1] = IGNORE
    losses = objective(mtp_steps=0)
    sums = [float(losses(model, rows, losses.counts(rows), 1.0).main) for rows in (one, masked)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


@pytest.mark.parametrize(("fraction", "rows"), [(1.0, 8), (0.5, 4), (0.25, 2), (0.01, 1)])
def test_prediction_on_a_share_of_the_rows(fraction: float, rows: int) -> None:
    """The losses are those of every n-th row alone, normalised by their own targets."""
    model, batch = small_model(), ignore_some(batch_of(8))
    share = objective(mtp_rows_fraction=fraction)
    first = MicroBatch(*(field[share.mtp_rows] for field in batch))
    assert len(first.targets) == rows
    every = objective()
    counts = share.counts(batch)
    torch.testing.assert_close(counts[1:], every.counts(first)[1:])
    assert counts[0] == every.counts(batch)[0]
    alone = every(model, first, every.counts(first), 1.0)
    torch.testing.assert_close(share(model, batch, counts, 1.0).mtp, alone.mtp, rtol=1e-4, atol=1e-4)


def test_without_prediction_its_layer_gets_no_gradient() -> None:
    model = small_model()
    received = gradients(model, batch_of(4), 1, mtp_steps=0)
    assert received
    assert not [name for name in received if name.startswith("mtp.")]
    assert objective(mtp_steps=0).counts(batch_of(4)).shape == (1,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_checkpointing_changes_nothing(dtype: torch.dtype) -> None:
    """Bit for bit: losses, gradients, and loads, which recomputation must not count twice."""
    batch, losses = batch_of(4), objective(dtype=dtype)
    results, received = [], []
    for recompute in (False, True):
        model = small_model()
        if recompute:
            model.checkpoint_activations()
        result = losses(model, batch, losses.counts(batch), 1.0)
        result.total.backward()
        results.append(result)
        received.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)
    assert all(torch.equal(gradient, received[1][name]) for name, gradient in received[0].items())
    slots = batch.input_ids.numel() * 2
    assert results[1].load.sum(1).tolist() == [slots, 2 * slots]  # one decoder layer; the prediction layer ran twice


def test_an_even_router_has_balance_loss_one() -> None:
    """All experts alike: every one has the same mean score, and slots spread by the bias alone."""
    model = small_model(num_experts_per_tok=12)  # all chosen, so the load is even; the scores are, with zero weights
    for module in (model.model.layers[1], model.mtp.block):  # type: ignore[union-attr]
        torch.nn.init.zeros_(module.mlp.gate.weight)  # type: ignore[union-attr,arg-type]
    losses = objective()
    batch = batch_of(4)
    result = losses(model, batch, losses.counts(batch), 1.0)
    assert float(result.balance) == pytest.approx(1.0, abs=1e-5)
    assert float(objective()(small_model(), batch, losses.counts(batch), 1.0).balance) > 1.0


def test_the_balance_loss_is_a_mean_over_rows_whatever_the_micro_batches() -> None:
    model, batch, losses = small_model(), batch_of(4), objective()
    counts = losses.counts(batch)
    whole = float(losses(model, batch, counts, 1.0).balance)
    parts = [losses(model, MicroBatch(*(f[i : i + 1] for f in batch)), counts, 0.25).balance for i in range(4)]
    assert float(torch.stack(parts).mean()) == pytest.approx(whole, rel=1e-5)
