"""The private parts of graphql-core and Strawberry that the executor relies on, each with a test that names it.

A test that fails here after an upgrade says which part has changed and which file uses it.
"""

import inspect
from collections.abc import Callable
from enum import Enum
from importlib.metadata import version
from typing import Any

import pytest
import strawberry
from graphql import GraphQLResolveInfo, GraphQLResolveInfoHelpers, GraphQLSchema, parse
from graphql.execution import collect_fields as collecting
from graphql.execution import values
from graphql.execution.executor import CollectedErrors, invalid_return_type_error
from strawberry.extensions import FieldExtension
from strawberry.types.field import StrawberryField

from taskflow_gql.execution import core
from taskflow_gql.execution import strawberry as adapter
from taskflow_gql.execution.executor import CompilingExecutor

CORE = f"graphql-core {version('graphql-core')} has changed a part that execution/core.py uses: "
STRAWBERRY = f"Strawberry {version('strawberry-graphql')} has changed a part that execution/strawberry.py uses: "

INFO = [
    "field_name",
    "field_nodes",
    "return_type",
    "parent_type",
    "path",
    "schema",
    "fragments",
    "root_value",
    "operation",
    "variable_values",
    "context",
    "is_awaitable",
    "abort_signal",
    "async_helpers",
]


def parameters_of(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_fields_of_graphql_cores_info() -> None:
    assert list(GraphQLResolveInfo._fields) == INFO, f"{CORE}GraphQLResolveInfo (make_info)"
    assert list(GraphQLResolveInfoHelpers._fields) == ["gather", "track"], f"{CORE}GraphQLResolveInfoHelpers"


def test_the_fields_of_strawberrys_info() -> None:
    fields = list(adapter.ResolveInfo._fields)
    assert fields == [*INFO, "operation_extensions"], f"{STRAWBERRY}_OperationContextAwareGraphQLResolveInfo"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (
            collecting.collect_fields,
            ["schema", "fragments", "variable_values", "runtime_type", "operation", "hide_suggestions"],
        ),
        (
            collecting.collect_subfields,
            ["schema", "fragments", "variable_values", "operation", "return_type", "field_details_list"],
        ),
        (values.get_argument_values, ["type_def", "node", "variable_values", "fragment_variable_values"]),
        (invalid_return_type_error, ["return_type", "result", "field_details_list"]),
        (CollectedErrors.add, ["error", "path"]),
        (CollectedErrors.has_nulled_position, ["start_path"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_parameters_of_graphql_cores_functions(function: Callable[..., Any], parameters: list[str]) -> None:
    found = parameters_of(function)
    assert found[: len(parameters)] == parameters, f"{CORE}{function.__qualname__}"
    if function in {collecting.collect_subfields, values.get_argument_values}:
        assert found[len(parameters)] == "hide_suggestions", f"{CORE}{function.__qualname__}"


@pytest.mark.parametrize(
    ("method", "parameters"),
    {
        "build_resolve_info": ["field_def", "field_nodes", "parent_type", "path"],
        "handle_field_error": ["raw_error", "return_type", "field_details_list", "path"],
        "complete_value": ["return_type", "field_details_list", "info", "path", "result", "position_context"],
        "collect_and_execute_subfields": ["return_type", "field_details_list", "path", "result", "position_context"],
        "ensure_valid_runtime_type": ["runtime_type_name", "return_type", "field_details_list", "info", "result"],
        "execute_operation": ["serially"],
        "build_response": ["data"],
        "settle_in_background": ["awaitables"],
        "track_async_work": ["values"],
        "gather_async_work": [],
    }.items(),
)
def test_the_methods_of_graphql_cores_executor(method: str, parameters: list[str]) -> None:
    found = parameters_of(getattr(core.IncrementalExecutor, method))
    assert found[: len(parameters)] == parameters, f"{CORE}IncrementalExecutor.{method}"


def test_the_attributes_of_graphql_cores_executor() -> None:
    executor = CompilingExecutor.build(
        adapter.core_schema(strawberry.Schema(Example)), parse("{ attribute }"), None, None, None, None
    )
    assert isinstance(executor, CompilingExecutor)
    for name in (
        *("schema", "fragments", "fragment_definitions", "root_value", "operation", "variable_values", "hooks"),
        *("context_value", "is_awaitable", "abort_signal", "collected_errors", "middleware_manager", "field_resolver"),
        *("error_propagation", "hide_suggestions", "type_resolver"),
    ):
        assert hasattr(executor, name), f"{CORE}IncrementalExecutor.{name}"
    assert executor.variable_values._fields == ("sources", "coerced"), f"{CORE}VariableValues"


def test_the_names_of_strawberrys_resolvers() -> None:
    fields: Any = adapter.core_schema(strawberry.Schema(Example)).type_map["Example"].fields  # type: ignore[attr-defined]
    names = {name: field.resolve.__name__ for name, field in fields.items()}
    assert names["attribute"] == adapter.ATTRIBUTE_READER, f"{STRAWBERRY}the closure that reads an attribute"
    found = {names["method"], names["asynchronous"]}
    assert found == adapter.RESOLVER_CALLERS, f"{STRAWBERRY}the closures that call resolvers"
    for field in fields.values():
        definition = field.extensions.get(adapter.DEFINITION)
        assert isinstance(definition, StrawberryField), f"{STRAWBERRY}the definition in a field's extensions"


def test_a_strawberry_schema_has_graphql_cores() -> None:
    schema = strawberry.Schema(Example)
    assert hasattr(schema, "_schema"), f"{STRAWBERRY}Schema._schema (core_schema)"
    assert isinstance(adapter.core_schema(schema), GraphQLSchema), f"{STRAWBERRY}Schema._schema (core_schema)"
    default = schema.execution_context_class
    assert default is adapter.StrawberryExecutor, f"{STRAWBERRY}StrawberryGraphQLCoreExecutionContext"


def test_an_enum_has_its_definition() -> None:
    @strawberry.enum
    class Color(Enum):
        RED = "red"

    assert hasattr(Color, "__strawberry_definition__"), f"{STRAWBERRY}__strawberry_definition__ (enum_definition)"
    [value] = adapter.enum_definition(Color).values
    assert (value.name, value.description) == ("RED", None), f"{STRAWBERRY}StrawberryEnumDefinition.values"


def test_the_members_of_strawberrys_classes() -> None:
    schema = strawberry.Schema(Example)
    core_schema: Any = adapter.core_schema(schema)
    assert core_schema.extensions[adapter.DEFINITION] is schema, f"{STRAWBERRY}the schema in the extensions"
    for name in ("exception_handlers", "schema_converter", "config", "execution_context_class"):
        assert hasattr(schema, name), f"{STRAWBERRY}Schema.{name}"
    for name in ("config", "scalar_registry", "type_map"):
        assert hasattr(schema.schema_converter, name), f"{STRAWBERRY}GraphQLCoreConverter.{name}"
    type_definition = schema.schema_converter.type_map["Example"].definition
    found = core_schema.type_map["Example"].extensions[adapter.DEFINITION]
    assert found is type_definition, f"{STRAWBERRY}the definition in a type's extensions"
    for name in ("fields", "from_input", "is_input", "is_type_of", "origin"):
        assert hasattr(type_definition, name), f"{STRAWBERRY}StrawberryObjectDefinition.{name}"
    definition = core_schema.type_map["Example"].fields["method"].extensions[adapter.DEFINITION]
    for name in ("default_resolver", "extensions", "arguments", "base_resolver", "is_async", "python_name", "metadata"):
        assert hasattr(definition, name), f"{STRAWBERRY}StrawberryField.{name}"
    for name in ("wrapped_func", "self_parameter", "parent_parameter", "root_parameter", "info_parameter"):
        assert hasattr(definition.base_resolver, name), f"{STRAWBERRY}StrawberryResolver.{name}"
    assert parameters_of(StrawberryField.get_result) == ["source", "info", "args", "kwargs"], STRAWBERRY + "get_result"
    assert parameters_of(FieldExtension.map_arguments) == ["kwargs"], f"{STRAWBERRY}FieldExtension.map_arguments"
    found = parameters_of(adapter.StrawberryExecutor.build_resolve_info)
    assert found == ["field_def", "field_nodes", "parent_type", "path"], f"{STRAWBERRY}build_resolve_info"


async def test_the_info_is_the_same_as_strawberrys() -> None:
    seen: list[Any] = []

    @strawberry.type
    class Query:
        @strawberry.field
        def name(self, info: strawberry.Info) -> str:
            seen.append(info._raw_info)
            return info.field_name

    class AtOnce(adapter.BatchingExecutor):
        seen_before_planned = 1

    for executor_class in (None, AtOnce):
        schema = strawberry.Schema(Query, execution_context_class=executor_class)
        await schema.execute("{ name }", operation_extensions={"from": "the request"})
    stock, ours = seen
    assert type(ours) is type(stock), f"{STRAWBERRY}the class of the info"
    for name in ("field_name", "path", "variable_values", "context", "root_value", "operation_extensions"):
        assert getattr(ours, name) == getattr(stock, name), f"{STRAWBERRY}info.{name}"


@strawberry.type
class Example:
    attribute: str

    @strawberry.field
    def method(self) -> str:
        return ""

    @strawberry.field
    async def asynchronous(self) -> str:
        return ""
