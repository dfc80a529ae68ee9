"""Sets of tasks: all of them worked on, none twice, under one budget; the forms in which they come."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from glm5.agents.coding.batch import Outcome, run_batch, table
from glm5.agents.coding.scripted import Program
from glm5.agents.coding.tasks import load_tasks
from glm5.agents.endpoint import EndpointError, ScriptedEndpoint
from glm5.agents.limits import Budget, Limits
from glm5.errors import UsageError
from tests.agents.code.conftest import REPAIR, TEST, Project

ROWS = [{"id": f"add-{n}", "root": "tree", "task": "repair add", "test": TEST} for n in range(3)]


def write(project: Project, rows: list[dict]) -> Path:
    path = project.aside / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def work(project: Project, endpoint, limits=None, workers=2) -> list[Outcome]:
    tasks = load_tasks(write(project, ROWS))
    settings = project.settings(model="scripted")
    budget = Budget(limits or Limits())
    return asyncio.run(run_batch(tasks, settings, endpoint, project.aside / "out", workers, budget))


def test_all_are_done_and_none_twice(project):
    endpoint = ScriptedEndpoint(Program(REPAIR))
    outcomes = work(project, endpoint)
    assert [(o.status, o.steps, o.changed) for o in outcomes] == [("verified", 5, 1)] * 3
    assert (project.root / "calc.py").read_text().endswith("a - b\n")
    lines = (project.aside / "out" / "predictions.jsonl").read_text().splitlines()
    assert ["+    return a + b" in json.loads(line)["model_patch"] for line in lines] == [True] * 3
    asked = len(endpoint.requests)
    assert [o.status for o in work(project, endpoint)] == ["verified"] * 3
    assert len(endpoint.requests) == asked
    assert table(outcomes).row_count == 3


def test_a_failed_endpoint_is_tried_again_and_a_budget_ends_all(project):
    def dies(messages, tools):
        raise EndpointError("gone")

    assert {o.status for o in work(project, ScriptedEndpoint(dies))} == {"endpoint_failed"}
    program = ScriptedEndpoint(Program(REPAIR))
    limited = work(project, program, Limits(steps=7), workers=1)
    assert "step_limit" in {o.status for o in limited}
    assert len(program.requests) <= 8
    assert any("not begun" in o.note for o in limited)


def test_one_that_cannot_be_laid_out_does_not_end_the_others(project):
    project.put({"calc.py": "x"})
    rows = [{**ROWS[0], "id": "ok"}, {**ROWS[0], "id": "gone", "root": "other"}]
    (project.aside / "other").mkdir()
    tasks = write(project, rows)
    loaded = load_tasks(tasks)
    (project.aside / "other").rmdir()
    steps = [REPAIR[-1]]
    outcomes = asyncio.run(
        run_batch(
            loaded, project.settings(), ScriptedEndpoint(Program(steps)), project.aside / "out", 1, Budget(Limits())
        )
    )
    assert [o.status for o in outcomes] == ["unverified", "failed"]


def test_a_tree_of_swe_bench_has_no_history(project):
    git = ["git", "-C", str(project.root), "-c", "user.name=x", "-c", "user.email=x@x", "-c", "safe.directory=*"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    (project.root / "future.py").write_text("solution")
    row = {"instance_id": "o__tree-1", "repo": "o/tree", "base_commit": head, "problem_statement": "repair it"}
    subprocess.run(["chown", "-R", "root:root", project.root], check=False)
    [task] = load_tasks(write(project, [row]), project.aside)
    task.lay_out(project.aside / "laid")
    assert sorted(path.name for path in (project.aside / "laid").iterdir()) == ["calc.py", "tests"]


def test_harbor_folders(project):
    folder = project.aside / "harbor" / "hello"
    (folder / "environment").mkdir(parents=True)
    (folder / "task.toml").write_text('schema_version = "1.1"\n')
    (folder / "instruction.md").write_text("Say hello.")
    [task] = load_tasks(project.aside / "harbor")
    assert (task.id, task.task) == ("hello", "Say hello.")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no tasks"),
        ([{"id": "a", "task": "x"}], "no 'root'"),
        ([{"id": "../a", "task": "x", "root": "tree"}], "an id is made of"),
        ([ROWS[0], ROWS[0]], "same id"),
        ([{"id": "a", "task": "x", "root": "nowhere"}], "not a folder"),
        ([{"instance_id": "a", "repo": "a/b", "base_commit": "c", "problem_statement": "d"}], "clones"),
    ],
)
def test_wrong_sets(project, rows, message):
    with pytest.raises(UsageError, match=message):
        load_tasks(write(project, rows))
