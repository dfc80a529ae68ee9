"""Output projection and cross-entropy in one, chunk by chunk over tokens.

The logits of a whole batch are the largest tensor of a training step (a 4K row of GLM-5 is 2.5 GB in fp32). Here each
chunk of tokens is projected, scored, differentiated and freed before the next one is touched (GLM-5 report §2.4.1,
"sequence-chunked output projection"): peak memory is one chunk of logits, whatever the batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # target id of a position without a target, as in torch.nn.functional.cross_entropy


def linear_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, token_weights: Tensor, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Weighted sum of next-token losses.

    Args:
        hidden: [N, d] final hidden states.
        head: [V, d] output projection, any float dtype; used in `hidden`'s.
        targets: int64 [N], `IGNORE` where there is none.
        token_weights: fp32 [N], what one token's loss counts; no gradient flows to it.
        chunk_tokens: tokens projected at a time.

    Returns:
        loss: scalar fp32, sum of `token_weights * nll`.
        nll: fp32 [N], nats per token, 0 where there is no target; detached.
    """
    return _LinearCrossEntropy.apply(hidden, head, targets, token_weights, chunk_tokens)


@torch.no_grad()
def token_nll(hidden: Tensor, head: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
    """Negative log-likelihood of each target in nats, fp32 [N]; 0 where there is none."""
    parts = []
    for rows in range(0, hidden.shape[0], chunk_tokens):
        logits = F.linear(hidden[rows : rows + chunk_tokens], head.to(hidden.dtype)).float()
        parts.append(
            F.cross_entropy(logits, targets[rows : rows + chunk_tokens], ignore_index=IGNORE, reduction="none")
        )
    return torch.cat(parts)


def token_log_probs(
    hidden: Tensor, head: Tensor, targets: Tensor, chunk_tokens: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of every target, with a gradient, for losses that weigh tokens by functions of it.

    Args:
        hidden, head, targets, chunk_tokens: as in `linear_cross_entropy`.
        temperature: divides the logits.

    Returns:
        log_probs: fp32 [N], 0 where there is no target.
        entropy: fp32 [N] of the whole distribution in nats, 0 where there is no target; detached.
    """
    return _TokenLogProbs.apply(hidden, head, targets, chunk_tokens, temperature)


class _TokenLogProbs(torch.autograd.Function):
    """Backward projects each chunk again: what a token's gradient weighs is known only then."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, chunk_tokens: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        weight = head.to(hidden.dtype)
        log_probs = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(log_probs)
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            chunk = (F.linear(hidden[rows], weight).float() / temperature).log_softmax(-1)
            has_target = targets[rows] != IGNORE
            log_probs[rows] = torch.where(has_target, chunk.gather(1, targets[rows].clamp(min=0)[:, None])[:, 0], 0.0)
            entropy[rows] = torch.where(has_target, -(chunk.exp() * chunk).sum(-1), 0.0)
        ctx.save_for_backward(hidden, head, targets)
        ctx.chunk_tokens, ctx.temperature = chunk_tokens, temperature
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, targets = ctx.saved_tensors
        weight = head.to(hidden.dtype)
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head, dtype=torch.float32)
        for start in range(0, hidden.shape[0], ctx.chunk_tokens):
            rows = slice(start, start + ctx.chunk_tokens)
            index = targets[rows].clamp(min=0)[:, None]
            grad_logits = (F.linear(hidden[rows], weight).float() / ctx.temperature).softmax(-1).neg_()
            grad_logits.scatter_add_(1, index, torch.ones_like(index, dtype=grad_logits.dtype))  # one_hot - softmax
            grad_logits *= (grads[0][rows] * (targets[rows] != IGNORE) / ctx.temperature)[:, None]
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden[rows] = grad_logits @ weight
            grad_head += grad_logits.T @ hidden[rows]
        return grad_hidden, grad_head.to(head.dtype), None, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is computed with the loss, because the logits are gone afterwards."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, token_weights: Tensor, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        weight = head.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32)
        nll = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            log_probs = F.linear(hidden[rows], weight).float().log_softmax(-1)
            has_target = targets[rows] != IGNORE
            index = targets[rows].clamp(min=0)[:, None]
            nll[rows] = torch.where(has_target, -log_probs.gather(1, index)[:, 0], 0.0)
            grad_logits = log_probs.exp_()  # softmax - one_hot, in place of the logits
            grad_logits.scatter_add_(1, index, torch.full_like(index, -1.0, dtype=grad_logits.dtype))
            grad_logits *= (token_weights[rows] * has_target)[:, None]
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden[rows] = grad_logits @ weight
            grad_head += grad_logits.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_head.to(head.dtype))
        ctx.mark_non_differentiable(nll)
        return (nll * token_weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grads[0]
        return grad_hidden * scale.to(grad_hidden.dtype), grad_head * scale.to(grad_head.dtype), None, None, None
