"""The stage runner: what is finished is kept, what changed is made again, and no way to stop a run loses work."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rich.console import Console

from glm5.errors import GLM5Error, UsageError
from glm5.pipeline import STAGES, StageRecord, read_run_log, run_recipe, validate
from glm5.recipe import Recipe, settings

# Three stages small enough to read: write numbers, add them up one by one (resumable), tell the sum.
TOY = """
import os, time
from glm5.errors import GLM5Error
from glm5.pipeline import Stage

def note(context, words):
    with (context.run / "history.txt").open("a") as file:
        file.write(words + "\\n")

def write(context):
    note(context, "write")
    context.folder.mkdir(exist_ok=True)
    (context.folder / "numbers.txt").write_text(" ".join(str(n) for n in range(context.recipe.pretrain.warmup_steps)))
    return {"numbers": context.recipe.pretrain.warmup_steps}

def add(context):
    numbers = [int(n) for n in (context.run / "write/numbers.txt").read_text().split()]
    context.folder.mkdir(exist_ok=True)
    state = context.folder / "state.txt"
    done, total = map(int, state.read_text().split()) if state.exists() else (0, context.recipe.seed)
    note(context, f"add from {done}")
    for number in numbers[done:]:
        if done == context.recipe.pretrain.eval_every_steps:  # somebody or something stops it here
            if (context.run / "interrupt").exists():
                raise KeyboardInterrupt
            if (context.run / "fail").exists():
                raise GLM5Error("the disk is full")
            if (context.run / "wait").exists():
                (context.run / "waiting").touch()
                time.sleep(60)
        done, total = done + 1, total + number
        replacement = context.folder / "state.tmp"
        replacement.write_text(f"{done} {total}")
        os.replace(replacement, state)
    (context.folder / "sum.txt").write_text(str(total))
    return {"sum": total}

def tell(context):
    note(context, "tell")
    context.folder.mkdir(exist_ok=True)
    (context.folder / "page.txt").write_text("the sum is " + (context.run / "add/sum.txt").read_text())
    return {"words": 4}

def forget(context):
    return {}

TOYS = {stage.name: stage for stage in (
    Stage("write", "toy:write", ("pretrain",), ("pretrain.eval_every_steps",),
          outputs=lambda recipe: [recipe.output / "write/numbers.txt"]),
    Stage("add", "toy:add", ("seed", "data"), ("data.max_bytes",),
          inputs=lambda recipe: [recipe.output / "write/numbers.txt"],
          outputs=lambda recipe: [recipe.output / "add/sum.txt"]),
    Stage("tell", "toy:tell", ("name",), outputs=lambda recipe: [recipe.output / "tell/page.txt"]),
    Stage("forget", "toy:forget", outputs=lambda recipe: [recipe.output / "forget/nothing.txt"]),
)}
"""

ALONE = """
import sys
from pathlib import Path
from toy import TOYS
from glm5.pipeline import run_recipe
from glm5.recipe import load_recipe
run_recipe(load_recipe(sys.argv[1]), sys.argv[1], stages=TOYS)
"""


def recipe_for(output: Path, **changes: Any) -> Recipe:
    """A valid recipe for the toy stages; `steps`, `seed`, `limit`, `stop`, `name` and `stages` can be chosen."""
    return Recipe.model_validate(
        {
            "name": changes.get("name", "toy"),
            "output": str(output),
            "stages": changes.get("stages", ["write", "add", "tell"]),
            "seed": changes.get("seed", 0),
            "threads": changes.get("threads", 0),
            "model": {"preset": "nano"} | changes.get("model", {}),
            "tokenizer": changes.get("tokenizer", {"train_bytes": 1000}),
            "data": {"sources": ["a"], "max_bytes": changes.get("limit", 1)},
            "pretrain": {
                "context_length": 8,
                "tokens": 8000,
                "rows_per_step": 1,
                "tokens_per_microbatch": 8,
                "lr_muon": 0.1,
                "lr_adamw": 0.1,
                "warmup_steps": changes.get("steps", 5),
                "eval_every_steps": changes.get("stop", 3),
                "save_every_steps": 1,
                "phases": [{"name": "all", "until": 1.0, "weights": {"a": 1.0}}],
            }
            | changes.get("pretrain", {}),
        }
    )


class Toy:
    """A run of the toy stages in a folder of its own."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.told = ""

    def run(self, *, only: list[str] | None = None, skip: tuple[str, ...] = (), restart: bool = False, **changes: Any):
        from toy import TOYS

        console = Console(file=io.StringIO(), width=1000)
        (self.output / "history.txt").unlink(missing_ok=True)
        try:
            recipe = recipe_for(self.output, **changes)
            run_recipe(recipe, "toy.toml", only=only, skip=skip, restart=restart, console=console, stages=TOYS)
        finally:
            self.told = console.file.getvalue()
        return self.history()

    def stop(self, how: str, error: type[BaseException], **changes: Any) -> None:
        (self.output / how).touch()
        with pytest.raises(error):
            self.run(**changes)
        (self.output / how).unlink()

    def history(self) -> list[str]:
        path = self.output / "history.txt"
        return path.read_text().splitlines() if path.exists() else []

    def record(self, name: str) -> StageRecord:
        return {record.name: record for record in read_run_log(self.output / "run.json")}[name]

    def page(self) -> str:
        return (self.output / "tell/page.txt").read_text()


@pytest.fixture(scope="module", autouse=True)
def toy_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("toy_module")
    (folder / "toy.py").write_text(TOY)
    (folder / "alone.py").write_text(ALONE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    output = tmp_path / "run"
    output.mkdir()
    return Toy(output)


# -- what is kept and what is made again -----------------------------------------------------------------------------


def test_a_run_says_what_it_did(toy: Toy) -> None:
    assert toy.run(seed=1) == ["write", "add from 0", "tell"]
    log = json.loads((toy.output / "run.json").read_text())
    assert (log["name"], log["recipe"]) == ("toy", "toy.toml")
    assert [stage["status"] for stage in log["stages"]] == ["done"] * 3
    assert [stage["outputs"] for stage in log["stages"]] == [["write/numbers.txt"], ["add/sum.txt"], ["tell/page.txt"]]
    assert log["stages"][1]["summary"] == {"sum": 11}
    assert all(stage["seconds"] > 0 for stage in log["stages"])
    from glm5.recipe import load_recipe

    assert load_recipe(toy.output / "recipe.toml") == validate(
        recipe_for(toy.output, seed=1), stages=dict.fromkeys(["write", "add", "tell"], STAGES["data"])
    )


def test_finished_stages_are_kept(toy: Toy) -> None:
    toy.run()
    assert toy.run() == []
    assert toy.told.count(" done, 0 s ago\n") == 3


def test_a_changed_setting_makes_its_stage_and_those_after_it_again(toy: Toy) -> None:
    toy.run()
    assert toy.run(seed=7) == ["add from 0", "tell"]
    assert "add          begins anew: seed was 0, is 7; what was there is now in" in toy.told
    assert "tell         begins anew: stage 'add' ran again" in toy.told
    assert toy.page() == "the sum is 17"
    assert (toy.output / "add.old1/sum.txt").read_text() == "10"
    toy.run(seed=8)
    assert (toy.output / "add.old2/sum.txt").read_text() == "17"


def test_a_setting_that_decides_nothing_changes_nothing(toy: Toy) -> None:
    toy.run()
    assert toy.run(threads=2) == []


def test_a_changed_input_makes_its_readers_again(toy: Toy) -> None:
    toy.run()
    (toy.output / "write/numbers.txt").write_text("1 1")
    assert toy.run() == ["add from 0", "tell"]
    assert "write/numbers.txt was " in toy.told
    assert toy.page() == "the sum is 2"


def test_a_lost_output_is_made_again(toy: Toy) -> None:
    toy.run()
    (toy.output / "tell/page.txt").unlink()
    assert toy.run() == ["tell"]
    assert "page.txt is gone" in toy.told


def test_a_stage_run_alone_makes_later_ones_stale(toy: Toy) -> None:
    toy.run()
    assert toy.run(only=["add"], seed=5) == ["add from 0"]
    assert "tell         left out, stays done, though out of date: stage 'add' ran again" in toy.told
    assert toy.run(seed=5) == ["tell"]
    assert toy.page() == "the sum is 15"


def test_restart_makes_everything_again(toy: Toy) -> None:
    toy.run()
    assert toy.run(restart=True) == ["write", "add from 0", "tell"]
    assert toy.run(restart=True, only=["tell"]) == ["tell"]


def test_a_moved_run_is_still_finished(toy: Toy) -> None:
    toy.run()
    moved = toy.output.with_name("moved")
    toy.output.rename(moved)
    assert Toy(moved).run() == []


def test_a_stage_dropped_from_the_recipe_keeps_its_work(toy: Toy) -> None:
    toy.run()
    toy.run(stages=["write", "add"])
    assert toy.run() == []


# -- stopping and continuing -----------------------------------------------------------------------------------------


def test_an_interrupted_stage_continues(toy: Toy) -> None:
    toy.stop("interrupt", KeyboardInterrupt)
    assert toy.record("add").status == "interrupted"
    assert toy.record("tell").status == "pending"
    assert "add          interrupted after 0 s; the same command continues it" in toy.told
    log = json.loads((toy.output / "run.json").read_text())
    log["stages"][1]["seconds"] = 1000.0
    (toy.output / "run.json").write_text(json.dumps(log))
    assert toy.run() == ["add from 3", "tell"]
    assert "add          continues; it was interrupted" in toy.told
    assert toy.record("add").seconds > 1000
    assert toy.page() == "the sum is 10"


def test_a_failed_stage_says_so_and_continues(toy: Toy) -> None:
    toy.stop("fail", GLM5Error)
    assert toy.record("add").status == "failed"
    assert toy.run() == ["add from 3", "tell"]


def test_what_decides_nothing_learned_may_change_while_interrupted(toy: Toy) -> None:
    toy.stop("interrupt", KeyboardInterrupt)
    assert toy.run(limit=2) == ["add from 3", "tell"]
    assert toy.run(limit=3) == ["add from 0", "tell"]  # once it is finished, every change counts


def test_what_decides_the_result_may_not_change_while_interrupted(toy: Toy) -> None:
    toy.stop("interrupt", KeyboardInterrupt)
    assert toy.run(seed=7) == ["add from 0", "tell"]
    assert toy.page() == "the sum is 17"


def start_alone(toy: Toy, toy_module: Path) -> "subprocess.Popen[str]":
    """Run the toy recipe in a process of its own, up to the middle of its second stage."""
    (toy.output / "wait").touch()
    recipe = toy.output.with_name("toy.toml")
    recipe.write_text(recipe_for(toy.output).to_toml())
    process = subprocess.Popen(
        [sys.executable, toy_module / "alone.py", recipe],
        env=os.environ | {"PYTHONPATH": str(toy_module)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not (toy.output / "waiting").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (toy.output / "wait").unlink()
    return process


@pytest.mark.parametrize(
    ("signal_number", "status"),
    [(signal.SIGKILL, "running"), (signal.SIGTERM, "running"), (signal.SIGINT, "interrupted")],
)
def test_a_killed_process_continues(toy: Toy, toy_module: Path, signal_number: signal.Signals, status: str) -> None:
    process = start_alone(toy, toy_module)
    process.send_signal(signal_number)
    _, stderr = process.communicate(timeout=30)
    assert toy.record("add").status == status
    assert ("the same command continues it" in stderr) == (signal_number == signal.SIGINT)
    assert toy.run() == ["add from 3", "tell"]
    assert "add          continues; it was interrupted" in toy.told
    assert toy.page() == "the sum is 10"


def test_two_processes_do_not_share_a_folder(toy: Toy, toy_module: Path) -> None:
    process = start_alone(toy, toy_module)
    try:
        with pytest.raises(GLM5Error, match=f"process {process.pid} is running in .*; wait for it, stop it, or give"):
            toy.run()
        assert toy.record("add").status == "running"
    finally:
        process.kill()
        process.communicate()
    toy.run()
    assert toy.page() == "the sum is 10"


OPERATIONS = st.tuples(
    st.sampled_from(["run", "interrupt", "fail"]),
    st.sampled_from([None, ["write"], ["add"], ["tell"], ["write", "tell"]]),
    st.fixed_dictionaries({"seed": st.integers(0, 1), "steps": st.integers(2, 5), "limit": st.integers(1, 2)}),
)


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.lists(OPERATIONS, max_size=5), OPERATIONS)
def test_whatever_happened_before_a_full_run_ends_like_a_first_run(
    tmp_path_factory: pytest.TempPathFactory, history: list[Any], last: Any
) -> None:
    toy, fresh = Toy(tmp_path_factory.mktemp("used")), Toy(tmp_path_factory.mktemp("fresh"))
    for how, only, changes in history:
        (toy.output / how).touch()
        with suppress(KeyboardInterrupt, GLM5Error, FileNotFoundError):  # the last: "tell" alone has nothing to tell
            toy.run(only=only, stop=1, **changes)
        (toy.output / how).unlink()
    toy.run(stop=1, **last[2])
    fresh.run(stop=1, **last[2])
    assert toy.page() == fresh.page()
    assert [toy.record(name).status for name in ("write", "add", "tell")] == ["done"] * 3


# -- asking wrongly --------------------------------------------------------------------------------------------------


def test_skipping(toy: Toy) -> None:
    assert toy.run(skip=("tell",)) == ["write", "add from 0"]
    assert toy.record("tell").status == "skipped"
    assert toy.run() == ["tell"]
    toy.run(skip=("tell",))
    assert toy.record("tell").status == "done"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"only": ["ad"]}, "there is no stage 'ad'; did you mean 'add'?"),
        ({"skip": ("pretrain",)}, "there is no stage 'pretrain'; there are write, add, tell"),
        ({"skip": ("write", "add", "tell")}, "no stage is left to run"),
        ({"only": []}, "no stage is left to run"),
        ({"only": ["add"]}, "stage 'add' needs .*write/numbers.txt, which stage 'write' makes: run that first"),
        ({"stages": ["add", "write"]}, "which stage 'write' makes: run that first"),
        ({"stages": ["write", "sum"]}, "toy.toml: stages: there is no stage 'sum'"),
    ],
)
def test_impossible_wishes_are_told_before_anything_runs(toy: Toy, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        toy.run(**arguments)
    assert list(toy.output.iterdir()) == []


def test_a_given_tokenizer_that_is_not_there(toy: Toy) -> None:
    recipe = recipe_for(toy.output, stages=["tokenizer"], tokenizer={"path": "no/tokenizer.json"})
    with pytest.raises(UsageError, match=r"stage 'tokenizer' needs no/tokenizer\.json, and no stage makes it"):
        run_recipe(recipe)


def test_a_stage_must_write_what_it_promises(toy: Toy) -> None:
    with pytest.raises(GLM5Error, match=r"stage 'forget' ended without writing .*nothing\.txt"):
        toy.run(stages=["forget"])
    assert toy.record("forget").status == "failed"


def test_a_broken_run_log_is_not_overwritten(toy: Toy) -> None:
    (toy.output / "run.json").write_text("{")
    with pytest.raises(GLM5Error, match=r"run\.json is not a run log"):
        toy.run()
    assert (toy.output / "run.json").read_text() == "{"


def test_an_output_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written to"):
        run_recipe(recipe_for(tmp_path / "file/run", stages=["tokenizer"]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": {"preset": "nana"}}, r"r\.toml: \[model\] no preset is called 'nana'"),
        ({"model": {"hiden_size": 3}}, r"r\.toml: \[model\] .*'hiden_size'; did you mean 'hidden_size'"),
        ({"model": {"vocab_size": 900}, "tokenizer": {"train_bytes": 1, "vocab_size": 901}}, "901 is above .* 900"),
        ({"model": {"max_position_embeddings": 7}}, r"r\.toml: pretrain\.context_length = 8 is above"),
        ({"model": {"num_nextn_predict_layers": 0}}, r"r\.toml: pretrain\.mtp_steps = 3 needs a layer"),
        ({"stages": ["pretrian"]}, r"r\.toml: stages: there is no stage 'pretrian'; did you mean 'pretrain'"),
    ],
)
def test_validation_covers_the_whole_recipe(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        validate(recipe_for(tmp_path, **({"stages": ["pretrain"]} | changes)), "r.toml")
    assert "\n" not in str(caught.value)


def test_vocabulary_comes_from_the_model(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, stages=["tokenizer"], model={"vocab_size": 777})
    assert validate(recipe).tokenizer.vocab_size == 777
    given_tokenizer = recipe_for(tmp_path, stages=["tokenizer"], tokenizer={"path": "x"})
    assert validate(given_tokenizer).tokenizer.vocab_size is None


# -- the real table --------------------------------------------------------------------------------------------------


def test_stages_name_settings_that_exist() -> None:
    keys = {setting.key for setting in settings()}
    for name, stage in STAGES.items():
        assert stage.name == name
        assert set(stage.settings) <= set(Recipe.model_fields)
        assert set(stage.adjustable) <= keys
        assert all(key.split(".")[0] in stage.settings for key in stage.adjustable)


def test_importing_the_pipeline_does_not_import_torch() -> None:
    script = "import sys, glm5.pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
