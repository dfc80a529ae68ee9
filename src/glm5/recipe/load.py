"""TOML and `key=value` overrides → a checked recipe, or one line for each mistake.

A recipe is where people spend their first minutes, so a mistake is told with its file, its line and its key, a typo
with the key that was probably meant, and all mistakes of a file at once.
"""

import copy
import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from glm5.errors import UsageError
from glm5.recipe.explain import settings
from glm5.recipe.rl import RLRequest
from glm5.recipe.schema import Recipe
from glm5.recipe.sections import Section
from glm5.recipe.sft import SftRequest, SftSection

S = TypeVar("S", bound=Section)
Key = tuple[str | int, ...]

_WORD = re.compile(r"[\w./:+~-]+")  # a value that may stand without quotes in an override
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""")
_DOTTED_KEY = re.compile(rf"(?:{_KEY_PART.pattern})(?:\s*\.\s*(?:{_KEY_PART.pattern}))*")
_HEADER = re.compile(r"\s*(\[\[?)(.+?)\]")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED_KEY.pattern})\s*=")


@dataclass(slots=True, frozen=True)
class _Override:
    text: str
    key: tuple[str, ...]
    value: Any


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, change it by `overrides` such as `pretrain.tokens=1_000_000`, and check it.

    The value of an override is TOML; a single word may stand without quotes. Items of a list are named by their
    number, `pretrain.phases.0.until=0.5`; a whole table is replaced by `tokenizer={path = "there"}`.

    Raises:
        UsageError: the file cannot be read, is not TOML, or breaks a rule; one line for each mistake.
    """
    return _checked(Recipe, *_parsed(path, overrides))


def load_sft_section(values: dict[str, Any], overrides: Sequence[str] = ()) -> SftSection:
    """The settings of a fine-tuning without a recipe: `values`, changed by overrides such as `lr_muon=1e-4`.

    Raises:
        UsageError: a rule is broken; one line for each mistake.
    """
    named = [f"sft.{override}" for override in overrides]
    return _checked(SftRequest, {"sft": copy.deepcopy(values)}, named, "settings", "").sft


def load_rl_request(path: Path | str, overrides: Sequence[str] = ()) -> RLRequest:
    """Read the file that `glm5 rl` runs: `name`, `output`, `seed` and a section `[rl]`. Raises as `load_recipe`."""
    return _checked(RLRequest, *_parsed(path, overrides))


def _checked(kind: type[S], data: dict[str, Any], overrides: Sequence[str], origin: Path | str, text: str) -> S:
    """Apply the overrides to what was read from `text`, and check the result."""
    changes = [_parse_override(override) for override in overrides]
    for change in changes:
        _apply(data, change)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = _key_lines(text)
        told = [f"{_place(origin, lines, changes, key)}: {words}" for key, words in _mistakes(error, data)]
        raise UsageError("\n".join(told)) from None


def _parsed(path: Path | str, overrides: Sequence[str]) -> tuple[dict[str, Any], Sequence[str], Path | str, str]:
    """What `_checked` wants to know of a file."""
    text = _read(path)
    try:
        return tomllib.loads(text), overrides, path, text
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}{_decode_error(error)}") from None


def _read(path: Path | str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"there is no recipe at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe {path} cannot be read: {error}") from None


def _decode_error(error: tomllib.TOMLDecodeError) -> str:
    """`:line:column: what is wrong`, from the parser's sentence."""
    what, _, where = str(error).rpartition(" (at ")
    place = re.match(r"line (\d+), column (\d+)", where)
    return f":{place[1]}:{place[2]}: {what}; this is not TOML" if place else f": {error}; this is not TOML"


# -- overrides -------------------------------------------------------------------------------------------------------


def _parse_override(text: str) -> _Override:
    dotted, equals, value = text.partition("=")
    if not equals or not _DOTTED_KEY.fullmatch(dotted.strip()):
        raise UsageError(f"override {text!r} should be key=value, such as pretrain.tokens=1_000_000")
    return _Override(text, _split_key(dotted), _parse_value(value.strip(), text))


def _parse_value(value: str, override: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        if _WORD.fullmatch(value):
            return value
        parsed = {}
    if parsed.keys() != {"value"}:  # nothing, or a line break that began another key
        raise UsageError(f"override {override!r}: {value!r} is not a TOML value; texts stand in quotes")
    return parsed["value"]


def _apply(data: dict[str, Any], change: _Override) -> None:
    """Set one key, making the tables on the way that are not there yet."""
    here: Any = data
    for depth, part in enumerate(change.key):
        slot = _slot(here, part, change, depth)
        if depth == len(change.key) - 1:
            here[slot] = change.value
        else:
            here = here[slot] if isinstance(slot, int) else here.setdefault(slot, {})


def _slot(holder: Any, part: str, change: _Override, depth: int) -> str | int:
    """Where `part` is kept in a table or list."""
    if isinstance(holder, dict):
        return part
    name = ".".join(change.key[:depth])
    if not isinstance(holder, list):
        raise UsageError(f"override {change.text!r}: {name} is a single value and has no '{part}' in it")
    if not part.isdecimal() or int(part) >= len(holder):
        raise UsageError(f"override {change.text!r}: {name} is a list of {len(holder)} items, numbered from 0")
    return int(part)


# -- where -----------------------------------------------------------------------------------------------------------


def _place(path: Path | str, lines: dict[Key, int], changes: list[_Override], key: Key) -> str:
    """The override that set this key last, else the file and, where it is found, the line."""
    named = tuple(map(str, key))
    for change in reversed(changes):
        if named[: len(change.key)] == change.key:
            return f"override {change.text!r}"
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return f"{path}:{lines[key[:length]]}"
    return str(path)


def _key_lines(text: str) -> dict[Key, int]:
    """The line on which each table and key begins. Keys inside inline tables stand on their table's line."""
    lines: dict[Key, int] = {}
    table: Key = ()
    items: dict[Key, int] = {}  # how often [[name]] was seen
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _split_key(header[2])
            if header[1] == "[[":
                items[table] = items.get(table, -1) + 1
                lines.setdefault(table, number)
                table = (*table, items[table])
            lines.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            lines.setdefault(table + _split_key(assignment[1]), number)
    return lines


def _split_key(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _KEY_PART.findall(dotted))


# -- what ------------------------------------------------------------------------------------------------------------


def _mistakes(error: ValidationError, data: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    """The key of each mistake, and a sentence that begins with it."""
    found = [(_real_key(problem["loc"], data), problem) for problem in error.errors()]
    meant = {key: _meant(key) for key, problem in found if problem["type"] == "extra_forbidden"}
    for key, problem in found:
        name = ".".join(map(str, key))
        match problem["type"]:
            case "rule":
                yield key, f"{name} {problem['msg']}"
            case "missing" if _setting_name(key) in meant.values():
                pass  # it is there, but misspelled, which is told already
            case "missing":
                yield key, f"{name} is missing"
            case "extra_forbidden":
                yield key, f"{name} is not a setting" + (f"; did you mean {meant[key]}?" if meant[key] else "")
            case "model_type":
                yield key, f"{name} should be a table, written [{name}]"
            case "too_short" | "string_too_short":
                yield key, f"{name} should not be empty"
            case _:
                yield key, f"{name} {problem['msg'].replace('Input should', 'should')}, not {problem['input']!r}"


def _real_key(location: Key, data: dict[str, Any]) -> Key:
    """An error's location without the marks that stand for the branches of a union."""
    key: list[str | int] = []
    here: Any = data
    *parents, last = location
    for part in parents:
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int)):
            key.append(part)
            here = cast(Any, here)[part]
    if isinstance(here, dict | list):
        key.append(last)
    return tuple(key)


def _setting_name(key: Key) -> str:
    """A key as `settings()` spells it: `pretrain.phases[].until`."""
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def _meant(key: Key) -> str | None:
    """The setting that was probably meant: a neighbour spelled alike, else one of that name in another section."""
    section, dot, name = _setting_name(key).rpartition(".")
    known = [setting.key for setting in settings()]
    inside = [setting.removeprefix(section + dot) for setting in known if setting.startswith(section + dot)]
    neighbours = {rest.split(".")[0].removesuffix("[]") for rest in inside}
    if close := difflib.get_close_matches(name, neighbours, n=1):
        return f"{section}{dot}{close[0]}"
    elsewhere = {setting.rpartition(".")[2]: setting for setting in known}
    if close := difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.8):
        return elsewhere[close[0]]
    return None
