"""One form for all the ways to write a name: no accents, no case, no punctuation, other alphabets' usual spellings."""

import re
import unicodedata

_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "ʻ": "'", "ʼ": "'",
     "’": "'", "‘": "'", "`": "'", "´": "'"}
)  # fmt: skip
_ARTICLES = re.compile(r"^(the|a|an) ")  # of other languages they belong to the name: El Salvador


def normalise(text: str) -> str:
    """Lower case letters, digits and single spaces. `The  Côte d'Ivoire` → `cote divoire`."""
    text = text.casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold().translate(_LETTERS)
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = re.sub(r"(?<=\w)'(?=\w)|(?<=\b\w)\.(?=\w\b)|(?<=\b\w\.\w)\.", "", text).replace("&", " and ")
    text = " ".join(re.findall(r"\w+", unicodedata.normalize("NFC", text)))
    return _ARTICLES.sub("", text)
