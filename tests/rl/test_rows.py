"""Samples laid into rows: nothing lost, nothing that its neighbours can see, padding that harms nobody."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.errors import GLM5Error
from glm5.model.transformer import Transformer
from glm5.ops.loss import IGNORE
from glm5.rl.objective import PolicyObjective
from glm5.rl.records import TrainingSample
from glm5.rl.rows import pack_samples
from tests.rl import small_rl
from tests.train.small import small_config


def sample(number: int, prompt: int, answer: int) -> TrainingSample:
    """Ids that tell where they come from."""
    ids = [(7 * number + place) % 40 + 1 for place in range(prompt + answer)]
    mask = [False] * prompt + [True] * answer
    logprobs = [-0.01 * (number + 1) * place * trained for place, trained in enumerate(mask)]
    versions = [0 if trained else -1 for trained in mask]
    return TrainingSample(ids, mask, logprobs, versions, float(number), "icepop", "small", f"r{number}", 1.0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=20), st.integers(1, 4))
def test_every_token_is_there_once(shapes: list[tuple[int, int]], multiple: int) -> None:
    samples = [sample(number, prompt, answer) for number, (prompt, answer) in enumerate(shapes)]
    rows = pack_samples(samples, small_rl.settings(), multiple)
    assert rows.input_ids.shape[0] % multiple == 0
    assert float(rows.weights.sum()) == pytest.approx(1.0)
    found = []
    for row in range(len(rows.input_ids)):
        for document in rows.document_ids[row].unique().tolist():
            if document < 0:
                assert (rows.targets[row][rows.document_ids[row] < 0] == IGNORE).all()
                continue
            here = rows.document_ids[row] == document
            inputs, targets = rows.input_ids[row][here].tolist(), rows.targets[row][here].tolist()
            assert rows.positions[row][here].tolist() == list(range(len(inputs)))
            ids = [*inputs, next(target for target in reversed(targets) if target != IGNORE)]
            found.append((ids, [target != IGNORE for target in targets], float(rows.advantages[row][here][0])))
    wanted = [(each.ids, each.loss_mask[1:], each.advantage) for each in samples]
    assert sorted(found) == sorted(wanted)


def test_padding_is_harmless_under_sparse_selection() -> None:
    """Beyond top-k a padding query selects too; it must find something it may see, or its softmax is not a number."""
    network = Transformer(small_config(index_topk=4))
    network.init_weights(0)
    given_settings = small_rl.settings(dtype="bfloat16", context_length=256)
    rows = pack_samples([sample(0, 150, 20), sample(1, 3, 4)], given_settings, 4)  # three rows are all padding
    objective = PolicyObjective(given_settings, sparse=True)
    losses = objective(network, rows, objective.counts(rows), 1.0)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(GLM5Error):
        pack_samples([], small_rl.settings())
