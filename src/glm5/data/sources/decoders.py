"""File formats of documentation and reference works, each decoded to plain texts: (where inside the file, text)."""

import gzip
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeAlias

from glm5.data.sources.base import read_text

Texts: TypeAlias = Iterator[tuple[str, str]]
Decoder: TypeAlias = Callable[[Path], Texts]

CHUNK = 8_000  # characters of small entries that go together into one document


def plain(path: Path) -> Texts:
    """A text or source file, `.gz` unpacked; the whole file is one document."""
    yield "", _read(path)


def entries(path: Path) -> Texts:
    """A long text whose paragraphs stand alone (a glossary, proofs): neighbouring paragraphs up to `CHUNK` together."""
    return _chunks(re.split(r"\n[ \t]*\n", _read(path)), "\n\n")


def fortunes(path: Path) -> Texts:
    """Quotations separated by lines that hold only `%`; terminal colours and overstruck letters are taken out."""
    for number, text in enumerate(re.split(r"^%\n", read_text(path), flags=re.MULTILINE)):
        yield str(number), re.sub(r"\x1b\[[0-9;]*m|.\x08", "", text)


def html_page(path: Path) -> Texts:
    """The readable part of a page: no scripts, menus or images; `pre` keeps its layout."""
    parser = _PageText()
    parser.feed(read_text(path))
    parser.close()
    yield "", parser.text()


def dictd(path: Path) -> Texts:
    """A dictionary for dictd: `NAME.dict.dz` is gzip, `NAME.index` has headword, offset and length in base-64 digits.

    Entries are read in the order of their definitions; entries with the same definition are one.
    """
    data = gzip.decompress(path.read_bytes())
    index = path.with_name(path.name.removesuffix(".dict.dz") + ".index")
    spans = set()
    for line in index.read_text(encoding="utf-8").splitlines():
        headword, start, length = line.split("\t")[:3]
        if not headword.startswith("00"):  # about the dictionary itself
            spans.add((_base64_number(start), _base64_number(length)))
    for offset, size in sorted(spans):
        yield str(offset), data[offset : offset + size].decode("utf-8", "replace")


def wordnet(path: Path) -> Texts:
    """WordNet's `data.noun` and the like (wndb(5)), as `interaction: a mutual or reciprocal action`, many together."""
    lines = (line for line in read_text(path).splitlines() if not line.startswith("  "))
    return _chunks(map(_synset, lines), "\n")


def sword(path: Path) -> Texts:
    """A SWORD module's `.bzs` or `.czs` file, which lists the zlib blocks of the `z` file beside it, cut into chapters.

    The list has 12 bytes a block: offset, compressed size and size, little-endian.
    """
    blocks = path.with_name(path.name[:-1] + "z").read_bytes()
    for offset, size, _ in struct.iter_unpack("<III", path.read_bytes()):
        book = zlib.decompress(blocks[offset : offset + size]).decode("utf-8", "replace")
        for chapter in re.split(r"(?=<chapter [^>]*sID=)", book):
            found = re.match(r'<chapter [^>]*osisID="([^"]+)"', chapter)
            yield (found[1] if found else f"block-{offset}"), _osis_text(chapter)


def manual_page(path: Path) -> Texts:
    """A manual page in man(7) macros: the words, with section headings on their own lines."""
    lines = []
    for line in _read(path).splitlines():
        if line.startswith((".", "'")):
            macro, _, words = line[1:].replace('"', "").partition(" ")
            if macro in ("TH", "SH", "SS"):
                lines += ["", words.strip(), ""]
            elif macro in ("B", "I", "BR", "IR", "RB", "BI", "IB", "RI", "TP", "IP"):
                lines.append(words)
            elif macro in ("PP", "P", "LP"):
                lines.append("")
        else:
            lines.append(line)
    text = re.sub(r"\\f(\[\w*\]|\(..|.)|\\s[-+]?\d|\\[,/&|^]", "", "\n".join(lines))
    text = re.sub(r"\\\(e[mn]", "-", text)
    for escape, character in (("\\-", "-"), ("\\(aq", "'"), ("\\ ", " "), ("\\e", "\\")):  # the backslash itself last
        text = text.replace(escape, character)
    yield "", re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


class _PageText(HTMLParser):
    """Collects the text of a page; block elements begin a new line."""

    _HIDDEN = frozenset({"script", "style", "nav", "head", "svg", "button", "form", "noscript"})
    _BLOCKS = frozenset({"p", "div", "section", "blockquote", "pre", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6"})
    _BLOCKS |= {"ul", "ol", "li", "dl", "dt", "dd", "table", "tr"}
    _MENUS = re.compile(r"\b(nav\w*|\w*menu|\w*sidebar|footer|toc|toctree|related)\b", re.IGNORECASE)
    _VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "col", "area", "base", "wbr", "source"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._hiding: str | None = None  # the element whose contents are being left out
        self._depth = 0  # of elements of that name inside it
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hiding is not None:
            self._depth += tag == self._hiding
            return
        if tag not in self._VOID and (tag in self._HIDDEN or (tag in ("div", "ul", "table") and self._is_menu(attrs))):
            self._hiding, self._depth = tag, 1
            return
        if tag in self._BLOCKS:
            self._parts.append("\n")
        self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if self._hiding is not None:
            self._depth -= tag == self._hiding
            if self._depth == 0:
                self._hiding = None
            return
        if tag in self._BLOCKS:
            self._parts.append("\n")
        if tag == "pre" and self._preformatted:
            self._preformatted -= 1

    def handle_data(self, data: str) -> None:
        if self._hiding is None:
            self._parts.append(data if self._preformatted else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        lines = (line.rstrip() for line in "".join(self._parts).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"

    def _is_menu(self, attrs: list[tuple[str, str | None]]) -> bool:
        names = " ".join(value or "" for name, value in attrs if name in ("class", "role"))
        return bool(self._MENUS.search(names))


def _read(path: Path) -> str:
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    return read_text(path)


def _chunks(pieces: Iterable[str], separator: str) -> Texts:
    """Join neighbours until a chunk holds `CHUNK` characters."""
    chunk: list[str] = []
    size = number = 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece) + len(separator)
        if size >= CHUNK:
            yield str(number), separator.join(chunk) + "\n"
            chunk, size, number = [], 0, number + 1
    if chunk:
        yield str(number), separator.join(chunk) + "\n"


def _synset(line: str) -> str:
    """`offset file type count(hex) word id word id … | gloss` as `word, word: gloss`."""
    data, _, gloss = line.partition(" | ")
    columns = data.split(" ")
    words = [columns[4 + 2 * i].replace("_", " ") for i in range(int(columns[3], 16))]
    return f"{', '.join(words)}: {gloss.strip()}"


def _osis_text(markup: str) -> str:
    """Bible markup as paragraphs; footnotes are left out."""
    text = re.sub(r"<note\b.*?</note>", " ", markup, flags=re.DOTALL)
    text = re.sub(r'<div [^>]*type="x-p"[^>]*>|</?(title|lg|l|row|table|list|item|lb)\b[^>]*>', "\n", text)
    lines = (" ".join(line.split()) for line in re.sub(r"<[^>]+>", "", text).split("\n"))
    return "\n\n".join(filter(None, lines)) + "\n"


def _base64_number(digits: str) -> int:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    value = 0
    for digit in digits:
        value = 64 * value + alphabet.index(digit)
    return value
