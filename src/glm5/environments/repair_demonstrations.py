"""Repairs done well and badly, for supervised fine-tuning: what a model starts reinforcement from.

Wrong ones differ in strategy (a hasty finish, an edit of the wrong line), and every test report in them is what the
tests really say. The mix at `quality` 0.4, in percent:

    25 fix          test, fix, test, finish                    15 give up     test, finish
    15 fix again    test, wrong fix, test, fix, test, finish   15 bad edit    test, wrong line, finish
    20 hasty        test, wrong fix, finish                    10 two wrong   test, wrong fix, test, wrong fix, finish
"""

from dataclasses import dataclass
from random import Random
from typing import Any

from glm5.environments.repair_problems import Problem, report, run
from glm5.text.messages import Message, ToolCall

GOOD = {"fix": 25, "fix again": 15}
BAD = {"hasty": 20, "give up": 15, "bad edit": 15, "two wrong": 10}


def choose(rng: Random, quality: float) -> str:
    """A strategy: a good one with probability `quality`."""
    strategies = GOOD if rng.random() < quality else BAD
    return rng.choices(list(strategies), list(strategies.values()))[0]


def demonstrate(problem: Problem, strategy: str, rng: Random, mask_errors: bool) -> tuple[list[dict[str, Any]], bool]:
    """The turns after the instruction, in OpenAI form, and whether the function is right after them.

    With `mask_errors`, wrong turns carry `"train": false`.
    """
    session = _Session(problem, mask_errors)
    session.test()
    wrong = {number: rng.sample(texts, len(texts)) for number, texts in problem.attempts.items()}
    match strategy:
        case "fix again":
            session.edit_all({number: texts[0] for number, texts in wrong.items()}, is_wrong=True)
            session.test()
        case "hasty":
            session.edit_all({number: texts[0] for number, texts in wrong.items()}, is_wrong=True)
        case "bad edit":
            number = next(iter(wrong))
            others = [n for n in range(2, len(problem.broken) + 2) if n not in wrong]
            session.edit(rng.choice(others), problem.solution[number - 1], is_wrong=True)
        case "two wrong":
            session.edit_all({number: texts[0] for number, texts in wrong.items()}, is_wrong=True)
            session.test()
            session.edit_all({number: texts[-1] for number, texts in wrong.items()}, is_wrong=True)
    if strategy in GOOD:
        session.edit_all({number: problem.solution[number - 1] for number in wrong}, is_wrong=False)
        session.test()
    session.call("finish", {}, None, is_wrong=strategy in BAD)
    return session.turns, session.outcome() == "pass"


@dataclass(slots=True)
class _Session:
    problem: Problem
    mask_errors: bool
    lines: list[str]
    turns: list[dict[str, Any]]

    def __init__(self, problem: Problem, mask_errors: bool) -> None:
        self.problem, self.mask_errors = problem, mask_errors
        self.lines, self.turns = list(problem.broken), []

    def call(self, name: str, arguments: dict[str, Any], answer: str | None, is_wrong: bool) -> None:
        call = ToolCall(name, arguments, f"call_{len(self.turns)}")
        turn = Message("assistant", tool_calls=(call,)).to_openai()
        if is_wrong and self.mask_errors:
            turn["train"] = False
        self.turns.append(turn)
        if answer is not None:
            self.turns.append(Message("tool", answer, tool_call_id=call.id).to_openai())

    def outcome(self) -> str:
        return report(run(self.lines, self.problem.function, self.problem.tests), self.problem.tests)

    def test(self) -> None:
        self.call("run_tests", {}, self.outcome(), is_wrong=False)

    def edit_all(self, texts: dict[int, str], is_wrong: bool) -> None:
        for number, text in texts.items():
            self.edit(number, text, is_wrong)

    def edit(self, number: int, text: str, is_wrong: bool) -> None:
        answer = replace_line(self.lines, number, text.strip())
        self.call("edit", {"line": number, "text": text.strip()}, answer, is_wrong)


def replace_line(lines: list[str], number: int, text: str) -> str:
    """What the tool `edit` does: the line gets a new text and keeps its indentation. Returns the tool's answer."""
    if not 1 <= number <= len(lines):
        return f"no line {number}"
    if "\n" in text or len(text) > 200:
        return "one line only"
    old = lines[number - 1]
    lines[number - 1] = old[: len(old) - len(old.lstrip())] + text.strip()
    return "ok"
