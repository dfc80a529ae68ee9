"""The lightning indexer of DeepSeek sparse attention (DSA): which earlier tokens each token attends to.

    I[t, s] = sum_j  w[t, j] * relu(q[t, j] · k[s])        q: 32 heads of 128, k: one key a token, w: fp32

(DeepSeek-V3.2 eq. 1; GLM-5 report §2.1.1.) The query comes from the *normed* query latent of the main attention, the
key through a LayerNorm with bias. Rotary is on the first `qk_rope_head_dim` dimensions and **interleaved**, unlike
DeepSeek-V3.2's. The weights may be negative, so scores may be: nothing here assumes a floor of zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm5.model.cache import Frame
from glm5.model.config import LATENT_NORM_EPS, ModelConfig
from glm5.model.layers import Linear
from glm5.ops.rotary import rotate_interleaved
from glm5.ops.topk import topk_mask

_SCORE_ELEMENTS = 1 << 24  # per-head scores alive at once; queries are taken in chunks that respect it


class Indexer(nn.Module):
    """Scores earlier tokens and selects the `index_topk` best for every query."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dim, self.topk = config.index_n_heads, config.index_head_dim, config.index_topk
        self.rope = config.qk_rope_head_dim
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.dim)
        self.wk = Linear(config.hidden_size, self.dim)
        self.k_norm = nn.LayerNorm(self.dim, eps=LATENT_NORM_EPS)
        self.weights_proj = Linear(config.hidden_size, self.heads)

    def keys(self, x: Tensor, frame: Frame) -> Tensor:
        """One rotated index key a token: [B, T, d] -> [B, T, index_head_dim]."""
        norm = self.k_norm
        k = F.layer_norm(self.wk(x), (self.dim,), norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
        return self._rotate(k[:, :, None], frame)[:, :, 0]

    def scores(self, x: Tensor, q_latent: Tensor, keys: Tensor, frame: Frame) -> Tensor:
        """Index scores, fp32 [B, T, S], before any masking."""
        batch, length, _ = x.shape
        q = self._rotate(self.wq_b(q_latent).view(batch, length, self.heads, self.dim), frame)
        # The head weights decide the order of near-equal scores: bf16 here flips selections.
        w = F.linear(x.float(), self.weights_proj.weight.float()) * self.heads**-0.5
        chunk = max(1, _SCORE_ELEMENTS // (batch * self.heads * keys.shape[1]))
        parts = []
        for start in range(0, length, chunk):
            rows = slice(start, start + chunk)
            dots = torch.einsum("bthd,bsd->bths", q[:, rows].float(), keys.float()) * self.dim**-0.5
            parts.append(torch.einsum("bths,bth->bts", dots.relu(), w[:, rows]))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def select(self, x: Tensor, q_latent: Tensor, keys: Tensor, frame: Frame) -> Tensor:
        """Mark the selected keys of every query: bool [B, T, S], at most `index_topk` in a row, all of them visible."""
        assert frame.visible is not None, "selection needs to know what is visible"
        scores = self.scores(x, q_latent, keys, frame)
        return topk_mask(scores.masked_fill(~frame.visible, float("-inf")), self.topk)

    def _rotate(self, x: Tensor, frame: Frame) -> Tensor:
        return torch.cat([rotate_interleaved(x[..., : self.rope], frame.cos, frame.sin), x[..., self.rope :]], dim=-1)
