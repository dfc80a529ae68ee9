"""Recipes: what is shipped loads, every mistake is told in one line, and writing is the inverse of reading."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.errors import UsageError
from glm5.pipeline import validate
from glm5.recipe import Recipe, load_recipe, settings
from glm5.recipe.toml import to_toml

RECIPES = Path(__file__).parent.parent / "recipes"

BASE = """\
name = "test"
output = "runs/test"
stages = ["data"]

[model]
preset = "nano"

[tokenizer]
train_bytes = 1000

[data]
sources = ["a", "b"]

[pretrain]
context_length = 64
tokens = 8192
rows_per_step = 8
tokens_per_microbatch = 256
lr_muon = 0.01
lr_adamw = 0.001
warmup_steps = 2
eval_every_steps = 10
save_every_steps = 10

[[pretrain.phases]]
name = "first"
until = 0.5
weights = { a = 1.0, b = 0 }

[[pretrain.phases]]
name = "second"
until = 1.0
weights = { a = 0.5, b = 0.5 }
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Recipe]:
    """Write a recipe to r.toml and load it."""

    def load(text: str = BASE, *overrides: str) -> Recipe:
        path = tmp_path / "r.toml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, overrides)

    return load


def mistakes(load: Callable[..., Recipe], tmp_path: Path, *arguments: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(*arguments)
    return str(caught.value).replace(f"{tmp_path}/", "").split("\n")


# -- shipped recipes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nano", "h200", "glm-5"])
def test_shipped_recipe_is_valid(name: str) -> None:
    path = RECIPES / f"{name}.toml"
    recipe = validate(load_recipe(path), str(path))
    assert recipe.stages[:3] == ["tokenizer", "data", "pretrain"]
    assert recipe.stages[-1] == "report"
    assert recipe.output == Path("runs") / name
    assert recipe.tokenizer.vocab_size is not None


def test_every_recipe_in_the_folder_loads() -> None:
    paths = sorted(RECIPES.glob("*.toml"))
    assert len(paths) >= 3
    for path in paths:
        load_recipe(path)


def test_every_setting_of_glm5_has_its_source() -> None:
    lines = (RECIPES / "glm-5.toml").read_text(encoding="utf-8").partition("[tokenizer]")[2].partition("[[")[0]
    numbers = [line for line in lines.splitlines() if " = " in line and not line.startswith(('"', "sources"))]
    assert len(numbers) > 25
    assert [line for line in numbers if "ours" not in line and "[GLM-" not in line] == []


def test_glm5_states_the_report() -> None:
    recipe = load_recipe(RECIPES / "glm-5.toml")
    pretrain = recipe.pretrain
    assert (recipe.model.preset, recipe.model.overrides) == ("glm-5", {})
    assert pretrain.tokens_per_step == 64 * 2**20
    assert pretrain.rows_per_step_start is not None
    assert pretrain.rows_per_step_start * pretrain.context_length == 16 * 2**20
    assert pretrain.lr_muon * pretrain.lr_final_fraction == pytest.approx(4e-5)


# -- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = [
    # what kind of mistake, text to replace, replacement, the one line told
    ("typo", "lr_muon =", "lr_moun =", "r.toml:19: pretrain.lr_moun is not a setting; did you mean pretrain.lr_muon?"),
    ("typo in a section", "[data]", "[dta]", "r.toml:11: dta is not a setting; did you mean data?"),
    ("typo in a phase", "until = 0.5", "untli = 0.5", "r.toml:27: pretrain.phases.0.untli is not a setting; did"),
    ("in the wrong section", "sources", "tokens = 1\nsources", "r.toml:12: data.tokens is not a setting; did you mean"),
    ("nonsense", "sources", "xyzzy = 1\nsources", "r.toml:12: data.xyzzy is not a setting"),
    ("missing", "context_length = 64\n", "", "r.toml:14: pretrain.context_length is missing"),
    ("missing section", '[model]\npreset = "nano"\n', "", "r.toml: model is missing"),
    ("wrong type", "tokens = 8192", 'tokens = "8192"', "r.toml:16: pretrain.tokens should be a valid integer, not"),
    ("no guessing", "warmup_steps = 2", "warmup_steps = true", "warmup_steps should be a valid integer, not True"),
    ("out of range", "lr_muon = 0.01", "lr_muon = -1.0", "r.toml:19: pretrain.lr_muon should be greater than 0, not"),
    ("not finite", "lr_muon = 0.01", "lr_muon = nan", "pretrain.lr_muon should be a finite number, not nan"),
    ("not a choice", "lr_muon", 'schedule = "cosin"\nlr_muon', "r.toml:19: pretrain.schedule should be 'cosine',"),
    ("value for a section", '\n[model]\npreset = "nano"', "model = 3", "r.toml:4: model should be a table"),
    ("date for the model", "preset", "hidden_size = 2026-01-01\npreset", "r.toml:6: model.hidden_size should be a num"),
    ("limit, wrong type", "sources", 'max_bytes = "x"\nsources', "r.toml:12: data.max_bytes should be a valid integer"),
    ("limit, in a table", "sources", "max_bytes = {a = 0}\nsources", "r.toml:12: data.max_bytes.a should be greater"),
    ("limit, unknown", "sources", "max_bytes = {c = 1}\nsources", "r.toml:12: data.max_bytes.c is not named in"),
    ("no source", '["a", "b"]', "[]", "r.toml:12: data.sources should not be empty"),
    ("source twice", '["a", "b"]', '["a", "b", "a"]', "r.toml:12: data.sources names 'a' twice"),
    ("stage twice", '["data"]', '["data", "data"]', "r.toml:3: stages names 'data' twice"),
    ("unknown source", "b = 0 }", "c = 0 }", "r.toml:28: pretrain.phases.0.weights.c is not named in data."),
    ("forgotten source", '["a", "b"]', '["a", "b", "c"]', "r.toml:12: data.sources names 'c', which no phase"),
    ("phase of nothing", "a = 1.0, b = 0", "a = 0, b = 0", "r.toml:28: pretrain.phases.0.weights are all 0"),
    ("phases backwards", "until = 0.5", "until = 1.0", "r.toml:32: pretrain.phases.1.until = 1.0 does not come after"),
    ("phases too short", "until = 1.0", "until = 0.9", "r.toml:32: pretrain.phases.1.until = 0.9, but the last"),
    ("row in two", "context_length = 64", "context_length = 100", "r.toml:18: pretrain.tokens_per_microbatch = 256"),
    ("uneven step", "rows_per_step = 8", "rows_per_step = 9\nprocesses = 2", "= 9 cannot be shared evenly"),
    ("less than a step", "tokens = 8192", "tokens = 511", "pretrain.tokens = 511 is less than one step: rows_per_step"),
    ("only warm-up", "warmup_steps = 2", "warmup_steps = 16", "pretrain.warmup_steps = 16 takes all of tokens = 8192"),
    ("half a warm-up", "warmup_s", "rows_per_step_start = 4\nwarmup_s", "batch_warmup_tokens and rows_per_step"),
    ("shrinking batch", "warmup_s", "rows_per_step_start = 16\nbatch_warmup_tokens = 9\nwarmup_s", "16 is above"),
    ("unseen samples", "warmup_s", 'sample_prompts = ["x"]\nwarmup_s', "sample_every_steps is 0, so sample_pro"),
    ("empty samples", "warmup_s", "sample_every_steps = 5\nwarmup_s", "pretrain.sample_prompts is empty, so sample_ev"),
    ("no tokenizer", "train_bytes = 1000", "", "r.toml:8: tokenizer.train_bytes is missing: say how many bytes"),
    ("two tokenizers", "train_bytes = 1000", 'train_bytes = 1\npath = "x"', "r.toml:9: tokenizer.train_bytes has no"),
    ("not TOML", "tokens = 8192", "tokens = 8,192", "r.toml:16:11: Expected newline"),
    ("unfinished TOML", "b = 0.5 }", "b = 0.5", "r.toml:"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "told"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES])
def test_a_mistake_is_one_line(load: Callable[..., Recipe], tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in BASE
    text = BASE.replace(old, new, 1)
    lines = mistakes(load, tmp_path, text)
    assert len(lines) == 1
    assert lines[0].startswith("r.toml")
    assert told in lines[0]


def test_sources_of_a_kind_are_weighed_together(load: Callable[..., Recipe], tmp_path: Path) -> None:
    both = ("pretrain.phases.0.weights={code = 1.0}", "pretrain.phases.1.weights={general = 0.5, code = 0.5}")
    members = 'data.max_bytes={"debian:golang" = 5, a = 3}'
    recipe = load(BASE, *both, 'data.sources=["a", "debian-permissive"]', members)
    assert recipe.pretrain.phases[0].weights == {"code": 1.0}
    wrong = mistakes(
        load, tmp_path, BASE, 'data.sources=["a", "b", "debian-permissive"]', "data.max_bytes.debian-permissive=3"
    )
    assert "data.max_bytes.debian-permissive stands for many sources; name its members instead" in wrong[0]


def test_all_mistakes_are_told_together(load: Callable[..., Recipe], tmp_path: Path) -> None:
    text = BASE.replace("train_bytes = 1000", "").replace("rows_per_step", "row_per_step").replace('"a", "b"', '"a", 3')
    lines = mistakes(load, tmp_path, text)
    assert [line.split(": ")[0] for line in lines] == ["r.toml:8", "r.toml:12", "r.toml:17"]


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no recipe at .*nano\.tml"):
        load_recipe(tmp_path / "nano.tml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(tmp_path)


# -- overrides -------------------------------------------------------------------------------------------------------


def test_overrides(load: Callable[..., Recipe]) -> None:
    recipe = load(
        BASE,
        "seed=7",
        "output=runs/other",
        'name="two words"',
        "pretrain.tokens=16_384",
        "pretrain.phases.0.until = 0.25",
        "model.num_hidden_layers=2",
        'tokenizer={path = "there"}',
        'data.max_bytes."a"=5',
        "seed=8",
    )
    assert (recipe.seed, str(recipe.output), recipe.name) == (8, "runs/other", "two words")
    assert (recipe.pretrain.tokens, recipe.pretrain.phases[0].until) == (16_384, 0.25)
    assert recipe.model.overrides == {"num_hidden_layers": 2}
    assert (recipe.tokenizer.path, recipe.tokenizer.train_bytes) == ("there", None)
    assert recipe.data.max_bytes == {"a": 5}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pretrain.lr_moun=1", "override 'pretrain.lr_moun=1': pretrain.lr_moun is not a setting; did you mean"),
        ("pretrain.tokens=few", "override 'pretrain.tokens=few': pretrain.tokens should be a valid integer, not 'few'"),
        ("pretrain.tokens=511", "override 'pretrain.tokens=511': pretrain.tokens = 511 is less than one step"),
        ('data={sources = ["a"]}', "r.toml:28: pretrain.phases.0.weights.b is not named in data.sources; kinds may"),
        ("pretrain.tokens", "override 'pretrain.tokens' should be key=value"),
        ("=3", "override '=3' should be key=value"),
        ("pretrain..tokens=3", "should be key=value"),
        ("data.sources=[a, b]", "'[a, b]' is not a TOML value; texts stand in quotes"),
        ("seed=1\nname=2", "is not a TOML value"),
        ("seed=", "is not a TOML value"),
        ("name.first=1", "name is a single value and has no 'first' in it"),
        ("pretrain.phases.2.until=1.0", "pretrain.phases is a list of 2 items, numbered from 0"),
        ("pretrain.phases.last.until=1.0", "pretrain.phases is a list of 2 items, numbered from 0"),
    ],
)
def test_a_wrong_override_is_named(load: Callable[..., Recipe], tmp_path: Path, override: str, told: str) -> None:
    assert told in mistakes(load, tmp_path, BASE, override)[0]


# -- writing ---------------------------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | text
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Valid recipes with every section drawn, as TOML would give them."""
    sources = draw(st.lists(text, min_size=1, max_size=4, unique=True))
    limits = st.dictionaries(st.sampled_from(sources), st.integers(1, 10**12), max_size=3)
    ends = [*sorted(draw(st.sets(st.floats(0.01, 0.99), max_size=3))), 1.0]
    weights = st.fixed_dictionaries({name: st.floats(0.001, 10) for name in sources})
    context, rows = draw(st.integers(1, 5000)), draw(st.integers(1, 50))
    steps, start = draw(st.integers(2, 1000)), draw(st.integers(1, 4))
    tokens = steps * context * rows * 4
    warmup = {"rows_per_step_start": rows * start, "batch_warmup_tokens": draw(st.integers(1, tokens))}
    prompts = draw(st.lists(text, max_size=2))
    tokenizer = draw(
        st.fixed_dictionaries({"path": text})
        | st.fixed_dictionaries({"train_bytes": st.integers(1, 10**12)}, optional={"vocab_size": st.integers(1, 10**6)})
    )
    return {
        "name": draw(text),
        "output": draw(text.filter(lambda path: "\0" not in path)),
        "stages": draw(st.lists(text, min_size=1, max_size=3, unique=True)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "model": draw(st.dictionaries(text, plain, max_size=3)) | {"preset": draw(text)},
        "tokenizer": tokenizer,
        "data": {"sources": sources} | draw(st.just({}) | st.fixed_dictionaries({"max_bytes": limits})),
        "pretrain": {
            "context_length": context,
            "tokens": tokens,
            "rows_per_step": rows * 4,
            "tokens_per_microbatch": rows * context,
            "lr_muon": draw(st.floats(1e-9, 1)),
            "lr_adamw": draw(st.floats(1e-9, 1)),
            "warmup_steps": draw(st.integers(0, steps - 1)),
            "adamw_betas": [draw(st.floats(0, 0.9)), 0.95],
            "eval_every_steps": 1,
            "save_every_steps": 1,
            "sample_prompts": prompts,
            "sample_every_steps": len(prompts),
            "phases": [{"name": draw(text), "until": end, "weights": draw(weights)} for end in ends],
        }
        | draw(st.sampled_from([{}, warmup])),
    }


@given(recipes())
def test_writing_and_loading_give_the_same_recipe(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    recipe = Recipe.model_validate(data)
    path = tmp_path_factory.getbasetemp() / "written.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert load_recipe(path).to_toml() == recipe.to_toml()


@given(st.dictionaries(text, plain, max_size=5))
def test_the_writer_is_the_inverse_of_the_parser(values: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(values)) == values


def test_written_recipe_reads_well(load: Callable[..., Recipe]) -> None:
    written = load(BASE, "pretrain.tokens=1024000").to_toml()
    assert "tokens = 1_024_000\n" in written
    assert '[[pretrain.phases]]\nname = "first"\nuntil = 0.5\nweights = { a = 1.0, b = 0.0 }\n' in written


# -- explaining ------------------------------------------------------------------------------------------------------


def test_every_setting_is_explained() -> None:
    explained = {setting.key: setting for setting in settings()}
    assert all(setting.description.endswith((".", "]")) for setting in explained.values())
    assert all("[" in setting.description for key, setting in explained.items() if key.startswith("pretrain.lr_"))
    assert explained["pretrain.phases[].weights"].type == "table of float"
    assert explained["pretrain.adamw_betas"].default == "[0.9, 0.95]"
    assert explained["data.max_bytes"].type == "int or table of int"
    assert explained["pretrain.tokens"].required
    assert not explained["tokenizer.path"].required
    assert explained["output"].type == "text"


def test_a_recipe_cannot_be_changed(load: Callable[..., Recipe]) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().seed = 3
