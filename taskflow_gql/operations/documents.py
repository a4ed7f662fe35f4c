"""Each document is parsed and validated once, not once a request."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from graphql import (
    DocumentNode,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLSchema,
    Node,
    OperationDefinitionNode,
    Source,
    SourceLocation,
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
from graphql.language import location
from strawberry.types.graphql import OperationType

from taskflow_gql.execution.sightings import Sightings

# A front end has some hundred documents. Longer ones are rare, and a thousand of them would be a lot of memory.
_MOST_DOCUMENTS = 1000
_LONGEST_DOCUMENT = 10_000
# Of all together. A parsed document takes some 100 times its text, and a full garbage collection goes through it.
_MOST_CHARACTERS = 250_000
# The line ends of GraphQL.
_NEWLINE = re.compile(r"\r\n|[\n\r]")

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
        # Kept by `operations.cost`: the variables that are page sizes, and a verdict for each set of their values.
        self.page_sizes: tuple[str, ...] | None = None
        self.verdicts: dict[tuple[Any, ...], Any] = {}

    def variable_values(
        self, schema: GraphQLSchema, given: dict[str, Any], *, hides_schema: bool = False
    ) -> VariableValues | list[GraphQLError]:
        """As graphql-core's `get_variable_values`, which takes over where a value is wrong or left to a default."""
        definitions = self.node.variable_definitions or ()
        if self._signatures is None:
            self._signatures = [get_variable_signature(schema, definition) for definition in definitions]
        values = VariableValues({}, {})
        for signature in self._signatures:
            if isinstance(signature, GraphQLError) or not _take(signature, given, values):
                return get_variable_values(
                    schema, definitions, given, max_errors=_MOST_COERCION_ERRORS, hide_suggestions=hides_schema
                )
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


class DocumentSource(Source):
    """The text of a document, with a table of its lines: graphql-core counts them from the start for each error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._line_starts: list[int] | None = None

    def get_location(self, position: int) -> SourceLocation:
        if self._line_starts is None:
            self._line_starts = [0, *(match.end() for match in _NEWLINE.finditer(self.body))]
        line = bisect_right(self._line_starts, position)
        return SourceLocation(line, position + 1 - self._line_starts[line - 1])


def _get_locations(locations: Sequence[tuple[Source, int]]) -> list[SourceLocation]:
    return [source.get_location(position) for source, position in locations]


# An error with several nodes does not ask its source, but goes through the text by itself.
location.get_locations = _get_locations


class Document:
    """A document, and what has been found out about it."""

    def __init__(self, text: str, node: DocumentNode) -> None:
        self.text = text
        self.node = node
        self.operations = [Operation(one) for one in node.definitions if isinstance(one, OperationDefinitionNode)]
        self.fragments = {one.name.value: one for one in node.definitions if isinstance(one, FragmentDefinitionNode)}
        # As executors want them. Fragments have no variables: the parser takes none unless it is told to.
        self.fragment_details = {name: FragmentDetails(fragment) for name, fragment in self.fragments.items()}
        # What the schema's `analyse` found in it, once it is valid.
        self.needs: Any = None

    def operation(self, name: str | None) -> Operation | None:
        """The one of this name; without a name the first."""
        for operation in self.operations:
            if name is None or operation.name == name:
                return operation
        return None


def _drop_tokens(document: DocumentNode) -> None:
    """Only parsing needs them. The garbage collector would go through all that are kept."""
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
    """Valid documents by their text. The one not used for longest goes first.

    A document is kept when it is seen for the second time, and once there is no room only if it was seen more often
    than the one that would have to go. A client that sends ever new documents takes no room from others.
    """

    def __init__(self) -> None:
        self._valid: OrderedDict[str, Document] = OrderedDict()
        self._characters = 0
        self._sightings = Sightings(16 * _MOST_DOCUMENTS)

    def get(self, text: str) -> Document | None:
        self._sightings.add(text)
        document = self._valid.get(text)
        if document is not None:
            self._valid.move_to_end(text)
        return document

    def keep(self, text: str, document: Document) -> None:
        """Keep a document that `get` did not find, if it deserves it."""
        seen = self._sightings.of(text)
        # Requests with the same new document may come while the first is being validated.
        if text in self._valid or seen < 2 or len(text) > _LONGEST_DOCUMENT or not self._make_room(len(text), seen):
            return
        _drop_tokens(document.node)
        self._valid[text] = document
        self._characters += len(text)

    def _make_room(self, characters: int, seen: int) -> bool:
        """Drop documents that were seen less often, as many as it takes. False where one was seen as often."""
        while len(self._valid) >= _MOST_DOCUMENTS or self._characters + characters > _MOST_CHARACTERS:
            oldest = next(iter(self._valid))
            if seen <= self._sightings.of(oldest):
                # It stays. The next newcomer is compared with another one.
                self._valid.move_to_end(oldest)
                return False
            del self._valid[oldest]
            self._characters -= len(oldest)
        return True
