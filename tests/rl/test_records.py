"""Records refuse what would train silently on the wrong tokens, and come back from JSON as they were."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.errors import GLM5Error
from glm5.rl.records import TrainingSample, Trajectory, Turn

LOGPROBS = st.floats(max_value=0, allow_nan=False, allow_infinity=False)


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    sampled = draw(st.lists(st.tuples(st.integers(0, 10**6), LOGPROBS, st.integers(0, 99)), max_size=6))
    ids, logprobs, versions = ([each[i] for each in sampled] for i in range(3))
    prompt = draw(st.lists(st.integers(0, 10**6), max_size=6))
    return Turn(prompt, ids, logprobs, versions, draw(st.sampled_from(["stop", "length"])), draw(st.text()))


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    finite = st.floats(allow_nan=False, allow_infinity=False)
    texts = [draw(st.text()) for _ in range(5)]
    return Trajectory(
        *texts,
        turns=draw(st.lists(turns(), max_size=3)),
        reward=draw(st.none() | finite),
        reward_parts=draw(st.dictionaries(st.text(), finite, max_size=3)),
        evidence=draw(st.text()),
        failure=draw(st.sampled_from(["", "environment: no sandbox"])),
        started=draw(finite),
        ended=draw(finite),
    )


@st.composite
def samples(draw: st.DrawFn) -> TrainingSample:
    """At least one trained token."""
    places = [*draw(st.lists(st.booleans(), max_size=8)), True]
    logprobs = [draw(LOGPROBS) if sampled else 0.0 for sampled in places]
    versions = [draw(st.integers(0, 99)) if sampled else -1 for sampled in places]
    teacher = draw(st.none() | st.lists(LOGPROBS, min_size=len(places), max_size=len(places)))
    numbers = [draw(st.floats(allow_nan=False, allow_infinity=False)) for _ in range(3)]
    return TrainingSample(
        list(range(len(places))), places, logprobs, versions, numbers[0], "icepop", draw(st.text()), draw(st.text()),
        numbers[1], teacher, numbers[2],
    )  # fmt: skip


@settings(deadline=None)
@given(trajectory=trajectories())
def test_a_trajectory_comes_back_from_json(trajectory: Trajectory) -> None:
    assert Trajectory.from_json(json.loads(json.dumps(trajectory.to_json()))) == trajectory


@settings(deadline=None)
@given(sample=samples())
def test_a_sample_comes_back_from_json(sample: TrainingSample) -> None:
    assert TrainingSample.from_json(json.loads(json.dumps(sample.to_json()))) == sample


@settings(deadline=None)
@given(trajectory=trajectories())
def test_a_trajectory_is_valid_or_says_why_not(trajectory: Trajectory) -> None:
    wanted = not trajectory.failure and trajectory.reward is not None and any(turn.ids for turn in trajectory.turns)
    assert trajectory.is_valid == wanted
    assert trajectory.is_valid == (trajectory.exclusion == "")


def test_exclusions_are_kinds_that_can_be_counted() -> None:
    good = Trajectory("r", "t", "e", "g", turns=[Turn([1], [2], [-0.5], [3], "stop")], reward=1.0)
    assert good.exclusion == ""
    assert (good.sampled_tokens, good.oldest_version) == (1, 3)
    assert replace(good, failure="environment: sandbox 17 died").exclusion == "environment"
    assert replace(good, turns=[]).exclusion == "no tokens"
    assert replace(good, turns=[]).oldest_version is None
    assert replace(good, reward=None).exclusion == "no reward"
    assert replace(good, reward=math.nan).exclusion == "reward is not finite"


def test_the_oldest_version_is_over_all_turns_and_tokens() -> None:
    two = [Turn([1], [2, 3], [-0.5, -0.5], [4, 5], "stop"), Turn([1], [2, 3], [-0.5, -0.5], [6, 3], "stop")]
    assert Trajectory("r", "t", "e", "g", turns=two).oldest_version == 3


@pytest.mark.parametrize(
    ("logprobs", "versions", "words"),
    [
        ([-0.1], [0, 0], "1 logprobs"),
        ([-0.1, -0.2], [0], "1 versions"),
        ([-0.1, math.nan], [0, 0], "nan at place 1"),
        ([-math.inf, -0.1], [0, 0], "-inf at place 0"),
    ],
)
def test_a_turn_refuses_what_does_not_fit(logprobs: list[float], versions: list[int], words: str) -> None:
    with pytest.raises(GLM5Error, match=words):
        Turn([1, 2], [3, 4], logprobs, versions, "stop")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss_mask": [False, False]}, "trains no token"),
        ({"loss_mask": [True, True]}, "no weights sampled"),
        ({"loss_mask": [True]}, "1 loss_mask"),
        ({"rollout_logprobs": [0.0]}, "1 rollout_logprobs"),
        ({"teacher_logprobs": [0.0]}, "1 teacher_logprobs"),
        ({"versions": [0, 1, 2]}, "3 versions"),
    ],
)
def test_a_sample_refuses_what_does_not_fit(changes: dict[str, list[float]], words: str) -> None:
    sample = TrainingSample([1, 2], [False, True], [0.0, -0.5], [-1, 0], 1.0, "icepop", "e", "r", 1.0)
    with pytest.raises(GLM5Error, match=words):
        replace(sample, **changes)  # type: ignore[arg-type]
