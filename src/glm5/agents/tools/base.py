"""What a tool is: a name and a schema for the model, and a coroutine that does it.

The words the model reads, and the schemas, are in `prompts/tools.toml`; a class only acts.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

from glm5.agents.elide import Outputs
from glm5.agents.outcomes import Result
from glm5.agents.workspace import Workspace
from glm5.errors import UsageError
from glm5.text.messages import Tool, ToolCall


@dataclass(slots=True)
class TestRun:
    """A run of tests that happened: what `finish` can point at."""

    __test__ = False  # for pytest, which would take the name for a test

    command: str
    exit_code: int | None
    tail: str  # of what it printed
    snapshot: str | None = None  # of the tree as it left it; None until that was saved


@dataclass(slots=True)
class Desk:
    """What the tools of one run share.

    Attributes:
        snapshot: names the present state of the tree; "" when trees are not saved.
        changed: files that differ from how the tree was found, with "A", "M" or "D" before the name.
        test_command: what the person said shows success; "" leaves it to the model.
    """

    workspace: Workspace
    outputs: Outputs
    snapshot: Callable[[], str] = lambda: ""
    changed: Callable[[], list[str]] = list
    test_command: str = ""
    test_runs: list[TestRun] = field(default_factory=list)
    plan: str = ""

    def seal(self) -> None:
        """The tree was saved after a call: test runs in it belong to that state."""
        for run in self.test_runs:
            if run.snapshot is None:
                run.snapshot = self.snapshot()


class AgentTool(Protocol):
    """One thing an agent can do.

    Attributes:
        writes: it may change the tree, or anything else.
    """

    writes: bool

    @property
    def spec(self) -> Tool:
        """What the model is told."""

    async def run(self, arguments: Mapping[str, Any], desk: Desk) -> Result:
        """Do it. A `GLM5Error` that is the model's fault is told to the model; a `SandboxError` of a broken sandbox
        ends the run."""

    def is_waiting(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the call says itself that it only waits."""


class PackagedTool:
    """Base of the tools that come with the package: finds its words by its name."""

    name = ""
    writes = False

    @property
    def spec(self) -> Tool:
        """From `prompts/tools.toml`."""
        return packaged_spec(self.name)

    def is_waiting(self, arguments: Mapping[str, Any]) -> bool:
        """No."""
        return False


@cache
def _packaged() -> dict[str, Any]:
    return tomllib.loads((files("glm5.agents") / "prompts" / "tools.toml").read_text("utf-8"))


@cache
def packaged_spec(name: str) -> Tool:
    """The words and the schema of a tool."""
    raw = _packaged()[name]
    properties = {key: dict(value) for key, value in raw.get("arguments", {}).items()}
    required = [key for key, value in properties.items() if not value.pop("optional", False)]
    parameters = {"type": "object", "properties": properties, "required": required}
    return Tool(name, raw["description"].strip(), parameters)


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,), "object": (dict,)
}  # fmt: skip


def check_arguments(call: ToolCall, tool: Tool) -> None:
    """Raises UsageError, in words for the model, for arguments that do not fit the tool."""
    properties = tool.parameters.get("properties", {})
    problems = [f"{name} is missing" for name in tool.parameters.get("required", ()) if name not in call.arguments]
    for name, value in call.arguments.items():
        if name not in properties:
            problems.append(f"there is no argument {name}")
            continue
        wanted = properties[name].get("type")
        if isinstance(wanted, str) and not isinstance(value, _TYPES.get(wanted, (object,))):
            problems.append(f"{name} must be a {wanted}, not {type(value).__name__}")
    if problems:
        known = ", ".join(properties) or "none"
        raise UsageError(f"{call.name}: {'; '.join(problems)}. Its arguments are: {known}.")
