"""Settings → TOML text (toml.io, 1.0), the direction that the standard library leaves out.

Tables of the first level become `[section]`, lists of tables `[[section.key]]`, and deeper tables stay inline.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(values: Mapping[str, Any]) -> str:
    """Write a mapping of sections. Values are text, numbers, booleans, lists and tables of these; no None.

    Raises:
        TypeError: a value that TOML or this writer does not know.
    """
    blocks = [_assignments({key: value for key, value in values.items() if not isinstance(value, dict)})]
    for name, section in values.items():
        if not isinstance(section, dict):
            continue
        arrays = {key: value for key, value in section.items() if _is_table_list(value)}
        plain = {key: value for key, value in section.items() if key not in arrays}
        blocks.append(f"[{format_key(name)}]\n{_assignments(plain)}")
        for key, tables in arrays.items():
            blocks += [f"[[{format_key(name)}.{format_key(key)}]]\n{_assignments(table)}" for table in tables]
    return "\n".join(block for block in blocks if block)


def format_key(key: str) -> str:
    """A key as TOML writes it: bare where that is allowed, else quoted."""
    return key if _BARE_KEY.fullmatch(key) else format_value(key)


def format_value(value: Any) -> str:
    """One value on one line. Large integers get underscores, because people count their zeros."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return f"{value:_}" if abs(value) >= 10_000 else str(value)
        case float():
            return repr(value)
        case str():
            # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(format_value(item) for item in value)}]"
        case dict():
            inner = ", ".join(f"{format_key(key)} = {format_value(item)}" for key, item in value.items())
            return f"{{ {inner} }}" if inner else "{}"
    raise TypeError(f"TOML has no form for {type(value).__name__}")


def _assignments(table: Mapping[str, Any]) -> str:
    return "".join(f"{format_key(key)} = {format_value(value)}\n" for key, value in table.items())


def _is_table_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
