import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glm5.errors import GLM5Error
from glm5.report import write_report
from glm5.train.metrics import EvalRecord, MetricsLog, StepRecord
from tests.report.fake_run import SAMPLES, Shape, dump, stage, write_fake_run


class Words(HTMLParser):
    """The text a reader sees, and every address a browser could follow."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def read(path: Path) -> tuple[str, Words]:
    page = path.read_text(encoding="utf-8")
    words = Words()
    words.feed(page)
    words.text = re.sub(r"[ \n]+", " ", words.text)
    return page, words


def embedded(page: str) -> dict:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match.group(1))


def test_a_run_is_shown_whole(tmp_path: Path) -> None:
    path = write_report(write_fake_run(tmp_path))
    page, words = read(path)
    assert path == tmp_path / "report.html"
    for expected in (
        "nano-a", "recipes/nano.toml", "3 of 6 done", "Agentic RL skipped", "Reasoning RL", "pending",  # stages
        "python", "PSF-2.0", "and 1 more", "214 too long a line", "52.3 %",  # the corpus
        "vocabulary", "2,048", "tokenizer/tokenizer.json",  # a stage that trains nothing
        "bits per byte", "xz -9e", "4.42M parameters", "1.81M active per token", "600 steps", "14 min 7 s",  # figures
        "Training loss", "Multi-token prediction loss", "Learning rate", "Gradient norm", "Throughput",
        "Load violation", "depth 3",
        "busiest: expert", "experts per token", "routed experts", "57.3 %",  # charts and model
    ):  # fmt: skip
        assert expected in words.text, expected
    stages = embedded(page)
    assert list(stages) == ["pretrain"]
    assert [phase["name"] for phase in stages["pretrain"]["phases"]] == ["general", "code and reasoning", "anneal"]
    held_out = next(chart for chart in stages["pretrain"]["charts"] if chart["title"] == "Held-out text")
    assert [curve["name"] for curve in held_out["curves"]] == ["all", "python", "manuals", "factbook", "reasoning"]
    assert {"name": "xz -9e", "value": 1.93} in held_out["rules"]


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert not (tmp_path / "report.tmp").exists()


def test_what_a_model_wrote_is_text_and_never_markup(tmp_path: Path) -> None:
    page, words = read(write_report(write_fake_run(tmp_path)))
    assert page.count("<script") == 2
    assert "alert(1)</script>" in words.text
    assert "<b>sum</b> & nothing else" in words.text
    assert 'name = "nano <b>"' in words.text
    for prompt in SAMPLES:
        assert re.sub(r"[ \n]+", " ", prompt) in words.text


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    page, words = read(write_report(write_fake_run(tmp_path)))
    assert all(address.startswith("#") or address == "data:," for address in words.addresses)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", page)


def test_a_run_of_5000_steps_stays_below_a_megabyte(tmp_path: Path) -> None:
    page, _ = read(write_report(write_fake_run(tmp_path, Shape(steps=5000))))
    assert len(page.encode()) < 1_000_000
    assert all(
        len(curve["steps"]) <= 1000 for chart in embedded(page)["pretrain"]["charts"] for curve in chart["curves"]
    )
    assert "Samples are shown at 24 of the 51 steps" in page


def test_steps_that_are_not_numbers_are_gaps_and_are_counted(tmp_path: Path) -> None:
    page, words = read(write_report(write_fake_run(tmp_path, Shape(steps=60, nan_at=(17, 18)))))
    assert "2 of 60 steps have a loss or gradient norm that is not a finite number, the first at step 17" in words.text
    raw = embedded(page)["pretrain"]["charts"][0]["curves"][1]
    assert raw["values"][16:18] == [None, None]


@pytest.mark.parametrize("shape", [Shape(steps=1, status="running"), Shape(steps=1, nan_at=(1,), status="failed")])
def test_a_run_of_one_step_is_shown(tmp_path: Path, shape: Shape) -> None:
    _, words = read(write_report(write_fake_run(tmp_path, shape)))
    assert shape.status in words.text
    assert "in 1 step " in words.text


def test_without_run_json_the_measured_stages_are_shown(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "midtrain" / "metrics.jsonl")
    log.write(StepRecord(1, 512, "long", 3.0, [], 0.0, 1.0, 0.01, 0.001, 900.0, 0.6, 0.0))
    log.close()
    _, words = read(write_report(tmp_path))
    assert tmp_path.name in words.text
    assert "Midtrain" in words.text
    assert "Held-out text has not been scored yet" in words.text
    assert "no data/manifest.json" in words.text


def test_a_stage_that_has_recorded_nothing_yet_is_shown(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "pretrain" / "metrics.jsonl").close()
    _, words = read(write_report(tmp_path))
    assert "No optimiser step has been recorded yet" in words.text


def test_a_folder_without_a_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(GLM5Error, match=re.escape(str(tmp_path))):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [("run.json", "{"), ("run.json", "[1]"), ("run.json", '{"name": "x"}'), ("pretrain/counts.json", "{}"),
     ("pretrain/baselines.json", '{"held_out bits per byte": {"xz": "small"}}')],
)  # fmt: skip
def test_a_file_that_cannot_be_understood_is_named(tmp_path: Path, name: str, text: str) -> None:
    run = write_fake_run(tmp_path, Shape(steps=2))
    (run / name).write_text(text, encoding="utf-8")
    with pytest.raises(GLM5Error, match=name):
        write_report(run)


def test_baselines_no_chart_draws_are_told(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path, Shape(steps=2))
    dump(run / "pretrain/baselines.json", {"pass@1": {"a peer": 0.4}})
    _, words = read(write_report(run))
    assert "baselines.json compares pass@1" in words.text


def test_a_stage_of_any_name_is_shown(tmp_path: Path) -> None:
    entry = stage("slides_rl", "done", 61.0, {"mean reward": 0.731, "<i>odd</i>": [1, 2]}, ["slides_rl/model"])
    dump(tmp_path / "run.json", {"name": "r", "recipe": "", "stages": [entry]})
    _, words = read(write_report(tmp_path))
    for expected in ("Slides RL", "1 min 1 s", "mean reward", "0.731", "<i>odd</i>", "[1, 2]"):
        assert expected in words.text


def test_expert_load_becomes_the_levels_of_its_ratio_to_the_mean(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "pretrain" / "metrics.jsonl")
    log.write(EvalRecord(0, 0, {"all": math.nan}, [[0.25, 0.25, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25]]))
    log.close()
    page, words = read(write_report(tmp_path))
    paths = dict(re.findall(r'<path class="level-(\d)" d="([^"]*)"', page))
    assert paths["4"].count("M") == 6  # six experts carry an even share
    assert paths["7"] == "M2 0h1v1h-1z"  # one carries twice that
    assert paths["0"] == "M3 0h1v1h-1z"  # one nothing
    assert "busiest: expert 2 of MoE layer 0, 2.00× its share" in words.text
