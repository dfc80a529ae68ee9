"""The settings that every run has, one class a section, each setting with its meaning and the source of its default.

Sources in brackets: [GLM-5] is arXiv 2602.15763, [GLM-4.5] is arXiv 2508.06471, whose hyper-parameters GLM-5 keeps
where its Appendix A names none, and [ours] marks what neither report discloses.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

KINDS = ("general", "code", "reasoning")  # every source is of one kind; a weight may be given to a whole kind
SOURCE_SETS = ("debian-permissive", "debian-copyleft")  # each stands for many sources, whose names begin with
MEMBER_PREFIX = "debian:"

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Problem(NamedTuple):
    """A broken rule: the key to name, relative to the section that checks, and what is wrong with it."""

    key: tuple[str | int, ...]
    text: str


class Section(BaseModel):
    """A part of a recipe: immutable, without unknown keys, without guessing at types ("3" is not 3)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def problems(self) -> Iterator[Problem]:
        """The rules between this section's settings that do not hold."""
        yield from ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        broken = [
            InitErrorDetails(
                type=PydanticCustomError("rule", "{text}", {"text": problem.text}), loc=problem.key, input=None
            )
            for problem in self.problems()
        ]
        if broken:
            # One ValidationError with many lines, so that all mistakes are told at once.
            raise ValidationError.from_exception_data(type(self).__name__, broken)
        return self


class ModelSection(Section):
    """`[model]`: a named shape, and any field of the network's configuration that differs from it.

    The overrides stay unchecked here, because a recipe knows nothing of networks; `pipeline.validate` builds the
    configuration, which knows every field.
    """

    model_config = ConfigDict(extra="allow")

    preset: str = Field(description="Name of a network shape: nano, micro, mini, glm-5, ... [GLM-5 Table 10; ours]")

    @property
    def overrides(self) -> dict[str, Any]:
        """The configuration fields this recipe changes."""
        return dict(self.model_extra or {})

    def problems(self) -> Iterator[Problem]:
        """Values that no configuration field can hold, such as dates and infinities."""
        for key, value in self.overrides.items():
            if not _is_plain(value):
                yield Problem((key,), "should be a number, a text, true or false, or a list or table of these")


class TokenizerSection(Section):
    """`[tokenizer]`: train one on this run's data, or use one that exists. Exactly one of the two."""

    vocab_size: Positive | None = Field(
        None, description="Tokens to learn, special ones included; the model's vocab_size if absent. [ours]"
    )
    train_bytes: Positive | None = Field(
        None, description="Bytes of training text to learn the vocabulary from, drawn evenly from all sources. [ours]"
    )
    path: str | None = Field(
        None, description="An existing tokenizer.json, or the folder that holds it, instead of training one. [ours]"
    )

    def problems(self) -> Iterator[Problem]:
        """Trained or given, not both, not neither."""
        if self.path is None and self.train_bytes is None:
            yield Problem(
                ("train_bytes",), "is missing: say how many bytes to train on, or give the path of a tokenizer"
            )
        if self.path is not None:
            for key in ("train_bytes", "vocab_size"):
                if getattr(self, key) is not None:
                    yield Problem((key,), "has no effect on an existing tokenizer; remove it or remove path")


class DataSection(Section):
    """`[data]`: which documents, how many, and which of them are never trained on."""

    sources: list[str] = Field(
        min_length=1,
        description='Where documents come from: names of built-in sources, or "path:FILE_OR_FOLDER". [ours]',
    )
    held_out_fraction: float = Field(
        0.05, gt=0, lt=1, description="Share of each source's documents kept for evaluation, chosen by content. [ours]"
    )
    max_bytes: (
        Annotated[
            Annotated[Positive, Tag("one")] | Annotated[dict[str, Positive], Tag("table")],
            Discriminator(lambda value: "table" if isinstance(value, dict) else "one"),
        ]
        | None
    ) = Field(
        None, description="Bytes to take of every source, or a table { source = bytes }; everything if absent. [ours]"
    )

    def problems(self) -> Iterator[Problem]:
        """Sources are named once, and limits are for sources that are there."""
        for repeated in sorted({name for name in self.sources if self.sources.count(name) > 1}):
            yield Problem(("sources",), f"names '{repeated}' twice")
        for name in self.max_bytes if isinstance(self.max_bytes, dict) else ():
            if wrong := self.not_one_source(name):
                yield Problem(("max_bytes", name), wrong)

    def not_one_source(self, name: str) -> str:
        """Why `name` is not one of the sources that are read; empty if it is."""
        sets = [source for source in self.sources if source in SOURCE_SETS]
        if name in sets:
            return f"stands for many sources; name its members instead, as {MEMBER_PREFIX}PACKAGE"
        if name in self.sources or (sets and name.startswith(MEMBER_PREFIX)):
            return ""
        return "is not named in data.sources"


def _is_plain(value: object) -> bool:
    """Whether a TOML value can be a configuration field, and be equal to itself when it is read back."""
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
