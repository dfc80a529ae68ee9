"""A grade for each answer and one line for all: accuracy with n and interval, calibration, who decided how often.

Rules first, then the judge. Without a judge an answer that the rules are not sure of is not counted as right, and the
line says how many there were, so that nobody takes a lower bound for the figure.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from glm5.errors import UsageError
from glm5.search.judge import Judge
from glm5.search.matching import Verdict, match
from glm5.search.problems import SearchProblem
from glm5.search.reply import read_final_answer

Decider = Literal["rule", "judge", "nobody"]
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Grade:
    """One answer, graded.

    Attributes:
        by: "nobody" where neither a rule nor a judge came to a verdict.
        why: the rule, or the judge's words.
        confidence: the response's own, 1 where it states none.
    """

    problem: str
    correct: bool
    by: Decider
    why: str
    answer: str
    confidence: float


async def grade(problem: SearchProblem, response: str, judge: Judge | None = None) -> Grade:
    """Grade the final message of an agent.

    Raises:
        EndpointError: the judge's endpoint failed.
    """
    final = read_final_answer(response)
    confidence = 1.0 if final.confidence is None else final.confidence
    found = match(final.exact, problem.answers)
    if found.verdict is not Verdict.UNSURE:
        return Grade(problem.id, found.verdict is Verdict.RIGHT, "rule", found.rule, final.exact, confidence)
    if judge is None:
        return Grade(problem.id, False, "nobody", found.rule, final.exact, confidence)
    judgement = await judge.judge(problem.question, response, problem.answers[0])
    by: Decider = "nobody" if judgement.correct is None else "judge"
    return Grade(problem.id, bool(judgement.correct), by, judgement.text, final.exact, confidence)


@dataclass(frozen=True, slots=True)
class Summary:
    """All grades of one run. `low` and `high` bound the accuracy at 95 %."""

    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    calibration_error: float
    decided_by: dict[str, int]

    def line(self) -> str:
        """One line for people; the interval and n are never left out."""
        undecided = self.decided_by.get("nobody", 0)
        note = f"; {undecided} undecided, counted as wrong" if undecided else ""
        return (
            f"{self.accuracy:.1%} of n = {self.n} [{self.low:.1%}, {self.high:.1%}], "
            f"calibration error {self.calibration_error:.1%}{note}"
        )


def summarise(grades: Sequence[Grade]) -> Summary:
    """Raises UsageError where there is nothing to summarise."""
    if not grades:
        raise UsageError("there are no grades to summarise")
    correct = sum(grade.correct for grade in grades)
    low, high = wilson_interval(correct, len(grades))
    error = calibration_error([grade.confidence for grade in grades], [grade.correct for grade in grades])
    by = dict(Counter(grade.by for grade in grades))
    return Summary(len(grades), correct, correct / len(grades), low, high, error, {str(k): v for k, v in by.items()})


def wilson_interval(successes: int, n: int, z: float = _Z95) -> tuple[float, float]:
    """The interval of a proportion that also holds for few trials and near 0 and 1 (Wilson, 1927).

    Raises:
        UsageError: not 0 ≤ successes ≤ n, or n = 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise UsageError(f"an interval needs 0 <= successes <= n and n > 0, not {successes} of {n}")
    rate = successes / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def calibration_error(confidences: Sequence[float], correct: Sequence[bool], bin_size: int = 100) -> float:
    """Root mean square of confidence minus accuracy over bins of equal size, weighted by size, as HLE reports it.

    Answers of equal confidence share a bin, so that their order does not matter; what is left over forms a bin of its
    own, and fewer than `bin_size` answers form one: none is dropped.

    Raises:
        UsageError: nothing to measure, different lengths, or a confidence outside 0 to 1.
    """
    if not confidences or len(confidences) != len(correct):
        raise UsageError(f"a calibration error needs as many confidences as answers, not {len(confidences)}")
    if not all(0 <= confidence <= 1 for confidence in confidences):
        raise UsageError("confidences must be from 0 to 1")
    bins: list[list[tuple[float, bool]]] = [[]]
    for pair in sorted(zip(confidences, correct)):
        if len(bins[-1]) >= bin_size and pair[0] != bins[-1][-1][0]:
            bins.append([])
        bins[-1].append(pair)
    total = 0.0
    for part in bins:
        gap = sum(confidence - right for confidence, right in part) / len(part)
        total += len(part) / len(confidences) * gap * gap
    return math.sqrt(total)
