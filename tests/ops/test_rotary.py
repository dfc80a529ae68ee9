"""Rotary embedding against complex multiplication, and the property it exists for."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glm5.ops.rotary import rotary_tables, rotate_half_split, rotate_interleaved

DIM, THETA = 8, 10_000.0
POSITIONS = torch.tensor([[0, 1, 5, 130_000], [3, 2, 1, 0]])


def heads(seed: int = 0) -> Tensor:
    return torch.randn(*POSITIONS.shape, 3, DIM, generator=torch.Generator().manual_seed(seed))


def turned(pairs: Tensor) -> Tensor:
    """Rotate complex numbers [B, T, H, DIM / 2] by position times frequency, in double precision."""
    frequency = THETA ** -(torch.arange(DIM // 2, dtype=torch.float64) * 2 / DIM)
    angle = POSITIONS[:, :, None, None] * frequency
    return pairs * torch.polar(torch.ones_like(angle), angle)


def assert_turned(found: Tensor, expected: Tensor) -> None:
    both = torch.cat([expected.real, expected.imag], -1).float()
    torch.testing.assert_close(found, both, atol=2e-2, rtol=0)  # an fp32 angle near 130,000 is good to 0.008
    torch.testing.assert_close(found[:, :3], both[:, :3])


def test_tables_are_unit_vectors_that_start_at_angle_zero() -> None:
    cos, sin = rotary_tables(POSITIONS, DIM, THETA)
    assert cos.shape == sin.shape == (*POSITIONS.shape, DIM // 2)
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos))
    assert cos[0, 0].tolist() == [1.0] * (DIM // 2)


def test_interleaved_turns_neighbouring_numbers() -> None:
    x = heads()
    expected = turned(torch.complex(x[..., 0::2].double(), x[..., 1::2].double()))
    assert_turned(rotate_interleaved(x, *rotary_tables(POSITIONS, DIM, THETA)), expected)


def test_half_split_turns_numbers_half_the_width_apart() -> None:
    x = heads()
    first, second = x.double().chunk(2, -1)
    expected = turned(torch.complex(first, second))
    assert_turned(rotate_half_split(x, *rotary_tables(POSITIONS, DIM, THETA)), expected)


def test_the_two_layouts_differ_by_a_permutation_of_the_input() -> None:
    x, tables = heads(), rotary_tables(POSITIONS, DIM, THETA)
    woven = torch.stack(x.chunk(2, -1), -1).flatten(-2)
    assert torch.equal(rotate_interleaved(woven, *tables), rotate_half_split(x, *tables))
    assert not torch.allclose(rotate_interleaved(x, *tables), rotate_half_split(x, *tables))


@given(query=st.integers(0, 500), key=st.integers(0, 500), shift=st.integers(0, 500), half_split=st.booleans())
def test_dot_products_depend_on_distance_alone(query: int, key: int, shift: int, half_split: bool) -> None:
    rotate = rotate_half_split if half_split else rotate_interleaved
    q, k = torch.randn(2, 1, 1, 1, DIM, generator=torch.Generator().manual_seed(0))

    def product(q_position: int, k_position: int) -> Tensor:
        tables = [rotary_tables(torch.tensor([[position]]), DIM, THETA) for position in (q_position, k_position)]
        return (rotate(q, *tables[0]) * rotate(k, *tables[1])).sum()

    torch.testing.assert_close(product(query, key), product(query + shift, key + shift), atol=1e-3, rtol=0)
