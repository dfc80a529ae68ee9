"""Every source and decoder on real files: installed packages, the user's files, and small files in each format."""

import gzip
import json
import re
import shutil
import struct
import zlib
from itertools import islice
from pathlib import Path

import pytest

from glm5.data.quality import drop_reason, normalise
from glm5.data.sources import decoders
from glm5.data.sources.base import package_folder, walk
from glm5.data.sources.debian import COPYLEFT, PERMISSIVE, DebianSource, Package, fetch
from glm5.data.sources.factbook import field_prose
from glm5.data.sources.registry import DEFAULT_SOURCES, open_sources
from glm5.errors import GLM5Error, UsageError

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")


@pytest.mark.parametrize("name", DEFAULT_SOURCES)
def test_default_sources_give_good_documents_in_the_same_order(name: str) -> None:
    (source,) = open_sources([name])
    documents = list(islice(source.documents(), 60))
    assert documents == list(islice(source.documents(), 60))
    good = [document for document in documents if drop_reason(normalise(document.text), source.kind) is None]
    assert len(good) > 50
    assert len({document.path for document in documents}) == 60
    assert {(document.source, document.license) for document in documents} == {(name, source.license)}


def test_the_default_sources_are_what_they_say() -> None:
    stdlib, factbook, problems, sympy, networkx = open_sources(DEFAULT_SOURCES)
    paths = {document.path for document in stdlib.documents()}
    assert {"asyncio/base_events.py", "json/decoder.py"} <= paths
    assert not any(re.search(r"(^|/)(tests?|site-packages|idlelib|lib2to3)/", path) for path in paths)
    france = next(d.text for d in factbook.documents() if d.path == "europe/fr.json#Geography")
    assert france.startswith("France: Geography\n\nLocation: ")
    assert "<" not in france
    first = next(iter(problems.documents())).text
    assert re.search(r"Input:.*Output:.*```python\n.*def main_solution\(.*```\n$", first, re.DOTALL)
    assert [source.kind for source in (stdlib, factbook, problems, sympy, networkx)] == [
        "code", "general", "reasoning", "code", "code",
    ]  # fmt: skip


def test_factbook_fields_read_as_prose() -> None:
    field = {
        "land use ": {"text": "land use: 5 &amp; 6%"},
        "other": {"text": "<em>94%</em>"},
        "empty": {"text": ""},
        "note": "<strong>note:</strong> as of 2023",
    }
    assert field_prose("Area ", field) == "Area: land use: 5 & 6%; other: 94%. Note: as of 2023"
    assert field_prose("Area", {"text": "Big."}) == "Area: Big."
    assert field_prose("Area", {"text": ""}) == ""


def test_names_are_checked() -> None:
    with pytest.raises(UsageError, match="no sources were named"):
        open_sources([])
    with pytest.raises(UsageError, match=r"unknown source 'wiki'.*python-stdlib.*path:FILE_OR_FOLDER"):
        open_sources(["wiki"])
    with pytest.raises(UsageError, match="named twice"):
        open_sources(["python-stdlib", "python-stdlib"])
    with pytest.raises(GLM5Error, match="pip install 'no-such==1'"):
        package_folder("no_such_module", "nothing", "no-such==1")


def test_own_files_are_read_by_kind(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes("Ünïcode\r\n".encode())
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "id": 2}\n')
    (tmp_path / "c.py").write_text("x = 1\n")
    (tmp_path / "d.png").write_bytes(b"\x89PNG")
    for skipped in (".git", "node_modules"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "e.md").write_text("not this")
    (tmp_path / "loop").symlink_to(tmp_path)
    (source,) = open_sources([f"path:{tmp_path}"])
    found = [(document.path, document.text) for document in source.documents()]
    assert found == [("a.md", "Ünïcode\r\n"), ("b.jsonl:1", "one"), ("b.jsonl:2", "two"), ("c.py", "x = 1\n")]
    assert (source.kind, source.license) == ("general", "user's own")
    (code,) = open_sources([f"path:{tmp_path / 'c.py'}"])
    assert (code.kind, [document.path for document in code.documents()]) == ("code", ["c.py"])


def test_own_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file or folder"):
        open_sources([f"path:{tmp_path / 'missing'}"])
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no file to read among 1.*\.md"):
        open_sources([f"path:{tmp_path}"])
    for line, message in (("{", "bad.jsonl:2 is not JSON"), ('{"body": "x"}', 'no string field "text"')):
        (tmp_path / "bad.jsonl").write_text(json.dumps({"text": "good"}) + f"\n{line}\n")
        with pytest.raises(GLM5Error, match=message):
            list(open_sources([f"path:{tmp_path / 'bad.jsonl'}"])[0].documents())


def test_parquet_tables(tmp_path: Path) -> None:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        (tmp_path / "t.parquet").write_bytes(b"")
        with pytest.raises(GLM5Error, match="pip install pyarrow"):
            list(open_sources([f"path:{tmp_path / 't.parquet'}"])[0].documents())
        return
    parquet.write_table(arrow.table({"text": ["one", None, "two"]}), tmp_path / "t.parquet")
    documents = open_sources([f"path:{tmp_path / 't.parquet'}"])[0].documents()
    assert [document.text for document in documents] == ["one", "", "two"]


def decoded(decoder: decoders.Decoder, path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return [text for _, text in decoder(path)]


def test_pages_keep_their_text_and_lose_their_menus(tmp_path: Path) -> None:
    page = b"""<html><head><title>t</title><style>p {}</style></head><body>
    <div class="navheader">Up <div>Home</div></div><script>if (a < b) {}</script>
    <div id="PROTOCOL" class="protocol"><h1>Title</h1></div><p>One &amp;
       two<br>three</p><pre>if x:\n    y</pre><div>end</div></body></html>"""
    (text,) = decoded(decoders.html_page, tmp_path / "p.html", page)
    assert [line.strip() if line[:4] != "    " else line for line in text.split("\n") if line.strip()] == [
        "Title", "One & two", "three", "if x:", "    y", "end",
    ]  # fmt: skip


def test_sword_modules_are_cut_into_chapters(tmp_path: Path) -> None:
    book = (
        b'<title>Book</title><chapter n="1" osisID="X.1" sID="X.1"/><w lemma="G1">First</w> verse.<note>no</note>'
        b'<div sID="g" type="x-p"/>New paragraph.<chapter n="2" osisID="X.2" sID="X.2"/>Second.<chapter eID="X.2"/>'
    )
    blocks = [zlib.compress(book), zlib.compress(b'<chapter n="1" osisID="Y.1" sID="Y.1"/>Other.')]
    (tmp_path / "ot.bzz").write_bytes(b"".join(blocks))
    table = struct.pack("<6I", 0, len(blocks[0]), len(book), len(blocks[0]), len(blocks[1]), 0)
    (tmp_path / "ot.bzs").write_bytes(table)
    chapters = [(where, text.strip()) for where, text in decoders.sword(tmp_path / "ot.bzs") if text.strip()]
    assert chapters == [
        ("block-0", "Book"),
        ("X.1", "First verse.\n\nNew paragraph."),
        ("X.2", "Second."),
        ("Y.1", "Other."),
    ]


def test_dictionaries_are_read_by_their_index(tmp_path: Path) -> None:
    entries = ["about\n", "cat\n   an animal\n", "é\n   a letter\n" * 6]
    index, offset = "00database\tA\tG\n", len(entries[0])
    for word, entry in zip(("cat", "e"), entries[1:]):
        size = len(entry.encode())
        digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        numbers = [digits[n // 64] + digits[n % 64] for n in (offset, size)]
        index += f"{word}\t{numbers[0]}\t{numbers[1]}\n{word}s\t{numbers[0]}\t{numbers[1]}\n"
        offset += size
    (tmp_path / "d.index").write_text(index)
    assert decoded(decoders.dictd, tmp_path / "d.dict.dz", gzip.compress("".join(entries).encode())) == entries[1:]


def test_small_formats(tmp_path: Path) -> None:
    fortune = b"one\n%\n\x1b[32mtwo\x1b[m\n  -- _\x08me\n"
    assert decoded(decoders.fortunes, tmp_path / "f", fortune) == ["one\n", "two\n  -- me\n"]
    synsets = b'  1 licence text\n00039021 04 n 02 inter_action 0 x 1 001 @ 00037396 n 0000 | mutual; "it"  \n'
    assert decoded(decoders.wordnet, tmp_path / "data.noun", synsets) == ['inter action, x: mutual; "it"\n']
    page = b'.TH LS 1\n.\\" remark\n.SH "SEE ALSO"\n.PP\n\\fBls\\fP \\-a \\e n\n.B bold\n.in +4\n'
    (text,) = decoded(decoders.manual_page, tmp_path / "ls.1.gz", gzip.compress(page))
    assert text == "LS 1\n\nSEE ALSO\n\nls -a \\ n\nbold\n"
    assert decoded(decoders.plain, tmp_path / "a.txt.gz", gzip.compress(b"a\r\nb")) == ["a\r\nb"]


def test_entries_are_grouped_without_losing_any(tmp_path: Path) -> None:
    paragraphs = [f"entry {number} " + "x" * 500 for number in range(100)]
    texts = decoded(decoders.entries, tmp_path / "e", "\n \n".join(paragraphs).encode())
    assert [line for text in texts for line in text.split("\n") if line] == paragraphs
    assert all(decoders.CHUNK <= len(text) < decoders.CHUNK + 600 for text in texts[:-1])


def test_debian_members_have_names_kinds_and_licences(tmp_path: Path) -> None:
    packages = (*PERMISSIVE, *COPYLEFT)
    assert len({package.name for package in packages}) == len(packages)
    assert not any("GPL" in package.license or "GFDL" in package.license for package in PERMISSIVE)
    assert all("GPL" in package.license or "GFDL" in package.license for package in COPYLEFT)


def test_a_package_is_read_from_the_cache_and_must_match_something(tmp_path: Path) -> None:
    (tmp_path / "words" / "usr").mkdir(parents=True)
    (tmp_path / "words" / "usr" / "a.txt").write_text("text")
    (tmp_path / "words" / "usr" / "b.txt").write_text("left out")
    package = Package("words", "MIT", decoders.plain, ("*.txt",), ("*/b.*",))
    (document,) = DebianSource(package, tmp_path).documents()
    assert (document.text, document.path, document.source, document.license) == (
        "text",
        "usr/a.txt",
        "debian:words",
        "MIT",
    )
    nothing = DebianSource(Package("words", "MIT", decoders.plain, ("*.html",)), tmp_path)
    with pytest.raises(GLM5Error, match=r"no file in .* matches \*\.html"):
        list(nothing.documents())


@needs_apt
def test_debian_sets_open_and_unknown_packages_say_so(tmp_path: Path) -> None:
    assert [source.name for source in open_sources(["debian-copyleft"])] == [f"debian:{p.name}" for p in COPYLEFT]
    assert len(open_sources(["debian-permissive", "debian:dict-foldoc"])) == len(PERMISSIVE) + 1
    with pytest.raises(UsageError, match="not a known Debian member"):
        open_sources(["debian:bash"])
    with pytest.raises(GLM5Error, match=r"cannot download no-such-package-at-all; run `apt-get update`"):
        fetch("no-such-package-at-all", tmp_path)
    assert list(walk(tmp_path)) == []
