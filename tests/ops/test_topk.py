"""Top-k against a plain sort, on scores full of ties."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from glm5.ops.topk import mask_to_indices, topk_indices, topk_mask

# Few distinct values make ties the rule; -inf marks what may not be chosen, and two zeros must count as equal.
SCORE = st.sampled_from([-math.inf, -2.0, -1.0, -0.0, 0.0, 1e-30, 1.0, 2.0])
ROWS = st.integers(1, 12).flatmap(
    lambda width: st.lists(st.lists(SCORE, min_size=width, max_size=width), min_size=1, max_size=4)
)


def chosen(scores: list[float], k: int) -> list[int]:
    """The rule, spelled out: higher score first, then smaller position; given in ascending order."""
    allowed = [position for position, score in enumerate(scores) if score > -math.inf]
    return sorted(sorted(allowed, key=lambda position: (-scores[position], position))[:k])


@given(ROWS, st.integers(1, 14))
def test_the_stated_rule(rows: list[list[float]], k: int) -> None:
    scores = torch.tensor(rows)
    width = min(k, scores.shape[1])
    indices, mask = topk_indices(scores, k), topk_mask(scores, k)
    assert indices.shape == (len(rows), width)
    for row, found, marked in zip(rows, indices.tolist(), mask, strict=True):
        expected = chosen(row, k)
        assert found == expected + [-1] * (width - len(expected))
        assert marked.nonzero()[:, 0].tolist() == expected


@given(ROWS, st.integers(1, 14))
def test_a_row_is_chosen_alike_alone_and_in_a_batch(rows: list[list[float]], k: int) -> None:
    scores = torch.tensor(rows)
    assert torch.equal(topk_mask(scores, k), torch.cat([topk_mask(row[None], k) for row in scores]))


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 4))
def test_mask_to_indices_lists_what_is_set(mask: list[bool], spare: int) -> None:
    k = max(sum(mask), 1) + spare
    expected = [position for position, is_set in enumerate(mask) if is_set]
    width = min(k, len(mask))
    assert mask_to_indices(torch.tensor(mask), k).tolist() == expected + [-1] * (width - len(expected))


def test_many_dimensions_and_thousands_of_ties() -> None:
    scores = torch.randint(0, 3, (2, 3, 5000), generator=torch.Generator().manual_seed(0)).float()
    stable = scores.sort(dim=-1, descending=True, stable=True).indices[..., :700].sort(-1).values
    assert torch.equal(topk_indices(scores, 700), stable)
