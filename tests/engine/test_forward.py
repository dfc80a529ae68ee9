"""The network over a ragged, paged batch against the plain forward pass of the same weights."""

import pytest
import torch
from torch import Tensor

from glm5.engine.batch import FEW_QUERIES, Span, build_batch
from glm5.engine.cache import PagedCache
from glm5.engine.forward import Network, Selections
from glm5.errors import UsageError
from glm5.model.transformer import Transformer
from tests.model.shapes import SHAPES, TINY, perturbed, tiny_config, tokens

LATENT = [name for name, changes in SHAPES.items() if changes.get("attention") != "gqa"]
PAGE = 4


class Paged:
    """Some sequences fed piece by piece, their pages dealt out crosswise."""

    def __init__(self, model: Transformer, sequences: list[list[int]]) -> None:
        self.cache = PagedCache(model.config, 1 << 22, PAGE, torch.float32)
        self.network = Network(model, self.cache)
        self.sequences, self.done = sequences, [0] * len(sequences)
        most = -(-max(map(len, sequences)) // PAGE)
        self.pages = [list(range(i, most * len(sequences), len(sequences))) for i in range(len(sequences))]
        self.pages[-1] = list(range(500, 500 + most))  # one of them in a stretch

    def spans(self, counts: list[int]) -> list[Span]:
        pieces = zip(self.sequences, self.done, counts, self.pages)
        return [Span(ids[start : start + count], start, pages) for ids, start, count, pages in pieces if count]

    @torch.inference_mode()
    def step(self, counts: list[int]) -> list[Tensor]:
        batch = build_batch(self.spans(counts), self.network.config, self.cache)
        hidden = self.network.forward(batch)
        self.done = [done + count for done, count in zip(self.done, counts)]
        return [hidden[rows] for rows in batch.order]

    def run(self, schedule: list[list[int]]) -> list[Tensor]:
        parts: list[list[Tensor]] = [[] for _ in self.sequences]
        for counts in schedule:
            outs = iter(self.step(counts))
            for i, count in enumerate(counts):
                if count:
                    parts[i].append(next(outs))
        return [torch.cat(part) for part in parts]


def ids(length: int, seed: int) -> list[int]:
    return tokens(length, seed=seed).tolist()


def expected(model: Transformer, sequence: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([sequence])).hidden[0]


@pytest.mark.parametrize("name", LATENT)
def test_ragged_batches_equal_the_plain_forward_pass(name: str) -> None:
    """Chunks, single tokens and small groups, below and above top-k, in one batch."""
    model = perturbed(tiny_config(**SHAPES[name]))
    sequences = [ids(60, 1), ids(45, 2), ids(31, 3), ids(70, 4)]
    wanted = [expected(model, sequence) for sequence in sequences]
    schedule = [[20, 0, 3, 50], [1, 30, 1, 1], [1, 1, 4, 1], [30, 1, 4, 3], [1, 5, 18, 15], [7, 8, 1, 0]]
    paged = Paged(model, sequences)
    for mine, theirs in zip(paged.run(schedule), wanted):
        torch.testing.assert_close(mine, theirs[: len(mine)], atol=2e-4, rtol=0)
    assert (paged.network.counters.sparse_queries > 0) == model.config.has_indexer


@pytest.mark.parametrize("name", ["tiny", "index-share"])
def test_all_forms_agree(name: str) -> None:
    """The same positions as one chunk, masked or gathered, and one at a time."""
    model = perturbed(tiny_config(**SHAPES[name]))
    sequence = ids(4 * TINY["index_topk"], 7)
    outs = []
    for masked_until, schedule in ((0, [[64]]), (1000, [[64]]), (0, [[30], [34]]), (0, [[1]] * 64)):
        paged = Paged(model, [sequence])
        paged.network._masked_until = masked_until
        outs.append(paged.run(schedule)[0])
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], atol=2e-4, rtol=0)


def test_counters_tell_sparse_from_dense() -> None:
    model = perturbed(tiny_config())
    topk, layers = model.config.index_topk, model.config.num_hidden_layers
    paged = Paged(model, [ids(40, 1)])
    paged.run([[topk], [1], [40 - topk - 1]])
    assert paged.network.counters.dense_queries == topk * layers
    assert paged.network.counters.sparse_queries == (40 - topk) * layers


def test_fusing_keeps_the_model() -> None:
    """Parameters become views: same values, same names, and a write to one is seen by the fused matrix."""
    model, again = perturbed(tiny_config()), perturbed(tiny_config())
    network = Network(model, PagedCache(model.config, 1 << 20, PAGE, torch.float32))
    for (name, mine), theirs in zip(model.named_parameters(), again.parameters()):
        assert torch.equal(mine, theirs), name
    with torch.no_grad():
        model.model.layers[0].self_attn.q_a_proj.weight.fill_(3.0)
    assert (network.layers[0].attention_in[: model.config.q_lora_rank] == 3.0).all()


def test_a_span_of_few_queries_may_hold_all_drafts() -> None:
    model = perturbed(tiny_config())
    sequence = ids(40, 3)
    mine = Paged(model, [sequence]).run([[40 - FEW_QUERIES], [FEW_QUERIES]])[0]
    torch.testing.assert_close(mine, expected(model, sequence), atol=2e-4, rtol=0)


def test_grouped_query_attention_is_refused() -> None:
    model = perturbed(tiny_config(**SHAPES["gqa"]))
    with pytest.raises(UsageError, match="generate"):
        Network(model, PagedCache(model.config, 1 << 20, PAGE, torch.float32))


@pytest.mark.parametrize("name", ["tiny", "index-share"])
def test_prediction_layer(name: str) -> None:
    """Fed piece by piece behind the network, it equals one pass over the whole sequence."""
    model = perturbed(tiny_config(**SHAPES[name]))
    sequence = ids(50, 9)
    with torch.no_grad():
        hidden = model(torch.tensor([sequence])).hidden
        following = torch.tensor([sequence[1:]])
        assert model.mtp is not None
        wanted = model.mtp(hidden[:, :-1], model.embed(following), model.frame(following))[0][0]
    paged = Paged(model, [sequence])
    parts = []
    for count in (30, 1, 3, 15):
        start = paged.done[0]
        own = paged.step([count])[0]
        shifted = Span(sequence[start + 1 : start + 1 + count], start, paged.pages[0])
        with torch.inference_mode():
            parts.append(paged.network.predict(build_batch([shifted], model.config, paged.cache), own, Selections()))
    torch.testing.assert_close(torch.cat(parts), wanted, atol=2e-4, rtol=0)
