"""A cache of parsed and validated documents, and what is known about each."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import OrderedDict
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    InlineFragmentNode,
    Node,
    OperationDefinitionNode,
    Source,
    SourceLocation,
    Undefined,
    coerce_input_value,
    get_variable_values,
    is_non_null_type,
)
from strawberry.types.graphql import OperationType

from taskflow_gql.execution.sightings import Sightings
from taskflow_gql.operations.private import (
    FragmentDetails,
    GraphQLVariableSignature,
    VariableValues,
    VariableValueSource,
    get_variable_signature,
    input_is_nested_too_deeply,
)

# A front end has some hundred documents. Longer ones are not cached: they are rare, and a thousand of them would need
# too much memory. The length is in characters.
_MAX_DOCUMENTS = 1000
_MAX_DOCUMENT_LENGTH = 10_000
# The total length of all cached documents. A parsed document takes about 100 times the memory of its text, and a full
# garbage collection traverses it.
_MAX_CHARACTERS = 250_000
# The line terminators of GraphQL.
_NEWLINE = re.compile(r"\r\n|[\n\r]")

# graphql-core's own default.
_MAX_COERCION_ERRORS = 50
# Types that cannot be nested.
_FLAT = {str, int, float, bool, type(None)}


class Operation:
    """One operation of a document. Caches what graphql-core would derive from it for every request."""

    def __init__(self, node: OperationDefinitionNode) -> None:
        self.node = node
        self.name = node.name.value if node.name else None
        self.type = OperationType(node.operation.value)
        self._signatures: list[GraphQLVariableSignature | GraphQLError] | None = None
        # Cached by `Document.root_fields`.
        self.root_fields: int | None = None
        # Cached by `operations.cost`: the variables that are page sizes, and a verdict for each combination of them.
        self.page_sizes: tuple[str, ...] | None = None
        self.verdicts: dict[tuple[Any, ...], Any] = {}

    def variable_values(
        self, schema: GraphQLSchema, given: dict[str, Any], *, hides_schema: bool = False
    ) -> VariableValues | list[GraphQLError]:
        """As graphql-core's `get_variable_values`, which it calls if a value is invalid or a default is needed."""
        definitions = self.node.variable_definitions or ()
        if self._signatures is None:
            self._signatures = [get_variable_signature(schema, definition) for definition in definitions]
        values = VariableValues({}, {})
        for signature in self._signatures:
            if isinstance(signature, GraphQLError) or not _coerce(signature, given, values):
                return get_variable_values(
                    schema, definitions, given, max_errors=_MAX_COERCION_ERRORS, hide_suggestions=hides_schema
                )
        return values


def _coerce(signature: GraphQLVariableSignature, given: dict[str, Any], values: VariableValues) -> bool:
    """Coerce one variable into `values`. Returns False if it is invalid, or missing and required or defaulted."""
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


class DocumentSource(Source):
    """A document's text with an index of its lines. graphql-core counts lines from the start for each error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._line_starts: list[int] | None = None

    def get_location(self, position: int) -> SourceLocation:
        if self._line_starts is None:
            self._line_starts = [0, *(match.end() for match in _NEWLINE.finditer(self.body))]
        line = bisect_right(self._line_starts, position)
        return SourceLocation(line, position + 1 - self._line_starts[line - 1])


class Document:
    """A parsed document, with what has been derived from it."""

    def __init__(self, text: str, node: DocumentNode) -> None:
        self.text = text
        self.node = node
        self.operations = [Operation(one) for one in node.definitions if isinstance(one, OperationDefinitionNode)]
        self.fragments = {one.name.value: one for one in node.definitions if isinstance(one, FragmentDefinitionNode)}
        # In the form that executors take. Fragments have no variables: the parser allows them only on request.
        self.fragment_details = {name: FragmentDetails(fragment) for name, fragment in self.fragments.items()}
        # The result of the schema's `analyse`, set once the document is valid.
        self.needs: Any = None

    def operation(self, name: str | None) -> Operation | None:
        """The operation of this name; the first one if no name is given."""
        for operation in self.operations:
            if name is None or operation.name == name:
                return operation
        return None

    def root_fields(self, operation: Operation) -> int:
        """How many fields an operation runs on its root, at most: those of equal name are one."""
        if operation.root_fields is None:
            operation.root_fields = len(self._root_keys(operation))
        return operation.root_fields

    def _root_keys(self, operation: Operation) -> set[str]:
        keys: set[str] = set()
        spread: set[str] = set()
        stack = [operation.node.selection_set]
        while stack:
            for selection in stack.pop().selections:
                if isinstance(selection, FieldNode):
                    keys.add((selection.alias or selection.name).value)
                elif isinstance(selection, InlineFragmentNode):
                    stack.append(selection.selection_set)
                elif isinstance(selection, FragmentSpreadNode) and selection.name.value not in spread:
                    spread.add(selection.name.value)
                    stack.append(self.fragments[selection.name.value].selection_set)
        return keys


def _drop_tokens(document: DocumentNode) -> None:
    """Drop the tokens, which only parsing needs. The garbage collector would traverse them."""
    stack: list[Node] = [document]
    while stack:
        node = stack.pop()
        if node.loc is not None:
            node.loc.start_token = node.loc.end_token = None  # type: ignore[assignment]
        for key in node.keys:
            value = getattr(node, key, None)
            if isinstance(value, Node):
                stack.append(value)
            elif isinstance(value, tuple | list):
                stack += [each for each in value if isinstance(each, Node)]


class Documents:
    """A cache of valid documents by their text, with least recently used eviction.

    A document is cached when it is seen for the second time. If the cache is full, it must also have been seen more
    often than the documents it evicts. So a client that always sends new documents cannot evict those of others.
    """

    def __init__(self) -> None:
        self._valid: OrderedDict[str, Document] = OrderedDict()
        self._characters = 0
        self._sightings = Sightings(16 * _MAX_DOCUMENTS)

    def get(self, text: str) -> Document | None:
        self._sightings.add(text)
        document = self._valid.get(text)
        if document is not None:
            self._valid.move_to_end(text)
        return document

    def keep(self, text: str, document: Document) -> None:
        """Cache a document that `get` did not find, if it was seen often enough."""
        seen = self._sightings.of(text)
        # A concurrent request may have cached the same document during validation.
        if text in self._valid or seen < 2 or len(text) > _MAX_DOCUMENT_LENGTH or not self._make_room(len(text), seen):
            return
        _drop_tokens(document.node)
        self._valid[text] = document
        self._characters += len(text)

    def _make_room(self, characters: int, seen: int) -> bool:
        """Evict documents that were seen less often. Returns False at the first one that was seen as often."""
        while len(self._valid) >= _MAX_DOCUMENTS or self._characters + characters > _MAX_CHARACTERS:
            oldest = next(iter(self._valid))
            if seen <= self._sightings.of(oldest):
                # Keep it, and compare the next new document with another one.
                self._valid.move_to_end(oldest)
                return False
            del self._valid[oldest]
            self._characters -= len(oldest)
        return True
