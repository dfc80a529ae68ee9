"""The same weights give the same numbers here and in `transformers`, with selection at work.

Every comparison runs past `index_topk`: below it each indexer, right or wrong, selects everything.
"""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glm5.engine.generate import generate
from glm5.model.transformer import Transformer
from tests.model.shapes import SHAPES, TINY, logits, reference, saved, tiny_config, tokens

TOPK = TINY["index_topk"]


class Pair(NamedTuple):
    ours: Transformer
    theirs: Any


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("shape")
    ours = saved(tiny_config(**SHAPES[request.param]), folder)
    return Pair(ours, reference(folder))


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits(pair: Pair) -> None:
    ids = tokens(2, 6 * TOPK)
    assert_same(logits(pair.ours, ids), pair.theirs(ids).logits)


def test_selection_is_at_work_in_these_tests(pair: Pair) -> None:
    ids = tokens(1, 6 * TOPK)
    apart = (logits(pair.ours, ids, sparse=True) - logits(pair.ours, ids, sparse=False)).abs().amax(-1)[0]
    assert apart[:TOPK].max() < 1e-5, "with no more than index_topk keys there is nothing to leave out"
    if pair.ours.config.has_indexer:
        assert apart[TOPK:].mean() > 0.1
    else:
        assert apart.max() == 0


@torch.no_grad()
def test_left_padding(pair: Pair) -> None:
    """Rows of different lengths, padded on the left: the padding is a document of its own."""
    ids = tokens(3, 5 * TOPK)
    real = torch.ones_like(ids)
    real[1, :7] = 0
    real[2, : 2 * TOPK + 3] = 0
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    ours = logits(pair.ours, ids, positions=positions, document_ids=real - 1)
    theirs = pair.theirs(ids, attention_mask=real, position_ids=positions).logits
    assert_same(ours[real.bool()], theirs[real.bool()])


@pytest.mark.parametrize("restart", [True, False], ids=["positions restart", "positions run on"])
@torch.no_grad()
def test_packed_documents(pair: Pair, restart: bool) -> None:
    """Each document of a packed row reads as if it stood alone; some are longer than `index_topk`, some shorter."""
    lengths = [3 * TOPK, 5, 2 * TOPK + 1, 1]
    ids = tokens(1, sum(lengths))
    documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None] if restart else None
    ours = logits(pair.ours, ids, positions=positions, document_ids=documents)
    alone = [pair.theirs(document).logits for document in ids.split(lengths, dim=1)]
    assert_same(ours, torch.cat(alone, dim=1))


def test_sixty_four_greedy_tokens(pair: Pair) -> None:
    """Prompts of different lengths, one batch: prefill expanded, then single steps in latent space."""
    prompts = [tokens(24).tolist(), tokens(11, seed=1).tolist()]
    padded = torch.tensor([[0] * (24 - len(prompt)) + prompt for prompt in prompts])
    theirs = pair.theirs.generate(padded, attention_mask=(padded > 0).long(), max_new_tokens=64, do_sample=False)
    assert theirs.shape == (2, 24 + 64)
    assert [done.ids for done in generate(pair.ours, prompts, 64, temperature=0)] == theirs[:, 24:].tolist()


def test_gradients(pair: Pair) -> None:
    """Every parameter of the decoder; none reaches the indexers, and none is left without."""
    ids = tokens(2, 5 * TOPK + 1)  # more than one block of the blocked attention

    def loss(scores: Tensor) -> Tensor:
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    for model in pair:
        model.zero_grad()
    loss(pair.ours.logits(pair.ours(ids).hidden)).backward()
    loss(pair.theirs(ids).logits).backward()
    theirs = dict(pair.theirs.named_parameters())
    decoder = {name: parameter for name, parameter in pair.ours.named_parameters() if not name.startswith("mtp.")}
    assert decoder.keys() == theirs.keys()
    for name, parameter in decoder.items():
        if ".indexer." in name:
            assert parameter.grad is None
            assert theirs[name].grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)
