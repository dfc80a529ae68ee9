"""The guard: before a call it decides, after a call it looks at what really happened.

    call ──> effects (by rule) ──> mode ──> allow · ask · deny
                                               │        │
                                               v        v remembered: other routes to the same effect are refused,
    tree before ──> call ──> tree after          and undone if they were not recognised
                       └────── compared

Rules can be got around, the comparison cannot: what was denied or is protected and yet changed is set back from the
last snapshot, and told.
"""

import os
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from glm5.agents.events import Reverted, Saved
from glm5.agents.guard.policy import Action, Effect, Mode, Policy
from glm5.agents.guard.shadow import Shadow
from glm5.text.messages import ToolCall

DELETING = ("delete", "delete_foreign")
SWEEP_FILES = 3
# Places in the sandbox that are its own and gone with it.
_PRIVATE = ("/tmp", "/work", "/dev/shm", "/var/tmp")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done about a call."""

    action: Action
    reason: str = ""
    effects: tuple[Effect, ...] = ()


@dataclass(slots=True)
class Denied:
    """A decision to be kept: the kind of effect, and what it would have happened to."""

    kind: str
    targets: tuple[str, ...]
    what: str


@dataclass(slots=True)
class Guard:
    """Judges the calls of one run.

    Attributes:
        shadow: saves the tree; None where it is thrown away anyhow, as in training.
        baseline: the snapshot of the tree as it was found.
        denied: what was denied so far.
        foreign: tools that act outside the sandbox, in ways that nobody here can see.
    """

    mode: Mode
    policy: Policy
    root: Path
    shadow: Shadow | None = None
    baseline: str = ""
    denied: list[Denied] = field(default_factory=list)
    foreign: frozenset[str] = frozenset()
    _found: set[str] | None = None  # files that were there before the run

    @property
    def confined(self) -> bool:
        """Whether the sandbox holds what the rules do not see."""
        return self.mode != "full"

    def judge(self, call: ToolCall) -> Verdict:
        """Decide about a call before it runs."""
        effects = [self._graded(effect) for effect in self._effects(call)]
        for effect in effects:
            if route := self._route_to_denied(effect, str(call.arguments)):
                return Verdict("deny", f"this is another way to what was denied before ({route.what})", (effect,))
        actions: tuple[Action, ...] = ("deny", "ask")
        for action in actions:
            chosen = tuple(effect for effect in effects if self.policy.action(effect, self.mode) == action)
            if chosen:
                kinds = "; ".join(dict.fromkeys(f"{self.policy.effects[e.kind]}: {e.what}" for e in chosen))
                return Verdict(action, f"it {kinds}", chosen)
        return Verdict("allow", "", tuple(effects))

    def remember_denial(self, verdict: Verdict) -> None:
        """From now on, other routes to the same effects are refused as well."""
        for effect in verdict.effects:
            self.denied.append(Denied(effect.kind, effect.targets, effect.what))

    def look_after(self, approved: bool = False) -> list[Saved | Reverted]:
        """Save what a call changed, and set back what it was not allowed to change.

        Args:
            approved: a person allowed the call, and with it what it did.
        """
        if self.shadow is None:
            return []
        before = self.shadow.current
        after = self.shadow.save()
        if after == before:
            return []
        changed = self.shadow.changes(before, after)
        events: list[Saved | Reverted] = [Saved(after, changed)]
        wrong, reason = ([], "") if approved else self._forbidden(changed)
        if wrong:
            undone = self.shadow.restore(before, wrong)
            events.append(Reverted(before, after, undone, reason))
        return events

    def _effects(self, call: ToolCall) -> list[Effect]:
        if call.name in ("edit", "write"):
            path = self.root / str(call.arguments.get("path", ""))
            return [Effect("write", (os.path.realpath(path),), f"{call.name} {call.arguments.get('path')}")]
        if call.name in self.foreign:
            return self.policy.effects_of_tool(call.name)
        command = call.arguments.get("command")
        if isinstance(command, str) and command:
            return self.policy.effects_of(command, self.root)
        return []

    def _graded(self, effect: Effect) -> Effect:
        """The effect under its true name, once it is known where its targets lie."""
        if effect.kind not in ("write", "delete") or effect.action:
            return effect
        kind = effect.kind
        for target in effect.targets:
            if target != str(self.root) and not target.startswith(f"{self.root}/"):
                if not (self.confined and _is_private(target)) and (kind == "delete" or not self._is_pattern(target)):
                    return Effect("outside", effect.targets, effect.what)
            elif self._is_protected(os.path.relpath(target, self.root)):
                return Effect("protected", effect.targets, effect.what)
            elif kind == "delete" and (effect.recursive or self._is_pattern(target)) and self._was_there(target):
                return Effect("delete_foreign", effect.targets, effect.what, recursive=effect.recursive)
        return effect

    def _is_pattern(self, target: str) -> bool:
        return any(char in target for char in "*?[$")

    def _was_there(self, target: str) -> bool:
        """Whether a path is, holds or matches a file that was there before the run."""
        below = os.path.relpath(target, self.root)
        if self.shadow is None or "$" in below or below == ".":
            return True
        return any(name == below or name.startswith(f"{below}/") or fnmatch(name, below) for name in self._names())

    def _names(self) -> set[str]:
        """Files that were there before the run."""
        if self._found is None:
            self._found = self.shadow.names(self.baseline) if self.shadow is not None else set()
        return self._found

    def _is_protected(self, path: str) -> bool:
        return any(fnmatch(path, pattern) for pattern in self.policy.protected)

    def _route_to_denied(self, effect: Effect, text: str) -> Denied | None:
        """The denial that an effect would get around."""
        for denied in self.denied:
            alike = denied.kind == effect.kind or (denied.kind in (*DELETING, "outside") and effect.kind in DELETING)
            if not alike:
                continue
            if effect.kind in ("network", "publish", "history", "migrate", "privilege", "unclear"):
                return denied
            if any(self._reaches(target, effect) for target in denied.targets):
                return denied
            if any(len(Path(target).name) > 2 and Path(target).name in text for target in denied.targets):
                return denied
        return None

    def _reaches(self, target: str, effect: Effect) -> bool:
        """Whether an effect would happen to what was denied. Where all of the project was denied, part of it is
        another thing, but for another sweep."""
        if self._covers_project(target):
            return effect.kind == "delete_foreign" or any(map(self._covers_project, effect.targets))
        return any(_overlap(target, other) for other in effect.targets)

    def _covers_project(self, target: str) -> bool:
        return f"{self.root}/".startswith(f"{target.rstrip('/*')}/")

    def _forbidden(self, changed: list[str]) -> tuple[list[str], str]:
        """Of the changes of one call, those that must be set back, and why."""
        protected = [line[2:] for line in changed if self._is_protected(line[2:])]
        if protected:
            return protected, "it is protected"
        gone = [line[2:] for line in changed if line[0] == "D"]
        targets = [target for denied in self.denied if denied.kind in DELETING for target in denied.targets]
        targets = [target for target in targets if not self._covers_project(target)]
        rerouted = [path for path in gone if any(_matches(f"{self.root}/{path}", target) for target in targets)]
        if rerouted:
            return rerouted, "its deletion was denied before"
        swept = self._names().intersection(gone)
        if len(swept) >= SWEEP_FILES and len(swept) > len(self._names()) / 2:
            return sorted(swept), "a call that nobody approved deleted most of the project"
        return [], ""


def _is_private(target: str) -> bool:
    """Whether a path can only be the sandbox's own: nothing of this machine stands where it begins."""
    folder = next((folder for folder in _PRIVATE if target.startswith(f"{folder}/")), None)
    if folder is None:
        return False
    return not os.path.lexists(f"{folder}/{target.removeprefix(folder).lstrip('/').split('/')[0]}")


def _matches(path: str, target: str) -> bool:
    return _overlap(path, target) or fnmatch(path, target)


def _overlap(a: str, b: str) -> bool:
    """Whether two paths are the same, or one lies in the other."""
    return a == b or a.startswith(f"{b.rstrip('/')}/") or b.startswith(f"{a.rstrip('/')}/")
