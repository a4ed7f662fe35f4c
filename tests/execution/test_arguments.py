"""Compiled arguments are equal to graphql-core's, or left to it."""

from typing import Any

import pytest
from graphql import FieldNode, GraphQLError, OperationDefinitionNode, build_schema, get_argument_values, parse
from graphql.execution.values import VariableValues

from taskflow_gql.execution.arguments import MAX_LITERALS, ArgumentReaders, Unusual

SCHEMA = build_schema(
    """
    type Query {
      field(a: Int, b: Int! = 5, c: [Int!], d: Input, e: Color = RED, f: [[String]], g: ID, h: JSON, i: OneOf): Int
      required(a: Int!, b: Input!): Int
    }
    enum Color { RED BLUE }
    scalar JSON
    input Input { a: Int = 1, b: [Int] = [1, 2], c: Color!, d: Input, e: String! = "e", f: Float, g: [Input!] }
    input OneOf @oneOf { a: Int, b: String }
    """
)
LITERALS = [
    "",
    "a: 1",
    "a: null",
    "a: $x",
    "b: $x",
    "b: null",
    "c: 1",
    "c: [1, 2]",
    "c: [1, $x]",
    "c: $y",
    "c: null",
    "d: {c: RED}",
    "d: {c: $z}",
    "d: {c: RED, a: $x, b: [$x, null], e: $w, f: 1}",
    "d: {c: RED, d: {c: BLUE, d: {c: RED, f: 1.5}}, g: [{c: RED}, {c: BLUE, a: $x}]}",
    "d: {c: RED, g: {c: BLUE}}",
    "d: {a: 1}",
    "d: {c: GREEN}",
    "d: {c: RED, nonsense: 1}",
    "d: {c: RED, e: null}",
    "d: 1",
    "e: BLUE",
    "e: $z",
    "e: $missing",
    "f: [[$w]]",
    'f: [["a"], null]',
    'f: "a"',
    'g: "1"',
    "g: 1",
    "g: $w",
    "h: {a: [1, $x]}",
    "h: {a: 1}",
    "h: 1",
    "i: {a: 1}",
    "i: {a: $x}",
    "i: {a: 1, b: $w}",
    "i: {}",
    'a: "no number"',
    "a: 3000000000",
    "nonsense: 1",
]
VARIABLES: list[dict[str, Any]] = [
    {},
    {"x": 3, "y": [4], "z": "BLUE", "w": "text"},
    {"x": None, "y": None, "z": None, "w": None},
]


@pytest.mark.parametrize("literal", LITERALS)
@pytest.mark.parametrize("variables", VARIABLES, ids=["none", "given", "null"])
@pytest.mark.parametrize("name", ["field", "required"])
def test_arguments_are_equal_to_graphql_cores(literal: str, variables: dict[str, Any], name: str) -> None:
    document = parse(f"{{ {name}({literal}) }}" if literal else f"{{ {name} }}")
    operation = document.definitions[0]
    assert isinstance(operation, OperationDefinitionNode)
    node = operation.selection_set.selections[0]
    assert isinstance(node, FieldNode)
    assert SCHEMA.query_type is not None
    definition = SCHEMA.query_type.fields[name]
    read = ArgumentReaders().reader(definition, node)
    if read is None:
        return
    try:
        found = read(variables)
    except Unusual:
        return
    try:
        expected = get_argument_values(definition, node, VariableValues({}, variables))
    except GraphQLError as error:
        pytest.fail(f"read {found}, but {error}")
    assert found == expected
    assert list(found) == list(expected)
    assert repr(found) == repr(expected)


def test_usual_arguments_are_compiled() -> None:
    assert SCHEMA.query_type is not None
    definition = SCHEMA.query_type.fields["field"]
    for literal in ("a: $x", "c: [1, $x]", "d: {c: RED, a: $x, g: [{c: $z}]}", "e: $missing", "h: 1"):
        operation = parse(f"{{ field({literal}) }}").definitions[0]
        node = operation.selection_set.selections[0]  # type: ignore[attr-defined]
        read = ArgumentReaders().reader(definition, node)
        assert read is not None, literal
        assert read(VARIABLES[1]), literal


def test_requests_do_not_share_argument_lists() -> None:
    assert SCHEMA.query_type is not None
    operation = parse("{ field(c: [1], d: {c: RED, b: [1]}) }").definitions[0]
    node = operation.selection_set.selections[0]  # type: ignore[attr-defined]
    read = ArgumentReaders().reader(SCHEMA.query_type.fields["field"], node)
    assert read is not None
    first, second = read({}), read({})
    first["c"].append(2)
    first["d"]["b"].append(2)
    assert (second["c"], second["d"]["b"]) == ([1], [1])
    assert read({})["c"] == [1]


def test_a_field_planned_in_many_places_has_one_argument_reader() -> None:
    assert SCHEMA.query_type is not None
    definition = SCHEMA.query_type.fields["field"]
    node: Any = parse("{ field(d: {c: RED}) }").definitions[0].selection_set.selections[0]  # type: ignore[attr-defined]
    readers = ArgumentReaders()
    assert readers.reader(definition, node) is readers.reader(definition, node)


def test_large_literals_are_left_to_graphql_core() -> None:
    assert SCHEMA.query_type is not None
    definition = SCHEMA.query_type.fields["field"]
    for count, is_read in ((MAX_LITERALS - 1, True), (MAX_LITERALS, False)):
        operation = parse(f"{{ field(c: [{'1 ' * count}]) }}").definitions[0]
        node = operation.selection_set.selections[0]  # type: ignore[attr-defined]
        assert (ArgumentReaders().reader(definition, node) is not None) is is_read
