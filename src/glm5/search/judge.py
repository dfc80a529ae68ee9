"""A model as judge of answers that no rule can decide.

The words it is asked with are `prompts/judge.txt`; to compare with published figures give the text that they used,
which has the same places to fill in. A verdict that cannot be read is asked for once more and then reported as unread:
it is never taken for a "no".
"""

import re
from dataclasses import dataclass
from importlib.resources import files

from glm5.agents.endpoint import Endpoint
from glm5.errors import UsageError
from glm5.text.messages import Message

ATTEMPTS = 2
_PLACES = ("{question}", "{response}", "{correct_answer}")
_LINE = r"^\W*{name}\W*?[:：]\W*({value})"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge said.

    Attributes:
        correct: None where no verdict could be read.
        confidence: the response's own, 0 to 1; None if it could not be read.
        text: the judge's words.
    """

    correct: bool | None
    extracted: str
    confidence: float | None
    text: str


class Judge:
    """Asks an endpoint."""

    def __init__(self, endpoint: Endpoint, prompt: str | None = None) -> None:
        """Raises UsageError for a prompt that leaves out the question, the response or the accepted answer."""
        self._endpoint = endpoint
        self._prompt = prompt or (files("glm5.search") / "prompts" / "judge.txt").read_text("utf-8")
        if missing := [place for place in _PLACES if place not in self._prompt]:
            raise UsageError(f"the judge's prompt has no place for {', '.join(missing)}")

    async def judge(self, question: str, response: str, correct_answer: str) -> Judgement:
        """One judgement.

        Raises:
            EndpointError: the endpoint failed.
        """
        values = dict(zip(_PLACES, (question, response, correct_answer)))
        # One pass, so that a place named inside a response is not filled in.
        prompt = re.sub("|".join(map(re.escape, _PLACES)), lambda found: values[found[0]], self._prompt)
        judgement = Judgement(None, "", None, "")
        for _ in range(ATTEMPTS):
            reply = await self._endpoint.chat([Message("user", prompt)], temperature=0.0)
            judgement = read_judgement(reply.message.content)
            if judgement.correct is not None:
                break
        return judgement


def read_judgement(text: str) -> Judgement:
    """Read a judge's lines; the last of each name counts, because a reasoning may quote the others."""
    verdict = _last(text, "correct", "yes|no")
    confidence = _last(text, "confidence", r"\d+(?:\.\d+)?")
    return Judgement(
        correct=None if verdict is None else verdict.lower() == "yes",
        extracted=(_last(text, "extracted_final_answer", r"[^\n]*") or "").strip(" *"),
        confidence=None if confidence is None else min(float(confidence) / 100, 1.0),
        text=text,
    )


def _last(text: str, name: str, value: str) -> str | None:
    found = re.findall(_LINE.format(name=name, value=value) + r"(?=\W|$)", text, re.IGNORECASE | re.MULTILINE)
    return found[-1] if found else None
