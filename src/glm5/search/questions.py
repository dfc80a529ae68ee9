"""Questions with exactly one answer, from a knowledge graph and templates alone: the same seed, the same questions.

    seed ──> a path of countries, each identified from the one before ──> a question about the last one
             c1 ──borders──> c2 ──exports to──> c3 ──capital──> answer          (4 hops)
             ^ clues         ^ clues, as few as single it out

As in the GLM-5 report (section 4.2.3): seeds are entities that are seldom mentioned, subgraphs of different questions
overlap little, clues come from several domains and the chain of relations is hidden: no entity on the path is named.
Where the report asks a model to check that an answer is unique, here the graph is searched exhaustively.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from glm5.errors import GLM5Error, UsageError
from glm5.search.graph import Clause, Fact, KnowledgeGraph, Pattern
from glm5.search.normalise import normalise
from glm5.search.wording import ATTRIBUTES, CLUES, LINKS, Step, word_question

MAX_HOPS = 4
MAX_CLUES = 5  # of one country
MAX_MENTIONS = 25  # in facts about others: a seed is of low or middle frequency
MAX_OVERLAP = 0.5  # shared facts of two questions, over all of theirs
MAX_SAME_ANSWER = 2  # questions of one number of hops
MIN_SHARING = 2  # a clue that only one country has would answer the question by itself
_PATIENCE = 2_000  # attempts without a new question before the graph counts as exhausted


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, and the facts that lead there.

    Attributes:
        answers: the usual name first, then every other that is right.
        kind: what is asked for, such as `capital`, or `country`.
        hops: entities that have to be identified, the answer included.
        documents: addresses of the pages that hold the facts, each once.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    kind: str
    hops: int
    side: str
    facts: tuple[Fact, ...]
    pattern: Pattern

    @property
    def documents(self) -> tuple[str, ...]:
        """Where the facts stand."""
        return tuple(dict.fromkeys(fact.document for fact in self.facts))


def make_questions(graph: KnowledgeGraph, side: str, counts: Mapping[int, int], seed: int = 0) -> list[Question]:
    """So many questions of each number of hops, `{1: 80, 2: 80}`, whose hidden entities are all on one side.

    Raises:
        UsageError: a side that no entity is on, or hops that are not 1 to `MAX_HOPS`.
        GLM5Error: the graph has not as many that differ enough.
    """
    if unknown := set(counts) - set(range(1, MAX_HOPS + 1)):
        raise UsageError(f"questions have 1 to {MAX_HOPS} hops, not {min(unknown)}")
    kept: list[Question] = []
    taken: list[frozenset[Fact]] = []
    for hops, count in counts.items():
        sampler = _Sampler(graph, side, random.Random(f"{seed}/{side}/{hops}"))
        answered: Counter[str] = Counter()
        fruitless = 0
        while answered.total() < count and fruitless < _PATIENCE:
            fruitless += 1
            question = sampler.draw(hops)
            if question is None or answered[question.answers[0]] == MAX_SAME_ANSWER:
                continue
            facts = frozenset(question.facts)
            if all(overlap(facts, other) <= MAX_OVERLAP for other in taken):
                kept.append(question)
                taken.append(facts)
                answered[question.answers[0]] += 1
                fruitless = 0
        if answered.total() < count:
            found = answered.total()
            raise GLM5Error(f"the side {side!r} has {found} questions of {hops} hops that differ enough, not {count}")
    return kept


def leaks(graph: KnowledgeGraph, question_text: str, hidden: list[str]) -> list[str]:
    """Every name, alias or trace of a hidden entity that a question's text contains."""
    entities = [graph.entities[id] for id in hidden]
    names = [name for entity in entities for name in (entity.name, *entity.aliases, *entity.traces)]
    text = f" {normalise(question_text)} "
    return [name for name in names if f" {normalise(name)} " in text]


def overlap(one: frozenset[Fact], other: frozenset[Fact]) -> float:
    """Shared facts of two questions, over all of theirs."""
    return len(one & other) / len(one | other)


class _Sampler:
    def __init__(self, graph: KnowledgeGraph, side: str, rng: random.Random) -> None:
        self._graph, self._side, self._rng = graph, side, rng
        mentions = Counter(fact.object for fact in graph.facts)
        self._countries = [
            entity.id
            for entity in graph.entities.values()
            if entity.kind == "country" and entity.side == side and mentions[entity.id] <= MAX_MENTIONS
        ]
        if not self._countries:
            raise UsageError(f"no entity of the graph is on the side {side!r}")
        self._eligible = frozenset(self._countries)

    def draw(self, hops: int) -> Question | None:
        """One attempt; None where a country cannot be singled out or the text would give something away."""
        attributes = [] if hops == 1 else [self._rng.choice(ATTRIBUTES)] if self._rng.random() < 0.7 else []
        path = self._path(hops - len(attributes))
        if path is None:
            return None
        steps: list[Step] = []
        facts: list[Fact] = []
        pattern: Pattern | None = None
        for country, link in path:
            linked = () if link is None or pattern is None else (Clause(link.relation, pattern, inverse=True),)
            clues = self._single_out(country, linked)
            if clues is None:
                return None
            pattern = Pattern("country", (*linked, *(Clause(fact.relation, fact.object) for fact in clues)))
            steps.append(Step(None if link is None else link.relation, tuple(clues)))
            facts += [*clues] if link is None else [link, *clues]
        assert pattern is not None  # a path has at least one country
        answer, kind = path[-1][0], "country"
        for kind in attributes:
            found = self._graph.facts_from(answer, kind)
            if len(found) != 1:
                return None
            answer, facts = found[0].object, [*facts, found[0]]
            pattern = Pattern(self._graph.entities[answer].kind, (Clause(kind, pattern, inverse=True),))
        text = word_question(steps, kind, self._graph.entities)
        hidden = [*(country for country, _ in path), answer]
        if self._graph.matches(pattern) != {answer} or leaks(self._graph, text, hidden):
            return None
        entity = self._graph.entities[answer]
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Question(
            name, text, (entity.name, *entity.aliases), kind, hops, self._side, tuple(dict.fromkeys(facts)), pattern
        )

    def _path(self, length: int) -> list[tuple[str, Fact | None]] | None:
        """Countries from the first to be found to the last, each with the fact that leads to it."""
        last = self._rng.choice(self._countries)
        path: list[tuple[str, Fact | None]] = []
        used = {last}
        while len(path) < length - 1:
            links = [
                fact
                for relation in LINKS
                for fact in self._graph.facts_to(last, relation)
                if fact.subject in self._eligible - used
            ]
            if not links:
                return None
            link = self._rng.choice(links)
            path.append((last, link))
            last = link.subject
            used.add(last)
        path.append((last, None))
        return path[::-1]

    def _single_out(self, country: str, linked: tuple[Clause, ...]) -> list[Fact] | None:
        """The fewest clues, in a random order of preference, that leave only this country."""
        clues = list(self._clues(country))
        self._rng.shuffle(clues)
        wanted = {country}
        for number in range(min(MAX_CLUES, len(clues)) + 1):
            if self._fits(linked, clues[:number]) == wanted:
                kept = clues[:number]
                for clue in list(kept):
                    fewer = [other for other in kept if other is not clue]
                    if self._fits(linked, fewer) == wanted:
                        kept = fewer
                return kept
        return None

    def _fits(self, linked: tuple[Clause, ...], clues: list[Fact]) -> set[str]:
        clauses = (*linked, *(Clause(fact.relation, fact.object) for fact in clues))
        return self._graph.matches(Pattern("country", clauses))

    def _clues(self, country: str) -> Iterator[Fact]:
        for relation in CLUES:
            for fact in self._graph.facts_from(country, relation):
                if len(self._graph.facts_to(fact.object, relation)) >= MIN_SHARING:
                    yield fact
