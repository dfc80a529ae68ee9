"""A broken function with its tests: a template filled in, one slot mutated, and arguments on which that shows."""

import json
import re
from dataclasses import dataclass
from random import Random
from string import Template as Text
from typing import Any

from glm5.environments.repair_harness import call_all
from glm5.environments.repair_templates import KINDS, TEMPLATES, Argument, Template

TESTS = 8
_SLOT = re.compile(r"@([ockv])\(([^)]*)\)")
_NAMES = {
    "f": ("calc", "work", "run", "solve", "make", "find", "get", "go"),
    "xs": ("xs", "data", "items", "nums", "list1", "vals"),
    "ys": ("ys", "more", "others", "seq", "list2", "rest"),
    "x": ("x", "n", "v", "a", "p", "w"),
    "y": ("y", "m", "u", "b", "q", "z"),
    "t": ("t", "out", "r", "s", "res", "acc"),
    "i": ("i", "j", "k"),
}
_LETTERS = "abcdeiorstuvw"


@dataclass(frozen=True, slots=True)
class Test:
    """Arguments and the value that the correct function returns for them."""

    __test__ = False  # not one of pytest's

    arguments: list[Any]
    expected: Any


@dataclass(frozen=True, slots=True)
class Problem:
    """A repair.

    Attributes:
        function: its name.
        broken: its lines, the intent first.
        solution: the lines of the correct function.
        attempts: for every line with a mutated slot (by number, from 1) other texts of it that are wrong as well.
        kind: operator, comparison, constant or variable: what was mutated first.
    """

    function: str
    broken: tuple[str, ...]
    solution: tuple[str, ...]
    attempts: dict[int, tuple[str, ...]]
    tests: tuple[Test, ...]
    kind: str


def make_problem(rng: Random, mutations: int, most_lines: int) -> Problem:
    """Draw a problem: `mutations` slots are wrong, each in a line of its own; templates have at most `most_lines`."""
    templates = [template for template in TEMPLATES if template.text.count("\n") <= most_lines]
    while True:
        problem = _mutate(rng, rng.choice(templates), mutations)
        if problem is not None:
            return problem


def _mutate(rng: Random, template: Template, mutations: int) -> Problem | None:
    """Break the template; None when it has too few lines to break, or no test shows it."""
    words: dict[str, Any] = {name: rng.choice(choices) for name, choices in _NAMES.items()}
    words |= {"a": rng.randint(3, 20), "b": rng.randint(2, 6), "c": rng.randint(1, 2)}
    lines = Text(template.text).substitute(words).splitlines()
    solution = tuple(_fill(line, {}) for line in lines)
    with_slots = [number for number, line in enumerate(lines, start=1) if _SLOT.search(line)]
    if len(with_slots) < mutations:
        return None
    chosen = {number: _SLOT.findall(lines[number - 1]) for number in rng.sample(with_slots, mutations)}
    broken = list(solution)
    attempts: dict[int, list[str]] = {}
    kinds = []
    for number, slots in chosen.items():
        wrong = [(slot, text) for slot, (_, texts) in enumerate(slots) for text in texts.split("|")[1:]]
        rng.shuffle(wrong)
        filled = [_fill(lines[number - 1], {slot: text}) for slot, text in wrong]
        broken[number - 1] = filled[0]
        attempts[number] = [line for line in dict.fromkeys(filled) if line != filled[0]]
        kinds.append(KINDS[slots[wrong[0][0]][0]])
    tests = _tests(rng, template.takes, words["f"], solution)

    def is_wrong(number: int, text: str) -> bool:
        lines = [*solution[: number - 1], text, *solution[number:]]
        return first_failure(run(lines, words["f"], tests), tests) is not None

    wrong_texts = {number: tuple(t for t in texts if is_wrong(number, t)) for number, texts in attempts.items()}
    if not all(wrong_texts.values()) or not all(is_wrong(number, broken[number - 1]) for number in chosen):
        return None
    return Problem(words["f"], tuple(broken), solution, wrong_texts, tests, kinds[0])


def _fill(line: str, wrong: dict[int, str]) -> str:
    """A line with every slot right, but for those (by place in the line) that `wrong` names."""
    place = iter(range(len(line)))

    def text(match: re.Match[str]) -> str:
        return wrong.get(next(place), match[2].split("|")[0])

    return _SLOT.sub(text, line)


def _tests(rng: Random, takes: tuple[Argument, ...], function: str, solution: tuple[str, ...]) -> tuple[Test, ...]:
    arguments = [[_argument(rng, kind, size) for kind in takes] for size in range(TESTS)]
    rng.shuffle(arguments)
    results = call_all("\n".join(solution), function, [json.loads(json.dumps(values)) for values in arguments])
    return tuple(Test(values, result["value"]) for values, result in zip(arguments, results))


def _argument(rng: Random, kind: Argument, size: int) -> Any:
    """An argument, larger ones for a larger `size`; the first list is empty."""
    match kind:
        case "list":
            return [rng.randint(-9, 25) for _ in range(min(size, 4))]
        case "number":
            return rng.randint(-25, 25)
        case "small":
            return size
        case "word":
            return "".join(rng.choices(_LETTERS, k=size))


def run(lines: list[str] | tuple[str, ...], function: str, tests: tuple[Test, ...]) -> list[dict[str, Any]]:
    """Results in this process: for lines of this file's own making only."""
    return call_all("\n".join(lines), function, json.loads(json.dumps([test.arguments for test in tests])))


def first_failure(results: list[dict[str, Any]], tests: tuple[Test, ...]) -> int | None:
    """The first test whose result is not what is expected; values are compared as JSON, so 1 is not true."""
    for number, test in enumerate(tests):
        if number >= len(results) or json.dumps(results[number].get("value")) != json.dumps(test.expected):
            return number
        if "value" not in results[number]:
            return number
    return None


def report(results: list[dict[str, Any]], tests: tuple[Test, ...]) -> str:
    """What `run_tests` answers: `pass`, or the first failure with as few words as it takes."""
    number = first_failure(results, tests)
    if number is None:
        return "pass"
    test = tests[number]
    result = results[number] if number < len(results) else {"error": "no end"}
    got = json.dumps(result["value"]) if "value" in result else result["error"]
    given = ",".join(json.dumps(value, separators=(",", ":")) for value in test.arguments)
    return f"fail ({given}) gave {got[:40]} not {json.dumps(test.expected)}"
