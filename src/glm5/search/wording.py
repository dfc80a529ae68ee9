"""The words of a question: one sentence for each country to be found, then what is asked.

A first country has no coast and became independent in the 1960s. It borders a second country, which counts gold
among its leading exports. What is the capital of the second country?
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from glm5.search.graph import Entity, Fact

_ORDINALS = ("first", "second", "third", "fourth")
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

# What is said of a country by its relation to a value; each takes the value's name.
CLUES: Mapping[str, Callable[[str], str]] = {
    "neighbours": lambda n: f"has exactly {_number(n)} land neighbour{'' if n == '1' else 's'}",
    "independence decade": lambda decade: f"became independent in the {decade}",
    "independent from": lambda ruler: f"became independent from {'the ' * ruler.startswith('United')}{ruler}",
    "landlocked": lambda _: "has no coast",
    "colours": lambda colours: f"has exactly these national colours: {colours}",
    "symbol": lambda symbol: f"has as a national symbol: {symbol}",
    "leading export": lambda goods: f"counts {goods} among its two leading exports",
    "official language": lambda language: f"has {language} as an official language",
    "currency": lambda currency: f"pays in {currency}",
    "peak height": lambda metres: f"has its highest point {_band(int(metres))}",
}

# How one country leads to the next.
LINKS: Mapping[str, str] = {
    "borders": "It borders a {next} country",
    "exports to": "Its largest export partner is a {next} country",
    "imports from": "Its largest import partner is a {next} country",
}

# What is asked of the last country.
_ASKED: Mapping[str, str] = {
    "capital": "What is the capital of {last}?",
    "highest point": "What is the highest point of {last} called?",
    "anthem": "What is the title of the national anthem of {last}?",
    "country": "What is the name of {last}?",
}
ATTRIBUTES = tuple(kind for kind in _ASKED if kind != "country")


@dataclass(frozen=True, slots=True)
class Step:
    """One country of the path: the relation that leads to it (None for the first) and the clues that single it out."""

    link: str | None
    clues: tuple[Fact, ...]


def word_question(steps: Sequence[Step], kind: str, entities: Mapping[str, Entity]) -> str:
    """The text of a question about a path; `kind` is what is asked of its last country."""
    sentences = []
    for number, step in enumerate(steps):
        clues = _listed([CLUES[fact.relation](entities[fact.object].name) for fact in step.clues])
        if step.link is None:
            sentences.append(f"A {_ORDINALS[0] + ' ' if len(steps) > 1 else ''}country {clues}.")
        else:
            link = LINKS[step.link].format(next=_ORDINALS[number])
            sentences.append(f"{link}, which {clues}." if clues else f"{link}.")
    if len(steps) > 1:
        asked = _ASKED[kind].format(last=f"the {_ORDINALS[len(steps) - 1]} country")
    else:
        asked = _ASKED[kind].format(last="that country")
    return " ".join([*sentences, asked])


def _listed(parts: list[str]) -> str:
    return "; it ".join(parts) if len(parts) < 3 else "; it ".join(parts[:-1]) + f"; and it {parts[-1]}"


def _number(digits: str) -> str:
    return _NUMBERS[int(digits)] if int(digits) < len(_NUMBERS) else digits


def _band(metres: int) -> str:
    return f"between {metres:,} and {metres + 500:,} metres above the sea"
