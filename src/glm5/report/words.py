"""Numbers, durations and recipes as a person reads them.

Figures keep three significant digits, because the fourth is noise in every quantity a report shows.
"""

import json
import math
import re
from typing import Any

from markupsafe import Markup, escape

_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_ACRONYMS = {"sft": "SFT", "rl": "RL"}
_BINARY_SCALES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))

# One alternative for each kind of TOML token; whatever none of them matches is left plain.
_TOML = re.compile(
    r"""(?P<section>^[ \t]*\[[^\]\n]*\]+)
      | (?P<key>^[ \t]*[\w."'-]+(?=[ \t]*=))
      | (?P<comment>\#[^\n]*)
      | (?P<string>\"{3}.*?\"{3} | '{3}.*?'{3} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
      | (?P<number>(?<![\w.])[+-]?\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?\b | \btrue\b | \bfalse\b)""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


def count(value: float) -> str:
    """A quantity with its scale: 1_234_567 → `1.23M`; below 10,000 in full, because small counts are exact."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < 10_000:
        return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"
    scale, suffix = next((pair for pair in _SCALES if abs(value) >= pair[0] * 0.9995), _SCALES[-1])
    return f"{_three_digits(value / scale)}{suffix}"


def size(n_bytes: float) -> str:
    """Bytes in binary units: 1_234_567 → `1.18 MiB`."""
    for scale, suffix in _BINARY_SCALES:
        if n_bytes >= scale:
            return f"{_three_digits(n_bytes / scale)} {suffix}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float) -> str:
    """Seconds of wall clock: `0.4 s`, `42 s`, `3 min 20 s`, `5 h 12 min`, `2 d 3 h`."""
    if not math.isfinite(seconds) or seconds < 0:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"


def figure(value: float | None) -> str:
    """A measured value: four significant digits, small ones as `1.02e−4`; `–` where nothing finite was measured."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 1e-3:
        return f"{value:.2e}".replace("e-0", "e-").replace("-", "−")
    return count(value) if abs(value) >= 10_000 else f"{value:.4g}"


def share(part: float, whole: float) -> str:
    """`part` of `whole` in per cent; `–` when there is no whole."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return "<0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %"


def title(name: str) -> str:
    """A stage's name as a heading: `reasoning-rl` → `Reasoning RL`."""
    spelled = [_ACRONYMS.get(word, word) for word in name.replace("-", "_").split("_")]
    return " ".join([spelled[0][:1].upper() + spelled[0][1:], *spelled[1:]])


def plain(value: Any) -> str:
    """Any JSON value of a stage's summary, in a line of text."""
    match value:
        case str():
            return value
        case bool() | None:
            return {True: "yes", False: "no", None: "–"}[value]
        case int():
            return f"{value:,}"
        case float():
            return figure(value)
        case _:
            return json.dumps(value, ensure_ascii=False)


def highlight_toml(text: str) -> Markup:
    """TOML as HTML with a `<span>` round each section, key, comment, string and number. Everything is escaped."""
    pieces: list[str] = []
    end = 0
    for token in _TOML.finditer(text):
        pieces.append(escape(text[end : token.start()]))
        pieces.append(Markup('<span class="toml-{}">{}</span>').format(token.lastgroup, token.group()))
        end = token.end()
    return Markup("").join([*pieces, escape(text[end:])])


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
