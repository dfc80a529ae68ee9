"""The lightning indexer's scores in tiles that stay in the processor's cache.

    I[t, s] = sum_h w[t, h] relu(q[t, h] · k[s])        (DeepSeek-V3.2 eq. 1; GLM-5 report §2.1.1)

Per head there is one number for every pair of query and key: written out whole they would be the largest tensor of a
forward pass, read and written four times. A tile of them lives in the second-level cache from the first product to the
sum over heads. The reference is `model.indexer.Indexer.scores`.
"""

import torch
from torch import Tensor

_TILE_ELEMENTS = 1 << 17  # per-head scores of a tile: 512 KiB in fp32
_TILE_KEYS = 2048


def index_scores(q: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """Scores of every key for every query.

    Args:
        q: [n, h, d] rotated index queries; keys: [S, d]. Any float dtype; the arithmetic is fp32.
        weights: fp32 [n, h], with every constant factor in it.

    Returns:
        fp32 [n, S], nothing masked.
    """
    queries, heads, width = q.shape
    length = keys.shape[0]
    tile_keys = min(length, _TILE_KEYS)
    tile_queries = max(1, _TILE_ELEMENTS // (heads * tile_keys))
    q = q.float()
    out = torch.empty(queries, length, dtype=torch.float32, device=q.device)
    for first_key in range(0, length, tile_keys):
        columns = slice(first_key, min(first_key + tile_keys, length))
        k = keys[columns].float().T
        for first in range(0, queries, tile_queries):
            rows = slice(first, min(first + tile_queries, queries))
            dots = torch.mm(q[rows].reshape(-1, width), k).relu_().view(-1, heads, k.shape[1])
            out[rows, columns] = torch.bmm(weights[rows, None], dots)[:, 0]
    return out
