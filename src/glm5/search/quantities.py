"""Numbers and dates inside answers: read in the ways people write them, compared as quantities.

Whole numbers below `EXACT_BELOW` (years, counts, ages) must be equal. Others may differ by `TOLERANCE`, the "small
margin of error" that the rules of BrowseComp and HLE allow.
"""

import re
from dataclasses import dataclass

EXACT_BELOW = 10_000
TOLERANCE = 0.01

_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90
}  # fmt: skip
_SCALES = {
    "hundred": 1e2, "thousand": 1e3, "k": 1e3, "million": 1e6, "mn": 1e6, "billion": 1e9, "bn": 1e9, "trillion": 1e12
}  # fmt: skip
# Unit: dimension and size in that dimension's base.
_UNITS = {
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), ("length", 1.0)),
    **dict.fromkeys(("km", "kilometre", "kilometres", "kilometer", "kilometers"), ("length", 1e3)),
    **dict.fromkeys(("cm", "centimetre", "centimetres", "centimeter", "centimeters"), ("length", 1e-2)),
    **dict.fromkeys(("mm", "millimetre", "millimetres", "millimeter", "millimeters"), ("length", 1e-3)),
    **dict.fromkeys(("ft", "foot", "feet"), ("length", 0.3048)),
    **dict.fromkeys(("mi", "mile", "miles"), ("length", 1609.344)),
    **dict.fromkeys(("g", "gram", "grams", "gramme", "grammes"), ("mass", 1.0)),
    **dict.fromkeys(("kg", "kilogram", "kilograms", "kilogrammes"), ("mass", 1e3)),
    **dict.fromkeys(("t", "tonne", "tonnes"), ("mass", 1e6)),
    **dict.fromkeys(("s", "sec", "second", "seconds"), ("time", 1.0)),
    **dict.fromkeys(("min", "minute", "minutes"), ("time", 60.0)),
    **dict.fromkeys(("h", "hour", "hours"), ("time", 3600.0)),
    **dict.fromkeys(("d", "day", "days"), ("time", 86400.0)),
    **dict.fromkeys(("%", "percent", "per cent"), ("share", 1.0)),
}
_ABOUT = re.compile(
    r"^((in )?the year |in )?(about|approximately|approx\.?|around|roughly|nearly|almost|circa|ca?\.|~|≈|exactly)?\s*",
    re.I,
)
_NUMBER = re.compile(
    r"(?P<sign>[-−–]?)\s*(?P<currency>[$€£¥]?)\s*(?P<digits>\d{1,3}(?:[,  ']\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?)"
    r"\s*(?P<scale>hundred|thousand|million|billion|trillion|mn|bn|k\b)?\s*(?P<unit>[a-z%°]+(?: cent)?)?(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTH = "(?P<month>" + "|".join(f"{month[:3]}(?:{month[3:]})?" for month in _MONTHS) + r"|sept)\.?"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH},? (?P<year>\d{{3,4}})",
        rf"{_MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year>\d{{3,4}})",
        r"(?P<year>\d{4})[-/.](?P<monthnumber>\d{1,2})[-/.](?P<day>\d{1,2})",
        r"(?P<day>1[3-9]|2\d|3[01])[-/.](?P<monthnumber>\d{1,2})[-/.](?P<year>\d{4})",
        r"(?P<monthnumber>\d{1,2})[-/.](?P<day>1[3-9]|2\d|3[01])[-/.](?P<year>\d{4})",
        rf"{_MONTH},? (?P<year>\d{{3,4}})",
        rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH}",
        rf"{_MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?",
    )
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its dimension; "" for a bare number or an unknown unit, which `unit` then names."""

    value: float
    dimension: str = ""
    unit: str = ""

    def equals(self, other: "Quantity") -> bool:
        """Whether they say the same, a missing unit on one side aside."""
        if self.dimension and other.dimension and self.dimension != other.dimension:
            return False
        unknown = not self.dimension and not other.dimension
        if unknown and self.unit and other.unit and self.unit.rstrip("s") != other.unit.rstrip("s"):
            return False
        ours, theirs = self.value, other.value
        if self.dimension != other.dimension:  # 3,445 for 3,445 m
            ours, theirs = (x.value / (_UNITS[x.unit][1] if x.dimension else 1.0) for x in (self, other))
        if ours == int(ours) and abs(ours) < EXACT_BELOW and not (self.dimension and other.dimension):
            return ours == theirs
        return abs(ours - theirs) <= TOLERANCE * abs(ours)


@dataclass(frozen=True, slots=True)
class Date:
    """A date; 0 for the parts that were not given."""

    year: int
    month: int
    day: int

    def answers(self, wanted: "Date") -> bool:
        """Whether this says all that is wanted, and nothing else; saying more is right too."""
        pairs = ((self.year, wanted.year), (self.month, wanted.month), (self.day, wanted.day))
        return all(not needed or given == needed for given, needed in pairs)


def read_quantity(text: str) -> Quantity | None:
    """The number that a text is, with what may follow it in brackets; None where the text is not a number."""
    text = _ABOUT.sub("", _spelled(re.sub(r"\s*\([^)]*\)", "", text).strip().rstrip(".").lower()))
    found = _NUMBER.fullmatch(text)
    if found is None or len(found["rest"].split()) > 3 or re.search(r"\d", found["rest"]):
        return None
    digits = re.sub(r"[,  '](?=\d{3}(\D|$))", "", found["digits"]).replace(",", ".")
    value = float(digits) * _SCALES.get((found["scale"] or "").lower(), 1.0) * (-1 if found["sign"] else 1)
    unit = found["unit"] or ""
    if unit in _UNITS:
        dimension, size = _UNITS[unit]
        return Quantity(value * size, dimension, unit)
    return Quantity(value, "", {"$": "dollars", "€": "euros", "£": "pounds", "¥": "yen"}.get(found["currency"], unit))


def read_date(text: str) -> Date | None:
    """The date in a text, if there is exactly one way to read it: 4/7/1776 is not a date."""
    for pattern in _DATES:
        if found := pattern.search(text):
            parts = found.groupdict()
            month = parts.get("month")
            number = int(parts.get("monthnumber") or 0) if not month else _month(month)
            return Date(int(parts.get("year") or 0), number, int(parts.get("day") or 0))
    return None


def _month(name: str) -> int:
    return 1 + next(n for n, month in enumerate(_MONTHS) if month.startswith(name[:3].lower()))


def _spelled(text: str) -> str:
    """`twenty-five goats` → `25 goats`; a text that begins with no number word stays as it is."""
    words = re.split(r"[\s-]+", text)
    value, used = 0.0, 0
    for word in words:
        if word in _TENS and value % 100 == 0:
            value += _TENS[word]
        elif word in _WORDS and (value % 10 == 0 or not used):
            value += _WORDS[word]
        elif word in ("hundred", "thousand", "million") and used:
            value *= _SCALES[word]
        elif not (word == "and" and used and len(words) > used + 1 and words[used + 1] in {*_WORDS, *_TENS}):
            break
        used += 1
    return " ".join([f"{value:g}" if value < 1e6 else f"{value:.0f}", *words[used:]]) if used else text
