"""Right or wrong by rule, before any judge is asked: refusals, alternatives, numbers, dates, names in other spellings.

A rule that cannot be sure says so. `Verdict.UNSURE` goes to a judge; where there is none it counts as wrong, because
an answer that only a reader can recognise has not been shown to be right.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from glm5.search.normalise import normalise
from glm5.search.quantities import read_date, read_quantity
from glm5.search.spelling import sounds_alike


class Verdict(Enum):
    """What the rules say of an answer."""

    RIGHT = "right"
    WRONG = "wrong"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True)
class Match:
    """A verdict and the rule that reached it, for people."""

    verdict: Verdict
    rule: str


_REFUSALS = re.compile(
    r"^(none|n/?a|unknown|undetermined|not (found|known|available|sure)|no (answer|idea)|nothing|\?+|-+)$"
    r"|\b(i|we) (do not|don't|could not|couldn't|cannot|can't|am unable to|was unable to|were unable to|am not able to)"
    r"\b|\b(cannot|can't|could not) be (determined|found|identified|established|answered)"
    r"|\b(unable to|impossible to|not possible to) (determine|find|identify|say|answer|verify)"
    r"|\b(insufficient|not enough) (information|evidence|data)|\bno (definitive|conclusive|reliable|clear) answer",
    re.IGNORECASE,
)
_ALTERNATIVES = re.compile(
    r"\bor\b|\beither\b|\bpossibly also\b|\balternatively\b|\bcould also be\b|\bif not\b"
    r"|\bmight (also )?be\b.*\bbut\b|\bbut (possibly|perhaps|maybe|it (could|might|may))\b"
    r"|\w\s*/\s*\w|\b(vs|versus)\b|[;,] (maybe|perhaps|possibly) ",
    re.IGNORECASE,
)
_NEGATED = re.compile(r"\b(not|isn't|wasn't|rather than|instead of|never|except)\b", re.IGNORECASE)
_LEAD = re.compile(
    r"^(so,? )?(i (think|believe|would say|guess)( that)? |probably |most likely |likely |possibly |perhaps |maybe )?"
    r"((the )?((final|exact|correct) )*answer(( is| was):?|:) |(it|this|that|he|she|they)( is|'s| was| are| were) "
    r"|it('s| is) called )?(probably |most likely |likely |possibly |perhaps |maybe )?",
    re.IGNORECASE,
)
_TAIL = re.compile(r",? (i (think|believe|guess)|probably|most likely|perhaps|maybe|possibly|as far as i know)$", re.I)
_TITLES = frozenset(
    {"mr", "mrs", "ms", "miss", "dr", "prof", "professor", "sir", "dame", "lord", "lady", "president", "king", "queen"}
    | {"pope", "saint", "emperor", "prince", "princess", "general", "captain", "senator", "count", "countess", "doctor"}
)
_GENERIC = frozenset({"mount", "mountain", "mountains", "peak", "volcano", "river"})
_SAME = {"st": "saint", "mt": "mount", "ft": "fort", "dr": "doctor", "usa": "united states", "uk": "united kingdom"}


def match(answer: str, accepted: Sequence[str]) -> Match:
    """Compare an answer, as short as it was asked for, with the accepted ones."""
    plain = _plain(answer)
    if not plain:
        return Match(Verdict.WRONG, "no answer")
    if any(_same_form(plain, gold) for gold in accepted):
        return Match(Verdict.RIGHT, "the same")
    if _REFUSALS.search(plain):
        return Match(Verdict.WRONG, "a refusal")
    found = [_match_one(plain, gold) for gold in accepted]
    for verdict in (Verdict.RIGHT, Verdict.WRONG):
        for one in found:
            if one.verdict is verdict:
                return one
    return Match(Verdict.UNSURE, "no rule applies")


def is_refusal(answer: str) -> bool:
    """Whether an answer says that there is none."""
    return _REFUSALS.search(_plain(answer)) is not None


def _same_form(plain: str, gold: str) -> bool:
    if plain.casefold() == gold.casefold().strip():
        return True
    form = normalise(gold)
    # What punctuation says counts in a number (-5) and where there is little else (C++, C#).
    return len(form) > 2 and read_quantity(gold) is None and normalise(plain) == form


def _match_one(plain: str, gold: str) -> Match:
    if re.fullmatch(r"[A-Z]", gold):
        letter = re.match(r"(?:option |choice |answer )?\(?([A-Z])(?:[).:,]|$)", plain, re.IGNORECASE)
        right = letter is not None and letter[1].upper() == gold
        return Match(Verdict.RIGHT if right else Verdict.WRONG, "the letter of a choice")
    wanted_date = read_date(gold)
    if wanted_date is not None and len(gold.split()) <= 5:
        given_date = read_date(plain)
        if given_date is not None and not _ALTERNATIVES.search(re.sub(r"[\d/]{8,}", "", plain)):
            return Match(Verdict.RIGHT if given_date.answers(wanted_date) else Verdict.WRONG, "a date")
    wanted = read_quantity(gold)
    if wanted is not None:
        given = read_quantity(plain)
        if given is not None:
            return Match(Verdict.RIGHT if wanted.equals(given) else Verdict.WRONG, "a number")
        date = read_date(plain)
        if date is not None and date.year:
            return Match(Verdict.RIGHT if date.year == wanted.value else Verdict.WRONG, "the year of a date")
    if _ALTERNATIVES.search(plain) and not _ALTERNATIVES.search(gold):
        return Match(Verdict.WRONG, "more than one answer")
    if _same_items(plain, gold):
        return Match(Verdict.RIGHT, "the same items")
    candidates = [plain, re.sub(r"\s*[(\[][^)\]]*[)\]]", "", plain), *re.split(r" [-–—] |: ", plain)[:1]]
    if not _NEGATED.search(plain):
        candidates += re.findall(r"\b(?:is|was|are|were|be)(?: called| named)?(?: the)? ([^.]+)\.?$", plain)
    else:
        candidates += re.findall(r"^(.+?),?(?: and)? (?:not|rather than|instead of) ", plain)
    for candidate in candidates:
        if rule := _same_name(candidate, gold):
            return Match(Verdict.RIGHT, rule)
    return Match(Verdict.UNSURE, "no rule applies")


def _plain(answer: str) -> str:
    """Without mark-up, quotes and the words that lead up to an answer."""
    text = " ".join(re.sub(r"\*\*|__|`|\\boxed\{([^}]*)\}|\$(?=\S+\$)", r"\1", answer).split())
    text = text.strip(" *\"'“”«»„").rstrip(".!").strip(" *\"'“”«»„")
    return _TAIL.sub("", text[_lead(text) :]).strip(" \"'“”«»,")


def _lead(text: str) -> int:
    found = _LEAD.match(text)
    return found.end() if found else 0


def _same_name(given: str, gold: str) -> str:
    """The rule by which two names are one, or ""."""
    ours, theirs = (_words(name) for name in (given, gold))
    if not ours or not theirs:
        return ""
    if ours == theirs or "".join(ours) == "".join(theirs):
        return "the same name"
    if sounds_alike(given, gold):
        return "another spelling"
    ours, theirs = (words[1:] if words[0] in _TITLES and words[1:] else words for words in (ours, theirs))
    if ours == theirs:
        return "the same name without titles"
    short, long = sorted((ours, theirs), key=len)
    if len(short) >= 2 and short == [word for word in long if word not in _GENERIC]:
        return "the same name without the kind of thing"
    if len(short) >= 2 and len(long) <= len(short) + 2 and _abbreviates(short, long):
        return "a longer form of the name"
    return ""


def _words(name: str) -> list[str]:
    words = [_SAME.get(word, word) for word in normalise(name).split()]
    return [word for word in words if word != "the"]


def _abbreviates(short: list[str], long: list[str]) -> bool:
    """Whether first and last words agree and the middle of `short` is found in `long` in order, initials included."""
    if not (_initial(short[0], long[0]) and short[-1] == long[-1]):
        return False
    if len(short) < len(long) and any(len(word) == 1 for word in short):
        return False  # George W. Bush is not George H. W. Bush
    rest = iter(long[1:-1])
    return all(any(_initial(word, other) for other in rest) for word in short[1:-1])


def _initial(one: str, other: str) -> bool:
    return one == other or (min(len(one), len(other)) == 1 and one[0] == other[0])


def _same_items(given: str, gold: str) -> bool:
    """Whether both are lists of the same things in any order."""
    ours, theirs = (
        [item for item in re.split(r",\s*(?:and )?| and | & |;\s*", text) if item] for text in (given, gold)
    )
    if len(theirs) < 2 or len(ours) != len(theirs):
        return False
    left = list(theirs)
    for item in ours:
        found = next((other for other in left if _same_name(item, other)), None)
        if found is None:
            return False
        left.remove(found)
    return True
