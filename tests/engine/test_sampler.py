"""From logits to tokens: the distribution, what excludes tokens from it, and what is reported."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm5.engine.records import SamplingParams
from glm5.engine.sampler import SamplingState, choose, describe, uniform

DRAWS = 4000
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def draws(params: SamplingParams, logits: Tensor = LOGITS) -> Counter[int]:
    numbers = [uniform(1, 0, position) for position in range(DRAWS)]
    return Counter(choose(logits.expand(DRAWS, -1), [params] * DRAWS, numbers))


def chi_square(counts: Counter[int], probabilities: Tensor) -> float:
    assert set(counts) <= {i for i, p in enumerate(probabilities.tolist()) if p > 0}
    return sum((counts[i] - DRAWS * p) ** 2 / (DRAWS * p) for i, p in enumerate(probabilities.tolist()) if p > 0)


def kept(mask: list[int], temperature: float = 1.0) -> Tensor:
    scaled = LOGITS / temperature
    hidden = torch.ones(6, dtype=torch.bool)
    hidden[mask] = False
    return scaled.masked_fill(hidden, float("-inf")).softmax(-1)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(), kept([0, 1, 2, 3, 4, 5])),
        (SamplingParams(temperature=2.0), kept([0, 1, 2, 3, 4, 5], 2.0)),
        (SamplingParams(top_k=3), kept([0, 1, 2])),
        (SamplingParams(top_p=0.6), kept([0, 1])),  # 0.55 alone is too little
        (SamplingParams(top_p=0.5), kept([0])),
        (SamplingParams(min_p=0.2), kept([0, 1, 2])),  # e^-1.5 = 0.22, e^-2 = 0.14
        (SamplingParams(temperature=0), kept([0])),
        (SamplingParams(top_p=1e-9, min_p=1.0, top_k=1), kept([0])),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams, expected: Tensor) -> None:
    """Chi-square with at most 5 degrees of freedom: 25 has a probability of 1 in 7000."""
    assert chi_square(draws(params), expected) < 25


def test_rows_of_a_batch_do_not_mix() -> None:
    params = [SamplingParams(temperature=0), SamplingParams(top_k=1), SamplingParams(), SamplingParams(top_p=0.3)]
    logits = torch.stack([LOGITS, LOGITS.flip(0), LOGITS, LOGITS.roll(2)])
    together = choose(logits, params, [0.9, 0.9, 0.999999, 0.9])
    assert together == [0, 5, 5, 2]
    assert together == [
        choose(logits[i : i + 1], params[i : i + 1], [n])[0] for i, n in enumerate([0.9, 0.9, 0.999999, 0.9])
    ]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**63), st.integers(0, 8), st.integers(0, 10**6))
def test_numbers_are_uniform_names(seed: int, index: int, position: int) -> None:
    number = uniform(seed, index, position)
    assert 0 <= number < 1
    assert number == uniform(seed, index, position)
    assert number != uniform(seed, index, position + 1)
    assert number != uniform(seed, index + 1, position)


def state(params: SamplingParams, prompt: list[int] | None = None, ends: frozenset[int] = frozenset()) -> SamplingState:
    return SamplingState(params, prompt or [0], 6, ends)


def test_penalties() -> None:
    """Repetition counts the prompt, presence and frequency do not."""
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    mine = state(params, prompt=[0, 4])
    for token in (1, 1, 5):
        mine.observe(token)
    adjusted = mine.adjust(LOGITS)
    assert adjusted.tolist() == pytest.approx([1.0, 0.5 - 0.5 - 0.5, 0.5, 0.0, -2.0, -6.0 - 0.5 - 0.25])


def test_bias_and_minimum_length() -> None:
    mine = state(SamplingParams(logit_bias={3: 7.0}, min_tokens=1, max_tokens=5), ends=frozenset({0, 2}))
    adjusted = mine.adjust(LOGITS)
    assert adjusted[3] == 7.0
    assert adjusted[[0, 2]].tolist() == [float("-inf")] * 2
    mine.observe(3)
    assert mine.adjust(LOGITS)[0] == 2.0


def test_only_what_changes_logits_is_not_plain() -> None:
    assert state(SamplingParams(temperature=0.3, top_p=0.5)).is_plain
    assert not state(SamplingParams(presence_penalty=0.1)).is_plain
    early = state(SamplingParams(min_tokens=1), ends=frozenset({0}))
    assert not early.is_plain
    early.observe(1)
    assert early.is_plain


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.stack([LOGITS, LOGITS, LOGITS])
    plain, sampled, top = describe(logits, [0, 1, 5], [None, 0, 2], version=7)
    expected = LOGITS.log_softmax(-1)
    assert (plain.logprob, plain.top_logprobs, plain.version) == (None, [], 7)
    assert sampled.logprob == pytest.approx(float(expected[1]))
    assert sampled.top_logprobs == []
    assert [token for token, _ in top.top_logprobs] == [0, 1]
    assert top.logprob == pytest.approx(float(expected[5]))
