"""The value of one tool argument: raw text on the wire, typed by the tool's JSON schema.

The chat template writes a string as it is and everything else as JSON, so the text `5` is the string "5" or the number
5, and only the schema knows which. A declared string is never read as JSON; another declared type is read as JSON, then
as a Python literal (models write `True` and `{'a': 1}`), and stays text when it is neither. Without a declaration, text
that is JSON of something other than a string is that thing.

Inside arrays and objects JSON says itself what is a string, and the schema corrects only what contradicts it: a string
where none is allowed is read once more, a number or boolean where only a string is allowed becomes its text.
"""

import ast
import json
from typing import Any

STRING = frozenset({"string"})
_JSON_KINDS = {bool: "boolean", str: "string", list: "array", dict: "object", type(None): "null"}


def argument_types(parameters: dict[str, Any], key: str) -> frozenset[str]:
    """The JSON types that the schema `parameters` allows for argument `key`; empty when it does not say."""
    return _schema_types(_argument_schema(parameters, key), parameters, frozenset())


def argument_value(text: str, parameters: dict[str, Any], key: str) -> Any:
    """The value that `text` stands for as argument `key` under the schema `parameters`."""
    value = convert(text, argument_types(parameters, key))
    if not isinstance(value, list | dict):
        return value
    try:
        return _inside(value, _argument_schema(parameters, key), parameters, frozenset())
    except RecursionError:  # deeper than any schema a person wrote: as the text has it
        return value


def convert(text: str, types: frozenset[str]) -> Any:
    """The value that `text` stands for, given the types allowed for it (empty: any)."""
    if types == STRING:
        return text
    try:
        value = _strict(json.loads(text))
    except (ValueError, RecursionError):
        # Where text is allowed it needs no second guess; where it is not, Python's spelling is a likely slip.
        return text if not types or "string" in types else _convert_literal(text, types)
    if isinstance(value, str):
        # A string is written raw, so quotes belong to it, unless no string is allowed here: then `"5"` means 5.
        unquoted = text if not types or "string" in types else convert(value, types)
        return text if isinstance(unquoted, str) else unquoted
    return value if not types or _fits(value, types) else text


def _convert_literal(text: str, types: frozenset[str]) -> Any:
    try:
        value = _strict(ast.literal_eval(text.strip()))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text
    return value if _fits(value, types) else text


def _strict(value: Any) -> Any:
    """`value` itself if JSON can write it in UTF-8: no NaN, no infinity, no set, no half of a surrogate pair."""
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    return value


def _fits(value: Any, types: frozenset[str]) -> bool:
    if isinstance(value, float):
        return "number" in types or ("integer" in types and value.is_integer())
    if isinstance(value, int) and not isinstance(value, bool):
        return not types.isdisjoint({"number", "integer"})
    return _JSON_KINDS.get(type(value)) in types


def _argument_schema(parameters: dict[str, Any], key: str) -> Any:
    properties = parameters.get("properties")
    return properties.get(key) if isinstance(properties, dict) else None


def _nested(value: Any, schema: Any, root: dict[str, Any]) -> Any:
    """A value inside another, as its own schema has it."""
    types = _schema_types(schema, root, frozenset())
    if isinstance(value, str):
        return value if not types or "string" in types else convert(value, types)
    if types == STRING and isinstance(value, bool | int | float):
        return json.dumps(value)
    return _inside(value, schema, root, frozenset())


def _inside(value: Any, schema: Any, root: dict[str, Any], seen: frozenset[str]) -> Any:
    """An array or object with its parts as the schema has them; `seen` as in `_schema_types`."""
    if not isinstance(schema, dict):
        return value
    if isinstance(reference := schema.get("$ref"), str):
        return value if reference in seen else _inside(value, _resolve(reference, root), root, seen | {reference})
    for union in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(union), list):
            # More than one branch for such a value: which of them was meant cannot be known.
            meant = [branch for branch in branches if _fits(value, _schema_types(branch, root, seen))]
            value = _inside(value, meant[0], root, seen) if len(meant) == 1 else value
    for part in schema.get("allOf") or ():
        value = _inside(value, part, root, seen)
    if isinstance(value, list) and isinstance(items := schema.get("items"), dict):
        return [_nested(item, items, root) for item in value]
    if isinstance(value, dict):
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        others = schema.get("additionalProperties")
        return {name: _nested(item, known.get(name, others), root) for name, item in value.items()}
    return value


def _schema_types(schema: Any, root: dict[str, Any], seen: frozenset[str]) -> frozenset[str]:
    """The types a schema allows; `seen` holds the references on the way here, so that a circle ends."""
    if not isinstance(schema, dict):
        return frozenset()
    if isinstance(reference := schema.get("$ref"), str):
        if reference in seen:
            return frozenset()
        return _schema_types(_resolve(reference, root), root, seen | {reference})
    if "type" in schema:
        declared = schema["type"]
        names = declared if isinstance(declared, list) else [declared]
        return frozenset(name for name in names if isinstance(name, str))
    if "const" in schema:
        return frozenset({_kind(schema["const"])})
    if isinstance(choices := schema.get("enum"), list):
        return frozenset(_kind(choice) for choice in choices)
    for union in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(union), list):
            found = [_schema_types(branch, root, seen) for branch in branches]
            return frozenset().union(*found) if all(found) else frozenset()
    known = [types for branch in schema.get("allOf") or () if (types := _schema_types(branch, root, seen))]
    return known[0].intersection(*known) if known else frozenset()


def _resolve(reference: str, root: dict[str, Any]) -> Any:
    """What a local JSON pointer (`#/$defs/Name`) points at, or None."""
    node: Any = root
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
    return node


def _kind(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "integer" if isinstance(value, int) else "number"
    return _JSON_KINDS[type(value)]
