import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm5.text.values import STRING, argument_types, convert

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
