"""The offline suite: 320 questions of 1 to 4 hops over the World Factbook, all of the held-out side of its graph.

It is generated, not shipped: the same package version gives the same file, byte for byte. At rest it is encrypted as
BrowseComp is, with a canary of its own, so that no crawler takes it for text to train on.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from glm5.search.cipher import encrypt
from glm5.search.factbook_graph import factbook_graph
from glm5.search.questions import Question, make_questions

CANARY = "glm5-search-suite:7f4c1d0e-52a9-4c7b-9b63-0d1f8e6a2c35"
COUNTS = {1: 80, 2: 80, 3: 80, 4: 80}  # hops: questions


def suite_questions() -> list[Question]:
    """The questions in the clear, with the facts they are made of.

    Raises:
        GLM5Error: the package with the World Factbook is not installed.
    """
    return make_questions(factbook_graph().graph, "held_out", COUNTS)


def write_suite(questions: Sequence[Question], path: Path) -> None:
    """Write questions as encrypted JSON lines, which `load_benchmark("suite", path)` reads."""
    with path.open("w", encoding="utf-8") as file:
        for question in questions:
            hidden = {"question": question.text, "answers": question.answers, "documents": question.documents}
            row = {
                "id": f"suite/{question.id}",
                "hops": question.hops,
                "problem": encrypt(json.dumps(hidden, ensure_ascii=False), CANARY),
                "canary": CANARY,
            }
            file.write(json.dumps(row) + "\n")
