"""Which engine a rollout talks to: always the same one, so that its prefix cache serves every turn.

A rollout id and the engines' names are hashed onto one circle, and the rollout belongs to the next engine clockwise
(consistent hashing): when an engine comes or goes, only the rollouts next to it move, and no table has to be kept
between restarts. A new rollout whose engine is full goes on to the next one that is not (Mirrokni et al., "Consistent
hashing with bounded loads", 2016); it then stays there. GLM-5 report §4.1.2, "DP-aware routing"; the rule for
rebalancing is not published, so this one is ours.
"""

import hashlib
import math
from bisect import bisect, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from glm5.errors import GLM5Error, UsageError


@dataclass(slots=True)
class PrefixReuse:
    """How much of the prompts was found in a prefix cache."""

    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def share(self) -> float:
        """Cached of all prompt tokens, 0 before the first."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def add(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Count one request."""
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens


class Router:
    """Gives rollouts to engines.

    Attributes:
        loads: rollouts that each engine has now.
        reuse: of each engine that ever served, those removed included. total_reuse: of all together.
    """

    def __init__(self, engines: Iterable[str], virtual_nodes: int = 64, load_bound: float = 1.25) -> None:
        """Begin with some engines.

        Args:
            virtual_nodes: places of each engine on the circle; more spread the rollouts more evenly.
            load_bound: no engine takes a new rollout beyond so many times the mean load, rounded up.

        Raises:
            UsageError: a name comes twice, `virtual_nodes` is below 1, or `load_bound` is.
        """
        if virtual_nodes < 1 or not load_bound >= 1:
            raise UsageError(f"virtual_nodes = {virtual_nodes} and load_bound = {load_bound} must be at least 1")
        self.loads: dict[str, int] = {}
        self.reuse: dict[str, PrefixReuse] = {}
        self.total_reuse = PrefixReuse()
        self._virtual_nodes, self._load_bound = virtual_nodes, load_bound
        self._circle: list[tuple[int, str]] = []
        self._homes: dict[str, str] = {}  # rollout id → engine, while the rollout lives
        for name in engines:
            self.add(name)

    def route(self, rollout_id: str) -> str:
        """The engine of a rollout: where it was before, else the next one clockwise with room.

        Raises:
            GLM5Error: there is no engine.
        """
        if rollout_id in self._homes:
            return self._homes[rollout_id]
        if not self.loads:
            raise GLM5Error(f"rollout {rollout_id} has nowhere to go: no engine is left; start one and add it")
        most = math.ceil(self._load_bound * (len(self._homes) + 1) / len(self.loads))
        name = next(name for name in self._clockwise(rollout_id) if self.loads[name] < most)
        self._homes[rollout_id] = name
        self.loads[name] += 1
        return name

    def release(self, rollout_id: str) -> None:
        """A rollout has ended. One that never asked for an engine, or lost it, holds none."""
        name = self._homes.pop(rollout_id, None)
        if name is not None:
            self.loads[name] -= 1

    def add(self, name: str) -> None:
        """An engine has come. Rollouts that have one keep it, since their cache is there.

        Raises:
            UsageError: it is here already.
        """
        if name in self.loads:
            raise UsageError(f"engine {name} is in the router already; give each engine a name of its own")
        self.loads[name] = 0
        self.reuse.setdefault(name, PrefixReuse())
        for node in range(self._virtual_nodes):
            insort(self._circle, (_place(f"{name}#{node}"), name))

    def remove(self, name: str) -> list[str]:
        """An engine has gone. Returns its rollouts, which get another one when they ask next.

        Raises:
            UsageError: it is not here.
        """
        if name not in self.loads:
            raise UsageError(f"engine {name} is not in the router; there are: {', '.join(self.loads) or 'none'}")
        del self.loads[name]
        self._circle = [node for node in self._circle if node[1] != name]
        homeless = [rollout_id for rollout_id, home in self._homes.items() if home == name]
        for rollout_id in homeless:
            del self._homes[rollout_id]
        return homeless

    def served(self, name: str, prompt_tokens: int, cached_tokens: int) -> None:
        """An engine has answered a request; it may have been removed meanwhile."""
        self.reuse.setdefault(name, PrefixReuse()).add(prompt_tokens, cached_tokens)
        self.total_reuse.add(prompt_tokens, cached_tokens)

    def _clockwise(self, rollout_id: str) -> Iterator[str]:
        """Every engine at least once, nearest first."""
        start = bisect(self._circle, (_place(rollout_id), ""))
        for node in range(len(self._circle)):
            yield self._circle[(start + node) % len(self._circle)][1]


def _place(key: str) -> int:
    """A place on the circle; `hash` would differ from process to process."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
