"""The plans of a schema, bounded in number and size, and hard to spoil.

A document is planned when it has been seen twice, and once the cache is full only when it has been seen more often
than the one that would have to go. So a client that sends ever new documents, or more documents than fit, in turn,
does not cost the others their plans, nor the server the planning.
"""

from collections.abc import Callable, Iterator
from typing import Any

from graphql import (
    DirectiveNode,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    VariableNode,
)

from .plan import Plan

# Bounds. A planned field takes about 3 KB, so the whole cache stays below 50 MB.
MOST_DOCUMENTS = 512
MOST_FIELDS = 16_384
MOST_FIELDS_OF_DOCUMENT = 1_024
MOST_PLANS_OF_DOCUMENT = 16

Key = tuple[str | int, int]


class Document:
    """An operation with its fragments, and its plans by the values of the variables in @skip and @include."""

    def __init__(
        self,
        operation: OperationDefinitionNode,
        fragments: dict[str, FragmentDefinitionNode],
        make_room: Callable[[], None],
    ) -> None:
        self.operation = operation
        self.fragments = fragments
        self.plans: dict[tuple[Any, ...], Plan | None] = {}
        self.fields = 0
        self._make_room = make_room
        directives = list(_directives(operation.selection_set))
        for fragment in fragments.values():
            directives.extend(_directives(fragment.selection_set))
        # Incremental delivery and variables of fragments are left to graphql-core.
        self.can_be_planned = not any(fragment.variable_definitions for fragment in fragments.values()) and not any(
            directive.name.value in {"defer", "stream"} for directive in directives
        )
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
        # Comparing is quick when the nodes are identical, as they are when documents are parsed once.
        return (self.operation is operation or self.operation == operation) and self.fragments == fragments

    def admit(self, fields: int) -> bool:
        """Whether so many more fields may be planned for this document."""
        if self.fields + fields > MOST_FIELDS_OF_DOCUMENT:
            return False
        self.fields += fields
        self._make_room()
        return True


class PlanCache:
    def __init__(self, seen_before_planned: int, most_documents: int = MOST_DOCUMENTS) -> None:
        self.seen_before_planned = seen_before_planned
        self.most_documents = most_documents
        # The least recently used first.
        self._documents: dict[Key, Document] = {}
        # How often documents were seen lately, by hash: to keep the texts themselves would be a way to fill memory.
        self._seen: dict[int, int] = {}
        self._seen_in_all = 0

    def get(
        self, key: Key, operation: OperationDefinitionNode, fragments: dict[str, FragmentDefinitionNode]
    ) -> Document | None:
        """The document, or None if it is not to be planned."""
        seen = self._see(key)
        document = self._documents.pop(key, None)
        if document is None:
            if seen < self.seen_before_planned or not self._may_enter(seen):
                return None
            document = Document(operation, fragments, self.make_room)
        self._documents[key] = document
        return document if document.can_be_planned and document.is_of(operation, fragments) else None

    def make_room(self) -> None:
        fields = sum(document.fields for document in list(self._documents.values()))
        while fields > MOST_FIELDS and len(self._documents) > 1:
            fields -= self._documents.pop(next(iter(self._documents))).fields

    def __len__(self) -> int:
        return len(self._documents)

    def _see(self, key: Key) -> int:
        if self._seen_in_all >= 16 * self.most_documents:
            # What was popular yesterday has to make way some day.
            self._seen = {key_hash: seen // 2 for key_hash, seen in self._seen.items() if seen > 1}
            self._seen_in_all = sum(self._seen.values())
        self._seen_in_all += 1
        key_hash = hash(key)
        seen = self._seen[key_hash] = self._seen.get(key_hash, 0) + 1
        return seen

    def _may_enter(self, seen: int) -> bool:
        if len(self._documents) < self.most_documents:
            return True
        oldest = next(iter(self._documents))
        document = self._documents.pop(oldest)
        if seen > self._seen.get(hash(oldest), 0):
            return True
        # It stays, but the next newcomer measures itself against another.
        self._documents[oldest] = document
        return False


class _Caches:
    """The caches of a schema by executor class, kept with the schema. A copy of the schema starts with none."""

    def __init__(self, schema: GraphQLSchema | None = None) -> None:
        self.schema = schema
        self.by_class: dict[type, PlanCache] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # For pickle and deepcopy.
        return _Caches, ()


def plans_of(schema: GraphQLSchema, executor_class: type, seen_before_planned: int) -> PlanCache:
    caches = schema.extensions.get("execution.plans")
    if not isinstance(caches, _Caches) or caches.schema is not schema:
        caches = schema.extensions["execution.plans"] = _Caches(schema)
    cache = caches.by_class.get(executor_class)
    if cache is None:
        cache = caches.by_class[executor_class] = PlanCache(seen_before_planned)
    return cache


def _directives(selection_set: SelectionSetNode) -> Iterator[DirectiveNode]:
    for selection in selection_set.selections:
        yield from selection.directives or ()
        if isinstance(selection, FieldNode | InlineFragmentNode) and selection.selection_set:
            yield from _directives(selection.selection_set)
