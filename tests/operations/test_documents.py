"""The document cache, compared with what graphql-core computes for each request."""

from __future__ import annotations

from typing import Any

import pytest
from graphql import GraphQLError, build_schema, parse
from graphql.execution.values import VariableValues, get_variable_values

from taskflow_gql.operations.documents import _MAX_CHARACTERS, Document, Documents

SCHEMA = build_schema("""
    enum Color { RED BLUE }
    input Inner { name: String!, size: Int = 3, colors: [Color!], deep: Inner }
    input Choice @oneOf { a: Int, b: String }
    type Query {
      field(a: Int, b: Int!, c: [ID!]!, d: Inner, e: Choice, f: Color, g: Float, h: [[Inner]]): Int
    }
""")
QUERY = """
query Several(
  $a: Int, $b: Int!, $c: [ID!]!, $d: Inner, $e: Choice, $f: Color = RED, $g: Float = "wrong", $h: [[Inner]]
) { field(a: $a, b: $b, c: $c, d: $d, e: $e, f: $f, g: $g, h: $h) }
query Output($q: Query) { field(b: 1, c: []) }
query None { field(b: 1, c: []) }
"""
DEEP: Any = None
for _ in range(2_000):
    DEEP = {"name": "x", "deep": DEEP}
GIVEN = {"b": 1, "c": ["x"], "g": 1.5}


@pytest.mark.parametrize("name", ["Several", "Output", "None"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        GIVEN,
        GIVEN | {"f": "BLUE", "unknown": 1},
        GIVEN | {"a": None, "d": None, "f": None, "h": None},
        GIVEN | {"a": "1", "b": 1.5, "c": None},
        GIVEN | {"a": True, "b": None, "c": "one"},
        GIVEN | {"a": 2**31, "c": [1, "two", None]},
        GIVEN | {"d": {"name": "x"}, "e": {"a": 1}},
        GIVEN | {"d": {"name": "x", "colors": "RED", "deep": {"name": "y", "size": None}}, "e": {"b": "x"}},
        GIVEN | {"d": {"size": 1}, "e": {"a": 1, "b": "x"}, "f": "GREEN"},
        GIVEN | {"d": {"name": "x", "nmae": "y"}, "e": {}, "h": [[{"name": 1}], None]},
        GIVEN | {"d": DEEP},
        GIVEN | {"h": [DEEP]},
        {"b": 1, "c": [{}] * 100, "g": [], "f": 7},
        {"b": 1, "c": [], "h": {"name": "x"}},
    ],
)
def test_variable_values_are_the_same_as_in_graphql_core(name: str, given: dict[str, Any]) -> None:
    operation = Document(QUERY, parse(QUERY)).operation(name)
    assert operation is not None
    # The second round uses the cached types.
    for _ in range(2):
        values = operation.variable_values(SCHEMA, given)
        expected = get_variable_values(
            SCHEMA, operation.node.variable_definitions or (), given, max_errors=50, hide_suggestions=False
        )
        assert _told(values) == _told(expected)


def _told(values: VariableValues | list[GraphQLError]) -> Any:
    if isinstance(values, list):
        return [error.formatted for error in values]
    # Types and defaults compare by identity, so compare their names and presence.
    sources = {
        name: (str(source.signature.type), source.signature.default is None, source.value)
        for name, source in values.sources.items()
    }
    return values.coerced, sources


def kept(documents: Documents, text: str) -> bool:
    """Whether the document is in the cache. If not, offer it to the cache, as the server does after parsing."""
    if documents.get(text) is not None:
        return True
    documents.keep(text, Document(text, parse(text)))
    return False


def test_a_document_is_cached_the_second_time_it_is_seen() -> None:
    documents = Documents()
    assert [kept(documents, "{ a }") for _ in range(4)] == [False, False, True, True]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_flood_of_new_documents_does_not_evict_one_in_use(times: int) -> None:
    documents = Documents()
    padding = " " * 9_000
    for _ in range(5):
        kept(documents, "{ front }")
    for number in range(300):
        for _ in range(times):
            kept(documents, f"{{ new{number} }}{padding}")
        if number % 20 == 0:
            assert kept(documents, "{ front }")
    assert documents._characters <= _MAX_CHARACTERS


def test_a_document_that_becomes_popular_gets_into_a_full_cache() -> None:
    documents = Documents()
    padding = " " * 9_000
    for number in range(100):
        for _ in range(3):
            kept(documents, f"{{ old{number} }}{padding}")
    for _ in range(100):
        kept(documents, "{ coming }")
    assert kept(documents, "{ coming }")


@pytest.mark.parametrize(
    ("document", "count"),
    [
        ("{ a }", 1),
        ("{ a b c: a a }", 3),
        ("{ a { b c } ... { d } ... on Query { e ...F } } fragment F on Query { f ...G } fragment G on Query { g }", 5),
        ("{ ...F ...F ...G } fragment F on Query { f ...G ...G } fragment G on Query { g x: g }", 3),
    ],
)
def test_the_fields_of_an_operations_root_are_counted_once_by_name(document: str, count: int) -> None:
    made = Document(document, parse(document))
    (operation,) = made.operations
    assert [made.root_fields(operation) for _ in range(2)] == [count, count]
