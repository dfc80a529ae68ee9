"""The house in order: lint, format, types, import rules, and what the base install promises."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["lint-imports", "--no-cache"],
    ],
    ids=lambda command: command[0] + " " + command[-1],
)
def test_static_check(command: list[str]) -> None:
    tool = Path(sys.executable).parent / command[0]
    result = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_help_and_recipes_need_no_torch() -> None:
    """Somebody who only plans or calls an endpoint installs no torch: importing these must not ask for it."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import glm5.cli, glm5.pipeline, glm5.recipe, glm5.model.config, glm5.model.presets, glm5.text.messages\n"
        "from glm5.recipe import load_recipe; load_recipe('recipes/glm-5.toml')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_no_file_in_git_is_larger_than_a_megabyte() -> None:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    large = [name for name in names if name and (ROOT / name).exists() and (ROOT / name).stat().st_size > 1_000_000]
    assert not large
