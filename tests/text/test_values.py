import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from glm5.text.values import STRING, argument_types, argument_value, convert

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
KINDS = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}


@given(JSON.filter(lambda value: not isinstance(value, str)))
def test_json_of_the_declared_type_is_read(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    for types in ({KINDS[type(value)]}, {KINDS[type(value)], "string"}, set()):
        assert convert(text, frozenset(types)) == value


@given(st.text())
def test_a_declared_string_is_never_touched(text: str) -> None:
    assert convert(text, STRING) == text


@given(st.text(), st.sets(st.sampled_from(["string", *KINDS.values()])).map(frozenset))
def test_any_text_gives_a_value_that_json_can_write(text: str, types: frozenset[str]) -> None:
    value = convert(text, types)
    json.dumps(value, allow_nan=False)
    if isinstance(value, str):
        assert value == text


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("5", {"string"}, "5"),
        ("5", {"integer"}, 5),
        ("5", {"string", "null"}, "5"),
        ("5", {"string", "integer"}, 5),
        ("null", {"string", "null"}, None),
        ('"5"', {"integer"}, 5),
        ('"5"', set(), '"5"'),
        ('"five"', {"integer"}, '"five"'),
        ("5.0", {"integer"}, 5.0),
        ("5.5", {"integer"}, "5.5"),
        ("true", {"integer"}, "true"),
        ("True", {"boolean"}, True),
        ("True", {"boolean", "string"}, "True"),
        ("True", set(), "True"),
        ("None", {"object", "null"}, None),
        (" {'a': [1, True]}\n", {"object"}, {"a": [1, True]}),
        ("{1, 2}", {"array"}, "{1, 2}"),
        ("(1, 2)", {"array"}, "(1, 2)"),
        ("[1", {"array"}, "[1"),
        ("[1, [2]]", set(), [1, [2]]),
        ("NaN", {"number"}, "NaN"),
        ("1e999", {"number"}, "1e999"),
        ("9" * 400, {"integer"}, int("9" * 400)),
        ("[" * 100_000, {"array"}, "[" * 100_000),
        ("", {"integer"}, ""),
        (" two  spaces ", set(), " two  spaces "),
    ],
)
def test_conversion(text: str, types: set[str], value: object) -> None:
    converted = convert(text, frozenset(types))
    assert converted == value
    assert type(converted) is type(value)


SCHEMA = {
    "$defs": {
        "Unit": {"enum": ["km", "mi"]},
        "Tree": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]},
        "a/b": {"type": "integer"},
    },
    "properties": {
        "plain": {"type": "string"},
        "nullable": {"type": ["string", "null"]},
        "union": {"anyOf": [{"type": "integer"}, {"oneOf": [{"type": "array"}, {"const": True}]}]},
        "open_union": {"anyOf": [{"type": "integer"}, {}]},
        "both": {"allOf": [{"type": ["string", "null"]}, {"description": "a name"}, {"type": "string"}]},
        "reference": {"$ref": "#/$defs/Unit"},
        "escaped": {"$ref": "#/$defs/a~1b"},
        "circle": {"$ref": "#/$defs/Tree"},
        "dangling": {"$ref": "#/$defs/Nowhere"},
        "mixed": {"enum": ["auto", 1, 2.5, None]},
        "silent": {"description": "anything"},
        "broken": {"type": {"oops": 1}, "anyOf": 3},
    },
}


@pytest.mark.parametrize(
    ("key", "types"),
    [
        ("plain", {"string"}),
        ("nullable", {"string", "null"}),
        ("union", {"integer", "array", "boolean"}),
        ("open_union", set()),
        ("both", {"string"}),
        ("reference", {"string"}),
        ("escaped", {"integer"}),
        ("circle", set()),
        ("dangling", set()),
        ("mixed", {"string", "integer", "number", "null"}),
        ("silent", set()),
        ("broken", set()),
        ("undeclared", set()),
    ],
)
def test_types_of_a_schema(key: str, types: set[str]) -> None:
    assert argument_types(SCHEMA, key) == types


def test_a_schema_without_properties_says_nothing() -> None:
    assert argument_types({}, "x") == argument_types({"properties": ["x"]}, "x") == set()


NESTED = {
    "$defs": {"Node": {"type": "object", "properties": {"id": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}}}},
    "properties": {
        "names": {"type": "array", "items": {"type": "string"}},
        "counts": {"type": "array", "items": {"type": "integer"}},
        "maybe": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        "unclear": {"anyOf": [{"items": {"type": "string"}, "type": "array"}, {"type": "array"}]},
        "limit": {"type": "object", "properties": {"n": {"type": ["integer", "null"]}, "tag": {"type": "string"}}},
        "table": {"type": "object", "additionalProperties": {"type": "number"}},
        "node": {"$ref": "#/$defs/Node"},
        "all": {"allOf": [{"type": "object"}, {"properties": {"tag": {"type": "string"}}}]},
        "open": {"type": "array"},
    },
}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("names", '["5", "true", "null"]', ["5", "true", "null"]),
        ("names", "[5, true, null]", ["5", "true", None]),
        ("counts", '["5", 6, "six"]', [5, 6, "six"]),
        ("maybe", "[7]", ["7"]),
        ("maybe", "null", None),
        ("unclear", "[7]", [7]),
        ("limit", '{"n": "3", "tag": 3, "other": "3"}', {"n": 3, "tag": "3", "other": "3"}),
        ("limit", '{"n": "null"}', {"n": None}),
        ("limit", '{"n": null}', {"n": None}),
        ("table", '{"a": "1.5", "b": 2}', {"a": 1.5, "b": 2}),
        ("node", '{"id": "1", "next": {"id": "2"}}', {"id": 1, "next": {"id": 2}}),
        ("all", '{"tag": 1}', {"tag": "1"}),
        ("open", '["5", 5]', ["5", 5]),
        ("undeclared", '["5", 5]', ["5", 5]),
    ],
)
def test_values_inside_values(key: str, text: str, value: object) -> None:
    assert argument_value(text, NESTED, key) == value


@given(JSON.filter(lambda value: isinstance(value, list | dict)), st.sampled_from(sorted(NESTED["properties"])))
def test_typing_inside_is_done_once_and_for_all(value: object, key: str) -> None:
    once = argument_value(json.dumps(value), NESTED, key)
    assume(not isinstance(once, str))  # of another type than declared: text
    assert argument_value(json.dumps(once), NESTED, key) == once


def test_half_a_surrogate_pair_stays_text() -> None:
    """No answer could be sent with it: it has no UTF-8."""
    text = '{"a": "\\ud800"}'
    assert convert(text, frozenset({"object"})) == text
