"""One network, several ways to compute it: expanded or absorbed, at once or in pieces. All must agree."""

import functools
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm5.errors import UsageError
from glm5.model.cache import Cache
from glm5.model.indexer import Indexer
from glm5.model.transformer import Transformer
from tests.model.shapes import SHAPES, TINY, logits, perturbed, tiny_config, tokens

TOPK, LENGTH = TINY["index_topk"], 70
LATENT = [name for name, changes in SHAPES.items() if changes.get("attention") != "gqa"]
IDS = tokens(2, LENGTH)


@functools.cache
def network(name: str) -> Transformer:
    return perturbed(tiny_config(**SHAPES[name]))


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def in_pieces(model: Transformer, sizes: list[int], *, absorbed: bool, sparse: bool = True) -> Tensor:
    """Logits of IDS, fed to the cache in pieces of these sizes and then token by token."""
    sizes = [*sizes, *[1] * (LENGTH - sum(sizes))]
    cache = Cache(len(IDS), LENGTH)
    parts = [logits(model, piece, cache=cache, absorbed=absorbed, sparse=sparse) for piece in IDS.split(sizes, dim=1)]
    assert cache.length == LENGTH
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("name", LATENT)
def test_absorbed_equals_expanded(name: str, sparse: bool) -> None:
    model = network(name)
    expanded = logits(model, IDS, sparse=sparse)
    assert_same(logits(model, IDS, sparse=sparse, absorbed=True), expanded)
    if model.config.has_indexer:
        assert not torch.allclose(logits(model, IDS, sparse=not sparse), expanded, atol=0.1)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("name", SHAPES)
def test_token_by_token_through_the_cache_equals_one_pass(name: str, sparse: bool) -> None:
    model = network(name)
    pieces = in_pieces(model, [TOPK - 2], absorbed=model.config.attention == "mla", sparse=sparse)
    assert_same(pieces, logits(model, IDS, sparse=sparse))


@settings(deadline=None, max_examples=12)
@given(cuts=st.sets(st.integers(1, LENGTH - 1), max_size=4), absorbed=st.booleans(), name=st.sampled_from(LATENT))
def test_prefill_may_be_cut_anywhere(cuts: set[int], absorbed: bool, name: str) -> None:
    edges = [0, *sorted(cuts), LENGTH]
    sizes = [end - start for start, end in pairwise(edges)]
    assert_same(in_pieces(network(name), sizes, absorbed=absorbed), logits(network(name), IDS))


def test_padded_rows_stay_apart_in_the_cache() -> None:
    """Left-padded prompts decode as each does alone, past `index_topk`."""
    model, padding, prompt = network("tiny"), 9, 30
    documents = torch.zeros(2, LENGTH, dtype=torch.int64)
    documents[1, :padding] = -1
    positions = torch.arange(LENGTH).repeat(2, 1)
    positions[1] = (positions[1] - padding).clamp(min=0)
    cache, parts = Cache(2, LENGTH), []
    for rows in (slice(0, prompt), *(slice(i, i + 1) for i in range(prompt, LENGTH))):
        where = {"positions": positions[:, rows], "document_ids": documents[:, rows]}
        parts.append(logits(model, IDS[:, rows], cache=cache, absorbed=rows.start > 0, **where))
    found = torch.cat(parts, dim=1)
    assert_same(found[:1], logits(model, IDS[:1]))
    assert_same(found[1:, padding:], logits(model, IDS[1:, padding:]))


def test_selection_is_the_same_in_prefill_and_decode() -> None:
    """Sets of keys, not just outputs: they must not depend on how many queries are scored at once."""
    model = network("tiny")
    indexer = model.get_submodule("model.layers.0.self_attn.indexer")
    assert isinstance(indexer, Indexer)
    x = torch.randn(2, LENGTH, TINY["hidden_size"], generator=torch.Generator().manual_seed(1))
    latent = torch.randn(2, LENGTH, TINY["q_lora_rank"], generator=torch.Generator().manual_seed(2))
    frame = model.frame(IDS, absorbed=True)
    keys = indexer.keys(x, frame)
    at_once = indexer.select(x, latent, keys, frame)
    assert frame.visible is not None
    assert (at_once <= frame.visible).all(), "a selected key must be visible"
    assert at_once.sum(-1).tolist() == [[min(t + 1, TOPK) for t in range(LENGTH)]] * 2
    for t in range(LENGTH):
        step = frame._replace(
            cos=frame.cos[:, t : t + 1], sin=frame.sin[:, t : t + 1], visible=frame.visible[:, t : t + 1, : t + 1]
        )
        alone = indexer.select(x[:, t : t + 1], latent[:, t : t + 1], keys[:, : t + 1], step)
        assert torch.equal(alone[:, 0], at_once[:, t, : t + 1])


def test_shared_layers_follow_the_layer_before() -> None:
    """Change what a shared layer's predecessor selects, and the shared layer changes with it."""
    config = tiny_config(indexer_types=("full", "shared", "shared", "full"))
    model = perturbed(config)
    assert [config.owns_indexer(layer) for layer in range(4)] == [True, False, False, True]
    frame = model.frame(IDS)
    x = model.embed(IDS)
    _, first, _ = model.model.layers[0](x, frame, None)
    _, second, _ = model.model.layers[1](x, frame, first)
    _, fourth, _ = model.model.layers[3](x, frame, first)
    assert second is first
    assert fourth is not None
    assert not torch.equal(fourth, first)


def test_bf16_activations_over_fp32_weights() -> None:
    model = network("tiny")
    with torch.no_grad():
        hidden = model(IDS, dtype=torch.bfloat16).hidden
        assert hidden.dtype == torch.bfloat16
        assert model.logits(hidden).dtype == torch.float32


def test_a_full_cache_says_how_much_is_needed() -> None:
    cache = Cache(2, 20)
    logits(network("tiny"), IDS[:, :15], cache=cache)
    with pytest.raises(UsageError, match="holds 20 tokens and 21 are needed"):
        logits(network("tiny"), IDS[:, :6], cache=cache)
    logits(network("tiny"), IDS[:, :5], cache=cache)
