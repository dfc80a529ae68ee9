"""Fine-tuning end to end on a small network, and what the loss mask does to the losses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from glm5.data.rows import MaskedMicroBatch
from glm5.errors import GLM5Error, UsageError
from glm5.model.checkpoint import load_checkpoint, save_checkpoint
from glm5.model.transformer import Transformer
from glm5.ops.loss import IGNORE
from glm5.pipeline import run_recipe
from glm5.recipe import SftSection, load_recipe, load_sft_section
from glm5.text.tokenizer import Tokenizer, special_tokens
from glm5.train.metrics import DataRecord, EvalRecord, SampleRecord, read_metrics
from glm5.train.objective import prediction_targets
from glm5.train.sft import FineTuning, fine_tune, same_work
from tests.small_run import glm5, small_recipe
from tests.train.small import batch_of, curve, objective, small_config, small_model, steps_of

# -- the mask --------------------------------------------------------------------------------------------------------


def masked(keep: float) -> MaskedMicroBatch:
    batch = batch_of(4)
    mask = torch.rand(batch.targets.shape, generator=torch.Generator().manual_seed(1)) < keep
    return MaskedMicroBatch(*batch, loss_mask=mask)


def test_a_mask_of_everything_changes_no_bit() -> None:
    model, losses, batch = small_model(), objective(), masked(2.0)
    plain = losses(model, batch_of(4), losses.counts(batch_of(4)), 1.0)
    for left, right in zip(plain, losses(model, batch, losses.counts(batch), 1.0), strict=True):
        assert torch.equal(left, right)


def test_what_is_not_learned_counts_nowhere_but_stays_what_prediction_reads() -> None:
    batch = masked(0.4)
    learned = batch.targets.masked_fill(~batch.loss_mask, IGNORE)
    counts = objective().counts(batch)
    assert counts[0] == batch.loss_mask.sum()
    for depth in (1, 2):
        true_ids, every = prediction_targets(batch.targets, batch.document_ids, depth)
        next_ids, ahead = prediction_targets(batch.targets, batch.document_ids, depth, learned)
        assert torch.equal(next_ids, true_ids)
        shifted = torch.zeros_like(batch.loss_mask)
        shifted[:, :-depth] = batch.loss_mask[:, depth:]
        assert torch.equal(ahead, every.masked_fill(~shifted, IGNORE))
        assert counts[depth] == (ahead != IGNORE).sum()


def test_gradients_come_from_learned_targets_alone() -> None:
    """Another token as an unlearned target changes no gradient where nothing is predicted further ahead."""
    batch, losses = masked(0.4), objective(mtp_steps=0)
    other = batch._replace(targets=torch.where(batch.loss_mask, batch.targets, (batch.targets + 1) % 48))
    received = []
    for rows in (batch, other):
        model = small_model()
        losses(model, rows, losses.counts(rows), 1.0).total.backward()
        received.append(model.lm_head.weight.grad)
    assert received[0] is not None
    assert received[1] is not None
    assert torch.equal(*received)


# -- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer, and conversations that all have the same few answers."""
    folder = tmp_path_factory.mktemp("sft")
    tokenizer = Tokenizer.train([], vocab_size=256 + len(special_tokens()))
    model = Transformer(small_config(vocab_size=tokenizer.vocab_size))
    model.init_weights(0)
    tokenizer.save(folder / "base")
    save_checkpoint(model, folder / "base")

    lines = [
        {
            "messages": [
                {"role": "user", "content": f"say {'yes' if i % 2 else 'no'} {i}"},
                {"role": "assistant", "content": "yes" if i % 2 else "no", "reasoning_content": "hm" * (i % 3)},
            ]
        }
        for i in range(60)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def work_in(folder: Path, output: Path, **changes: Any) -> FineTuning:
    values = {
        "data": [{"path": folder / "chat.jsonl"}], "context_length": 64, "epochs": 4.0, "rows_per_step": 4,
        "tokens_per_microbatch": 128, "lr_muon": 0.02, "lr_adamw": 0.01, "dtype": "float32", "mtp_steps": 1,
        "eval_every_steps": 10, "save_every_steps": 8, "keep_checkpoints": 9, "held_out_fraction": 0.1,
    }  # fmt: skip
    return FineTuning(folder / "base", SftSection.model_validate(values | changes), output, threads=1)


def run(work: FineTuning) -> dict[str, Any]:
    return dict(fine_tune(work, Console(quiet=True)))


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    run(work_in(folder, folder / "out", sample_every_steps=20, sample_prompts=["say yes"]))
    return folder / "out"


def test_it_learns_and_says_what_from(folder: Path, trained: Path) -> None:
    records = list(read_metrics(trained / "metrics.jsonl"))
    steps = steps_of(trained / "metrics.jsonl")
    assert steps[-1].loss < 0.5 * steps[0].loss
    [data] = [record for record in records if isinstance(record, DataRecord)]
    assert data.counts["chat"]["sequences"] == 54
    assert data.counts["chat"]["held_out_sequences"] == 6
    scores = [record for record in records if isinstance(record, EvalRecord)]
    assert set(scores[-1].loss) == {"chat", "all"}
    assert scores[-1].loss["chat"] == pytest.approx(scores[-1].loss["all"])
    assert scores[-1].loss["all"] < scores[0].loss["all"] < 6
    [*_, sample] = [record for record in records if isinstance(record, SampleRecord)]
    assert sample.prompt == "say yes"
    before, after = load_checkpoint(folder / "base").state_dict(), load_checkpoint(trained / "model").state_dict()
    frozen = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    # Indexers are trained elsewhere; routing biases stay with balance_bias_rate = 0.
    assert frozen == {name for name in before if ".indexer." in name or name.endswith("e_score_correction_bias")}
    assert (trained / "model/tokenizer.json").exists()


def test_going_on_from_any_checkpoint_is_bit_identical(folder: Path, trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    shutil.rmtree(again / "model")
    for checkpoint in sorted((again / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    run(work_in(folder, again, sample_every_steps=20, sample_prompts=["say yes"]))
    assert curve(again / "metrics.jsonl") == curve(trained / "metrics.jsonl")
    name = "model/model.safetensors"
    assert (again / name).read_bytes() == (trained / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_length": 512, "tokens_per_microbatch": 512}, "context_length = 512 is above"),
        ({"context_length": 8, "tokens_per_microbatch": 8}, "60 too long: nothing is left to train on"),
        ({"data": [{"path": "nowhere.jsonl"}]}, "there is no file nowhere.jsonl"),
    ],
)
def test_what_cannot_be_trained(folder: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GLM5Error, match=message):
        run(work_in(folder, tmp_path / "out", **changes))


def test_a_folder_belongs_to_one_fine_tuning(folder: Path, tmp_path: Path) -> None:
    same_work(work_in(folder, tmp_path / "out"))
    same_work(work_in(folder, tmp_path / "out", epochs=1.0))  # nothing was written yet
    (tmp_path / "out/data").mkdir()
    (tmp_path / "out/data/manifest.json").touch()
    same_work(work_in(folder, tmp_path / "out", epochs=1.0, save_every_steps=3))
    with pytest.raises(UsageError, match=r"other settings \(epochs was 1\.0, is 2\.0\)"):
        same_work(work_in(folder, tmp_path / "out", epochs=2.0))
    with pytest.raises(UsageError, match="is not empty"):
        same_work(work_in(folder, tmp_path))  # which holds "out"


def test_the_command(folder: Path, tmp_path: Path) -> None:
    settings = ["context_length=64", "epochs=0.3", "rows_per_step=2", "dtype=float32", "mtp_steps=0"]
    told = glm5("sft", folder / "base", folder / "chat.jsonl", "--output", tmp_path / "out", "--json", *settings)
    assert told.returncode == 0, told.stderr
    values = json.loads(told.stdout)
    assert load_checkpoint(Path(values["model"])).config == load_checkpoint(folder / "base").config
    assert values["summary"]["sequences"] == 57
    assert "chat: 60 records (3 held out) → 57 sequences" in told.stderr


def test_a_typo_in_the_command_is_told_with_what_was_meant() -> None:
    values = {"data": [{"path": "a.jsonl"}, {"path": "b/a.jsonl"}]}
    with pytest.raises(UsageError, match=r"override 'sft\.lr_moun=1': .*did you mean sft\.lr_muon\?"):
        load_sft_section(values, ["lr_moun=1"])
    with pytest.raises(UsageError, match=r"sft\.data\.1\.name 'a' is the name of two files"):
        load_sft_section(values)
    assert load_sft_section(values, ["data.1.name=b", "lr_muon=1"]).lr_muon == 1


def test_the_stage_of_a_recipe(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, steps=2)
    changes = [
        'stages=["tokenizer", "data", "pretrain", "sft"]', "pretrain.warmup_steps=1",
        f'sft={{data = [{{path = "{folder / "chat.jsonl"}"}}], context_length = 64, mtp_steps = 1, epochs = 0.5}}',
    ]  # fmt: skip
    records = run_recipe(load_recipe(recipe, changes), console=Console(quiet=True))
    assert {record.name: record.status for record in records}["sft"] == "done"
    assert load_checkpoint(tmp_path / "run/sft/model").config == load_checkpoint(tmp_path / "run/pretrain/model").config
    with pytest.raises(UsageError, match="names 'sft', whose settings are missing"):
        load_recipe(recipe, [*changes[:2], 'stages=["sft"]'])
