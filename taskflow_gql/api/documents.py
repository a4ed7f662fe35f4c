"""Each document is parsed and validated once, not once a request."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from graphql import (
    DocumentNode,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    Undefined,
    coerce_input_value,
    is_non_null_type,
)
from graphql.execution.collect_fields import FragmentDetails
from graphql.execution.get_variable_signature import GraphQLVariableSignature, get_variable_signature
from graphql.execution.values import (
    VariableValues,
    VariableValueSource,
    get_variable_values,
    input_is_nested_too_deeply,
)
from strawberry.types.graphql import OperationType

from taskflow_gql.api.columns import Columns

# A front end has some hundred documents. Longer ones are rare, and a thousand of them would be a lot of memory.
_MOST_DOCUMENTS = 1000
_LONGEST_DOCUMENT = 10_000
# Of all together. A parsed document takes some 150 times its text.
_MOST_CHARACTERS = 500_000

# graphql-core's own default.
_MOST_COERCION_ERRORS = 50
# What needs no look at how deep it is nested.
_FLAT = {str, int, float, bool, type(None)}


class Operation:
    """One operation of a document, with what graphql-core would find out of it for every request."""

    def __init__(self, node: OperationDefinitionNode) -> None:
        self.node = node
        self.name = node.name.value if node.name else None
        self.type = OperationType(node.operation.value)
        self._signatures: list[GraphQLVariableSignature | GraphQLError] | None = None

    def variable_values(self, schema: GraphQLSchema, given: dict[str, Any]) -> VariableValues | list[GraphQLError]:
        """As graphql-core's `get_variable_values`, which takes over where a value is wrong or left to a default."""
        definitions = self.node.variable_definitions or ()
        if self._signatures is None:
            self._signatures = [get_variable_signature(schema, definition) for definition in definitions]
        values = VariableValues({}, {})
        for signature in self._signatures:
            if isinstance(signature, GraphQLError) or not _take(signature, given, values):
                return get_variable_values(schema, definitions, given, max_errors=_MOST_COERCION_ERRORS)
        return values


def _take(signature: GraphQLVariableSignature, given: dict[str, Any], values: VariableValues) -> bool:
    """Whether the variable has a value, or may do without."""
    name, type_ = signature.name, signature.type
    value = given.get(name, Undefined)
    if value is Undefined:
        values.sources[name] = VariableValueSource(signature)
        return signature.default is None and not is_non_null_type(type_)
    if type(value) not in _FLAT and input_is_nested_too_deeply(value, type_):
        return False
    values.sources[name] = VariableValueSource(signature, value)
    values.coerced[name] = coerced = coerce_input_value(value, type_)
    return coerced is not Undefined


class Document:
    """A document, and what `api.limits` has found out about it."""

    def __init__(self, text: str, node: DocumentNode) -> None:
        self.text = text
        self.node = node
        self.operations = [Operation(one) for one in node.definitions if isinstance(one, OperationDefinitionNode)]
        self.fragments = {one.name.value: one for one in node.definitions if isinstance(one, FragmentDefinitionNode)}
        # As executors want them. Fragments have no variables: the parser takes none unless it is told to.
        self.fragment_details = {name: FragmentDetails(fragment) for name, fragment in self.fragments.items()}
        # Found out when it has been validated.
        self.columns: Columns | None = None
        # The names of the variables that are page sizes, and the problems by their values.
        self.page_sizes: tuple[str, ...] | None = None
        self.problems: dict[tuple[Any, ...], list[GraphQLError]] = {}

    def operation(self, name: str | None) -> Operation | None:
        """The one of this name; without a name the first."""
        for operation in self.operations:
            if name is None or operation.name == name:
                return operation
        return None


class Documents:
    """Documents that were found valid, by their text; the one not used for longest goes first."""

    def __init__(self) -> None:
        self._valid: OrderedDict[str, Document] = OrderedDict()
        self._characters = 0

    def get(self, text: str) -> Document | None:
        document = self._valid.get(text)
        if document is not None:
            self._valid.move_to_end(text)
        return document

    def keep(self, text: str, document: Document) -> None:
        if len(text) > _LONGEST_DOCUMENT:
            return
        if text not in self._valid:
            self._characters += len(text)
        self._valid[text] = document
        while len(self._valid) > _MOST_DOCUMENTS or self._characters > _MOST_CHARACTERS:
            gone, _ = self._valid.popitem(last=False)
            self._characters -= len(gone)
