"""From a parsed command to its effects: what it would do, to what, by rules that are data (`prompts/policy.toml`).

Rules tell people what would happen and let them decide beforehand. They are not what confines an agent; programs can
be spelled in too many ways for that, and the sandbox does not read.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

from glm5.agents.guard.argv import Command, Unparseable, parse
from glm5.errors import UsageError

Action = Literal["allow", "ask", "deny"]
Mode = Literal["read-only", "ask", "auto", "full"]
MODES: tuple[Mode, ...] = ("read-only", "ask", "auto", "full")
_SOCKETS = ("/dev/tcp/", "/dev/udp/")  # which are no files, but connections that the shell makes
_STRINGS = re.compile(r"""(['"])(.*?)\1""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Effect:
    """Something a call would do.

    Attributes:
        kind: a name under `[effects]` of the policy.
        targets: absolute paths it would happen to, as far as they are known.
        what: the words of the command that say so.
        action: decided by a rule of the project, whatever the mode says.
    """

    kind: str
    targets: tuple[str, ...] = ()
    what: str = ""
    action: Action | None = None
    recursive: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """See the policy file for what the fields mean."""

    program: tuple[str, ...]
    effect: str
    words: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    pattern: str = ""
    action: Action | None = None

    def matches(self, argv: tuple[str, ...]) -> bool:
        """Whether a command is meant."""
        program, rest = os.path.basename(argv[0]), argv[1:]
        if re.sub(r"[\d.]+$", "", program) not in self.program and program not in self.program:
            return False
        first = next((word for word in rest if not word.startswith("-")), "")
        if self.words and first not in self.words:
            return False
        if self.flags and not any(_has_flag(rest, flag) for flag in self.flags):
            return False
        return not self.pattern or re.search(self.pattern, " ".join(rest)) is not None


class Policy:
    """The packaged rules, with a project's own before them."""

    def __init__(self, own: Path | None = None) -> None:
        """Raises UsageError for a file that cannot be read or says something impossible."""
        packaged = tomllib.loads((files("glm5.agents") / "prompts" / "policy.toml").read_text("utf-8"))
        self.effects: Mapping[str, str] = packaged["effects"]
        added = _read(own, self.effects) if own is not None else {}
        self.rules = [_rule(raw) for raw in [*added.get("rule", []), *packaged["rule"]]]
        self._code = [(re.compile(raw["pattern"]), raw["effect"]) for raw in packaged["code"]]
        self._modes = packaged["modes"]
        self._programs = packaged["programs"]
        self.protected = [*packaged["protect"]["paths"], *added.get("protect", {}).get("paths", [])]

    def action(self, effect: Effect, mode: Mode) -> Action:
        """What a mode does about an effect."""
        return effect.action or self._modes[mode].get(effect.kind, "allow")

    def effects_of(self, text: str, root: Path) -> list[Effect]:
        """What a shell command would do, at `root`."""
        try:
            commands = parse(text)
        except Unparseable as error:
            return [Effect("unclear", what=f"{text[:80]} ({error})")]
        effects: list[Effect] = []
        here = root
        for command in commands:
            effects += self._of(command, here)
            if command.argv[:1] == ("cd",) and len(command.argv) > 1:
                here = Path(os.path.normpath(here / command.argv[1]))
        return effects

    def effects_of_tool(self, name: str) -> list[Effect]:
        """What a tool that is no command would do: unknown, unless a rule of the project knows it by name."""
        rule = next((rule for rule in self.rules if rule.matches((name,))), None)
        return [Effect("outside", (), name, rule.action if rule is not None else None)]

    def _of(self, command: Command, here: Path) -> list[Effect]:
        outputs = [path for path in command.writes if not path.startswith("/dev/")]
        effects = [Effect("write", _paths(outputs, here), f"> {path}") for path in outputs]
        effects += [Effect("network", (), f"> {path}") for path in command.writes if path.startswith(_SOCKETS)]
        if not command.argv:
            return effects
        program, what = os.path.basename(command.argv[0]), " ".join(command.argv)[:120]
        operands = [word for word in command.argv[1:] if not word.startswith("-")]
        recursive = any(_has_flag(command.argv[1:], flag) for flag in ("-r", "-R", "--recursive"))
        known = len(effects)
        if program in self._programs["delete"]:
            effects.append(Effect("delete", _paths(operands, here), what, recursive=recursive))
        elif program == "find" and "-delete" in command.argv:
            tops = operands[:1] or ["."]
            effects.append(Effect("delete", _paths(tops, here), what, recursive=True))
        elif program in self._programs["write"]:
            targets = operands if program != "mv" else operands[-1:]
            if program == "mv":
                effects.append(Effect("delete", _paths(operands[:-1], here), what))
            options = [word.removeprefix("of=") for word in operands if word.startswith("of=")]
            effects.append(Effect("write", _paths(options or targets, here), what))
        if re.sub(r"[\d.]+$", "", program) in self._programs["interpreters"]:
            effects += self._of_code(command, here)
        rule = next((rule for rule in self.rules if rule.matches(command.argv)), None)
        if rule is not None and not (program == "find" and len(effects) > known):
            if rule.effect != "read" or rule.action is not None:
                effects.append(Effect(rule.effect, _paths(operands, here), what, rule.action))
        elif program not in self._programs["read"] and len(effects) == known:
            effects.append(Effect("run", (), what))
        return effects

    def _of_code(self, command: Command, here: Path) -> list[Effect]:
        source = "\n".join([*command.argv[1:], command.stdin])
        strings = [match[1] for match in _STRINGS.findall(source) if 0 < len(match[1]) < 300 and "\n" not in match[1]]
        words = [word for text in strings for word in text.split()]
        return [
            Effect(kind, _paths(words, here), source[:120], recursive="rmtree" in source)
            for pattern, kind in self._code
            if pattern.search(source)
        ]


def _has_flag(words: Iterable[str], flag: str) -> bool:
    for word in words:
        if word == flag or word.startswith(f"{flag}="):
            return True
        is_bundle = len(flag) == 2 and re.fullmatch(r"-[A-Za-z]+", word) is not None
        if is_bundle and flag[1] in word[1:]:
            return True
    return False


def _paths(words: Iterable[str], here: Path) -> tuple[str, ...]:
    """Absolute paths, links followed in all but the last part: deleting a link deletes the link."""
    found = []
    for word in words:
        path = here / word
        found.append(os.path.normpath(os.path.join(os.path.realpath(path.parent), path.name)))
    return tuple(dict.fromkeys(found))


@cache
def _fields() -> set[str]:
    return {"program", "effect", "words", "flags", "pattern", "action"}


def _read(path: Path, effects: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the policy {path} cannot be read: {error}") from error
    if not raw.get("rule") and not raw.get("protect", {}).get("paths"):
        raise UsageError(f"the policy {path} holds neither a [[rule]] nor [protect] paths: it would change nothing")
    for number, rule in enumerate(raw.get("rule", []), start=1):
        where = f"the policy {path}, rule {number}"
        if unknown := rule.keys() - _fields():
            raise UsageError(f"{where}: there is no {', '.join(sorted(unknown))}; known are {', '.join(_fields())}")
        if not rule.get("program"):
            raise UsageError(f"{where}: it names no program, so it would match nothing")
        if rule.get("action") not in ("allow", "ask", "deny"):
            raise UsageError(f"{where}: action must be allow, ask or deny, not {rule.get('action')!r}")
        if rule.setdefault("effect", "run") not in effects:
            raise UsageError(f"{where}: there is no effect {rule['effect']!r}; known are {', '.join(effects)}")
    return raw


def _rule(raw: Mapping[str, Any]) -> Rule:
    return Rule(
        tuple(raw["program"]), raw["effect"], tuple(raw.get("words", ())), tuple(raw.get("flags", ())),
        raw.get("pattern", ""), cast("Action | None", raw.get("action")),
    )  # fmt: skip
