"""The parts of graphql-core that the executor uses beyond its documented names, gathered in one place.

`tests/execution/test_libraries.py` checks each part and names the one that a new version has changed.
"""

from __future__ import annotations

from typing import Any

from graphql import (
    FieldNode,
    GraphQLField,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLResolveInfoHelpers,
    GraphQLSchema,
    OperationDefinitionNode,
)
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet, collect_fields, collect_subfields
from graphql.execution.execute import assume_not_awaitable
from graphql.execution.executor import CollectedErrors, invalid_return_type_error
from graphql.execution.incremental import IncrementalExecutor
from graphql.execution.middleware import MiddlewareManager
from graphql.execution.values import VariableValues, get_argument_values
from graphql.pyutils import Path
from graphql.utilities.coerce_input_value import coerce_default_value

__all__ = [
    "CollectedErrors",
    "FieldDetailsList",
    "GroupedFieldSet",
    "IncrementalExecutor",
    "MiddlewareManager",
    "VariableValues",
    "arguments_of",
    "assume_not_awaitable",
    "coerce_default_value",
    "invalid_return_type_error",
    "make_helpers",
    "make_info",
    "root_fields",
    "subfields",
]


def make_info(
    executor: IncrementalExecutor,
    helpers: GraphQLResolveInfoHelpers,
    definition: GraphQLField,
    nodes: list[FieldNode],
    parent_type: GraphQLObjectType,
    path: Path,
) -> GraphQLResolveInfo[Any]:
    """Make the same info as `Executor.build_resolve_info`, without the `__new__` of named tuples, a Python function."""
    return tuple.__new__(
        GraphQLResolveInfo,
        (
            nodes[0].name.value,
            nodes,
            definition.type,
            parent_type,
            path,
            executor.schema,
            executor.fragment_definitions,
            executor.root_value,
            executor.operation,
            executor.variable_values,
            executor.context_value,
            executor.is_awaitable,
            executor.abort_signal,
            helpers,
        ),
    )


def make_helpers(executor: IncrementalExecutor) -> GraphQLResolveInfoHelpers:
    return GraphQLResolveInfoHelpers(gather=executor.gather_async_work, track=executor.track_async_work)


def root_fields(
    schema: GraphQLSchema,
    fragments: Any,
    variables: VariableValues,
    root_type: GraphQLObjectType,
    operation: OperationDefinitionNode,
    hide_suggestions: bool,
) -> GroupedFieldSet:
    """Collect the fields that the operation selects at its root."""
    return collect_fields(schema, fragments, variables, root_type, operation, hide_suggestions).grouped_field_set


def subfields(
    schema: GraphQLSchema,
    fragments: Any,
    variables: VariableValues,
    operation: OperationDefinitionNode,
    type_: GraphQLObjectType,
    details: FieldDetailsList,
    hide_suggestions: bool,
) -> GroupedFieldSet:
    """Collect the fields that are selected of objects of this type below a field."""
    return collect_subfields(
        schema, fragments, variables, operation, type_, details, hide_suggestions
    ).grouped_field_set


def arguments_of(
    definition: GraphQLField, node: FieldNode, variables: VariableValues, hide_suggestions: bool
) -> dict[str, Any]:
    return get_argument_values(definition, node, variables, None, hide_suggestions)
