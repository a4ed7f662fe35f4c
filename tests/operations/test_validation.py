"""Our parser and validation rules, compared with graphql-core's."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from graphql import (
    GraphQLError,
    NoUnusedFragmentsRule,
    OverlappingFieldsCanBeMergedRule,
    Source,
    build_schema,
    get_introspection_query,
)
from graphql import validate as validate_as_graphql_core
from hypothesis import given, settings
from hypothesis import strategies as st

from taskflow_gql.api.schema import make_schema
from taskflow_gql.config import Settings
from taskflow_gql.operations.documents import DocumentSource
from taskflow_gql.operations.validation import RULES, FieldsCanMergeRule, TooComplex, parse, validate
from tests.support.garbage import collecting_only_new_objects

SCHEMA = build_schema("""
    interface Node { id: ID! x: Int node: Node text(with: In): String }
    input In { a: Int b: Int c: [Int] }
    type A implements Node {
      id: ID! x: Int node: Node text(with: In): String y: Int! list: [A] a: A b: B any: Any
    }
    type B implements Node {
      id: ID! x: Int node: Node text(with: In): String y: String list: [[B]] a: A b: B any: Any
    }
    union Any = A | B
    type Query { a: A b: B node: Node any: Any list: [A] lists: [B]! }
""")
OWN_SCHEMA = make_schema(Settings.model_construct()).core
FIELDS: dict[str, dict[str, str | None]] = {
    "Query": {"a": "A", "b": "B", "node": "Node", "any": "Any", "list": "A", "lists": "B"},
    "A": {
        "id": None,
        "x": None,
        "y": None,
        "text": None,
        "node": "Node",
        "list": "A",
        "a": "A",
        "b": "B",
        "any": "Any",
    },
    "B": {
        "id": None,
        "x": None,
        "y": None,
        "text": None,
        "node": "Node",
        "list": "B",
        "a": "A",
        "b": "B",
        "any": "Any",
    },
    "Node": {"id": None, "x": None, "text": None, "node": "Node"},
    "Any": {"__typename": None},
}
ARGUMENTS = ["", "(with: {a: 1, b: 2})", "(with: {b: 2, a: 1})", "(with: {a: 1, c: [1]})", "(with: null)"]


def selection_set(choose: random.Random, type_: str, depth: int, fragments: list[str]) -> str:
    parts = []
    for _ in range(choose.randint(1, 3)):
        kind = choose.random()
        if kind < 0.25 and type_ != "Query" and depth:
            condition = choose.choice(["A", "B", "Node", "Any"])
            parts.append(f"... on {condition} {selection_set(choose, condition, depth - 1, fragments)}")
        elif kind < 0.4 and type_ != "Query" and fragments:
            parts.append(f"...{choose.choice(fragments)}")
        else:
            field, inner = choose.choice(list(FIELDS[type_].items()))
            if inner is not None and not depth:
                field, inner = "__typename", None
            alias = choose.choice(["", "", "", "p: ", "q: ", "id: "])
            arguments = choose.choice(ARGUMENTS) if field == "text" else ""
            below = f" {selection_set(choose, inner, depth - 1, fragments)}" if inner else ""
            parts.append(f"{alias}{field}{arguments}{below}")
    return f"{{ {' '.join(parts)} }}"


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
@settings(max_examples=600, deadline=None)
def test_mergeable_fields_are_the_same_as_in_graphql_core(choose: random.Random) -> None:
    fragments: list[str] = []
    definitions = []
    for number in range(choose.randint(0, 3)):
        type_ = choose.choice(["A", "B", "Node", "Any"])
        definitions.append(f"fragment F{number} on {type_} {selection_set(choose, type_, 2, fragments)}")
        fragments.append(f"F{number}")
    text = "\n".join([selection_set(choose, "Query", 4, fragments), *definitions])
    document = parse(Source(text), 10_000)
    # graphql-core alone reports conflicts within fragments that no operation spreads.
    if not validate_as_graphql_core(SCHEMA, document, [NoUnusedFragmentsRule]):
        ours = validate(SCHEMA, document, hides_schema=False, rules=[FieldsCanMergeRule])
        theirs = validate_as_graphql_core(SCHEMA, document, [OverlappingFieldsCanBeMergedRule])
        assert bool(ours) == bool(theirs), text


@pytest.mark.parametrize(
    "text",
    [
        # Neither implementation compares the type of a meta field with that of another field.
        "{ node { ... on A { id } ... on B { id: __typename } } }",
        "{ any { ... on A { p: __typename } ... on B { p: x } } }",
        "{ any { ... on A { p: any { x: __typename } } ... on B { p: any { ... on A { x } } } } }",
    ],
)
def test_meta_fields_merge_as_in_graphql_core(text: str) -> None:
    document = parse(Source(text), 100)
    assert validate_as_graphql_core(SCHEMA, document, [OverlappingFieldsCanBeMergedRule]) == []
    assert validate(SCHEMA, document, hides_schema=False, rules=[FieldsCanMergeRule]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{ a { x: id x } }", "Fields 'x' conflict because they return conflicting types 'ID!' and 'Int'."),
        ("{ a { p: x p: y } }", "Fields 'p' conflict because they return conflicting types 'Int' and 'Int!'."),
        ("{ a { p: a { id } p: node { id } } }", "Fields 'p' conflict because 'a' and 'node' are different fields."),
        ("{ a { text text(with: {a: 1}) } }", "Fields 'text' conflict because they have differing arguments."),
        (
            "{ node { ... on A { p: y } ... on B { p: x } } }",
            "Fields 'p' conflict because they return conflicting types 'Int!' and 'Int'.",
        ),
    ],
)
def test_a_merge_conflict_names_what_conflicts(text: str, message: str) -> None:
    (error, *_) = validate(SCHEMA, parse(Source(text), 100), hides_schema=False, rules=[FieldsCanMergeRule])
    assert error.message.startswith(message)
    assert len(error.nodes or []) == 2


def test_all_other_rules_are_those_of_graphql_core() -> None:
    for text in (
        get_introspection_query(),
        "{ me { id } tasks(first: 1) { nodes { id title } } }",
        "{ mee tasks(frist: 1) { totalCount } me { id { id } } ...X }",
        "query($a: Int, $a: Int) { tasks(first: $b) { totalCount } } fragment F on User { id }",
    ):
        document = parse(Source(text), 4_000)
        ours = validate(OWN_SCHEMA, document, hides_schema=False, rules=RULES)
        theirs = validate_as_graphql_core(OWN_SCHEMA, document)
        assert [error.formatted for error in ours] == [error.formatted for error in theirs]


def test_validation_gives_up_on_a_document_that_takes_too_long() -> None:
    operations = " ".join(f"query Q{n} {{ ...All }}" for n in range(100))
    document = parse(Source(operations + " fragment All on Query {" + "__typename " * 1_000 + "}"), 4_000)
    with pytest.raises(TooComplex):
        validate(OWN_SCHEMA, document, hides_schema=False, rules=RULES)


@contextmanager
def collecting_garbage() -> Iterator[Counter[str]]:
    """Count, by type, the objects that the block leaves to the garbage collector. Filled when the block ends."""
    found: Counter[str] = Counter()
    with collecting_only_new_objects():
        try:
            yield found
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            found.update(type(each).__name__ for each in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()


@pytest.mark.parametrize(
    "text",
    [
        "{" + "me { id username } " * 600 + "}",
        "{" + " ".join(f"x{n}" for n in range(2_000)) + "}",
        "{ me { a: id a: username } }" + " fragment F on User { id }" * 200,
        "query(" + " ".join(f"$v{n}: Int" for n in range(500)) + ") { me { id } }",
    ],
    ids=lambda text: text[:20],
)
def test_a_validated_document_leaves_no_garbage_cycles(text: str) -> None:
    with collecting_garbage() as found:
        document = parse(Source(text), 10_000)
        validate(OWN_SCHEMA, document, hides_schema=False, rules=RULES)
        del document
    assert found.total() < 100, found.most_common(5)


def test_a_document_with_a_syntax_error_leaves_no_garbage_cycles() -> None:
    with collecting_garbage() as found, pytest.raises(GraphQLError):
        parse(Source("{" + "me { id } " * 900), 10_000)
    assert found.total() < 100, found.most_common(5)


def test_graphql_core_takes_all_error_locations_from_our_line_table() -> None:
    # For an error with several nodes it calls a function that we replace; for one with a single node, the source.
    source = DocumentSource("{ a\n\r\n b\r c }")
    nodes = [*parse(source, 100).definitions[0].selection_set.selections]  # type: ignore[attr-defined]
    source._line_starts = [0, 1]
    assert GraphQLError("x", nodes=nodes).locations == [(2, 2), (2, 7), (2, 10)]
    assert GraphQLError("x", nodes=nodes[2]).locations == [(2, 10)]


@given(st.text("ab\r\n"))
def test_locations_are_the_same_as_in_graphql_core(text: str) -> None:
    ours, theirs = DocumentSource(text), Source(text)
    for position in range(len(text) + 1):
        if text[position - 1 : position + 1] != "\r\n":
            assert ours.get_location(position) == theirs.get_location(position)
