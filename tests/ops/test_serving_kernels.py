"""The serving kernels against the plain ones, over random shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm5.ops.attention import absorbed_attention, expanded_attention
from glm5.ops.experts import experts_reference
from glm5.ops.gathered import contiguous_attention, gathered_attention
from glm5.ops.index_scores import index_scores
from glm5.ops.pairs import rotary_phases, rotate_pairs
from glm5.ops.prefill import chunk_attention
from glm5.ops.rotary import rotary_tables, rotate_interleaved
from glm5.ops.routed import all_experts, routed_experts, tile_experts
from glm5.ops.rows import linear
from glm5.ops.selection import select_positions
from glm5.ops.topk import topk_indices


def close(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 45), st.integers(1, 6), st.integers(0, 10**6))
def test_selection_has_the_tie_rule(rows: int, width: int, k: int, levels: int, seed: int) -> None:
    """Few levels: almost every boundary is a tie; some entries may not be chosen."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (rows, width), generator=generator).float()
    scores[torch.rand(rows, width, generator=generator) < 0.2] = float("-inf")
    assert torch.equal(select_positions(scores, k), topk_indices(scores, k))


@pytest.mark.parametrize(("queries", "heads", "length"), [(1, 16, 5000), (40, 16, 300), (3, 32, 2049), (300, 16, 70)])
def test_index_scores(queries: int, heads: int, length: int) -> None:
    """Across the borders of tiles, with negative weights."""
    torch.manual_seed(queries)
    q, weights, keys = torch.randn(queries, heads, 24), torch.randn(queries, heads), torch.randn(length, 24)
    expected = torch.einsum("nhs,nh->ns", torch.einsum("nhd,sd->nhs", q, keys).relu(), weights)
    torch.testing.assert_close(index_scores(q, weights, keys), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("batch", "queries", "keys"), [(1, 1, 7), (3, 1, 20), (2, 4, 33)])
def test_gathered_attention(batch: int, queries: int, keys: int) -> None:
    torch.manual_seed(keys)
    pool, slots = torch.randn(100, 12), torch.randint(0, 100, (batch, keys))
    q = torch.randn(batch, queries, 3, 12)
    visible = torch.rand(batch, queries, keys) < 0.7
    visible[..., 0] = True
    bias = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
    expected = absorbed_attention(q, pool[slots], visible, 8, 1.0)
    close(gathered_attention(q, pool, slots, bias, 8), expected)
    close(contiguous_attention(q[:1], pool[slots][0], bias[:1], 8), expected[:1])
    everything = absorbed_attention(q, pool[slots], torch.ones_like(visible), 8, 1.0)
    close(gathered_attention(q, pool, slots, None, 8), everything)


def test_gathered_attention_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than may be gathered at once."""
    pool, slots, q = torch.randn(50, 12), torch.randint(0, 50, (9, 20)), torch.randn(9, 1, 2, 12)
    whole = gathered_attention(q, pool, slots, None, 8)
    monkeypatch.setattr("glm5.ops.gathered._GATHER_ELEMENTS", 500)
    close(gathered_attention(q, pool, slots, None, 8), whole)


@pytest.mark.parametrize(("length", "total"), [(1, 1), (5, 5), (64, 64), (100, 230), (130, 131)])
@pytest.mark.parametrize("selects", [False, True])
def test_chunk_attention(length: int, total: int, selects: bool) -> None:
    torch.manual_seed(total)
    q, k, v = torch.randn(2, length, 12), torch.randn(2, total, 12), torch.randn(2, total, 10)
    visible = torch.arange(total) <= torch.arange(total - length, total)[:, None]
    selected = None
    if selects:
        selected = visible & (torch.rand(length, total) < 0.5)
        selected[:, 0] = True
    expected = expanded_attention(q[None], k[None], v[None], (visible if selected is None else selected)[None], 1.0)[0]
    close(chunk_attention(q, k, v, selected), expected)


@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
@pytest.mark.parametrize("form", [routed_experts, all_experts, tile_experts])
def test_experts(form: object, tokens: int) -> None:
    torch.manual_seed(tokens)
    x, gate_up, down = torch.randn(tokens, 16), torch.randn(6, 20, 16) / 4, torch.randn(6, 16, 10) / 4
    chosen = torch.stack([torch.randperm(6)[:3] for _ in range(tokens)])
    weights = torch.rand(tokens, 3)
    assert callable(form)
    close(form(x, gate_up, down, chosen, weights), experts_reference(x, gate_up, down, chosen, weights))


def test_rotated_pairs() -> None:
    """The same rotation as the model's, laid out in pairs instead of halves, at any offset in memory."""
    positions = torch.tensor([0, 3, 500, 90000])
    x = torch.randn(4, 2, 17)[..., 3:11]
    cos, sin = rotary_tables(positions[None], 8, 1e6)
    halves = rotate_interleaved(x[None], cos, sin)[0]
    mine = rotate_pairs(x, rotary_phases(positions, 8, 1e6))
    close(mine, torch.stack(halves.chunk(2, dim=-1), dim=-1).flatten(-2))


@pytest.mark.parametrize("rows", [0, 1, 2, 4, 5, 30])
def test_linear_maps_of_few_rows(rows: int) -> None:
    x, weight = torch.randn(rows, 24), torch.randn(10, 24)
    close(linear(x, weight), torch.nn.functional.linear(x, weight))
