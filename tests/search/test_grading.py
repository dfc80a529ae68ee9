import csv
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.agents.endpoint import ScriptedEndpoint
from glm5.errors import GLM5Error, UsageError
from glm5.search.cipher import encrypt
from glm5.search.grading import Grade, calibration_error, grade, summarise, wilson_interval
from glm5.search.judge import Judge, read_judgement
from glm5.search.problems import SearchProblem, load_benchmark
from glm5.search.reply import read_final_answer, score_citations
from tests.search.conftest import run

PROBLEM = SearchProblem("p", "Which peak?", ("Emi Koussi",))


def verdict(correct: str) -> str:
    return f"extracted_final_answer: x\nreasoning: none\ncorrect: {correct}\nconfidence: 70"


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        (verdict("yes"), True),
        (verdict("no"), False),
        ("**correct:** Yes", True),
        ("- Correct: *no*.", False),
        ("reasoning: it says 'correct: yes' itself\ncorrect: no", False),
        ("reasoning:\ncorrect: no would be wrong\ncorrect: yes", True),
        ("correct：yes", True),
        ("It is right.", None),
        ("incorrect: yes", None),
        ("correct: yesterday", None),
        ("", None),
    ],
)
def test_verdicts_are_read_as_meant(text: str, correct: bool | None) -> None:
    assert read_judgement(text).correct is correct


def test_a_verdict_that_cannot_be_read_is_asked_again_and_never_a_no() -> None:
    endpoint = ScriptedEndpoint(lambda messages, tools: "hm" if len(endpoint.requests) == 1 else verdict("yes"))
    assert run(Judge(endpoint).judge("q", "r", "a")).correct is True
    mute = ScriptedEndpoint(lambda messages, tools: "hm")
    found = run(grade(PROBLEM, "Exact Answer: the tallest one", Judge(mute)))
    assert (found.correct, found.by) == (False, "nobody")
    assert len(mute.requests) == 2


def test_the_prompt_holds_all_three_and_no_place_is_filled_twice() -> None:
    endpoint = ScriptedEndpoint(lambda messages, tools: verdict("no"))
    run(Judge(endpoint).judge("the question", "a response that says {correct_answer}", "GOLD"))
    [[message]] = endpoint.requests
    assert "the question" in message.content
    assert message.content.count("GOLD") == 1
    assert "{correct_answer}" in message.content
    with pytest.raises(UsageError, match=r"no place for \{response\}"):
        Judge(endpoint, "{question} {correct_answer}")


def test_rules_come_before_the_judge() -> None:
    endpoint = ScriptedEndpoint(lambda messages, tools: verdict("yes"))
    for text, correct, by in (
        ("Exact Answer: Mount Emi Koussi\nConfidence: 80%", True, "rule"),
        ("Exact Answer: I could not find it", False, "rule"),
        ("Exact Answer: that volcano in Chad", True, "judge"),
    ):
        found = run(grade(PROBLEM, text, Judge(endpoint)))
        assert (found.correct, found.by) == (correct, by)
    assert len(endpoint.requests) == 1
    assert run(grade(PROBLEM, "Exact Answer: that volcano in Chad")).by == "nobody"


@pytest.mark.parametrize(
    ("message", "exact", "confidence"),
    [
        ("Explanation: x\nExact Answer: Paris\nConfidence: 85%", "Paris", 0.85),
        ("**Explanation:** x\n**Exact Answer:** **Paris**\n**Confidence:** 85 %", "Paris", 0.85),
        ("## Exact Answer:\nParis\n## Confidence: 0.5", "Paris", 0.5),
        ("Exact Answer: Rome\nNo, wait.\nExact Answer: Paris", "Paris", None),
        ("Final answer: Paris", "Paris", None),
        ("Paris", "Paris", None),
        ("long " * 100, "", None),
        ("", "", None),
        ("Exact Answer: Paris\nConfidence: 250%", "Paris", 1.0),
    ],
)
def test_final_messages(message: str, exact: str, confidence: float | None) -> None:
    found = read_final_answer(message)
    assert (found.exact, found.confidence) == (exact, confidence)


@given(st.text(max_size=300))
def test_no_message_breaks_it(message: str) -> None:
    read_final_answer(message)
    read_judgement(message)


def test_citations() -> None:
    found = read_final_answer(
        "Explanation: seen in [a/b.json#Geo] and [doc 2]; [link](x) [a/b.json#Geo]\nExact Answer: P"
    )
    assert found.citations == ("a/b.json#Geo", "doc 2")
    score = score_citations(found.citations, opened=["a/b.json#Geo"], evidence=["a/b.json#Geo", "c"])
    assert (score.invented, score.precision, score.recall) == (("doc 2",), 0.5, 0.5)
    assert score_citations((), ["a"], ["a"]).precision is None


@given(st.integers(1, 500), st.data())
def test_interval(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert high - low > 0


def test_interval_of_the_books() -> None:
    assert wilson_interval(24, 30) == pytest.approx((0.627, 0.905), abs=1e-3)
    with pytest.raises(UsageError):
        wilson_interval(0, 0)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=250), st.randoms())
def test_calibration_counts_every_answer_in_any_order(pairs: list[tuple[float, bool]], rng: object) -> None:
    def error(of: list[tuple[float, bool]]) -> float:
        return calibration_error([confidence for confidence, _ in of], [right for _, right in of])

    mixed = list(pairs)
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    assert error(mixed) == pytest.approx(error(pairs))
    gap = sum(confidence - right for confidence, right in pairs) / len(pairs)
    assert abs(gap) - 1e-9 <= error(pairs) <= 1


def test_calibration_of_few_answers() -> None:
    assert calibration_error([1.0], [False]) == 1
    assert calibration_error([0.8] * 5, [True] * 4 + [False]) == pytest.approx(0)
    # 101 answers: the last one is not dropped.
    assert calibration_error([0.0] * 100 + [1.0], [False] * 101) == pytest.approx(math.sqrt(1 / 101))
    with pytest.raises(UsageError):
        calibration_error([], [])
    with pytest.raises(UsageError):
        calibration_error([1.5], [True])


def test_summary_always_tells_n_and_interval() -> None:
    grades = [Grade(str(n), n < 24, "rule" if n < 28 else "nobody", "", "", 0.8) for n in range(30)]
    assert summarise(grades).line() == (
        "80.0% of n = 30 [62.7%, 90.5%], calibration error 0.0%; 2 undecided, counted as wrong"
    )
    with pytest.raises(UsageError):
        summarise([])


def test_published_benchmarks(tmp_path: Path) -> None:
    canary = "BrowseComp-canary"
    with (tmp_path / "b.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["problem", "answer", "problem_topic", "canary"])
        rows.writerow([encrypt("Who?", canary), encrypt("Ada", canary), "people", canary])
    [problem] = load_benchmark("browsecomp", tmp_path / "b.csv").problems
    assert (problem.question, problem.answers, problem.kind) == ("Who?", ("Ada",), "people")

    plus = {"query_id": 3, "query": "Who?", "answer": "Ada", "gold_docs": [{"docid": "9", "text": "…"}]}
    (tmp_path / "plus.jsonl").write_text(json.dumps(plus))
    [problem] = load_benchmark("browsecomp-plus", tmp_path / "plus.jsonl").problems
    assert (problem.id, problem.documents) == ("browsecomp-plus/3", ("9",))

    hle = {"id": "x", "question": "Q", "answer": "B", "answer_type": "multipleChoice", "image": ""}
    (tmp_path / "hle.jsonl").write_text(json.dumps(hle) + "\n" + json.dumps({**hle, "image": "data:…"}))
    read = load_benchmark("hle", tmp_path / "hle.jsonl")
    assert (len(read.problems), read.left_out) == (1, 1)

    with pytest.raises(GLM5Error, match="row 1 is not one of browsecomp"):
        load_benchmark("browsecomp", tmp_path / "hle.jsonl")
    with pytest.raises(UsageError, match="no benchmark 'gaia'"):
        load_benchmark("gaia", tmp_path / "hle.jsonl")
    with pytest.raises(UsageError, match="no file"):
        load_benchmark("hle", tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(GLM5Error, match="holds no problem"):
        load_benchmark("hle", tmp_path / "empty.jsonl")
