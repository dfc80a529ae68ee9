"""Checkpoints of a training: whole or not there at all, and few enough to fit on the disk."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from glm5.errors import GLM5Error
from glm5.model.checkpoint import load_checkpoint
from glm5.train.checkpoints import CheckpointFolder, Progress, fingerprint, publish
from glm5.train.parallel import World
from glm5.train.trainer import Trainer
from tests.train.small import small_model, small_trainer


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_text("{}")
    trainer = small_trainer(tmp_path)
    trainer.step()
    return trainer


def save(trainer: Trainer, step: int) -> Path:
    trainer.progress.step = step
    return trainer.checkpoints.save(trainer.model, trainer.optimizers.state_tensors(), trainer.progress)


def names(trainer: Trainer) -> list[str]:
    return sorted(path.name for path in trainer.checkpoints.folder.iterdir())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `size` bytes, as a full disk would."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_saved_is_restored_to_the_bit(trainer: Trainer, tmp_path: Path) -> None:
    checkpoint = save(trainer, 7)
    other = small_trainer(tmp_path / "other", model=small_model(seed=1))
    state = other.optimizers.state_tensors()
    progress = other.checkpoints.restore(checkpoint, state)
    assert progress == trainer.progress
    wanted = trainer.optimizers.state_tensors()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    assert any(bool(tensor.any()) for name, tensor in state.items() if name.startswith("muon."))
    loaded = load_checkpoint(checkpoint).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert (checkpoint / "tokenizer.json").exists()


def test_the_newest_few_are_kept(trainer: Trainer) -> None:
    for step in (1, 20, 3, 100):
        save(trainer, step)
    assert names(trainer) == ["step-00000020", "step-00000100"]
    assert [path.name for path in trainer.checkpoints.all()] == names(trainer)


def test_there_is_nothing_before_the_first(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "none", tmp_path, 2, World()).all() == []


def test_half_written_is_never_found_and_cleared_away(trainer: Trainer) -> None:
    """What a kill may leave: a draft, a deletion under way, somebody's notes."""
    save(trainer, 1)
    for name in ("step-00000002.partial", "step-00000000.partial"):
        (trainer.checkpoints.folder / name).mkdir()
        (trainer.checkpoints.folder / name / "config.json").write_text("{")
    (trainer.checkpoints.folder / "notes.txt").write_text("mine")
    assert [path.name for path in trainer.checkpoints.all()] == ["step-00000001"]
    save(trainer, 2)
    assert names(trainer) == ["notes.txt", "step-00000001", "step-00000002"]


@pytest.mark.parametrize("room", [10, 2_000, 150_000, 250_000])
def test_a_full_disk_leaves_the_checkpoint_before(trainer: Trainer, room: int) -> None:
    """It gives out at the first byte, among the weights, or among the optimiser's state."""
    good = save(trainer, 1)
    content = {path: path.read_bytes() for path in good.rglob("*") if path.is_file()}
    sizes = sorted(map(len, content.values()))
    assert room < sizes[-1]
    with files_of_at_most(room), pytest.raises(GLM5Error) as caught:
        save(trainer, 2)
    assert f"{good} is whole; the run continues from it" in str(caught.value)
    assert "could not be written" in str(caught.value)
    assert names(trainer) == [good.name]
    assert {path: path.read_bytes() for path in good.rglob("*") if path.is_file()} == content
    assert save(trainer, 2).exists()  # and when there is room again, it goes on


def test_a_full_disk_before_the_first_checkpoint(trainer: Trainer) -> None:
    with files_of_at_most(1000), pytest.raises(GLM5Error, match="there is no earlier one"):
        save(trainer, 1)
    assert names(trainer) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("training.json", '{"format": 1, "step": '),
        ("training.json", '{"format": 99, "step": 1}'),
        ("training.json", '{"format": 1, "stride": 1}'),
        ("training.json", "[]"),
        ("training/.metadata", ""),
        ("training/__0_0.distcp", ""),
    ],
)
def test_a_damaged_checkpoint_says_what_to_do(trainer: Trainer, name: str, content: str) -> None:
    checkpoint = save(trainer, 1)
    (checkpoint / name).write_text(content)
    with pytest.raises(GLM5Error, match=r"step-00000001 cannot be continued from: .*\nDelete it to go on"):
        trainer.checkpoints.restore(checkpoint, trainer.optimizers.state_tensors())


def test_state_of_another_network_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    checkpoint = save(trainer, 1)
    other = small_trainer(tmp_path / "other", model=small_model(num_hidden_layers=3))
    with pytest.raises(GLM5Error, match="cannot be continued from"):
        other.checkpoints.restore(checkpoint, other.optimizers.state_tensors())


def test_publishing_leaves_the_training_state_behind(trainer: Trainer, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (tmp_path / "model.partial").mkdir()  # left by a kill
    publish(save(trainer, 1), model)
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    with torch.no_grad():
        trainer.model.lm_head.weight.zero_()
    publish(save(trainer, 2), model)
    assert not load_checkpoint(model).lm_head.weight.any()
    assert not (tmp_path / "model.partial").exists()


def test_progress_is_plain_json(trainer: Trainer) -> None:
    state = json.loads((save(trainer, 3) / "training.json").read_text())
    assert state["format"] == 1
    assert Progress(**{key: value for key, value in state.items() if key != "format"}) == trainer.progress


def test_a_fingerprint_changes_with_any_number_of_a_tensor() -> None:
    tensors = {"a": torch.randn(50, 50, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(3)}
    before = fingerprint(tensors)
    assert fingerprint(tensors) == before
    tensors["a"][17, 3] += 1e-3
    after = fingerprint(tensors)
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]
