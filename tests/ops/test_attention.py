"""Every form of attention against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glm5.ops.attention import absorbed_attention, expanded_attention, sparse_absorbed_attention, visibility
from glm5.ops.topk import mask_to_indices

BLOCK = 64  # queries the blocked form takes at a time


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(length: int) -> Tensor:
    """Visibility of two rows: one packed with documents of odd lengths, one with the first third padding."""
    positions = torch.arange(length).expand(2, length)
    documents = torch.stack([torch.arange(length) // 37, (torch.arange(length) >= length // 3).long() - 1])
    return visibility(positions, documents, positions, documents)


def test_visibility_is_own_document_and_no_future() -> None:
    positions, documents = torch.tensor([[0, 1, 0, 1]]), torch.tensor([[-1, 5, 7, 7]])
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert visibility(positions, documents, positions, documents).int().tolist() == [expected]
    later = visibility(torch.tensor([[2]]), torch.tensor([[7]]), positions, documents)
    assert later.int().tolist() == [[[0, 0, 1, 1]]]


@pytest.mark.parametrize("length", [1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 11])
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "packed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 4e-2)], ids=["fp32", "bf16"])
def test_blocked_attention_and_its_gradients(length: int, masked: bool, dtype: torch.dtype, tolerance: float) -> None:
    """The training path on CPU, keys wider than values, against torch in fp32."""
    widths = (24, 24, 20)
    inputs = [normal(2, 3, length, width, seed=i, dtype=dtype).requires_grad_() for i, width in enumerate(widths)]
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    visible = packed(length) if masked else None
    upstream = normal(2, 3, length, widths[-1], seed=9)

    q, k, v = inputs
    found = expanded_attention(q, k, v, visible, 0.3)
    assert "Blocked" in type(found.grad_fn).__name__
    mask = None if visible is None else visible[:, None]
    q, k, v = exact
    expected = F.scaled_dot_product_attention(q, k, v, mask, is_causal=visible is None, scale=0.3)
    found.backward(upstream.to(dtype))
    expected.backward(upstream)

    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
    for mine, theirs in zip(inputs, exact, strict=True):
        assert mine.grad is not None
        assert mine.grad.dtype == dtype
        torch.testing.assert_close(mine.grad.float(), theirs.grad, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "packed"])
def test_inference_equals_training(masked: bool) -> None:
    q, k, v = normal(2, 3, 100, 24), normal(2, 3, 100, 24, seed=1), normal(2, 3, 100, 20, seed=2)
    visible = packed(100) if masked else None
    trained = expanded_attention(q.requires_grad_(), k, v, visible, 0.3)
    with torch.no_grad():
        torch.testing.assert_close(expanded_attention(q, k, v, visible, 0.3), trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trains", [False, True])
def test_grouped_queries_share_keys_and_values(trains: bool) -> None:
    q, k, v = normal(2, 6, 70, 16).requires_grad_(trains), normal(2, 2, 70, 16, seed=1), normal(2, 2, 70, 16, seed=2)
    repeated = F.scaled_dot_product_attention(
        q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), packed(70)[:, None], scale=0.25
    )
    torch.testing.assert_close(expanded_attention(q, k, v, packed(70), 0.25), repeated, atol=1e-5, rtol=1e-5)


def test_absorbed_attention_is_attention_over_one_shared_row_a_token() -> None:
    q, rows = normal(2, 50, 4, 40), normal(2, 50, 40, seed=1)
    shared = rows[:, None].expand(-1, 4, -1, -1)
    expected = F.scaled_dot_product_attention(
        q.transpose(1, 2), shared, shared[..., :32], packed(50)[:, None], scale=0.2
    )
    found = absorbed_attention(q, rows, packed(50), 32, 0.2)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 7, 50])
def test_sparse_gather_equals_masked_dense(k: int) -> None:
    """Random selections of up to k visible keys, each query's own always among them."""
    q, rows = normal(2, 50, 4, 40), normal(2, 50, 40, seed=1)
    noise = normal(2, 50, 50, seed=2).masked_fill(~packed(50), float("-inf"))
    noise += torch.eye(50).masked_fill(torch.eye(50) > 0, 1e9)
    selected = torch.zeros(2, 50, 50, dtype=torch.bool).scatter(-1, noise.topk(k).indices, True) & packed(50)
    assert selected.sum(-1).max() <= k
    sparse = sparse_absorbed_attention(q, rows, mask_to_indices(selected, k), 32, 0.2)
    torch.testing.assert_close(sparse, absorbed_attention(q, rows, selected, 32, 0.2), atol=1e-5, rtol=1e-5)
