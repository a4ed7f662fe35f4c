"""The parts of graphql-core that operations use beyond its documented names, gathered in one place.

`Schema._execute` also passes arguments to the executor by position, and `documents` and `validation` drop tokens of the
parser and attributes of visitors. `tests/operations/test_private.py` checks each part and names the one that a new
version has changed.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphql import Source, SourceLocation
from graphql.execution.collect_fields import FragmentDetails
from graphql.execution.get_variable_signature import GraphQLVariableSignature, get_variable_signature
from graphql.execution.values import VariableValues, VariableValueSource, input_is_nested_too_deeply
from graphql.language import location
from graphql.language.parser import Parser
from graphql.utilities.sort_value_node import sort_value_node
from graphql.validation.validate import ValidationAbortedError, query_document_keys_to_validate
from graphql.validation.validation_context import NodeWithSelectionSet, VariableUsage, VariableUsageVisitor

__all__ = [
    "FragmentDetails",
    "GraphQLVariableSignature",
    "NodeWithSelectionSet",
    "Parser",
    "ValidationAbortedError",
    "VariableUsage",
    "VariableUsageVisitor",
    "VariableValueSource",
    "VariableValues",
    "get_variable_signature",
    "input_is_nested_too_deeply",
    "query_document_keys_to_validate",
    "sort_value_node",
]


def _get_locations(locations: Sequence[tuple[Source, int]]) -> list[SourceLocation]:
    return [source.get_location(position) for source, position in locations]


# Errors with several nodes call this function instead of the method of their source.
location.get_locations = _get_locations
