"""Whatever an agent does with its context, each sampled token is trained once, in the context it was sampled in."""

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.errors import GLM5Error
from glm5.rl.linearise import Linear, linearise, training_samples
from glm5.rl.records import Trajectory, Turn

ACTIONS = ("go on", "go on", "rewrite", "rewrite", "rewrite", "sub-agent", "restart", "retry", "resume cut", "silence")


@st.composite
def histories(draw: st.DrawFn, unique: bool) -> list[Turn]:
    """Turns of an agent with several contexts, which it goes on with, rewrites, shortens and repeats.

    Args:
        unique: whether every sampled token has an id of its own, by which it can be found again. If not, few
            different ids make prompts coincide by chance.
    """
    fresh = count(100)
    contexts: list[tuple[list[int], list[int]]] = [([], [])]  # prompt and what was sampled after it
    words = st.lists(st.integers(0, 2), min_size=1, max_size=4)
    turns = []
    for number in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, len(contexts) - 1))
        prompt, output = contexts[place]
        action = draw(st.sampled_from(ACTIONS)) if output else "go on"
        tail = draw(words)
        new = {
            "go on": prompt + output + tail,
            "sub-agent": tail,
            "rewrite": prompt + output[: draw(st.integers(0, len(output)))] + [7] + tail,
            "restart": prompt[: draw(st.integers(0, len(prompt)))] + tail,
            "retry": prompt,
            "resume cut": prompt + output[: draw(st.integers(0, len(output)))],
            "silence": prompt + output,
        }[action]
        length = 0 if action == "silence" else draw(st.integers(1, 5))
        ids = [next(fresh) if unique else draw(st.integers(0, 1)) for _ in range(length)]
        turn = Turn(list(new), ids, [-float(next(fresh)) for _ in ids], [number] * length, "stop")
        turns.append(turn)
        if action in ("sub-agent", "restart", "retry"):
            contexts.append((new, ids))
        else:
            contexts[place] = (new, ids)
    return turns


REALIGN = st.sampled_from([0, 1, 2, 3, 1024])


@settings(deadline=None)
@given(turns=histories(unique=True), realign_tokens=REALIGN)
def test_every_sampled_token_is_in_one_row_with_its_own_figures(turns: list[Turn], realign_tokens: int) -> None:
    rows = linearise(turns, realign_tokens)
    sampled = {
        id: (logprob, version)
        for turn in turns
        for id, logprob, version in zip(turn.ids, turn.logprobs, turn.versions, strict=True)
    }
    trained = [
        (id, (logprob, version))
        for row in rows
        for id, mask, logprob, version in zip(
            row.ids, row.loss_mask, row.rollout_logprobs, row.versions, strict=True
        )
        if mask
    ]  # fmt: skip
    assert len(dict(trained)) == len(trained)
    assert dict(trained).items() <= sampled.items()
    assert len(sampled) - len(trained) == sum(row.overwritten for row in rows)
    if realign_tokens == 0:
        assert dict(trained) == sampled


@settings(deadline=None)
@given(turns=histories(unique=False), realign_tokens=REALIGN)
def test_no_token_is_lost_or_doubled_when_ids_repeat(turns: list[Turn], realign_tokens: int) -> None:
    rows = linearise(turns, realign_tokens)
    trained = sum(sum(row.loss_mask) for row in rows)
    assert trained + sum(row.overwritten for row in rows) == sum(len(turn.ids) for turn in turns)
    assert all(row.overwritten == 0 for row in rows) or realign_tokens > 1


@settings(deadline=None, max_examples=250)
@given(turns=histories(unique=True), realign_tokens=REALIGN)
def test_what_is_trained_stands_in_the_context_it_was_sampled_in(turns: list[Turn], realign_tokens: int) -> None:
    contexts = {id: (turn.prompt_ids + turn.ids)[: len(turn.prompt_ids) + place]
                for turn in turns for place, id in enumerate(turn.ids)}  # fmt: skip
    for row in linearise(turns, realign_tokens):
        for place, (id, mask) in enumerate(zip(row.ids, row.loss_mask, strict=True)):
            assert not mask or row.ids[:place] == contexts[id]


@settings(deadline=None)
@given(turns=histories(unique=False))
def test_without_realigning_each_turn_is_the_beginning_of_a_row(turns: list[Turn]) -> None:
    rows = linearise(turns, realign_tokens=0)
    for turn in turns:
        whole = turn.prompt_ids + turn.ids
        assert not turn.ids or any(row.ids[: len(whole)] == whole for row in rows)


@settings(deadline=None)
@given(turns=histories(unique=False), realign_tokens=REALIGN)
def test_prompts_are_never_trained(turns: list[Turn], realign_tokens: int) -> None:
    for row in linearise(turns, realign_tokens):
        assert any(row.loss_mask)
        for mask, logprob, version in zip(row.loss_mask, row.rollout_logprobs, row.versions, strict=True):
            assert mask == (version >= 0)
            assert mask == (logprob < 0)


def turn(prompt: list[int], ids: list[int]) -> Turn:
    return Turn(prompt, ids, [-0.5] * len(ids), [1] * len(ids), "stop")


def trained(row: Linear) -> list[int]:
    return [id for id, mask in zip(row.ids, row.loss_mask, strict=True) if mask]


def test_a_conversation_is_one_row() -> None:
    (row,) = linearise([turn([1, 2], [10, 11]), turn([1, 2, 10, 11, 3], [12]), turn([1, 2, 10, 11, 3, 12, 4], [13])])
    assert row.ids == [1, 2, 10, 11, 3, 12, 4, 13]
    assert trained(row) == [10, 11, 12, 13]
    assert row.versions == [-1, -1, 1, 1, -1, 1, -1, 1]


def test_a_rewritten_end_is_realigned_untrained() -> None:
    (row,) = linearise([turn([1], [10, 11, 12]), turn([1, 10, 9, 9, 2], [13])])
    assert row.ids == [1, 10, 9, 9, 2, 13]
    assert trained(row) == [10, 13]
    assert row.overwritten == 2


def test_a_rewriting_that_would_lose_more_is_a_fork() -> None:
    first, second = linearise([turn([1], [10, 11, 12]), turn([1, 10, 9, 9, 2], [13])], realign_tokens=2)
    assert (trained(first), trained(second)) == ([10, 11, 12], [13])
    assert second.ids == [1, 10, 9, 9, 2, 13]


def test_a_response_rewritten_from_its_first_token_is_a_fork() -> None:
    first, second = linearise([turn([1], [10, 11]), turn([1, 9, 8, 2], [12])])
    assert (first.ids, second.ids) == ([1, 10, 11], [1, 9, 8, 2, 12])


def test_of_two_rows_that_a_prompt_begins_with_the_longer_goes_on() -> None:
    first, second = linearise([turn([1], [10, 11]), turn([1], [10, 11, 12]), turn([1, 10, 11, 12, 2], [13])])
    assert (trained(first), trained(second)) == ([10, 11], [10, 11, 12, 13])


def test_a_sub_agent_and_a_restarted_context_are_rows_beside_the_main_thread() -> None:
    main, sub, restarted = linearise(
        [turn([1], [10]), turn([5, 6], [20]), turn([1, 10, 2], [11]), turn([5, 6, 20, 7], [21]), turn([1, 8], [12])]
    )
    assert (main.ids, sub.ids, restarted.ids) == ([1, 10, 2, 11], [5, 6, 20, 7, 21], [1, 8, 12])


def test_a_retry_trains_both_answers() -> None:
    first, second = linearise([turn([1, 2], [10]), turn([1, 2], [11])])
    assert (trained(first), trained(second)) == ([10], [11])


def test_a_generation_that_was_interrupted_goes_on_in_its_row() -> None:
    (row,) = linearise([turn([1], [10, 11]), turn([1, 10, 11], [12])])
    assert trained(row) == [10, 11, 12]


def test_rows_of_a_trajectory_share_its_reward_and_id() -> None:
    trajectory = Trajectory("r", "t", "reverse", "g", turns=[turn([1], [10]), turn([5], [20, 21])], reward=0.5)
    samples = training_samples(trajectory, advantage=-1.5, weight=2.0, loss_kind="icepop")
    assert [sample.ids for sample in samples] == [[1, 10], [5, 20, 21]]
    assert [sample.trained_tokens for sample in samples] == [1, 2]
    for sample in samples:
        assert (sample.advantage, sample.weight, sample.loss_kind) == (-1.5, 2.0, "icepop")
        assert (sample.rollout_id, sample.environment, sample.reward) == ("r", "reverse", 0.5)
    trajectory.failure = "deadline: 600 s"
    with pytest.raises(GLM5Error, match="rollout r cannot be trained on: deadline"):
        training_samples(trajectory, 0.0, 1.0, "icepop")
