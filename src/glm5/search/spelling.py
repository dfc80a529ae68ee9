"""Whether two names are spellings of one name: another alphabet, another system of writing it in ours.

A name is reduced to how it sounds, roughly: Cyrillic and Greek letters become Latin ones, spellings of one sound become
one letter, doubled letters single. `Tchaikovsky`, `Chaikovskii` and `Чайковский` become the same. Vowels stay, since
they tell Niger from Nigeria and Mario from Maria; only one a and e inside a longer name may stand for each other.
"""

import re

from glm5.search.normalise import normalise

_LATIN = str.maketrans(
    "абвгдезийклмнопрстуфыэіїєґ" "αβγδεζηικλμνξοπρσςτυφω",
    "abvgdeziiklmnoprstufyeiieg" "avgdeziiklmnxoprsstifo",
) | str.maketrans(
    {"ж": "zh", "х": "kh", "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch", "ъ": "", "ь": "", "ю": "yu"}
    | {"я": "ya", "θ": "th", "χ": "ch", "ψ": "ps"}
)  # fmt: skip
# In this order; each is a pattern and the letters that stand for it.
_SOUNDS = (
    (r"shch|sch|tsch|tch|tsh", "ch"), (r"kh", "k"), (r"gh(?=[aeiou])", "g"), (r"dh", "d"), (r"ph", "f"),
    (r"(?<=[hj])yo", "e"), (r"zh|dzh|dj|j", "j"), (r"ck|q|c(?=[aouklrt]|$)", "k"), (r"c(?=[eiy])", "s"),
    (r"x", "ks"), (r"w", "v"), (r"ts|tz|z", "z"), (r"(?<=[aeou])h\b|(?<=[aeiou])h(?=[^aeiouy])", ""),
    (r"(?<=[^aeiou])y(?=[ou])", "i"), (r"[eiy]+", "i"), (r"[ou]+", "u"), (r"ai", "i"), (r"(.)\1+", r"\1"),
    (r"(?<=i)u(?=i)", ""),
)  # fmt: skip
_LONG = 6  # letters of a reduced name from which a and e may stand for each other


def sounds_alike(one: str, other: str) -> bool:
    """Whether two names, word by word, are spellings of one."""
    ours, theirs = ([_reduced(word) for word in latin(name).split()] for name in (one, other))
    if len(ours) != len(theirs):
        ours, theirs = ["".join(ours)], ["".join(theirs)]  # al-Qaida, Alqaida
    return all(_alike(a, b) for a, b in zip(ours, theirs))


def latin(text: str) -> str:
    """The normal form with Cyrillic and Greek letters written as Latin ones."""
    return normalise(text.lower().replace("ё", "yo")).translate(_LATIN)


def _reduced(word: str) -> str:
    for pattern, sound in _SOUNDS:
        word = re.sub(pattern, sound, word)
    return word


def _alike(one: str, other: str) -> bool:
    if one == other:
        return True
    if min(len(one), len(other)) < _LONG or one[0] != other[0] or one[-1] != other[-1]:
        return False
    different = [{a, b} for a, b in zip(one, other) if a != b]
    return len(one) == len(other) and different == [{"a", "i"}]
