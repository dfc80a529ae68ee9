"""The command line through real processes: what scripts and people rely on."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glm5.model.checkpoint import save_checkpoint
from glm5.text.tokenizer import Tokenizer
from tests.model.shapes import perturbed, reference, tiny_config
from tests.small_run import environment, glm5, small_recipe, statuses

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with a tokenizer of bytes beside it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = Tokenizer.train([], 279)
    save_checkpoint(
        perturbed(tiny_config(vocab_size=279, eos_token_id=(tokenizer.eos_id,), max_position_embeddings=64)), folder
    )
    tokenizer.save(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return small_recipe(tmp_path)


def test_help_is_instant_and_imports_no_torch() -> None:
    code = (
        "import sys, glm5.cli\n"
        "sys.argv = ['glm5', '--help']\n"
        "try: glm5.cli.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False
    )
    assert result.returncode == 0, result.stderr
    for command in ("run", "settings", "info", "generate", "chat"):
        assert re.search(rf"^\W*{command}\b", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", ["run", "settings", "info", "generate", "chat"])
def test_every_command_explains_itself(name: str) -> None:
    result = glm5(name, "--help")
    assert result.returncode == 0
    assert "Usage: " in result.stdout


def test_info_has_the_released_numbers() -> None:
    result = glm5("info", "glm-5", "--json")
    assert result.returncode == 0
    values = json.loads(result.stdout)
    billions = {name: round(count / 1e9, 1) for name, count in values["parameters"].items()}
    assert billions == {"total": 743.9, "stored": 753.9, "active": 39.9}
    assert sum(values["parts"].values()) == values["parameters"]["stored"]
    assert values["memory"]["bf16"] == 2 * values["parameters"]["stored"]
    assert values["model_type"] == "glm_moe_dsa"
    people = glm5("info", "glm-5")
    assert re.search(r"total\s+743.9\d B", people.stdout)


def test_info_of_a_checkpoint(checkpoint: Path) -> None:
    values = json.loads(glm5("info", checkpoint, "--json").stdout)
    stored = sum(p.numel() for p in perturbed(tiny_config(vocab_size=279)).parameters())
    assert values["parameters"]["stored"] == stored


def test_settings_are_explained() -> None:
    assert "pretrain.muon_split" in glm5("settings", "muon").stdout


# -- generate and chat -----------------------------------------------------------------------------------------------


def test_generate_from_ids_equals_transformers(checkpoint: Path) -> None:
    result = glm5("generate", checkpoint, "--ids", "1,2,3", "--max-new-tokens", 8, "--temperature", 0, "--json")
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    assert values.keys() == {"ids", "logprobs", "finish_reason"}
    theirs = reference(checkpoint)
    with torch.no_grad():
        ids = theirs.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8, do_sample=False)
        scores = theirs(ids).logits[0].log_softmax(-1)
    assert values["ids"] == ids[0, 3:].tolist()
    assert values["logprobs"] == pytest.approx([float(scores[2 + i, t]) for i, t in enumerate(values["ids"])], abs=1e-4)
    assert values["finish_reason"] == "length"


def test_generate_from_text(checkpoint: Path) -> None:
    how = ["--prompt", "the router", "--max-new-tokens", 6, "--seed", 3]
    values = json.loads(glm5("generate", checkpoint, *how, "--json").stdout)
    assert values["text"] == Tokenizer.load(checkpoint).decode(values["ids"])
    people = glm5("generate", checkpoint, *how)
    assert people.returncode == 0
    assert people.stdout.endswith("\n")
    assert glm5("generate", checkpoint, *how).stdout == people.stdout


def test_chat_reads_from_a_pipe(checkpoint: Path) -> None:
    """Every line is continued; an impossible one is told and does not end the talk."""
    result = glm5(
        "chat", checkpoint, "--max-new-tokens", 4, text="the router\n" + "x" * 100 + "\nsends\n\nnever read\n"
    )
    assert result.returncode == 0, result.stderr
    assert "the router" in result.stdout
    assert "sends" in result.stdout
    assert "never read" not in result.stdout
    assert "do not fit the context of 64" in result.stderr
    assert glm5("chat", checkpoint, text="").returncode == 0


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["info", "glm-6"], r"'glm-6' is neither a preset \(nano, .*\) nor a folder"),
        (["info", "."], "is not a checkpoint: it has no config.json"),
        (["settings", "nonsense"], "no setting mentions 'nonsense'"),
        (["generate", "CHECKPOINT"], "give either --prompt or --ids"),
        (["generate", "CHECKPOINT", "--ids", "1,x"], "expected numbers separated by commas"),
        (["generate", "CHECKPOINT", "--ids", "1,99999"], "token id 99999 is outside the vocabulary"),
        (
            ["generate", "CHECKPOINT", "--ids", "1", "--max-new-tokens", "64"],
            "65 tokens .* do not fit the context of 64",
        ),
        (["generate", "CHECKPOINT", "--ids", "1", "--dtype", "int8"], "--dtype int8: float32 or bfloat16"),
        (["generate", "nowhere", "--ids", "1"], "nowhere is not a checkpoint"),
        (["run", "nowhere.toml"], "there is no recipe at nowhere.toml"),
    ],
)
def test_wrong_use_exits_with_2_and_says_what_is_wrong(arguments: list[str], told: str, checkpoint: Path) -> None:
    result = glm5(*[str(checkpoint) if argument == "CHECKPOINT" else argument for argument in arguments])
    assert result.returncode == 2
    assert re.search(rf"wrong use: .*{told}", result.stderr)
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["info", "glm-6", "--json"], 2),
        (["info", "--json"], 2),  # the parser's own mistakes
        (["generate", "nowhere", "--json", "--temperature", "warm"], 2),
        (["run", "nowhere.toml", "--json"], 2),
    ],
)
def test_with_json_an_error_is_one_object_on_stdout_and_words_on_stderr(arguments: list[str], code: int) -> None:
    result = glm5(*arguments)
    assert result.returncode == code
    assert json.loads(result.stdout).keys() == {"error"}
    assert result.stderr.strip()


def test_a_damaged_checkpoint_exits_with_1(checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    result = glm5("generate", broken, "--ids", "1", "--json")
    assert result.returncode == 1
    assert "truncated or damaged" in json.loads(result.stdout)["error"]
    assert "error: " in result.stderr


# -- run -------------------------------------------------------------------------------------------------------------


def test_a_typo_is_told_with_file_line_and_key(recipe: Path) -> None:
    text = recipe.read_text()
    recipe.write_text(text.replace("lr_muon", "lr_moun"))
    line = text[: text.index("lr_muon")].count("\n") + 1
    result = glm5("run", recipe)
    assert result.returncode == 2
    told = f"{recipe}:{line}: pretrain.lr_moun is not a setting; did you mean pretrain.lr_muon?"
    assert told in result.stderr
    assert not (recipe.parent / "run").exists()


def test_a_dry_run_prints_the_recipe_and_makes_nothing(recipe: Path) -> None:
    result = glm5("run", recipe, "--dry-run", "pretrain.lr_muon=0.5")
    assert result.returncode == 0
    assert "lr_muon = 0.5" in result.stdout
    assert not (recipe.parent / "run").exists()
    again = recipe.with_name("resolved.toml")
    again.write_text(result.stdout)
    assert glm5("run", again, "--dry-run").stdout == result.stdout
    assert json.loads(glm5("run", again, "--dry-run", "--json").stdout)["pretrain"]["lr_muon"] == 0.5


def test_an_empty_folder_of_texts(recipe: Path) -> None:
    shutil.rmtree(recipe.parent / "texts")
    (recipe.parent / "texts").mkdir()
    result = glm5("run", recipe, "--json")
    assert result.returncode == 2
    assert "has no file to read" in json.loads(result.stdout)["error"]
    assert statuses(recipe.parent / "run")["tokenizer"] == "failed"


def test_a_truncated_shard(recipe: Path) -> None:
    run = recipe.parent / "run"
    assert glm5("run", recipe, "--only", "tokenizer", "--only", "data").returncode == 0
    [shard] = run.glob("data/*/train-00000.bin")
    shard.write_bytes(shard.read_bytes()[:-10])
    result = glm5("run", recipe, "--json")
    assert result.returncode == 1
    assert f"{shard} does not have the size its .idx file says" in json.loads(result.stdout)["error"]
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_whole_run(recipe: Path) -> None:
    """Report and model are there, others can load it, and a second time there is nothing left to do."""
    run = recipe.parent / "run"
    result = glm5("run", recipe, "--json")
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    assert {name: stage["status"] for name, stage in values["stages"].items()} == statuses(run)
    assert set(statuses(run).values()) == {"done"}
    assert values["stages"]["pretrain"]["summary"]["steps"] == 12
    assert "</html>" in (run / "report.html").read_text()
    model = run / "pretrain/model"
    transformers_model = reference(model)
    ours = json.loads(
        glm5("generate", model, "--ids", "1,2,3", "--temperature", 0, "--max-new-tokens", 4, "--json").stdout
    )
    with torch.no_grad():
        theirs = transformers_model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
    assert ours["ids"] == theirs[0, 3:].tolist()[: len(ours["ids"])]

    weights, report = (model / "model.safetensors").stat().st_mtime_ns, (run / "report.html").stat().st_mtime_ns
    again = glm5("run", recipe)
    assert again.returncode == 0
    assert len(re.findall(r"^\w+ +done, .* ago$", again.stderr, re.MULTILINE)) == 4
    assert f"glm5 chat {model}" in again.stderr
    assert (model / "model.safetensors").stat().st_mtime_ns == weights
    assert (run / "report.html").stat().st_mtime_ns == report
