"""The cache of a schema's plans: bounded in number and size, and resistant to floods of new documents.

A document is planned when it is seen the second time. When the cache is full, it is planned only if it was seen more
often than the document that would be evicted. A client that sends only new documents, or more documents in turn than
fit, therefore neither evicts the plans of others nor makes the server plan.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionNode,
    VariableNode,
)

from .arguments import ArgumentReaders
from .sightings import Sightings
from .tree import Plan

# A planned field takes about 5 KB, and the syntax tree of 16 (terse) to 100 characters about 4 KB. With these bounds
# the whole cache stays below 130 MB, whatever clients send.
MAX_DOCUMENTS = 512
MAX_FIELDS = 24_576
MAX_FIELDS_OF_DOCUMENT = 1_024
MAX_PLANS_OF_DOCUMENT = 16
CHARACTERS_FOR_A_FIELD = 16
MAX_DOCUMENT_CHARACTERS = 65_536

Key = tuple[str | int, int]


class Document:
    """An operation with its fragments, and its plans by the values of the variables in @skip and @include."""

    def __init__(
        self,
        key: Key,
        operation: OperationDefinitionNode,
        fragments: dict[str, FragmentDefinitionNode],
        take_room: "Callable[[Document, int], bool]",
    ) -> None:
        self.key = key
        self.operation = operation
        self.fragments = fragments
        self.plans: dict[tuple[Any, ...], Plan | None] = {}
        self.argument_readers = ArgumentReaders()
        self.fields = 0
        # The memory that it takes without a plan, in planned fields.
        self.size = _size_of(key)
        self._take_room = take_room
        # This operation's alone: fragments of other operations may use variables that it does not have.
        selections = list(_selections(operation, fragments))
        directives = [directive for selection in selections for directive in selection.directives or ()]
        spread = {selection.name.value for selection in selections if isinstance(selection, FragmentSpreadNode)}
        # Incremental delivery and variables of fragments are left to graphql-core.
        self.can_be_planned = not any(
            fragment.variable_definitions for name, fragment in fragments.items() if name in spread
        ) and not any(directive.name.value in {"defer", "stream"} for directive in directives)
        self.conditions = sorted(
            {
                argument.value.name.value
                for directive in directives
                if directive.name.value in {"skip", "include"}
                for argument in directive.arguments or ()
                if isinstance(argument.value, VariableNode)
            }
        )

    def is_of(self, operation: OperationDefinitionNode, fragments: dict[str, FragmentDefinitionNode]) -> bool:
        # The same text need not be the same document: the syntax tree may have been rewritten after parsing.
        if self.operation is not operation:
            return self.operation == operation and self.fragments == fragments
        if not fragments:
            return not self.fragments
        # `Run.details` relies on this: if the operation is the same node, the fragments are, too.
        return self.fragments.keys() == fragments.keys() and all(
            node is fragments[name] for name, node in self.fragments.items()
        )

    def admit(self, fields: int) -> bool:
        """Tell whether so many more fields may be planned for this document, and count them if so."""
        return self.fields + fields <= MAX_FIELDS_OF_DOCUMENT and self._take_room(self, fields)


class PlanCache:
    """The documents with plans, for one schema and one executor class. Threads may share it."""

    def __init__(self, seen_before_planned: int, max_documents: int = MAX_DOCUMENTS) -> None:
        self.seen_before_planned = seen_before_planned
        self.max_documents = max_documents
        # The least recently used comes first.
        self._documents: dict[Key, Document] = {}
        self._sightings = Sightings(16 * max_documents)
        # In planned fields, the unit of everything that is kept.
        self._size = 0
        self._lock = threading.Lock()

    def get(
        self, key: Key, operation: OperationDefinitionNode, fragments: dict[str, FragmentDefinitionNode]
    ) -> Document | None:
        """Return the document, or None if it is not planned."""
        with self._lock:
            seen = self._sightings.add(key)
            document = self._documents.pop(key, None)
            if document is None:
                if seen < self.seen_before_planned:
                    return None
                size = _size_of(key)
                is_too_long = size > MAX_DOCUMENT_CHARACTERS // CHARACTERS_FOR_A_FIELD
                if is_too_long or not self._make_room(size, seen, documents=1):
                    return None
                document = Document(key, operation, fragments, self._take_room)
                self._size += document.size
            self._documents[key] = document
        return document if document.can_be_planned and document.is_of(operation, fragments) else None

    def __len__(self) -> int:
        return len(self._documents)

    def _take_room(self, document: Document, fields: int) -> bool:
        with self._lock:
            # A document that was evicted while it was executed gets no more plans.
            if self._documents.get(document.key) is not document:
                return False
            if not self._make_room(fields, self._sightings.of(document.key)):
                return False
            document.fields += fields
            self._size += fields
            return True

    def _make_room(self, size: int, seen: int, *, documents: int = 0) -> bool:
        """Evict as many documents as necessary that were seen less often. False if one was seen as often."""
        while self._size + size > MAX_FIELDS or len(self._documents) + documents > self.max_documents:
            oldest = next(iter(self._documents))
            document = self._documents.pop(oldest)
            if seen <= self._sightings.of(oldest):
                # It stays, and the next new document is compared with another one.
                self._documents[oldest] = document
                return False
            self._size -= document.size + document.fields
        return True


class _Caches:
    """The caches of a schema by executor class, kept in its extensions. A copy of the schema starts with none."""

    def __init__(self, schema: GraphQLSchema | None = None) -> None:
        self.schema = schema
        self.by_class: dict[type, PlanCache] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Used by pickle and deepcopy.
        return _Caches, ()


def document_for_once(
    key: Key, operation: OperationDefinitionNode, fragments: dict[str, FragmentDefinitionNode]
) -> Document | None:
    """Make a document that no cache keeps, with the same bound. None if it cannot be planned."""

    def take_room(document: Document, fields: int) -> bool:
        document.fields += fields
        return True

    document = Document(key, operation, fragments, take_room)
    return document if document.can_be_planned else None


def plans_of(schema: GraphQLSchema, executor_class: type, seen_before_planned: int) -> PlanCache:
    caches = schema.extensions.get("execution.plans")
    if not isinstance(caches, _Caches) or caches.schema is not schema:
        caches = schema.extensions["execution.plans"] = _Caches(schema)
    cache = caches.by_class.get(executor_class)
    if cache is None:
        cache = caches.by_class[executor_class] = PlanCache(seen_before_planned)
    return cache


def _selections(
    operation: OperationDefinitionNode, fragments: dict[str, FragmentDefinitionNode]
) -> Iterator[SelectionNode]:
    """Iterate over everything that the operation selects, each fragment once."""
    sets = [operation.selection_set]
    spread: set[str] = set()
    while sets:
        for selection in sets.pop().selections:
            yield selection
            if isinstance(selection, FieldNode | InlineFragmentNode):
                if selection.selection_set:
                    sets.append(selection.selection_set)
            elif isinstance(selection, FragmentSpreadNode) and selection.name.value not in spread:
                spread.add(selection.name.value)
                if selection.name.value in fragments:
                    sets.append(fragments[selection.name.value].selection_set)


def _size_of(key: Key) -> int:
    return len(key[0]) // CHARACTERS_FOR_A_FIELD if isinstance(key[0], str) else 0
