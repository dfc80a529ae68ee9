"""The final message of a search agent: explanation, exact answer, confidence, and citations of what was opened.

    Explanation: The peak is in Chad [africa/td.json#Geography].
    Exact Answer: Emi Koussi
    Confidence: 85%

The last such lines count, in any case and with any mark-up around them. A message without an `Exact Answer` line is
one answer as a whole where it is short, and no answer where it is long.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_UNMARKED = 200  # characters of a message that is an answer without saying so
_EXACT = re.compile(r"^\W*(?:exact|final)\s+answer\b[^\w\n]*?[:：][*_\s]*([^\n]*)", re.IGNORECASE | re.MULTILINE)
_CONFIDENCE = re.compile(r"^\W*confidence\b[^\w\n]*?[:：][*_\s]*(\d+(?:\.\d+)?)\s*(%?)", re.IGNORECASE | re.MULTILINE)
_CITATION = re.compile(r"\[([^\[\]\n]{2,400})\](?!\()")


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """What was read out of a message.

    Attributes:
        confidence: 0 to 1; None where none was given.
        citations: what stood in square brackets, each once, in order.
    """

    exact: str
    explanation: str
    confidence: float | None
    citations: tuple[str, ...]


def read_final_answer(message: str) -> FinalAnswer:
    """Read a final message; nothing in it is an error."""
    exact = _last(_EXACT, message)
    confidence = _last(_CONFIDENCE, message)
    if exact is not None:
        answer = " ".join(exact[1].split()).strip("*_ ")
    else:
        answer = message.strip() if len(message.strip()) <= MAX_UNMARKED else ""
    explanation = message[: exact.start()] if exact is not None else message
    explanation = re.sub(r"^\W*explanation\b[^\w\n]*?[:：][*_\s]*", "", explanation.strip(), flags=re.IGNORECASE)
    value = None if confidence is None else float(confidence[1])
    if value is not None and (confidence[2] or value > 1):  # type: ignore[index]
        value /= 100
    return FinalAnswer(answer, explanation.strip(), None if value is None else min(value, 1.0), citations_in(message))


def citations_in(text: str) -> tuple[str, ...]:
    """What stands in square brackets, each once, in order; links of Markdown aside."""
    return tuple(dict.fromkeys(found.strip() for found in _CITATION.findall(text)))


@dataclass(frozen=True, slots=True)
class CitationScore:
    """How well a message cites.

    Attributes:
        invented: cited addresses that were never opened.
        precision: of the citations, the share that is evidence; None without either.
        recall: of the evidence, the share that was cited; None where the evidence is not known.
    """

    invented: tuple[str, ...]
    precision: float | None
    recall: float | None


def score_citations(citations: Sequence[str], opened: Sequence[str], evidence: Sequence[str]) -> CitationScore:
    """Compare what was cited with what was opened and with a problem's evidence documents."""
    cited, wanted = set(citations), set(evidence)
    invented = tuple(address for address in citations if address not in set(opened))
    right = len(cited & wanted)
    return CitationScore(
        invented, right / len(cited) if cited and wanted else None, right / len(wanted) if wanted else None
    )


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007
        pass
    return found
