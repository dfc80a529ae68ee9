"""Every setting in words, read from the schema itself, so that help and documentation cannot fall behind it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from glm5.recipe.schema import Recipe
from glm5.recipe.toml import format_value


@dataclass(slots=True, frozen=True)
class Setting:
    """One setting: its dotted key (`[]` stands for an index), its type and default as TOML shows them, its meaning."""

    key: str
    type: str
    default: str | None  # None: it has to be given, or is absent by default
    required: bool
    description: str


def settings() -> list[Setting]:
    """All settings of a recipe in the order of the schema, sections left out."""
    return list(_settings(Recipe, ""))


def _settings(section: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        inner, is_list = _nested_section(field.annotation)
        if inner is not None:
            yield from _settings(inner, f"{prefix}{name}{'[]' if is_list else ''}.")
            continue
        default = None
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        if value is not None:
            default = format_value(list(value) if isinstance(value, tuple) else value)
        yield Setting(
            prefix + name, _type_name(field.annotation), default, field.is_required(), field.description or ""
        )


def _nested_section(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section class inside an annotation, which may be optional, and whether there is a list of them."""
    if get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation):
        annotation = get_args(annotation)[0]
    is_list = get_origin(annotation) is list
    inner = get_args(annotation)[0] if is_list else annotation
    return (inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None), is_list


def _type_name(annotation: Any) -> str:
    """A type in the words of TOML's readers: `int`, `list of text`, `"cosine" or "linear"`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(_type_name(part) for part in arguments if part is not NoneType)
    if origin is Literal:
        return " or ".join(format_value(part) for part in arguments)
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"table of {_type_name(arguments[1])}"
    return "text" if annotation in (str, Path) else annotation.__name__
