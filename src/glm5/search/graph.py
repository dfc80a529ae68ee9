"""A knowledge graph: entities with aliases, facts between them, and patterns that are matched by exhaustive search.

A pattern is a question without its words: a kind of entity, and clauses that each relate it to an entity, a value or
another pattern. `matches` finds every entity that fits, so "has exactly one answer" is a fact about the graph and
not an opinion.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Union

from glm5.errors import UsageError


@dataclass(frozen=True, slots=True)
class Entity:
    """A thing or a value.

    Attributes:
        aliases: other names it goes by, each a right answer.
        traces: words that would give it away, such as a country's adjective.
        side: where the split puts it; "" for what may stand on both sides.
    """

    id: str
    kind: str
    name: str
    aliases: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    side: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """Subject and object are ids of entities; `document` is the address of a page that says it."""

    subject: str
    relation: str
    object: str
    document: str


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition on an entity x: `x relation target`, or `target relation x` where `inverse`."""

    relation: str
    target: Union[str, "Pattern"]
    inverse: bool = False


@dataclass(frozen=True, slots=True)
class Pattern:
    """Entities of a kind that satisfy every clause."""

    kind: str
    clauses: tuple[Clause, ...]


class KnowledgeGraph:
    """Entities and facts, indexed from both ends."""

    def __init__(self, entities: Iterable[Entity], facts: Iterable[Fact]) -> None:
        """Raises UsageError for two entities with one id, and for facts about entities that are not there."""
        self.entities: dict[str, Entity] = {}
        self._kinds: defaultdict[str, set[str]] = defaultdict(set)
        for entity in entities:
            if entity.id in self.entities:
                raise UsageError(f"two entities have the id {entity.id!r}")
            self.entities[entity.id] = entity
            self._kinds[entity.kind].add(entity.id)
        self.facts = tuple(dict.fromkeys(facts))
        self._from: defaultdict[tuple[str, str], list[Fact]] = defaultdict(list)
        self._to: defaultdict[tuple[str, str], list[Fact]] = defaultdict(list)
        for fact in self.facts:
            for end in (fact.subject, fact.object):
                if end not in self.entities:
                    raise UsageError(f"a fact ({fact.relation}) is about {end!r}, which is no entity")
            self._from[fact.subject, fact.relation].append(fact)
            self._to[fact.object, fact.relation].append(fact)

    def facts_from(self, subject: str, relation: str) -> list[Fact]:
        """What is said of a subject, in the order it was given."""
        return self._from.get((subject, relation), [])

    def facts_to(self, target: str, relation: str) -> list[Fact]:
        """Who is said to have this object, in the order it was given."""
        return self._to.get((target, relation), [])

    def matches(self, pattern: Pattern) -> set[str]:
        """The ids of all entities that fit; a pattern without clauses fits every entity of its kind."""
        found = set(self._kinds.get(pattern.kind, ()))
        for clause in pattern.clauses:
            targets = {clause.target} if isinstance(clause.target, str) else self.matches(clause.target)
            if clause.inverse:
                found &= {fact.object for target in targets for fact in self.facts_from(target, clause.relation)}
            else:
                found &= {fact.subject for target in targets for fact in self.facts_to(target, clause.relation)}
            if not found:
                break
        return found
