"""The promise of a run: whatever stops it, the same command ends with the same bits.

Real `glm5 run` processes are killed, interrupted and starved of disk; afterwards every number of every step, and every
bit of the final weights, must be those of a run that nobody disturbed.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from glm5.model.checkpoint import load_checkpoint
from tests.small_run import STEPS, command, environment, glm5, small_recipe, statuses
from tests.train.small import curve, steps_of

pytestmark = pytest.mark.slow

Moment = Callable[[Path], bool]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its texts, and in `run` an undisturbed run of it."""
    folder = tmp_path_factory.mktemp("resume")
    result = glm5("run", small_recipe(folder))
    assert result.returncode == 0, result.stderr
    assert len(steps_of(folder / "run/pretrain/metrics.jsonl")) == STEPS
    return folder


def assert_same(run: Path, undisturbed: Path) -> None:
    assert curve(run / "pretrain/metrics.jsonl") == curve(undisturbed / "pretrain/metrics.jsonl")
    name = "pretrain/model/model.safetensors"
    assert (run / name).read_bytes() == (undisturbed / name).read_bytes()
    assert set(statuses(run).values()) == {"done"}


def after_steps(count: int) -> Moment:
    """In the middle of a step: the one after `count` are on record."""

    def come(run: Path) -> bool:
        metrics = run / "pretrain/metrics.jsonl"
        return metrics.exists() and metrics.read_text().count('"step"}') >= count

    return come


def while_saving(step: int) -> Moment:
    return lambda run: (run / f"pretrain/checkpoints/step-{step:08d}.partial").exists()


def once_saved(step: int) -> Moment:
    return lambda run: (run / f"pretrain/checkpoints/step-{step:08d}").exists()


def stop(arguments: list[object], run: Path, moment: Moment, number: signal.Signals) -> subprocess.Popen[str]:
    """Start a run and send its process a signal when the moment has come; returns it ended."""
    process = subprocess.Popen(
        command("run", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    deadline = time.monotonic() + 200
    while not moment(run):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    workers = children(process.pid)
    process.send_signal(number)
    process.wait(timeout=100)
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # orphans finish their step and save
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_killed_in_a_step_while_saving_and_between(folder: Path, tmp_path: Path) -> None:
    """No chance to tidy up, three times."""
    run = tmp_path / "run"
    arguments: list[object] = [folder / "recipe.toml", f"output={run}"]
    for moment in (after_steps(5), while_saving(6), once_saved(9)):
        assert stop(arguments, run, moment, signal.SIGKILL).returncode == -signal.SIGKILL
        assert statuses(run)["pretrain"] == "running"  # nobody was there to write anything else
        assert not (run / "pretrain/model").exists()
    assert glm5("run", *arguments).returncode == 0
    assert_same(run, folder / "run")


def test_ctrl_c_saves_the_last_step(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments: list[object] = [folder / "recipe.toml", f"output={run}", "--json"]
    process = stop(arguments, run, after_steps(4), signal.SIGINT)
    words, told = process.communicate()
    assert process.returncode == 130
    assert json.loads(words) == {"error": "interrupted"}
    saved = max((run / "pretrain/checkpoints").iterdir())
    assert f"interrupted at step {int(saved.name[5:])}, saved" in told
    assert len(steps_of(run / "pretrain/metrics.jsonl")) == int(saved.name[5:])  # nothing was lost
    assert statuses(run) | {"report": ""} == {
        "tokenizer": "done",
        "data": "done",
        "pretrain": "interrupted",
        "report": "",
    }
    again = glm5("run", *arguments)
    assert again.returncode == 0
    assert "continues; it was interrupted" in again.stderr
    assert_same(run, folder / "run")


def test_two_processes(folder: Path, tmp_path: Path) -> None:
    """The launcher is killed, then interrupted; its processes save what they have."""
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    recipe = [folder / "recipe.toml", "pretrain.processes=2"]
    result = glm5("run", *recipe, f"output={undisturbed}")
    assert result.returncode == 0, result.stderr
    ours, alone = (torch.tensor(curve(path / "pretrain/metrics.jsonl")) for path in (undisturbed, folder / "run"))
    torch.testing.assert_close(ours, alone, atol=1e-4, rtol=1e-4)

    arguments: list[object] = [*recipe, f"output={run}"]
    assert stop(arguments, run, after_steps(4), signal.SIGKILL).returncode == -signal.SIGKILL
    assert stop(arguments, run, after_steps(8), signal.SIGINT).returncode == 130
    assert glm5("run", *arguments).returncode == 0
    assert_same(run, undisturbed)


def test_going_on_with_fewer_processes(folder: Path, tmp_path: Path) -> None:
    """Sharded state is read by whoever comes; how many train decides nothing but rounding."""
    run = tmp_path / "run"
    arguments: list[object] = [folder / "recipe.toml", f"output={run}"]
    assert stop([*arguments, "pretrain.processes=2"], run, after_steps(4), signal.SIGINT).returncode == 130
    assert glm5("run", *arguments).returncode == 0
    ours, alone = (torch.tensor(curve(path / "pretrain/metrics.jsonl")) for path in (run, folder / "run"))
    torch.testing.assert_close(ours, alone, atol=1e-4, rtol=1e-4)


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A disk of 64 MB in memory."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs more rights")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk(folder: Path, tmp_path: Path) -> None:
    """There is room for one checkpoint and a half. The first stays whole, and when there is room again it goes on."""
    checkpoint = folder / f"run/pretrain/checkpoints/step-{STEPS:08d}"
    needed = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    with disk(tmp_path / "disk") as small:
        run, ballast = small / "run", small / "ballast"
        arguments: list[object] = [folder / "recipe.toml", f"output={run}", "--json"]
        assert glm5("run", *arguments, "--only", "tokenizer", "--only", "data").returncode == 0
        with suppress(OSError), ballast.open("wb") as file:
            free = os.statvfs(small)
            file.write(bytes(free.f_bavail * free.f_frsize - int(1.5 * needed) - 200_000))
        result = glm5("run", *arguments)
        assert result.returncode == 1
        message = json.loads(result.stdout)["error"]
        assert "step-00000006 could not be written" in message
        assert "No space left on device" in message
        assert "step-00000003 is whole; the run continues from it" in message
        assert "Traceback" not in result.stderr
        assert [path.name for path in (run / "pretrain/checkpoints").iterdir()] == ["step-00000003"]
        assert statuses(run)["pretrain"] == "failed"
        load_checkpoint(run / "pretrain/checkpoints/step-00000003")

        ballast.unlink()
        assert glm5("run", *arguments).returncode == 0
        assert_same(run, folder / "run")


def test_spoilt_weights_are_not_saved(folder: Path, tmp_path: Path) -> None:
    """Scored and sampled before the next step could notice."""
    run = tmp_path / "run"
    absurd = ["pretrain.lr_muon=1e30", "pretrain.lr_adamw=1e30", "pretrain.warmup_steps=0"]
    for name, told in (("eval", "held-out text scores nan"), ("sample", "the network's output is not finite")):
        often = [f"pretrain.{name}_every_steps=1", "pretrain.save_every_steps=1"]
        often += ['pretrain.sample_prompts=["router"]'] if name == "sample" else []
        result = glm5("run", folder / "recipe.toml", f"output={run / name}", *absurd, *often)
        assert result.returncode == 1
        assert told in result.stderr
        assert "Traceback" not in result.stderr
        assert not (run / name / "pretrain/checkpoints").exists()


def test_an_absurd_learning_rate_stops_with_words(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    absurd = [
        "pretrain.lr_muon=1e30",
        "pretrain.lr_adamw=1e30",
        "pretrain.warmup_steps=0",
        "pretrain.save_every_steps=1",
    ]
    result = glm5("run", folder / "recipe.toml", f"output={run}", *absurd)
    assert result.returncode == 1
    assert "no longer finite; stopped before the weights were touched" in result.stderr
    assert "Lower lr_muon and lr_adamw" in result.stderr
    assert "Traceback" not in result.stderr
    last = max((run / "pretrain/checkpoints").iterdir())
    assert str(last) in result.stderr
    assert all(bool(torch.isfinite(p).all()) for p in load_checkpoint(last).parameters())


def test_every_weight_must_move(folder: Path, tmp_path: Path) -> None:
    """A learning rate so small that nothing changes in float32: the stage refuses to call that a training."""
    run = tmp_path / "run"
    idle = ["pretrain.lr_muon=1e-30", "pretrain.lr_adamw=1e-30", "pretrain.tokens=512"]
    result = glm5("run", folder / "recipe.toml", f"output={run}", *idle, "pretrain.warmup_steps=0")
    assert result.returncode == 1
    assert "training did not change" in result.stderr
    assert not (run / "pretrain/model").exists()
