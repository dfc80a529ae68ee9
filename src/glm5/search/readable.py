"""The words of a page: bytes of any kind to plain text, or a sentence that says why there is none.

Menus, advertisements and scripts of HTML are left out by trafilatura (Barbaresi, ACL 2021).
"""

import html
import importlib
import re

from glm5.errors import GLM5Error
from glm5.search.backend import PageError

MAX_HTML = 5 * 2**20  # bytes: a few seconds of work
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/xhtml", "application/ld+json")
_CHARSET = re.compile(r"charset=[\"']?([\w.-]+)", re.IGNORECASE)
_SAMPLE = 4096


def readable_text(data: bytes, content_type: str) -> tuple[str, str]:
    """Title and text of a page, as `content_type` (the header of HTTP, `""` if unknown) says.

    Raises:
        PageError: it is a binary, too much HTML, or holds no text.
        GLM5Error: HTML was met and trafilatura is not installed.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind and not kind.startswith(_TEXT_TYPES):
        raise PageError(f"is {kind}, not text")
    encoding = _encoding(data, content_type)
    if encoding == "utf-8" and b"\0" in data[:_SAMPLE]:
        raise PageError("is binary, not text")
    try:
        text = data.decode(encoding, "replace")
    except (LookupError, UnicodeError):  # a charset nobody knows, or one that is not for text
        text = data.decode("utf-8", "replace")
    if text[:_SAMPLE].count("\ufffd") > len(text[:_SAMPLE]) / 10:
        raise PageError("is binary, not text")
    if "html" in kind or (not kind and re.match(r"\s*<(!doctype html|html)\b", text, re.IGNORECASE)):
        return _html_text(text)
    if not text.strip():
        raise PageError("holds no text")
    return "", text


def _encoding(data: bytes, content_type: str) -> str:
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return encoding
    declared = _CHARSET.search(content_type)
    if declared is None and "html" in content_type.lower():
        declared = _CHARSET.search(data[:_SAMPLE].decode("ascii", "replace"))
    return declared[1].lower() if declared else "utf-8"


def _html_text(page: str) -> tuple[str, str]:
    if len(page) > MAX_HTML:
        raise PageError(f"has more than {MAX_HTML >> 20} MB of HTML")
    try:
        trafilatura = importlib.import_module("trafilatura")  # a second of imports that plain text does not need
    except ImportError as error:
        raise GLM5Error("reading HTML needs the package trafilatura: pip install 'glm5[search]'") from error
    text = trafilatura.extract(page, include_tables=True, include_comments=False)
    if not text:
        raise PageError("holds no text")
    title = re.search(r"<title[^>]*>(.*?)</title>", page[:65_536], re.IGNORECASE | re.DOTALL)
    return (" ".join(html.unescape(title[1]).split()) if title else ""), text
