"""Several processes train exactly as one does: same losses, same gradient norms, same loads."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from glm5.data.documents import Document
from glm5.errors import GLM5Error, UsageError
from glm5.model.checkpoint import load_checkpoint
from glm5.text.tokenizer import Tokenizer
from glm5.train.evaluate import bits_per_byte, lay_out
from glm5.train.muon import _holds_whole_blocks, _local
from glm5.train.parallel import World, launch, shard, synchronise_gradients
from tests.train.small import curve, read_json, small_config, small_model, small_trainer, steps_of

STEPS = 20


def train(folder: Path, rows_per_microbatch: int, save_every_steps: int) -> None:
    """What each process does. Twelve rows a step, so that 2, 3 and 4 processes each accumulate over micro-batches."""
    torch.set_num_threads(1)
    world = World.join()
    model = shard(small_model(), world)
    trainer = small_trainer(
        folder, model=model, world=world, steps=STEPS, rows_per_step=12, rows_per_microbatch=rows_per_microbatch,
        grad_clip=0.2, save_every_steps=save_every_steps,
    )  # fmt: skip
    matrices = trainer.optimizers.muon.matrices
    local = [_holds_whole_blocks(matrix) for matrix in matrices]
    trainer.run([])
    if world.size == 1:
        return
    assert any(local)
    assert not all(local)
    rows = [len(_local(matrix.parameter)) for matrix in matrices]
    (folder / f"rows-{world.rank}.txt").write_text(" ".join(map(str, rows)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(folder, 1, 1000)
    return folder


def compare(folder: Path, alone: Path) -> None:
    ours, wanted = torch.tensor(curve(folder / "metrics.jsonl")), torch.tensor(curve(alone / "metrics.jsonl"))
    assert len(wanted) == STEPS
    losses = slice(2, 5)  # the main loss and two depths
    torch.testing.assert_close(ours[:, losses], wanted[:, losses], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)  # balance, gradient norm, learning rates, load
    assert all(record.grad_norm > 0.2 for record in steps_of(alone / "metrics.jsonl")[:5])  # clipping was at work
    models = [load_checkpoint(path / f"checkpoints/step-{STEPS:08d}") for path in (folder, alone)]
    for (name, mine), theirs in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-3, msg=name)


def test_two_processes_equal_one(alone: Path, tmp_path: Path) -> None:
    """With prediction layer, experts, accumulation, clipping, and matrices that must travel to an owner."""
    launch(train, (tmp_path, 1, 1000), processes=2)
    compare(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "rows_per_microbatch"), [(3, 1), (3, 4), (4, 3)])
def test_more_processes_equal_one(alone: Path, tmp_path: Path, processes: int, rows_per_microbatch: int) -> None:
    """Three: heads fall whole to processes, and rows that three cannot divide. Four: even an empty shard."""
    launch(train, (tmp_path, rows_per_microbatch, 7), processes)
    compare(tmp_path, alone)
    shards = [(tmp_path / f"rows-{rank}.txt").read_text().split() for rank in range(processes)]
    assert any(len(set(rows)) > 1 for rows in zip(*shards, strict=True))
    if processes == 4:
        assert any("0" in rows for rows in zip(*shards, strict=True))


# -- scoring ---------------------------------------------------------------------------------------------------------


def score(folder: Path) -> None:
    torch.set_num_threads(1)
    world = World.join()
    model = shard(small_model(vocab_size=279).eval(), world)
    texts = [Document(f"the router sends {n} tokens\n" * (n % 3 + 1), "ab"[n % 2], "MIT", "x") for n in range(40)]
    held_out = lay_out(texts, Tokenizer.train([], 279), 24)
    answer = bits_per_byte(model, held_out, world, dtype=torch.float32, sparse=False, loss_chunk_tokens=50)
    (folder / f"{world.size}-{world.rank}.json").write_text(json.dumps(answer))


@pytest.mark.slow
def test_scoring_is_split_without_a_difference(tmp_path: Path) -> None:
    """A number of rows that two processes' batches do not divide; every process gets the same answer."""
    score(tmp_path)
    launch(score, (tmp_path,), processes=2)
    (bits, load), first, second = (read_json(tmp_path / f"{name}.json") for name in ("1-0", "2-0", "2-1"))
    assert first == second
    assert first[0] == pytest.approx(bits, rel=1e-6)
    for ours, wanted in zip(first[1], load, strict=True):
        assert ours == pytest.approx(wanted, abs=1.1e-5)  # written to five places


# -- how processes end -----------------------------------------------------------------------------------------------


def ask_wrongly() -> None:
    raise UsageError("rows_per_step = 7 cannot be shared")


def break_down() -> None:
    raise ZeroDivisionError("a bug")


def die() -> None:
    os._exit(9)


def wait_for_a_signal(folder: Path) -> None:
    """Ends like a trainer: on one signal, after a moment; a second signal would kill it in between."""
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    (folder / f"ready-{os.environ['RANK']}").touch()
    while not asked:
        time.sleep(0.01)
    time.sleep(0.3)
    (folder / f"signals-{os.environ['RANK']}.txt").write_text(str(len(asked)))


def interrupt_when_ready(folder: Path, number: int) -> None:
    """Sends this process a signal once both workers wait for theirs."""

    def watch() -> None:
        while len(list(folder.glob("ready-*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupt_when_ready(tmp_path, number)
    launch(wait_for_a_signal, (tmp_path,), processes=2)
    assert [path.read_text() for path in sorted(tmp_path.glob("signals-*"))] == ["1", "1"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_mistake_is_told_in_its_own_words() -> None:
    """No traceback: that is for bugs."""
    with pytest.raises(UsageError) as caught:
        launch(ask_wrongly, (), processes=2)
    assert str(caught.value) == "rows_per_step = 7 cannot be shared"


@pytest.mark.slow
def test_a_bug_is_told_with_its_traceback() -> None:
    with pytest.raises(GLM5Error, match="a training process failed") as caught:
        launch(break_down, (), processes=2)
    assert "ZeroDivisionError: a bug" in str(caught.value)


@pytest.mark.slow
def test_a_dead_process_is_an_error() -> None:
    with pytest.raises(GLM5Error, match="a training process ended with 9"):
        launch(die, (), processes=2)


# -- a world of one --------------------------------------------------------------------------------------------------


def test_alone_nothing_is_sharded_or_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world, model = World.join(), small_model()
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert shard(model, world) is model
    synchronise_gradients(model, False)
    values = torch.tensor([1.0, 2.0])
    assert world.sum(values) is values
    world.barrier()


def test_experts_that_cannot_be_shared_are_an_error() -> None:
    assert small_config().n_routed_experts == 12
    with pytest.raises(UsageError, match="n_routed_experts = 12 cannot be divided among 5 processes"):
        shard(small_model(), World(rank=0, size=5))
