"""The documentation against the code: links, paths, commands and tables. Prose that lies about these fails here."""

import re
import runpy
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from glm5.cli import app
from glm5.data.sources.debian import COPYLEFT, PERMISSIVE
from glm5.data.sources.registry import DEFAULT_SOURCES, open_sources
from glm5.pipeline import validate
from glm5.recipe import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
CODE_SPAN = re.compile(r"`([^`\n]+)`")
SOURCE_PATH = re.compile(r"[\w.-]+(/[\w.-]+)*(/|\.(py|md|toml|sh|jinja|css|js))")
MADE_BY_RUNS = re.compile(r"(runs|pretrain|data|training|tokenizer)/.*")
COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?glm5 (.+)$", re.MULTILINE)
TABLE_ROW = re.compile(r"^\| `([^`]+)` \|(.*)\|$", re.MULTILINE)

of_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[list[str]]:
    """What follows `glm5` in every command of a page, in a fence (continued lines joined) or in a line of prose."""
    text = page.read_text(encoding="utf-8")
    lines = [line for fence in FENCE.findall(text) for line in COMMAND.findall(fence.replace("\\\n", " "))]
    lines += [line for span in CODE_SPAN.findall(FENCE.sub("", text)) for line in COMMAND.findall(span)]
    return [shlex.split(re.split(r"\s[>|]\s", line)[0], comments=True) for line in lines]


@of_every_page
def test_relative_links_resolve(page: Path) -> None:
    targets = [target.partition("#")[0] for target in LINK.findall(prose(page)) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@of_every_page
def test_paths_in_backticks_exist(page: Path) -> None:
    spans = [span for span in CODE_SPAN.findall(prose(page)) if SOURCE_PATH.fullmatch(span)]
    paths = [span for span in spans if "/" in span.rstrip("/") and not MADE_BY_RUNS.fullmatch(span)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@of_every_page
def test_commands_parse(page: Path) -> None:
    """Every command and option exists; where a recipe and its overrides are written out, they are valid."""
    group = typer.main.get_command(app)
    for name, *arguments in commands(page):
        if name.startswith("-"):
            continue
        command = group.commands[name]  # type: ignore[attr-defined]
        if not arguments:
            continue  # the command is only mentioned
        given = command.make_context(name, list(arguments)).params
        if name == "run" and (ROOT / given["recipe"]).exists() and "..." not in arguments:
            validate(load_recipe(ROOT / given["recipe"], given["overrides"] or []))


def test_the_pages_have_something_to_check() -> None:
    """The patterns above find what they are for."""
    assert sum(len(commands(page)) for page in PAGES) > 20
    assert sum(len(SOURCE_PATH.findall(prose(page))) for page in PAGES) > 50
    assert sum(len(LINK.findall(prose(page))) for page in PAGES) > 5


def test_every_setting_is_in_the_table() -> None:
    table: Callable[[], str] = runpy.run_path(str(ROOT / "scripts/settings_table.py"))["settings_table"]
    page = read("docs/recipes.md")
    begin = page.index("| setting | type |")
    written = page[begin:].split("\n\n")[0].rstrip("\n")
    assert written == table(), "print it with: python scripts/settings_table.py"


def test_every_dependency_is_explained() -> None:
    project = PYPROJECT["project"]
    groups = [PYPROJECT["build-system"]["requires"], project["dependencies"]]
    groups += project["optional-dependencies"].values()
    names = {re.split(r"[^\w.-]", requirement)[0] for group in groups for requirement in group} - {project["name"]}
    page = read("docs/dependencies.md")
    assert {name for name in names if f"`{name}`" not in page} == set()
    assert {name for name, _ in TABLE_ROW.findall(page)} - names == set()


def test_the_floors_are_those_of_the_contract() -> None:
    contract = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    floors = [
        " · ".join(room.strip().removeprefix("glm5.") for room in layer.split("|")) for layer in contract["layers"]
    ]
    assert "```\n" + "\n".join(floors) + "\n```" in read("docs/architecture.md")


def test_sources_are_listed_with_kind_and_licence() -> None:
    rows = dict(TABLE_ROW.findall(read("docs/data.md")))
    packages = {f"debian:{package.name}": package for package in (*PERMISSIVE, *COPYLEFT)}
    sources = packages | {source.name: source for source in open_sources(DEFAULT_SOURCES)}
    assert set(sources) == {name for name in rows if name.startswith("debian:") or name in DEFAULT_SOURCES}
    for name, source in sources.items():
        cells = [cell.strip() for cell in rows[name].split("|")]
        assert source.kind == cells[0]
        assert source.license == cells[-1]
