"""The journal of a run, cut anywhere, tells where the run stood."""

from pathlib import Path

import pytest

from glm5.errors import GLM5Error
from glm5.rl.journal import BatchTaken, GroupJudged, GroupStarted, Journal, Standing

EVENTS = [
    GroupStarted("g0", "a", 0),
    GroupStarted("g1", "b", 0),
    GroupStarted("g2", "a", 1),
    GroupJudged("g1", "accepted"),
    GroupJudged("g0", "filtered", "all equal"),
    GroupStarted("g3", "a", 2),
    GroupJudged("g3", "accepted"),
    BatchTaken(1, ["g1"], []),
    GroupStarted("g4", "b", 1),
    BatchTaken(2, [], ["g3"]),
]


def test_standing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for event in EVENTS:
        journal.write(event)
    standing = Standing.of(journal)
    assert standing.queued == []
    assert [started.group for started in standing.unfinished] == ["g2", "g4"]
    assert standing.cursor("a") == 3
    assert standing.cursor("b") == 2
    assert standing.cursor("c") == 0
    assert standing.batches == {1: ["g1"], 2: []}
    assert standing.stale == {"g3"}


def test_cut_anywhere_it_opens_again_with_the_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for event in EVENTS:
        journal.write(event)
    journal.close()
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        reopened = Journal(path)
        kept = list(reopened)
        assert kept == EVENTS[: content[:size].count(b"\n")]
        reopened.write(EVENTS[0])
        assert list(reopened) == [*kept, EVENTS[0]]
        reopened.close()


def test_a_line_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "started", "group": "g0", "environment": "a", "index": 0}\n{"event": "lunch"}\n')
    with pytest.raises(GLM5Error, match=r"journal.jsonl:2 is no event"):
        list(Journal(path))
