"""Reasoning tasks that a model of one million parameters can learn in minutes: letters in order, and sums.

    kind      prompt                 thought            answer
    reverse   reverse\nk,b,x,q       1k2b3x4q           q,x,b,k     write them down numbered, then read from the end
    sort      sort\nk,b,x,q          1b2k3q4x           b,k,q,x     the smallest that is left, again and again
    count     count\na\nb,a,c,a      b0a1c1a2           2           the tally behind every letter
    add       add\n345,78            58013 47112 30104  423         per column: x, y, carry in, tens, units

Everything is spelled so that a byte-level BPE vocabulary of 1024 has one token for each letter and digit, the same one
everywhere, and a rollout has 30 to 60 tokens. The scratchpad of sums is the one that took off when nothing else did
(`x y carry t u` per column, from the units). The reward is 1 for exactly the right answer and 0 for any other.
"""

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from glm5.agents.endpoint import Endpoint
from glm5.environments.base import Options, Reward, Split, Task
from glm5.environments.replies import format_error, format_fault, verdict
from glm5.environments.splits import draw
from glm5.errors import UsageError
from glm5.text.messages import Message

Kind = Literal["reverse", "sort", "count", "add"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class LettersOptions(Options):
    """What can be set."""

    kinds: tuple[Kind, ...] = Field(KINDS, min_length=1)
    lengths: tuple[int, int] = (4, 7)  # letters, from and to
    digits: tuple[int, int] = (2, 3)  # of each summand, from and to

    @model_validator(mode="after")
    def _ranges(self) -> "LettersOptions":
        for name, (low, high), limit in (("lengths", self.lengths, 9), ("digits", self.digits, 9)):
            if not 1 <= low <= high <= limit:
                raise ValueError(f"{name} should be [from, to] with 1 <= from <= to <= {limit}")
        return self


@dataclass(frozen=True, slots=True)
class Problem:
    """A task with its scratchpad.

    Attributes:
        prompt: what the user says.
        steps: the items of the right thought, in order; joined by `joint`.
        answer: the right one.
        conclude: the answer that some first steps lead to.
        content: equal for two problems that are the same to a solver, which decides the split.
    """

    prompt: str
    steps: tuple[str, ...]
    joint: str
    answer: str
    conclude: Callable[[int], str]
    content: str


def _reverse(rng: Random, options: LettersOptions) -> Problem:
    letters = rng.sample(string.ascii_lowercase, rng.randint(*options.lengths))
    return Problem(
        prompt=f"reverse\n{','.join(letters)}",
        steps=tuple(f"{place}{letter}" for place, letter in enumerate(letters, start=1)),
        joint="",
        answer=",".join(reversed(letters)),
        conclude=lambda done: ",".join(reversed(letters[:done])),
        content=f"reverse {letters}",
    )


def _sort(rng: Random, options: LettersOptions) -> Problem:
    letters = rng.sample(string.ascii_lowercase, rng.randint(*options.lengths))
    in_order = sorted(letters)
    return Problem(
        prompt=f"sort\n{','.join(letters)}",
        steps=tuple(f"{place}{letter}" for place, letter in enumerate(in_order, start=1)),
        joint="",
        answer=",".join(in_order),
        conclude=lambda done: ",".join(in_order[:done]),
        content=f"sort {in_order}",
    )


def _count(rng: Random, options: LettersOptions) -> Problem:
    target, *others = rng.sample(string.ascii_lowercase, 4)
    letters = rng.choices([target, *others], weights=[3, 1, 1, 1], k=rng.randint(*options.lengths))
    tally = [letters[: place + 1].count(target) for place in range(len(letters))]
    return Problem(
        prompt=f"count\n{target}\n{','.join(letters)}",
        steps=tuple(f"{letter}{number}" for letter, number in zip(letters, tally)),
        joint="",
        answer=str(tally[-1]),
        conclude=lambda done: str(tally[done - 1]) if done else "0",
        content=f"count {target} {letters}",
    )


def _add(rng: Random, options: LettersOptions) -> Problem:
    a, b = (rng.randrange(10 ** (size - 1), 10**size) for size in (rng.randint(*options.digits) for _ in range(2)))
    steps, carry = [], 0
    for x, y in _columns(a, b):
        total = x + y + carry
        steps.append(f"{x}{y}{carry}{total // 10}{total % 10}")
        carry = total // 10
    return Problem(
        prompt=f"add\n{a},{b}",
        steps=tuple(steps),
        joint=" ",
        answer=str(a + b),
        conclude=lambda done: str((a % 10**done) + (b % 10**done)),
        content=f"add {sorted((a, b))}",
    )


def _columns(a: int, b: int) -> Iterator[tuple[int, int]]:
    """The digits of both numbers, from the units."""
    while a or b:
        yield a % 10, b % 10
        a, b = a // 10, b // 10


_MAKERS: dict[Kind, Callable[[Random, LettersOptions], Problem]] = {
    "reverse": _reverse,
    "sort": _sort,
    "count": _count,
    "add": _add,
}


class Letters:
    """The environment "letters"."""

    name: ClassVar[str] = "letters"

    def __init__(self, **options: Any) -> None:
        """Options: `kinds`, `lengths` and `digits` (see `LettersOptions`). Raises UsageError for wrong ones."""
        self._options = LettersOptions.read(self.name, options)

    def task(self, split: Split, index: int) -> Task:
        """Task `index`; the kinds take turns."""
        kind, problem = self._problem(split, index)
        return Task(
            id=f"{self.name}/{split}/{index}",
            environment=self.name,
            messages=(Message("user", problem.prompt),),
            hidden={"answer": problem.answer},
            kind=kind,
        )

    async def run(self, task: Task, endpoint: Endpoint) -> Reward:
        """One turn, and the answer compared without regard to white space."""
        reply = await endpoint.chat(task.messages)
        if problem := format_error(reply):
            return format_fault(problem)
        given, right = ("".join(text.split()) for text in (reply.message.content, task.hidden["answer"]))
        return verdict(given == right, f"answered {given!r}, right is {right!r}")

    async def close(self) -> None:
        """Nothing is held open."""

    def demonstrations(self, split: Split, count: int, seed: int, quality: float) -> Iterator[dict[str, Any]]:
        """Conversations to learn the form from, of which a share of 1 - `quality` ends with a wrong answer.

        What is wrong is always the strategy, never a step: half of the wrong ones guess without a thought, half stop
        their scratchpad early and answer what they have by then. A model that has seen wrong steps cannot learn the
        steps, and then reinforcement has nothing to reinforce.

        Yields:
            `{"messages": […], "thinking": "interleaved", "kind": …, "correct": …}`, the same for the same arguments.

        Raises:
            UsageError: `quality` is not within 0 and 1.
        """
        if not 0 <= quality <= 1:
            raise UsageError(f"the quality of demonstrations is a share from 0 to 1, not {quality}")
        rng = Random(f"demonstrations/{split}/{seed}")
        for number in range(count):
            # Any index with the wanted remainder, so that the kinds take turns here too.
            index = rng.randrange(2**32) * len(self._options.kinds) + number % len(self._options.kinds)
            kind, problem = self._problem(split, index)
            done = len(problem.steps)
            answer = problem.answer
            if is_wrong := rng.random() >= quality:
                done, answer = _bad_strategy(problem, rng)
            thought = problem.joint.join(problem.steps[:done])
            turns = [Message("user", problem.prompt), Message("assistant", answer, thought)]
            messages = [turn.to_openai() for turn in turns]
            yield {"messages": messages, "thinking": "interleaved", "kind": kind, "correct": not is_wrong}

    def _problem(self, split: Split, index: int) -> tuple[Kind, Problem]:
        kind = self._options.kinds[index % len(self._options.kinds)]
        make = _MAKERS[kind]
        return kind, draw(split, index, lambda rng: make(rng, self._options), lambda problem: problem.content)


def _bad_strategy(problem: Problem, rng: Random) -> tuple[int, str]:
    """How many steps a wrong demonstration does, and its wrong answer."""
    places = [done for done in range(1, len(problem.steps)) if problem.conclude(done) != problem.answer]
    if places and rng.random() < 0.5:
        done = rng.choice(places)
        return done, problem.conclude(done)
    return 0, _guess(problem.answer, rng)


def _guess(answer: str, rng: Random) -> str:
    """A wrong answer that looks like a right one: the same letters in another order, or another number as long."""
    while True:
        if answer.isdigit():
            guess = str(rng.randrange(10 ** (len(answer) - 1) if len(answer) > 1 else 0, 10 ** len(answer)))
        else:
            guess = ",".join(rng.sample(letters := answer.split(","), len(letters)))
        if guess != answer:
            return guess
