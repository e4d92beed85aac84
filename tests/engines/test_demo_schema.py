"""A small value that fits a JSON schema: references, joined schemas, alternatives, bounds."""

from typing import Any

import pytest

from appliance.engines.backends.demo_schema import make_example

NODE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        "parent": {"$ref": "#/$defs/node"},
    },
    "required": ["name", "children", "next"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, {}),
        ("odd", {}),
        ({"const": None}, None),
        ({"enum": ["b", "a"]}, "b"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, 1),
        ({"oneOf": [{"type": "boolean"}]}, True),
        ({"type": "object", "properties": {"a": {"type": "null"}}}, {"a": None}),
        ({"properties": {"a": {}}}, {"a": "demo"}),
        ({"type": "array", "items": {"type": "number", "minimum": 2}}, [2]),
        ({"type": "array", "minItems": 2}, ["demo", "demo"]),
        ({"type": ["string", "null"], "minLength": 6}, "demooo"),
        ({"type": "odd"}, "demo"),
    ],
)
def test_an_example_fits_its_schema(schema: Any, value: Any) -> None:
    assert make_example(schema) == value


def test_an_example_of_an_endless_schema_ends() -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    assert make_example(schema)


SCHEMAS: list[dict[str, Any]] = [
    {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    {"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "integer", "minimum": 3}}},
    {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/x", "minLength": 9}},
        "$defs": {"x": {"type": "string"}},
    },
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 5}, "b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
        ],
        "$defs": {"b": {"enum": ["x"]}},
    },
    {"type": "array", "items": {"$ref": "#"}, "minItems": 0},
    {
        "type": "object",
        "properties": {
            "kind": {"oneOf": [{"const": "a"}, {"type": "integer"}]},
            "deep": {"allOf": [{"allOf": [{"type": "boolean"}]}]},
        },
        "required": ["kind", "deep", "more"],
        "additionalProperties": {"type": "integer", "exclusiveMinimum": 4},
    },
    {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "string", "format": "date"}],
        "minItems": 3,
    },
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    {"type": "integer", "minimum": 4, "maximum": 9, "multipleOf": 5},
    {"type": "integer", "maximum": -2},
    {"type": "string", "maxLength": 2},
    {"allOf": [{"minimum": 2}, {"minimum": 7}, {"maximum": 9}], "type": "number"},
    {"allOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_nested_schemas_are_fitted(schema: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(schema).validate(make_example(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.com/other"},
        {"$ref": "#"},
        {"$ref": "#/allOf/0", "allOf": [{"$ref": "#"}]},
        {"$ref": 5, "allOf": 5, "anyOf": {}, "properties": [], "required": 5},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    ],
)
def test_a_schema_that_cannot_be_fitted_gets_some_value(schema: dict[str, Any]) -> None:
    make_example(schema)


def test_a_schema_that_multiplies_itself_is_bounded() -> None:
    pair = {
        f"s{n}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/s{n + 1}"} for k in "abcdefgh"}}
        for n in range(20)
    }
    example = make_example({"$ref": "#/$defs/s0", "$defs": pair | {"s20": {"type": "string"}}})
    assert str(example).count("{") < 200_000
    assert len(make_example({"type": "array", "minItems": 10**12})) <= 10_000
    assert len(make_example({"type": "string", "minLength": 10**12})) <= 10_000
