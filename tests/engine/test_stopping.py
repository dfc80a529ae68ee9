"""Why sequences end."""

from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.engine.records import RepetitionGuard, SamplingParams
from glm5.engine.stopping import LoopDetector, StopCondition
from glm5.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["the cat sat on the mat; STOP here and STOP there. " * 20], 300)


def is_loop(tokens: list[int], guard: RepetitionGuard) -> bool:
    """The rule in its plain form: some phrase fills the end of `tokens`."""
    for length in range(1, guard.longest_phrase + 1):
        needed = max(length * guard.times, guard.tokens)
        tail = tokens[-needed:]
        if len(tail) == needed and all(tail[i] == tail[i - length] for i in range(length, needed)):
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 1), max_size=12),
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
    st.integers(1, 12),
    st.builds(RepetitionGuard, st.integers(1, 5), st.integers(2, 4), st.integers(1, 12)),
)
def test_loops_are_found_where_the_rule_says(
    before: list[int], phrase: list[int], times: int, guard: RepetitionGuard
) -> None:
    detector, seen = LoopDetector(guard), []
    for token in before + phrase * times:
        seen.append(token)
        assert detector.observe(token) == is_loop(seen, guard)


def test_ordinary_text_is_no_loop() -> None:
    detector = LoopDetector(RepetitionGuard())
    assert not any(detector.observe(token) for token in [7] * 100 + list(range(300)) + [1, 2, 3] * 40)
    assert any(detector.observe(token) for token in [1, 2, 3] * 4)


def watch(text: str, **how: object) -> tuple[str | None, str | int | None, int]:
    condition = StopCondition(SamplingParams(**how), frozenset({3}), 1000, TOKENIZER)  # type: ignore[arg-type]
    for count, token in enumerate(TOKENIZER.encode(text), start=1):
        reason = condition.observe(token)
        if reason is not None:
            return reason, condition.matched, count
    return None, None, 0


def test_stop_texts_across_tokens() -> None:
    reason, matched, count = watch("the cat STOP there", stop=("OP th", "zzz"))
    assert (reason, matched) == ("stop", "OP th")
    assert "OP th" in TOKENIZER.decode(TOKENIZER.encode("the cat STOP there")[:count])
    assert "OP th" not in TOKENIZER.decode(TOKENIZER.encode("the cat STOP there")[: count - 1])
    assert watch("the cat sat", stop=("STOP",))[0] is None


def test_a_stop_text_may_be_one_byte_or_not_ascii() -> None:
    assert watch("the cat; sat", stop=(";",))[1] == ";"
    assert watch("the café sat", stop=("é s",))[1] == "é s"


def test_an_id_without_a_token_is_no_error() -> None:
    condition = StopCondition(SamplingParams(stop=("at\ufffd",)), frozenset(), 1000, TOKENIZER)
    reasons = [condition.observe(token) for token in [*TOKENIZER.encode("the cat"), TOKENIZER.vocab_size + 5]]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert (reasons[-1], condition.matched) == ("stop", "at\ufffd")


def test_nothing_stops_before_min_tokens() -> None:
    condition = StopCondition(SamplingParams(min_tokens=2, stop_ids=(3,)), frozenset({3}), 5, None)
    assert [condition.observe(3) for _ in range(3)] == [None, None, "stop"]


def test_length() -> None:
    condition = StopCondition(SamplingParams(), frozenset(), 2, None)
    assert [condition.observe(1) for _ in range(2)] == [None, "length"]
