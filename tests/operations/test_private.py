"""graphql-core has the parts that `operations` uses beyond its documented names. A failing test names the changed one.

The effects of the tokens, visitors and locations are in test_documents.py and test_validation.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import strawberry
from graphql import (
    GraphQLError,
    Lexer,
    OperationDefinitionNode,
    Source,
    TypeInfo,
    ValidationContext,
    build_schema,
    default_field_resolver,
    default_type_resolver,
    parse,
)
from graphql.execution.executor import Executor
from graphql.language import location

from taskflow_gql.execution.strawberry import BatchingExecutor, StrawberryExecutor
from taskflow_gql.operations import private
from taskflow_gql.operations.documents import Document, DocumentSource
from taskflow_gql.operations.schema import Schema
from taskflow_gql.operations.validation import _Context
from tests.support.serving import make_settings

CORE = f"graphql-core {version('graphql-core')} has changed a part that taskflow_gql/operations uses: "
STRAWBERRY = f"Strawberry {version('strawberry-graphql')} has changed a part that taskflow_gql/operations uses: "
DOCUMENT = "query Q($a: String) { name ...F } fragment F on Query { other }"


def parameters_of(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


# The arguments that `Schema._execute` passes to the executor by position, and those by keyword.
BY_POSITION = [
    *("schema", "fragment_definitions", "fragments", "root_value", "context_value", "operation", "variable_values"),
    *("field_resolver", "type_resolver", "subscribe_field_resolver"),
]
BY_KEYWORD = {"is_awaitable", "hide_suggestions"}


def test_the_executor_takes_its_arguments_in_our_order() -> None:
    found = parameters_of(Executor.__init__)
    assert found[: len(BY_POSITION)] == BY_POSITION, f"{CORE}the order of the arguments of Executor (schema.py)"
    assert set(found) >= BY_KEYWORD, f"{CORE}the arguments of Executor (schema.py)"


@strawberry.type
class Query:
    name: str = "a name"
    other: str = "another"


def make_schema(executor: Any = BatchingExecutor) -> Schema:
    prices: Any = None
    return Schema(Query, execution_context_class=executor, settings=make_settings(), prices=prices)


def test_our_schema_replaces_only_two_methods_of_strawberrys() -> None:
    stock = strawberry.Schema(Query)
    # `typing` gives every subclass of a protocol two more.
    methods = {name for name in vars(Schema) if not name.startswith("__")} - {"_abc_impl", "_is_protocol"}
    assert methods.intersection(dir(stock)) == {"execute", "stream"}, f"{STRAWBERRY}Schema has a method of our name"
    attributes = {"core", "_analyse", "_documents", "_errors", "_hides_schema", "_prices", "_rules", "_settings"}
    assert set(vars(make_schema())) - set(vars(stock)) == attributes, f"{STRAWBERRY}Schema has an attribute of our name"
    for name in ("execute", "stream"):
        found, ours = parameters_of(getattr(strawberry.Schema, name)), parameters_of(getattr(Schema, name))
        assert set(found) == set(ours), f"{STRAWBERRY}the parameters of Schema.{name}"


async def test_our_executor_has_the_same_attributes_as_graphql_cores() -> None:
    made: list[Any] = []

    class Recorded(BatchingExecutor):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    schema = make_schema(Recorded)
    document = Document(DOCUMENT, parse(DOCUMENT))
    operation = document.operations[0]
    await schema._execute(document, operation, 1, {"a": "x"}, context := object())
    theirs = StrawberryExecutor.build(schema.core, document.node, None, context, {"a": "x"}, None)
    [ours] = made
    assert isinstance(theirs, StrawberryExecutor)
    for name in BY_POSITION:
        assert getattr(ours, name) == getattr(theirs, name), f"{CORE}Executor.{name} (schema.py)"
    assert ours.field_resolver is default_field_resolver, f"{CORE}Executor.field_resolver (schema.py)"
    assert ours.type_resolver is default_type_resolver, f"{CORE}Executor.type_resolver (schema.py)"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (private.get_variable_signature, ["schema", "var_def_node"]),
        (private.input_is_nested_too_deeply, ["value", "type_"]),
        (private.sort_value_node, ["value_node"]),
        (private.VariableUsageVisitor, ["type_info", "fragment_definition"]),
        (ValidationContext, ["schema", "ast", "type_info", "on_error", "hide_suggestions"]),
        (ValidationContext.get_variable_usages, ["node"]),
        (location.get_locations, ["locations"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_the_parameters_of_graphql_cores_functions(function: Callable[..., Any], parameters: list[str]) -> None:
    assert parameters_of(function)[: len(parameters)] == parameters, f"{CORE}{function.__qualname__}"


def test_the_parser_takes_a_lexer_and_a_number_of_tokens() -> None:
    assert {"source", "max_tokens", "lexer"} <= {*parameters_of(private.Parser)}, f"{CORE}the arguments of Parser"
    lexer = Lexer(Source("{ a }"))
    node = private.Parser(lexer.source, lexer=lexer).parse_document()
    assert lexer.token.prev is not None, f"{CORE}Lexer.token and Token.prev, a list that validation.parse takes apart"
    assert node.loc is not None
    assert node.loc.start_token is not None, f"{CORE}Location.start_token, which _drop_tokens sets to None"
    assert node.loc.end_token is lexer.token, f"{CORE}Location.end_token, which _drop_tokens sets to None"


@pytest.mark.parametrize(
    ("tuple_class", "fields"),
    [
        (private.VariableValues, ["sources", "coerced"]),
        (private.VariableValueSource, ["signature", "value"]),
        (private.FragmentDetails, ["definition", "variable_signatures"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_fields_of_graphql_cores_tuples(tuple_class: Any, fields: list[str]) -> None:
    assert list(tuple_class._fields) == fields, f"{CORE}{tuple_class.__name__}"


def test_the_fields_of_a_variables_signature() -> None:
    schema = build_schema("type Query { a(b: Int = 1): Int }")
    node = parse("query ($b: Int = 2) { a(b: $b) }").definitions[0]
    assert isinstance(node, OperationDefinitionNode)
    signature = private.get_variable_signature(schema, (node.variable_definitions or ())[0])
    assert not isinstance(signature, GraphQLError)
    assert (signature.name, str(signature.type)) == ("b", "Int"), f"{CORE}GraphQLVariableSignature.name or .type"
    assert signature.default is not None, f"{CORE}GraphQLVariableSignature.default"


def test_errors_look_up_their_locations_through_the_module() -> None:
    source = DocumentSource("{ a b }")
    nodes = [*parse(source).definitions[0].selection_set.selections]  # type: ignore[attr-defined]
    source._line_starts = [0, 1]
    assert GraphQLError("", nodes).locations == [(2, 2), (2, 4)], f"{CORE}graphql.language.location.get_locations"


def test_the_keys_to_validate_are_lists_of_child_names_by_kind() -> None:
    keys = private.query_document_keys_to_validate
    assert {"selection_set", "directives"} <= {*keys["operation_definition"]}, f"{CORE}query_document_keys_to_validate"


def test_our_validation_context_hides_no_attribute_of_graphql_cores() -> None:
    schema = build_schema("type Query { a: Int }")
    arguments = (schema, parse("{ a }"), TypeInfo(schema), lambda _: None)
    theirs, ours = vars(ValidationContext(*arguments)), vars(_Context(*arguments))
    assert set(ours) - set(theirs) == {"_types", "_usages"}, f"{CORE}an attribute of ValidationContext"
    assert issubclass(private.ValidationAbortedError, GraphQLError), f"{CORE}ValidationAbortedError"
