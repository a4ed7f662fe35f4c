"""The plans of a schema, bounded in number and size, and hard to spoil.

A document is planned when it has been seen twice, and once there is no room, for another document or for its fields,
only when it has been seen more often than the one that would have to go. So a client that sends ever new documents, or
more documents than fit, in turn, does not cost the others their plans, nor the server the planning.
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

# Bounds. A planned field takes about 5 KB, the syntax tree of 16 (terse) to 100 characters about 4: the whole cache
# stays below 130 MB, whatever clients send.
MOST_DOCUMENTS = 512
MOST_FIELDS = 24_576
MOST_FIELDS_OF_DOCUMENT = 1_024
MOST_PLANS_OF_DOCUMENT = 16
CHARACTERS_FOR_A_FIELD = 16
LONGEST_DOCUMENT = 65_536  # characters

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
        # What is kept of it without a plan, in fields.
        self.size = _size_of(key)
        self._take_room = take_room
        # Of this operation alone: fragments of others may have variables that it does not know.
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
        # The same text need not be the same document: someone may have rewritten the syntax tree after parsing.
        if self.operation is not operation:
            return self.operation == operation and self.fragments == fragments
        if not fragments:
            return not self.fragments
        # `Run.details` assumes that the fragments are the same nodes if the operation is.
        return self.fragments.keys() == fragments.keys() and all(
            node is fragments[name] for name, node in self.fragments.items()
        )

    def admit(self, fields: int) -> bool:
        """Whether so many more fields may be planned for this document."""
        return self.fields + fields <= MOST_FIELDS_OF_DOCUMENT and self._take_room(self, fields)


class PlanCache:
    """Threads may share it."""

    def __init__(self, seen_before_planned: int, most_documents: int = MOST_DOCUMENTS) -> None:
        self.seen_before_planned = seen_before_planned
        self.most_documents = most_documents
        # The least recently used first.
        self._documents: dict[Key, Document] = {}
        self._sightings = Sightings(16 * most_documents)
        # In fields, as all that is kept is measured.
        self._size = 0
        self._lock = threading.Lock()

    def get(
        self, key: Key, operation: OperationDefinitionNode, fragments: dict[str, FragmentDefinitionNode]
    ) -> Document | None:
        """The document, or None if it is not to be planned."""
        with self._lock:
            seen = self._sightings.add(key)
            document = self._documents.pop(key, None)
            if document is None:
                if seen < self.seen_before_planned:
                    return None
                size = _size_of(key)
                is_too_long = size > LONGEST_DOCUMENT // CHARACTERS_FOR_A_FIELD
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
            # One that had to go while it was being executed gets no more plans.
            if self._documents.get(document.key) is not document:
                return False
            if not self._make_room(fields, self._sightings.of(document.key)):
                return False
            document.fields += fields
            self._size += fields
            return True

    def _make_room(self, size: int, seen: int, *, documents: int = 0) -> bool:
        """Drop documents that were seen less often, as many as it takes. False where one was seen as often."""
        while self._size + size > MOST_FIELDS or len(self._documents) + documents > self.most_documents:
            oldest = next(iter(self._documents))
            document = self._documents.pop(oldest)
            if seen <= self._sightings.of(oldest):
                # It stays. The next newcomer is compared with another one.
                self._documents[oldest] = document
                return False
            self._size -= document.size + document.fields
        return True


class _Caches:
    """The caches of a schema by executor class, kept with the schema. A copy of the schema starts with none."""

    def __init__(self, schema: GraphQLSchema | None = None) -> None:
        self.schema = schema
        self.by_class: dict[type, PlanCache] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # For pickle and deepcopy.
        return _Caches, ()


def document_for_once(
    key: Key, operation: OperationDefinitionNode, fragments: dict[str, FragmentDefinitionNode]
) -> Document | None:
    """A document that no cache keeps, with the bound of one that is kept. None if it is not to be planned."""

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
    """All that the operation selects, fragments counted once."""
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
