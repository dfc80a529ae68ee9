import calendar
import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.search.matching import Verdict, match
from glm5.search.normalise import normalise
from glm5.search.quantities import Date, read_date, read_quantity
from glm5.search.spelling import sounds_alike

PAIRS = [
    tuple(line.split("\t"))
    for line in Path(__file__).with_name("answer_pairs.tsv").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def test_agreement_with_the_labelled_pairs() -> None:
    """Rules alone; what they are not sure of counts as wrong, as it does without a judge."""
    verdicts = [(match(answer, gold.split("|")), label) for gold, answer, label in PAIRS]
    agree = [(found.verdict is Verdict.RIGHT) == (label == "yes") for found, label in verdicts]
    assert len(PAIRS) >= 300
    assert sum(agree) / len(agree) >= 0.98
    sure = [same for same, (found, _) in zip(agree, verdicts) if found.verdict is not Verdict.UNSURE]
    assert len(sure) > 200
    assert sum(sure) / len(sure) >= 0.995  # a sure verdict no judge looks at again
    assert {label for _, label in verdicts} == {"yes", "no"}


@given(st.text(alphabet=st.characters(categories=["L", "N"]), min_size=3, max_size=30))
def test_every_answer_matches_itself(name: str) -> None:
    """It can say correct."""
    assert match(f'**"{name}"**.', [name]).verdict is Verdict.RIGHT


@given(st.text(max_size=80), st.lists(st.text(max_size=40), min_size=1, max_size=3))
def test_no_answer_breaks_it(answer: str, accepted: list[str]) -> None:
    assert match(answer, accepted).verdict in Verdict


@given(st.integers(-9_999, 9_999))
def test_whole_numbers_must_be_equal(number: int) -> None:
    assert match(f"{number:,}", [str(number)]).verdict is Verdict.RIGHT
    assert match(str(number + 1), [str(number)]).verdict is Verdict.WRONG


@given(st.dates(min_value=datetime.date(1000, 1, 1)))
def test_dates_in_every_usual_form(date: datetime.date) -> None:
    wanted, month = Date(date.year, date.month, date.day), calendar.month_name[date.month]
    for text in (
        date.isoformat(), f"{date.day} {month} {date.year}", f"{month} {date.day}, {date.year}",
        f"{month[:3]} {date.day} {date.year}",
    ):  # fmt: skip
        assert read_date(text) == wanted
    assert read_date("4/7/1776") is None  # which is the month?


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5 million", 1.5e6),
        ("2 km", 2000),
        ("-3", -3),
        ("ninety-nine", 99),
        ("two hundred and five", 205),
        ("7 %", 7),
    ],
)
def test_numbers(text: str, value: float) -> None:
    found = read_quantity(text)
    assert found is not None
    assert found.value == pytest.approx(value)


@pytest.mark.parametrize("text", ["Paris", "Apollo 11", "U2", "3 or 4", "", "1974-1976"])
def test_what_is_no_number(text: str) -> None:
    assert read_quantity(text) is None


@given(st.text(max_size=60))
def test_the_normal_form_is_final(text: str) -> None:
    once = normalise(text)
    assert once == " ".join(once.split())
    assert sounds_alike(once, once)
