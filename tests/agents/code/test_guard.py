"""Commands taken apart, rules, modes, snapshots: each by itself."""

import os
import subprocess
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.agents.events import Decided, Observed
from glm5.agents.guard.argv import Unparseable, parse
from glm5.agents.guard.policy import Policy
from glm5.agents.guard.shadow import Shadow
from glm5.agents.outcomes import Status
from glm5.agents.person import Answer
from glm5.errors import UsageError
from tests.agents.code.conftest import REPAIR, call

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)


@pytest.mark.parametrize(
    ("text", "programs"),
    [
        ("ls; rm -rf /", ["ls", "rm"]),
        ("a && b || c | d & e", ["a", "b", "c", "d", "e"]),
        ("(a; b) > out", ["a", "b", ">out"]),
        ("x=$(rm y) z", ["rm", "z"]),
        ('echo "$(a `b`)"', ["b", "a", "echo"]),
        ("echo 'rm -rf /' # rm", ["echo"]),
        ("sudo -u root env A=1 rm x", ["sudo", "env", "rm"]),
        ("timeout 5 nice -n 3 rm x", ["timeout", "nice", "rm"]),
        ("for f in *; do rm $f; done", ["for", "rm"]),
        ("if true; then rm x; fi", ["true", "rm"]),
        ("bash -lc 'cd x && rm y'", ["bash", "cd", "rm"]),
        ("cat <<E | sh\nrm x\nE\nls", ["cat", "sh", "ls"]),
        ("sh <<-'E'\n\trm x\n\tE\nls", ["sh", "rm", "ls"]),
        ("find . -name x -exec rm {} \\;", ["find", "rm"]),
        ("r\\m x; 'r'm y", ["rm", "rm"]),
        ("diff <(a) <(b)", ["a", "b", "diff"]),
    ],
)
def test_every_program_is_found(text, programs):
    assert [command.argv[0] if command.argv else f">{command.writes[0]}" for command in parse(text)] == programs


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_quoted_words_come_back(words):
    import shlex

    words[0] = "program"
    assert parse(" ".join(map(shlex.quote, words)))[0].argv == tuple(words)


@given(st.text(max_size=60))
def test_nothing_crashes_the_parser(text):
    with suppress(Unparseable):
        parse(text)


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("ls -la", set()),
        ("git status", set()),
        ("git branch", set()),
        ("git branch -D x", {"history"}),
        ("git push", {"publish"}),
        ("python3.11 -c 'import os; os.remove(\"x\")'", {"delete"}),
        ("rm -r x", {"delete"}),
        ("make", {"run"}),
        ("pip install x", {"network"}),
        ("sed -i s/a/b/ f", {"write"}),
        ("sed s/a/b/ f", set()),
        ("echo 'unclosed", {"unclear"}),
    ],
)
def test_effects(command, kinds, tmp_path):
    assert {effect.kind for effect in Policy().effects_of(command, tmp_path)} == kinds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "would change nothing"),
        ("[[rule]]\naction = 'deny'", "names no program"),
        ("[[rule]]\nprogram = ['x']\naction = 'stop'", "must be allow, ask or deny"),
        ("[[rule]]\nprogram = ['x']\naction = 'deny'\neffect = 'boom'", "no effect"),
        ("[[rule]]\nprogramme = ['x']", "there is no programme"),
        ("[[rule", "cannot be read"),
    ],
)
def test_a_policy_that_would_do_nothing_is_an_error(tmp_path, text, message):
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        Policy(tmp_path / "policy.toml")


def test_a_projects_own_rules_come_first(project):
    policy = project.aside / "policy.toml"
    policy.write_text(
        '[[rule]]\nprogram = ["make"]\nwords = ["deploy"]\naction = "deny"\n[protect]\npaths = ["calc.py"]\n'
    )
    project.run([call("shell", command="make deploy"), *REPAIR[2:]], policy=policy)
    assert [decided.verdict for decided in project.events(Decided)] == ["deny", "deny"]
    assert (project.root / "calc.py").read_text() == "def add(a, b):\n    return a - b\n"


class Scripted:
    """A person who gives answers from a list."""

    def __init__(self, *answers: bool) -> None:
        self._answers = iter(answers)
        self.asked: list[str] = []

    async def approve(self, call, verdict) -> Answer:
        self.asked.append(call.name)
        return Answer(next(self._answers), "not now")

    async def advise(self, trouble: str) -> str:
        return ""


def test_in_mode_ask_a_person_decides(project):
    person = Scripted(True, True, True, False)
    ending = project.run([*REPAIR[:4], call("shell", command="touch x"), REPAIR[4]], person, mode="ask")
    assert person.asked == ["shell", "edit", "run_tests", "shell"]
    assert ending.status == Status.VERIFIED
    assert "not now" in next(seen.content for seen in project.events(Observed) if seen.status == "refused")


def test_what_a_person_allows_is_not_set_back(project):
    project.run([call("shell", command="rm -rf tests"), call("finish", done=False, summary="")], Scripted(True))
    assert not (project.root / "tests").exists()


def test_read_only_holds_whatever_the_rules_see(project):
    steps = [REPAIR[2], call("shell", command="python3 -c \"open('x', 'w')\""), call("finish", done=False, summary="")]
    project.run(steps, mode="read-only")
    refused, failed, _ = project.events(Observed)
    assert refused.status == "refused"
    assert "Read-only file system" in failed.content
    assert project.patch == ""


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "deep").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"a\r\n\xff\0")
    (root / "deep" / "b.sh").write_text("#!/bin/sh\n")
    (root / "deep" / "b.sh").chmod(0o755)
    (root / "link").symlink_to("a.txt")
    (root / os.fsdecode(b'odd \xff\n"name')).write_text("odd")
    return root


def image(root) -> dict:
    return {
        str(path.relative_to(root)): os.readlink(path)
        if path.is_symlink()
        else (path.read_bytes(), path.stat().st_mode)
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_a_snapshot_comes_back_byte_for_byte(tree, tmp_path):
    shadow, before = Shadow(tree, tmp_path / "shadow.git"), image(tree)
    first = shadow.current
    assert shadow.save() == first
    (tree / "a.txt").write_text("changed")
    (tree / "new").write_text("new")
    (tree / "deep" / "b.sh").unlink()
    (tree / "deep").rmdir()
    (tree / "deep").symlink_to(tmp_path)  # what was a folder leads out of the tree now
    second = shadow.save()
    assert sorted(shadow.changes(first, second)) == ["A deep", "A new", "D deep/b.sh", "M a.txt"]
    shadow.restore(first)
    assert image(tree) == before
    assert not (tmp_path / "b.sh").exists()
    assert shadow.current == first
    shadow.restore(second)
    assert (tree / "new").read_text() == "new"


def test_a_new_process_finds_the_same_name_for_the_same_tree(tree, tmp_path):
    first = Shadow(tree, tmp_path / "shadow.git").current
    assert Shadow(tree, tmp_path / "shadow.git").current == first


def test_the_projects_own_repository_is_left_alone(tree, tmp_path):
    subprocess.run(["git", "-C", str(tree), "init", "-q"], check=True)
    (tree / "sub" / ".git").mkdir(parents=True)
    (tree / "sub" / "file").write_text("of a submodule")
    shadow = Shadow(tree, tmp_path / "shadow.git")
    assert "sub/file" in shadow.names(shadow.current)
    assert not any(".git" in name for name in shadow.names(shadow.current))


def test_the_patch_applies(project):
    project.run(REPAIR)
    (project.root / "calc.py").write_text("def add(a, b):\n    return a - b\n")
    subprocess.run(["git", "apply", "-"], input=project.patch, text=True, cwd=project.root, check=True)
    assert "a + b" in (project.root / "calc.py").read_text()
