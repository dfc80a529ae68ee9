import html
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.report import words


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (9_999, "9,999"), (12_345, "12.3k"), (999_999, "1.00M"), (4_416_000, "4.42M"),
     (743.9e9, "744B"), (2.8e13, "28.0T")],
)  # fmt: skip
def test_count(value: float, text: str) -> None:
    assert words.count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (59.6, "1 min"), (200, "3 min 20 s"), (18_720, "5 h 12 min"), (86_400, "1 d"), (math.nan, "–")],
)
def test_duration(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.inf, "–"), (0.0, "0"), (1.63049, "1.63"), (0.000102, "1.02e−4"), (5786.4, "5786"),
     (73_251.0, "73.3k")],
)  # fmt: skip
def test_figure(value: float | None, text: str) -> None:
    assert words.figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [("a <b>", "a <b>"), (True, "yes"), (44_312, "44,312"), (3.42, "3.42"), (None, "–"), ([1, "ä"], '[1, "ä"]')],
)
def test_plain(value: object, text: str) -> None:
    assert words.plain(value) == text


def test_title_spells_acronyms() -> None:
    assert [words.title(name) for name in ("reasoning_rl", "sft", "pretrain")] == ["Reasoning RL", "SFT", "Pretrain"]


def test_size_and_share() -> None:
    assert words.size(1_234_567) == "1.18 MiB"
    assert words.share(1, 8) == "12.5 %"
    assert words.share(1, 10_000) == "<0.1 %"
    assert words.share(0, 0) == "–"


def test_toml_is_coloured_by_kind() -> None:
    marked = words.highlight_toml('[model]  # why\nlayers = 6\nname = "a # b"\nfast = true\n')
    kinds = re.findall(r'<span class="toml-(\w+)">(.*?)</span>', marked)
    assert kinds == [
        ("section", "[model]"),
        ("comment", "# why"),
        ("key", "layers"),
        ("number", "6"),
        ("key", "name"),
        ("string", "&#34;a # b&#34;"),
        ("key", "fast"),
        ("number", "true"),
    ]


@given(st.text(alphabet=st.sampled_from("ab1.<>&\"'#=[]\n_ -"), max_size=80))
def test_highlighting_changes_no_character_and_lets_no_markup_through(text: str) -> None:
    marked = words.highlight_toml(text)
    bare = re.sub(r'<span class="toml-\w+">|</span>', "", marked)
    assert "<" not in bare
    assert html.unescape(bare) == text
