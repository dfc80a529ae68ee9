"""What an environment is: a source of tasks that can be graded without asking anybody.

    task(split, index) ──> Task ──> run(task, endpoint) ──> Reward
                                        │    ^
                                        v    │ turns and tool calls, as many as it takes
                                       endpoint

A wrong answer, a malformed call and a missing answer are the model's: a `Reward` of 0 whose evidence says why. A grader
or sandbox that breaks is not: an `EnvironmentFailure`, which excludes the rollout from training, because a failed
environment is not a zero (GLM-5 report, section 4.1).
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from glm5.agents.endpoint import Endpoint
from glm5.errors import GLM5Error, UsageError
from glm5.text.messages import Message, Tool

Split = Literal["train", "held_out"]

BUILT_IN: dict[str, str] = {
    "letters": "glm5.environments.letters:Letters",
    "reasoning-gym": "glm5.environments.gym:ReasoningGym",
    "math": "glm5.environments.maths:Maths",
    "code": "glm5.environments.code:Code",
    "tir": "glm5.environments.tir:ToolIntegratedReasoning",
    "repair": "glm5.environments.repair:Repair",
}


class EnvironmentFailure(GLM5Error):
    """The environment broke, not the model: the rollout is excluded from training, never counted as a zero."""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem.

    Attributes:
        id: unique and stable, `<environment>/<split>/<index>`.
        messages: the instruction (system and user).
        hidden: what only the grader may see; JSON can write it.
        kind: what tables group by, such as "reverse" or "sort".
    """

    id: str
    environment: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    hidden: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Reward:
    """A grade.

    Attributes:
        value: what is learned from; finite.
        parts: what it is made of, by name.
        evidence: what the grader saw, for people.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    evidence: str = ""


class Environment(Protocol):
    """Tasks and their grader. Options are keyword arguments of the class, which raises `UsageError` for wrong ones."""

    name: str

    def task(self, split: Split, index: int) -> Task:
        """Task `index` (from 0) of a split: the same one every time, without end for "train".

        No problem is in both splits, whatever the indices (`splits.draw`).
        """

    async def run(self, task: Task, endpoint: Endpoint) -> Reward:
        """Let the model work on a task, execute what it calls, and grade it.

        Raises:
            EnvironmentFailure: the environment broke.
            EndpointError: the endpoint broke.
        """

    async def close(self) -> None:
        """Give back whatever is held open."""


class Options(BaseModel):
    """Base of the options of an environment: unknown ones are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, environment: str, options: Mapping[str, Any]) -> Self:
        """Check the options of `environment`. Raises UsageError with one line for each mistake."""
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            lines = []
            for problem in error.errors():
                key = ".".join(map(str, problem["loc"]))
                if problem["type"] == "extra_forbidden":
                    lines.append(f"environment {environment!r} has no option {key!r}; it has: {_names(cls)}")
                else:
                    what = problem["msg"].replace("Input should", "should").replace("Value error, ", "")
                    lines.append(f"environment {environment!r}: option {key!r} {what}, not {problem['input']!r}")
            raise UsageError("\n".join(lines)) from None


def _names(options: type[BaseModel]) -> str:
    return ", ".join(options.model_fields) or "none"


def load_environment(spec: str, options: Mapping[str, Any]) -> Environment:
    """Open an environment.

    Args:
        spec: a name of `BUILT_IN`, or a class of the user's own: `package.module:Class` or `path/to/file.py:Class`.
        options: given to the class as keyword arguments.

    Raises:
        UsageError: there is no such name, module, file or class; the class does not take these options, or is no
            environment.
        GLM5Error: a package that the environment needs is missing.
    """
    module_name, colon, class_name = BUILT_IN.get(spec, spec).rpartition(":")
    if not colon or not module_name or not class_name:
        raise UsageError(
            f"there is no environment {spec!r}; built in are: {', '.join(BUILT_IN)}; your own is named "
            "package.module:Class or path/to/file.py:Class"
        )
    module = _module_of_file(Path(module_name), spec) if module_name.endswith(".py") else _module(module_name, spec)
    maker = getattr(module, class_name, None)
    if not callable(maker):
        raise UsageError(f"environment {spec!r}: {module_name} has no class {class_name!r}")
    try:
        environment = maker(**options)
    except TypeError as error:
        raise UsageError(f"environment {spec!r} does not take the options {dict(options)}: {error}") from error
    missing = [name for name in ("name", "task", "run", "close") if not hasattr(environment, name)]
    if missing:
        raise UsageError(f"environment {spec!r}: {class_name} is no environment, it has no {', '.join(missing)}")
    return cast(Environment, environment)


def _module(name: str, spec: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"environment {spec!r}: there is no module {error.name!r}; is it installed?") from error


def _module_of_file(path: Path, spec: str) -> Any:
    """Import a file that belongs to no package."""
    if not path.is_file():
        raise UsageError(f"environment {spec!r}: there is no file {path}")
    name = f"glm5_user_environment_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"environment {spec!r}: {path} cannot be imported")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"environment {spec!r}: importing {path} raised {error!r}") from error
    return module
