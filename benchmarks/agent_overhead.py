"""What an agent's loop costs beside model and command: milliseconds a step, ours beside mini-swe-agent's, interleaved.

    python benchmarks/agent_overhead.py --mini PYTHON [--steps 500] [--rounds 3] [--confined] [--json FILE]

PYTHON is the interpreter of an environment with mini-swe-agent installed. Both run the same command for the same
scripted model, and write their trajectories. A step is everything between two replies. Its parts are told apart: the
command, which is what the way of running commands costs, and the loop, which is all the rest; ours parses and judges
the command, looks whether the tree changed, and flushes every event. Shown are the first and the last fifth of the
steps, because a trajectory that is written whole after each step costs more the longer it is.

`--confined` compares the sandboxes: ours, which stays open, and the one of mini-swe-agent, which starts bubblewrap
for every command.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from glm5.agents.coding.session import SessionSettings, open_session
from glm5.agents.endpoint import ScriptedEndpoint
from glm5.agents.guard.policy import Mode
from glm5.agents.limits import Limits
from glm5.sandbox import ExecResult
from glm5.text.messages import Message, Tool, ToolCall

OUTPUT = "x" * 600  # characters that each command prints

MINI = """
import json, logging, sys, time
logging.disable(logging.CRITICAL)
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.extra.bubblewrap import BubblewrapEnvironment
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.test_models import DeterministicToolcallModel, make_toolcall_output
from pathlib import Path
steps, command, folder, confined = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "confined"
times, spent = [], [0.0]
class Timed(BubblewrapEnvironment if confined else LocalEnvironment):
    def execute(self, *words, **options):
        began = time.perf_counter()
        try:
            return super().execute(*words, **options)
        finally:
            spent.append(time.perf_counter() - began)
class Model(DeterministicToolcallModel):
    def query(self, messages, **kwargs):
        times.append(time.perf_counter())
        return super().query(messages, **kwargs)
def output(n):
    c = f"{command} {n}"
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "bash", "arguments": json.dumps({"command": c})}}]
    return make_toolcall_output("Next.", calls, [{"command": c, "tool_call_id": f"c{n}"}])
agent = DefaultAgent(Model(outputs=[output(n) for n in range(steps + 1)]), Timed(cwd=folder),
    system_template="You work.", instance_template="{{task}}", step_limit=steps + 1, cost_limit=0,
    output_path=Path(folder).parent / "mini.json")
agent.run("Work.")
if agent.messages[3]["content"].find("xxx") < 0:
    sys.exit("the command did not run: " + str(agent.messages[3])[:600])
print(json.dumps([[c, b - a - c] for a, b, c in zip(times, times[1:], spent[1:])]))
"""


Step = tuple[float, float]  # seconds of the command, and of everything else


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of a step: medians over the first and the last fifth."""

    agent: str
    command: float
    loop_first: float
    loop_last: float


def command(folder: Path) -> str:
    """The command of every step; its argument makes each step another one, so that none is taken for a circle."""
    script = folder / "say"
    script.write_text(f"#!/bin/sh\necho $1 {OUTPUT}\n")
    script.chmod(0o755)
    return "./say"


def ours(steps: int, tree: Path, aside: Path, confined: bool) -> list[Step]:
    """All steps of a run."""
    times: list[float] = []
    spent: list[float] = []
    said = command(tree)

    def model(messages: Sequence[Message], tools: Sequence[Tool]) -> Message:
        times.append(time.perf_counter())
        arguments = {"command": f"{said} {len(times)}"}
        return Message("assistant", "Next.", None, (ToolCall("shell", arguments, f"c{len(times)}"),))

    async def go() -> None:
        policy = aside / "policy.toml"
        policy.write_text('[[rule]]\nprogram = ["say"]\naction = "allow"\n')
        mode: Mode = "auto" if confined else "full"
        limits = Limits(steps=steps + 1)
        settings = SessionSettings(tree, "Work.", aside / "session", mode, policy=policy, limits=limits, context="none")
        async with open_session(settings, ScriptedEndpoint(model)) as session:
            run = session.desk.workspace.run

            async def timed(command: str, timeout: float) -> ExecResult:
                began = time.perf_counter()
                result = await run(command, timeout)
                spent.append(time.perf_counter() - began)
                return result

            session.desk.workspace.run = timed  # type: ignore[method-assign]
            await session.run()

    asyncio.run(go())
    return [(cost, after - before - cost) for (before, after), cost in zip(itertools.pairwise(times), spent)]


def mini(steps: int, tree: Path, python: str, confined: bool) -> list[Step]:
    """All steps of a run."""
    words = [python, "-c", MINI, str(steps), command(tree), str(tree), "confined" if confined else "local"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        sys.exit(f"mini-swe-agent did not run with {python}:\n{ended.stderr}")
    return [tuple(step) for step in json.loads(ended.stdout.splitlines()[-1])]


def row(agent: str, runs: Sequence[Sequence[Step]]) -> Row:
    """The row of an agent, from the steps of all rounds."""
    fifth = max(len(runs[0]) // 5, 1)
    commands = statistics.median(step[0] for run in runs for step in run)
    first = statistics.median(step[1] for run in runs for step in run[:fifth])
    last = statistics.median(step[1] for run in runs for step in run[-fifth:])
    return Row(agent, 1000 * commands, 1000 * first, 1000 * last)


def hand_over(folder: Path) -> None:
    """Started by root, a sandbox runs as the owner of the tree, which must be somebody else."""
    if os.getuid() == 0:
        folder.parent.chmod(0o755)
        for path in (folder, *folder.iterdir()):
            os.chown(path, 65534, 65534)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Overhead of an agent's step, ours beside mini-swe-agent's.")
    parser.add_argument("--mini", required=True, help="Python with mini-swe-agent installed")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--confined", action="store_true", help="run commands in a sandbox")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runs: dict[str, list[list[Step]]] = {"glm5 code": [], "mini-swe-agent": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder) / "tree"
            tree.mkdir()
            command(tree)
            hand_over(tree)
            runs["glm5 code"].append(ours(arguments.steps, tree, Path(folder), arguments.confined))
            runs["mini-swe-agent"].append(mini(arguments.steps, tree, arguments.mini, arguments.confined))
    rows = [row(agent, steps) for agent, steps in runs.items()]
    table = Table("milliseconds", "command", "loop, first fifth", f"loop, last fifth of {arguments.steps}", box=None)
    for shown in rows:
        table.add_row(shown.agent, f"{shown.command:.2f}", f"{shown.loop_first:.2f}", f"{shown.loop_last:.2f}")
    a, b = rows
    ratios = (a.command / b.command, a.loop_first / b.loop_first, a.loop_last / b.loop_last)
    table.add_row("ratio", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(shown) for shown in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
