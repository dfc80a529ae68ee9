import json
import re
from pathlib import Path

import pytest

from glm5.report import write_report
from glm5.report.folder import read_run
from glm5.report.rollouts import choose, pieces, read_rollouts, trained_places
from glm5.report.timeline import WIDTH, timeline
from glm5.rl.metrics import SpanRecord
from glm5.rl.records import Trajectory, Turn
from glm5.text.tokenizer import Tokenizer
from tests.report.fake_rl_run import TEXT, write_fake_rl_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_rl_run(tmp_path_factory.mktemp("rl"))


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_an_rl_stage_is_shown_whole(page: str) -> None:
    for expected in (
        "held-out reverse", "held-out repair", "± 0.090", "trainer waited", "in 40 updates", "168k", "144k trained on",
        "Held-out tasks", "Reward by environment", "Entropy", "Mismatch", "Staleness", "Prefix reuse",
        "0 versions", "1 version<", "environment", "stale", "What the trainer waited for", "evaluation",
        "Who worked when", "engine 2", "The last 6 of 40 updates.", "of 240 shown", "34 failed in all",
    ):  # fmt: skip
        assert expected in page, expected


def test_what_models_write_stays_text(page: str) -> None:
    assert "<b>died</b>" not in page
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert embedded
    shown = json.loads(embedded.group(1))["reasoning_rl"]["rollouts"]
    assert any("naïve → 漢字 </script>" in "".join(turn["tokens"]) for r in shown for turn in r["turns"])


def test_rollouts_are_few_and_of_every_kind(run: Path) -> None:
    rollouts = read_rollouts(run / "reasoning_rl/rollouts.jsonl", Tokenizer.load(run / "tokenizer"))
    assert rollouts.total == 240
    assert len(rollouts.shown) <= 60
    assert {r.environment for r in rollouts.shown} == {"reverse", "repair"}
    assert any(r.failure for r in rollouts.shown)
    assert {r.reward for r in rollouts.shown} == {None, 0.0, 1.0}
    versions = [r.version for r in rollouts.shown]
    assert versions[0] <= 1
    assert max(versions) == 40


def test_long_rollouts_are_cut_and_say_so(tmp_path: Path) -> None:
    run = write_fake_rl_run(tmp_path, updates=3, tokens_per_turn=2500)
    (stage,) = [stage for stage in read_run(run).stages if stage.rl]
    assert stage.rollouts is not None
    for rollout in read_rollouts(stage.rollouts, Tokenizer.load(run / "tokenizer")).shown:
        assert sum(len(turn.tokens) for turn in rollout.turns) <= 3000
        assert sum(len(turn.tokens) + turn.left_out for turn in rollout.turns) >= 5000


def test_pieces_join_to_the_text() -> None:
    tokenizer = Tokenizer.train([TEXT] * 3, vocab_size=300)
    ids = tokenizer.encode(TEXT)
    assert len(list(pieces(tokenizer, ids))) == len(ids)
    assert "".join(pieces(tokenizer, ids)) == TEXT
    assert list(pieces(tokenizer, [10**6])) == ["\ufffd"]


def test_tokens_that_a_later_prompt_overwrote_are_not_trained() -> None:
    first = Turn([1, 2], [3, 4, 5], [-1.0] * 3, [0] * 3, "stop")
    second = Turn([1, 2, 3, 9, 9], [6], [-1.0], [0], "stop")
    rollout = Trajectory("r", "t", "e", "g", turns=[first, second], reward=1.0)
    assert trained_places(rollout) == [[True, False, False], [True]]
    rollout.failure = "deadline"
    assert trained_places(rollout) == [[False] * 3, [False]]


def test_the_timeline_tells_idle_from_work() -> None:
    spans = [
        SpanRecord("trainer", "idle: waiting for rollouts", 0, 6),
        SpanRecord("trainer", "update", 6, 10),
        SpanRecord("engine 10", "generate", 0, 2, 5, "a"),
        SpanRecord("engine 2", "generate", 0, 4, 9, "b"),
        SpanRecord("engine 2", "generate", 2, 5, 9, "c"),
    ]
    chart = timeline(spans)
    assert chart is not None
    assert [(row.who, row.idle) for row in chart.rows] == [
        ("trainer", "60.0 %"),
        ("engine 2", "50.0 %"),
        ("engine 10", "80.0 %"),
    ]
    waiting, updating = chart.rows[0].bars
    assert (waiting.kind, waiting.x, waiting.width) == ("idle", 0, 600)
    assert (updating.kind, updating.x, updating.x + updating.width) == ("update", 600, WIDTH)
    assert [bar.kind for bar in chart.rows[1].bars] == ["generate-2", "generate-4", "generate-2"]
    assert timeline([]) is None


def test_a_stage_that_has_just_begun_is_shown(tmp_path: Path) -> None:
    run = write_fake_rl_run(tmp_path, updates=1)
    record = run / "reasoning_rl/metrics.jsonl"
    record.write_text(record.read_text().splitlines()[0] + "\n")
    (run / "reasoning_rl/rollouts.jsonl").write_text("")
    page = write_report(run).read_text(encoding="utf-8")
    assert "No update has been recorded yet." in page
    assert "Held-out tasks have not been scored yet." in page


def test_without_a_tokenizer_the_page_says_what_is_missing(tmp_path: Path) -> None:
    run = write_fake_rl_run(tmp_path, updates=2)
    (run / "tokenizer/tokenizer.json").unlink()
    assert "Rollouts cannot be shown" in write_report(run).read_text(encoding="utf-8")


def test_nothing_is_chosen_of_nothing() -> None:
    assert choose([]) == set()
