"""The rules: what they drop, what they must let through, and that cleaning loses nothing."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.data.documents import Document, fingerprint
from glm5.data.quality import MAX_LINE, DropReason, clean, drop_reason, normalise
from glm5.data.sources.base import Kind

PROSE = "\n".join(f"Line number {number} says something that no other line says." for number in range(50))
CODE = "def f(x):\n    if x:\n        return None\n    return None\n\n\n" * 30


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("", "general", DropReason.EMPTY),
        (" \n\t\n", "code", DropReason.EMPTY),
        (PROSE + "\0", "general", DropReason.BINARY),
        (PROSE + "\ufffd" * 10, "general", DropReason.BINARY),
        ("\x01\x02\x03 abc", "code", DropReason.BINARY),
        ("x" * (MAX_LINE["code"] + 1), "code", DropReason.LONG_LINES),
        ("x" * (MAX_LINE["code"] + 1), "general", None),
        (PROSE * 3, "general", DropReason.REPEATED_LINES),
        (PROSE, "general", None),
        (PROSE + "\ufffd", "general", None),
        (CODE, "code", None),
        ("漢字かな交じり文", "general", None),
    ],
)
def test_rules(text: str, kind: Kind, reason: DropReason | None) -> None:
    assert drop_reason(text, kind) == reason


@given(st.text())
def test_normalising_changes_line_ends_only(text: str) -> None:
    clean_text = normalise(text)
    assert "\r" not in clean_text
    assert normalise(clean_text.removeprefix("\ufeff")) == clean_text.removeprefix("\ufeff")
    assert clean_text.split() == text.removeprefix("\ufeff").split()
    if "\r" not in text and not text.startswith("\ufeff"):
        assert clean_text == text


@given(st.lists(st.text(alphabet=" \n\0ab", max_size=5)))
def test_every_document_is_kept_once_or_counted(texts: list[str]) -> None:
    seen: set[bytes] = set()
    dropped: Counter[DropReason] = Counter()
    kept = list(clean((Document(text, "s", "l", "p") for text in texts), "general", seen, dropped))
    assert len(kept) + dropped.total() == len(texts)
    keys = [fingerprint(document.text) for document in kept]
    assert len(set(keys)) == len(keys)
    assert set(keys) == seen
