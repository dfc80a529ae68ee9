"""Projects to work on: folders that the sandbox's user may write, removed afterwards."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from glm5.agents.coding.scripted import Program, Step
from glm5.agents.coding.session import LOG, SessionSettings, open_session
from glm5.agents.endpoint import ScriptedEndpoint
from glm5.agents.events import Entry, Event, read_log
from glm5.agents.outcomes import Ending
from glm5.agents.person import Person
from glm5.text.messages import ToolCall

CALC = {
    "calc.py": "def add(a, b):\n    return a - b\n",
    "tests/test_calc.py": "from calc import add\n\nassert add(2, 2) == 4\n",
}
TEST = "PYTHONPATH=. python3 tests/test_calc.py"


@dataclass
class Project:
    """A tree, a place beside it for sessions, and what is asked for."""

    root: Path
    aside: Path
    ending: Ending | None = None
    patch: str = ""
    findings: list[str] = field(default_factory=list)

    def settings(self, **changes) -> SessionSettings:
        known = SessionSettings(self.root, "repair add", self.aside / "session", context="none")
        return replace(known, **changes)

    def put(self, files: Mapping[str, str | bytes]) -> None:
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        hand_over(self.root)

    def run(self, steps: list[Step] | Callable, person: Person | None = None, **changes) -> Ending:
        """A whole session with a scripted model."""
        script = steps if callable(steps) else Program(steps)

        async def go() -> Ending:
            async with open_session(self.settings(**changes), ScriptedEndpoint(script), person) as session:
                self.ending = await session.run()
                self.patch, self.findings = session.patch(), session.findings
                return self.ending

        return asyncio.run(asyncio.wait_for(go(), 60))

    @property
    def entries(self) -> list[Entry]:
        return read_log(self.aside / "session" / LOG)

    def events(self, kind: type[Event]) -> list:
        return [entry.event for entry in self.entries if isinstance(entry.event, kind)]


def hand_over(root: Path) -> None:
    """Started by root, a sandbox runs as the owner of what it may write, which must be somebody else."""
    if os.getuid() == 0:
        for path in [root, *root.rglob("*")]:
            os.chown(path, 65534, 65534, follow_symlinks=False)


@pytest.fixture
def project() -> Iterator[Project]:
    top = Path(tempfile.mkdtemp(prefix="glm5-test-", dir="/tmp"))  # every user can reach it, unlike pytest's own
    top.chmod(0o755)
    (top / "tree").mkdir()
    made = Project(top / "tree", top)
    made.put(CALC)
    yield made
    shutil.rmtree(top)


def call(name: str, /, **arguments: object) -> ToolCall:
    return ToolCall(name, arguments)


REPAIR: list[Step] = [
    call("shell", command=TEST),
    call("read", path="calc.py"),
    call("edit", path="calc.py", old="a - b", new="a + b"),
    call("run_tests", command=TEST),
    call("finish", done=True, summary="add adds", test_command=TEST),
]
