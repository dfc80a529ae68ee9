"""Science and mathematics problems with the Python program that solves them, from the package `reasoning-gym`.

The package holds two collections in the form of CodeI/O (Li et al. 2025): a question in words, the form of its input
and output, and a reference solution. Most problems stand in both; each is taken once.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm5.data.documents import Document
from glm5.data.sources.base import Kind, package_folder


@dataclass(slots=True, frozen=True)
class CodeIO:
    """The problems in both data files of the package."""

    folder: Path
    name: str = "reasoning-gym"
    kind: Kind = "reasoning"
    license: str = "Apache-2.0"

    def documents(self) -> Iterator[Document]:
        """Yield one document for each distinct problem: the question, then the solution."""
        seen: set[str] = set()
        for file, rows in (("codeio.jsonl.gz", self._json_lines), ("codeio-hq.jsonl.gz", self._json_array)):
            for number, row in enumerate(rows(self.folder / file)):
                question = row["task_description"].strip()
                if question not in seen:
                    seen.add(question)
                    interface, solution = row["input_output_spec"].strip(), row["code_sample"].strip()
                    text = f"{question}\n\n{interface}\n\n```python\n{solution}\n```\n"
                    yield Document(text, self.name, self.license, f"{file}#{number}")

    @staticmethod
    def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    @staticmethod
    def _json_array(path: Path) -> Iterator[dict[str, Any]]:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from json.load(file)


def codeio() -> CodeIO:
    """Open the installed package."""
    return CodeIO(package_folder("reasoning_gym", "reasoning-gym", "reasoning-gym==0.1.25") / "data")
