"""Plain generation against recomputing everything, with every prompt alone, for every new token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm5.engine.generate import _choose, generate
from glm5.errors import GLM5Error, UsageError
from glm5.model.transformer import Transformer
from tests.model.shapes import SHAPES, perturbed, reference, saved, tiny_config, tokens

PROMPTS = [tokens(1, size, seed=size)[0].tolist() for size in (1, 5, 12, 3)]


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Selects 6 keys: fewer than any of these texts has, so that the selection matters."""
    return perturbed(tiny_config(index_topk=6))


@torch.no_grad()
def recomputed(model: Transformer, prompt: list[int], count: int, **how: Any) -> tuple[list[int], list[float]]:
    """Greedy continuation and its log-probabilities without cache or batch."""
    ids, logprobs = list(prompt), []
    for _ in range(count):
        scores = model.logits(model(torch.tensor([ids]), **how).hidden[:, -1])[0].log_softmax(-1)
        ids.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
    return ids[len(prompt) :], logprobs


@pytest.mark.parametrize("sparse", [True, False])
def test_greedy_equals_recomputing_everything(model: Transformer, sparse: bool) -> None:
    """Prompts of four lengths in one batch: each as if it were alone, though some are shorter than the selection."""
    completions = generate(model, PROMPTS, 12, temperature=0, sparse=sparse)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids, logprobs = recomputed(model, prompt, 12, sparse=sparse)
        assert completion.ids == ids
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert completion.finish_reason == "length"


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "tiny"])
def test_every_shape_of_network(name: str) -> None:
    model = perturbed(tiny_config(**SHAPES[name]))
    prompts = [tokens(1, size, seed=size)[0].tolist() for size in (20, 4)]
    for prompt, completion in zip(prompts, generate(model, prompts, 5, temperature=0), strict=True):
        assert completion.ids == recomputed(model, prompt, 5)[0]


def test_a_prompt_read_in_portions(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions that the padding of the shorter prompt fills entirely."""
    whole = generate(model, PROMPTS, 6, temperature=0)
    monkeypatch.setattr("glm5.engine.generate._PREFILL_TOKENS", 4)
    for ours, wanted in zip(generate(model, PROMPTS, 6, temperature=0), whole, strict=True):
        assert ours.ids == wanted.ids
        assert ours.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)


def test_greedy_equals_transformers(tmp_path: Path) -> None:
    """With more tokens than the selection holds."""
    ours = saved(tiny_config(index_topk=6), tmp_path)
    prompt = PROMPTS[2]
    theirs = reference(tmp_path).generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)
    assert generate(ours, [prompt], 10, temperature=0)[0].ids == theirs[0, len(prompt) :].tolist()


def test_a_stop_id_ends_its_row_alone(model: Transformer) -> None:
    free = generate(model, PROMPTS, 12, temperature=0)
    stop = free[1].ids[3]
    told: list[tuple[int, int]] = []
    stopped = generate(model, PROMPTS, 12, temperature=0, stop_ids=[stop], on_token=lambda *pair: told.append(pair))
    for ours, wanted in zip(stopped, free, strict=True):
        if stop in wanted.ids:
            assert ours.ids == wanted.ids[: wanted.ids.index(stop) + 1]
            assert ours.finish_reason == "stop"
        else:
            assert ours.ids == wanted.ids
            assert ours.finish_reason == "length"
    assert stopped[1].finish_reason == "stop"
    for row, completion in enumerate(stopped):
        assert [token for number, token in told if number == row] == completion.ids
        assert len(completion.logprobs) == len(completion.ids)


def test_a_seed_decides_the_sample(model: Transformer) -> None:
    def sample(seed: int) -> list[list[int]]:
        return [c.ids for c in generate(model, PROMPTS, 10, temperature=1.5, seed=seed)]

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)


def test_logprobs_are_the_models_own_whatever_the_temperature(model: Transformer) -> None:
    [completion] = generate(model, [PROMPTS[1]], 6, temperature=2.0, top_p=0.7, seed=1)
    ids = torch.tensor([[*PROMPTS[1], *completion.ids]])
    with torch.no_grad():
        scores = model.logits(model(ids).hidden)[0].log_softmax(-1)
    start = len(PROMPTS[1]) - 1
    wanted = [float(scores[start + i, token]) for i, token in enumerate(completion.ids)]
    assert completion.logprobs == pytest.approx(wanted, abs=1e-4)


# -- choosing a token ------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


def frequencies(temperature: float, top_p: float, draws: int = 20_000) -> Tensor:
    chosen = _choose(LOGITS.expand(draws, 4), temperature, top_p, torch.Generator().manual_seed(0))
    return torch.bincount(chosen, minlength=4) / draws


def test_sampling_follows_the_distribution() -> None:
    torch.testing.assert_close(frequencies(1.0, 1.0), LOGITS.exp(), atol=0.015, rtol=0)


def test_temperature_sharpens_and_flattens() -> None:
    for temperature in (0.5, 2.0):
        torch.testing.assert_close(frequencies(temperature, 1.0), (LOGITS / temperature).softmax(0), atol=0.015, rtol=0)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.6, 2), (0.8, 3), (0.95, 4), (1e-9, 1)])
def test_top_p_keeps_the_fewest_likeliest_that_reach_it(top_p: float, kept: int) -> None:
    wanted = LOGITS.exp().clone()
    wanted[kept:] = 0
    torch.testing.assert_close(frequencies(1.0, top_p), wanted / wanted.sum(), atol=0.015, rtol=0)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert frequencies(0.0, 1.0).tolist() == [1, 0, 0, 0]


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "options", "told"),
    [
        ([], {}, "at least one token"),
        ([[1], []], {}, "at least one token"),
        ([[1, 320]], {}, "token id 320 is outside the vocabulary of 320"),
        ([[-1]], {}, "token id -1 is outside"),
        ([[1] * 510], {"max_new_tokens": 3}, r"513 tokens \(prompt and completion\) do not fit the context of 512"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens = 0 must be at least 1"),
        ([[1]], {"temperature": -0.1}, "temperature = -0.1"),
        ([[1]], {"top_p": 0.0}, "top_p = 0.0"),
        ([[1]], {"top_p": 1.1}, "top_p = 1.1"),
    ],
)
def test_what_cannot_be_is_told(model: Transformer, prompts: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        generate(model, prompts, **{"max_new_tokens": 2, **options})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_spoilt_weights_are_told(temperature: float) -> None:
    model = perturbed(tiny_config())
    with torch.no_grad():
        model.lm_head.weight[5, 5] = float("inf")
    with pytest.raises(GLM5Error, match="not finite"):
        generate(model, PROMPTS, 3, temperature=temperature)


def test_the_whole_context_can_be_used() -> None:
    model = perturbed(tiny_config(max_position_embeddings=16))
    assert len(generate(model, [PROMPTS[2]], 4, temperature=0)[0].ids) == 4
