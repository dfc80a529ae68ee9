"""Who can be asked: a person at a terminal, or nobody.

Nobody being there is an answer too: what needs a person is denied, and the model is told why.
"""

from dataclasses import dataclass
from typing import Protocol

from glm5.agents.guard.gate import Verdict
from glm5.text.messages import ToolCall


@dataclass(frozen=True, slots=True)
class Answer:
    """To the question whether a call may run."""

    allowed: bool
    words: str = ""  # for the model, beside a refusal
    by_person: bool = True


class Person(Protocol):
    """Whoever watches a run."""

    async def approve(self, call: ToolCall, verdict: Verdict) -> Answer:
        """May this call run?"""

    async def advise(self, trouble: str) -> str:
        """What should a model be told that goes round in circles? "" stops the run."""


class Nobody:
    """A run without anybody watching."""

    async def approve(self, call: ToolCall, verdict: Verdict) -> Answer:
        """No."""
        return Answer(False, "nobody is there to be asked", by_person=False)

    async def advise(self, trouble: str) -> str:
        """Nothing."""
        return ""
