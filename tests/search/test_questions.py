"""The generator against the graph: uniqueness by an independent search, leaks by plain reading."""

import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from glm5.errors import GLM5Error, UsageError
from glm5.search.cipher import decrypt, encrypt
from glm5.search.graph import Clause, Entity, Fact, KnowledgeGraph, Pattern
from glm5.search.problems import load_benchmark
from glm5.search.questions import MAX_OVERLAP, Question, make_questions, overlap
from glm5.search.suite import CANARY, write_suite


def holds(graph: KnowledgeGraph, entity: str, pattern: Pattern) -> bool:
    """Whether one entity fits, decided by trying every fact: slow, and nothing like the search under test."""
    if graph.entities[entity].kind != pattern.kind:
        return False
    for clause in pattern.clauses:
        ends = [
            (fact.object, fact.subject) if clause.inverse else (fact.subject, fact.object)
            for fact in graph.facts
            if fact.relation == clause.relation
        ]
        others = [other for own, other in ends if own == entity]
        if isinstance(clause.target, str):
            if clause.target not in others:
                return False
        elif not any(holds(graph, other, clause.target) for other in others):
            return False
    return True


def test_suite_has_enough_of_every_kind(questions: list[Question]) -> None:
    assert len(questions) >= 300
    assert {q.hops for q in questions} == {1, 2, 3, 4}
    assert {q.kind for q in questions} == {"country", "capital", "highest point", "anthem"}
    assert len({q.text for q in questions}) == len(questions)
    assert len({q.answers[0] for q in questions}) > 100


def test_every_answer_is_the_only_one(graph: KnowledgeGraph, questions: list[Question]) -> None:
    for question in questions:
        [found] = graph.matches(question.pattern)
        assert graph.entities[found].name == question.answers[0]
    for question in questions[::40]:  # every length, against the other implementation
        fits = [entity for entity in graph.entities if holds(graph, entity, question.pattern)]
        assert [graph.entities[entity].name for entity in fits] == [question.answers[0]]


def test_no_question_names_its_answer(questions: list[Question]) -> None:
    for question in questions:
        for answer in question.answers:
            assert not re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", question.text, re.IGNORECASE)


def test_no_question_names_a_country_on_its_path(graph: KnowledgeGraph, questions: list[Question]) -> None:
    for question in questions:
        for fact in question.facts:
            country = graph.entities[fact.subject]
            assert country.name not in question.text
            assert country.side == "held_out"


def test_every_clue_is_needed(graph: KnowledgeGraph, questions: list[Question]) -> None:
    """Without one of its clues, a one-hop question has more than one answer."""
    for question in [q for q in questions if q.hops == 1]:
        for clause in question.pattern.clauses:
            rest = tuple(other for other in question.pattern.clauses if other is not clause)
            assert len(graph.matches(Pattern("country", rest))) > 1


def test_subgraphs_overlap_little(questions: list[Question]) -> None:
    facts = [frozenset(question.facts) for question in questions]
    assert max(overlap(one, other) for one, other in combinations(facts, 2)) <= MAX_OVERLAP


def test_training_and_held_out_share_no_hidden_entity(graph: KnowledgeGraph, questions: list[Question]) -> None:
    training = make_questions(graph, "train", {1: 40, 3: 40})
    subjects = {fact.subject for question in training for fact in question.facts}
    assert subjects.isdisjoint(fact.subject for question in questions for fact in question.facts)


def test_evidence_stands_in_the_corpus(graph: KnowledgeGraph, questions: list[Question]) -> None:
    """The document that is named for the last fact of a question holds its answer."""
    from glm5.data.sources.factbook import factbook

    pages = {document.path: document.text for document in factbook().documents()}
    for question in questions:
        assert set(question.documents) <= set(pages)
        if question.kind != "country":
            assert question.answers[0] in pages[question.facts[-1].document]


def test_same_seed_same_file_in_another_process(questions: list[Question], tmp_path: Path) -> None:
    write_suite(questions, tmp_path / "here.jsonl")
    code = (
        "import sys; from pathlib import Path; from glm5.search.suite import *; "
        "write_suite(suite_questions(), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there.jsonl")], check=True)
    assert (tmp_path / "here.jsonl").read_bytes() == (tmp_path / "there.jsonl").read_bytes()


def test_at_rest_nothing_is_readable(questions: list[Question], tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    write_suite(questions, path)
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    assert text.count(CANARY) == len(questions)
    assert "country" not in text
    assert not any(question.answers[0] in text for question in questions if len(question.answers[0]) > 6)
    read = load_benchmark("suite", path).problems
    assert [p.question for p in read] == [q.text for q in questions]
    assert [p.answers for p in read] == [q.answers for q in questions]
    assert [p.documents for p in read] == [q.documents for q in questions]


def test_cipher_is_the_published_one() -> None:
    """XOR with SHA-256 of the canary: the bytes were computed by hand with sha256sum."""
    assert decrypt(encrypt("Ångström " * 9, "a canary"), "a canary") == "Ångström " * 9
    assert encrypt("\0" * 4, "abc") == "ungWvw=="  # SHA-256 of abc begins ba7816bf
    with pytest.raises(GLM5Error, match="not encrypted"):
        decrypt("not base64!", "abc")


def test_wrong_use_is_told(graph: KnowledgeGraph) -> None:
    with pytest.raises(UsageError, match="1 to 4 hops"):
        make_questions(graph, "train", {5: 1})
    with pytest.raises(UsageError, match="no entity"):
        make_questions(graph, "elsewhere", {1: 1})
    with pytest.raises(GLM5Error, match="questions of 1 hops that differ enough"):
        make_questions(graph, "train", {1: 5_000})
    with pytest.raises(UsageError, match="no entity"):
        KnowledgeGraph([Entity("a", "country", "A")], [Fact("a", "borders", "b", "")])
    with pytest.raises(UsageError, match="two entities"):
        KnowledgeGraph([Entity("a", "country", "A"), Entity("a", "city", "A")], [])


def test_matches_follows_both_directions() -> None:
    entities = [Entity("a", "country", "A"), Entity("b", "country", "B"), Entity("t", "city", "T")]
    graph = KnowledgeGraph(entities, [Fact("a", "capital", "t", ""), Fact("a", "borders", "b", "")])
    assert graph.matches(Pattern("country", (Clause("capital", "t"),))) == {"a"}
    assert graph.matches(Pattern("country", (Clause("borders", Pattern("country", ()), inverse=True),))) == {"b"}
    assert graph.matches(Pattern("city", (Clause("borders", "b"),))) == set()
