"""How much one operation may ask for, found out before it is validated: validation itself is worth protecting.

One pass over the document that measures every selection set and every fragment once, however often it is spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    StringValueNode,
    VariableNode,
    Visitor,
    visit,
)
from graphql.validation.rules import overlapping_fields_can_be_merged
from graphql.validation.validate import ValidationAbortedError

from taskflow_gql.api.documents import Document
from taskflow_gql.config import Settings
from taskflow_gql.services.paging import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from taskflow_gql.services.text import is_storable

TOO_COMPLEX = "QUERY_TOO_COMPLEX"
BAD_INPUT = "BAD_USER_INPUT"

# What graphql-core may spend on comparing fields that repeat each other, in its own units. Its default of 500,000 lets
# a document of 10 KB take two seconds; a front end of a hundred fragments needs 30,000.
overlapping_fields_can_be_merged.MAX_COMPLEXITY_BUDGET = 100_000


@dataclass(frozen=True, slots=True)
class Measure:
    """What a selection set asks for, fragments counted as often as they are spread."""

    depth: int
    aliases: int
    # Objects and values that may have to be answered: each list counts as many times as its page is long.
    cost: int


_NOTHING = Measure(0, 0, 0)


class _Meter:
    """Measures selection sets of one document, each fragment once."""

    def __init__(self, document: DocumentNode, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self._fragments = {
            node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)
        }
        self._measured: dict[str, Measure] = {}
        # The variables that were asked for.
        self.page_sizes: set[str] = set()

    def selection_set(self, node: SelectionSetNode | None) -> Measure:
        depth = aliases = cost = 0
        for selection in node.selections if node else ():
            match selection:
                case FieldNode():
                    part = self._field(selection)
                case InlineFragmentNode():
                    part = self.selection_set(selection.selection_set)
                case FragmentSpreadNode():
                    part = self._fragment(selection.name.value)
                case _:
                    part = _NOTHING
            depth = max(depth, part.depth)
            aliases += part.aliases
            cost += part.cost
        return Measure(depth, aliases, cost)

    def _field(self, field: FieldNode) -> Measure:
        within = self.selection_set(field.selection_set)
        alias = 1 if field.alias else 0
        if field.name.value in ("__schema", "__type"):
            # The standard introspection query is deep; graphql-core has a rule of its own against deeper ones.
            return Measure(1, within.aliases + alias, within.cost + 1)
        return Measure(within.depth + 1, within.aliases + alias, 1 + within.cost * self._page_size(field))

    def _fragment(self, name: str) -> Measure:
        if name not in self._measured:
            fragment = self._fragments.get(name)
            # Set before descending: a fragment that spreads itself adds nothing here and is refused by validation.
            self._measured[name] = _NOTHING
            if fragment is not None:
                self._measured[name] = self.selection_set(fragment.selection_set)
        return self._measured[name]

    def _page_size(self, field: FieldNode) -> int:
        sizes = [
            self._int(argument.value) for argument in field.arguments or () if argument.name.value in ("first", "last")
        ]
        if sizes:
            return max(1, min(max(sizes), MAX_PAGE_SIZE))
        is_connection = any(
            isinstance(selection, FieldNode) and selection.name.value in ("edges", "nodes")
            for selection in (field.selection_set.selections if field.selection_set else ())
        )
        return DEFAULT_PAGE_SIZE if is_connection else 1

    def _int(self, value: object) -> int:
        match value:
            case IntValueNode():
                # int() of a literal with millions of digits is slow; such a page size is refused later anyway.
                return int(value.value) if len(value.value) < 10 else MAX_PAGE_SIZE
            case VariableNode():
                self.page_sizes.add(value.name.value)
                given = self._variables.get(value.name.value)
                return given if type(given) is int else MAX_PAGE_SIZE
        return DEFAULT_PAGE_SIZE


def _limit(meter: _Meter, operations: list[OperationDefinitionNode], settings: Settings) -> list[GraphQLError]:
    """What is too much, empty when nothing is."""
    errors = []
    for operation in operations:
        measure = meter.selection_set(operation.selection_set)
        for found, allowed, what in (
            (measure.depth, settings.max_query_depth, "deep, counted in nested selections"),
            (measure.aliases, settings.max_query_aliases, "aliases"),
            (measure.cost, settings.max_query_cost, "values at most, counted from the page sizes"),
        ):
            if found > allowed:
                message = f"The operation asks for too much: {found} {what}; the limit is {allowed}"
                errors.append(GraphQLError(message, nodes=[operation], extensions={"code": TOO_COMPLEX}))
    return errors


def _is_storable(variables: Mapping[str, Any]) -> bool:
    # Not recursive: variables may be nested as deep as they are long.
    rest: list[Any] = [variables]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            if not is_storable(value):
                return False
        elif isinstance(value, dict):
            rest.extend(value)
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
    return True


class _TextFinder(Visitor):
    """Whether a document's own texts can be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.all_storable = True

    def enter_string_value(self, node: StringValueNode, *_: Any) -> None:
        self.all_storable = self.all_storable and is_storable(node.value)


def _is_storable_document(document: DocumentNode, source: str) -> bool:
    # Only these two ways lead to U+0000; few documents have either.
    if "\x00" not in source and "\\u" not in source:
        return True
    finder = _TextFinder()
    visit(document, finder)
    return finder.all_storable


# A client that sends ever new page sizes is measured each time.
_MOST_MEASURES = 16


def problems_of_request(document: Document, variables: Mapping[str, Any], settings: Settings) -> list[GraphQLError]:
    """Why the document must not even be validated: it asks for too much, or holds text that no database could hold."""
    problems = _problems_of_document(document, variables, settings)
    # Of the caller's own: those of the document are kept.
    return [*problems] if _is_storable(variables) else [*problems, _unstorable_variable()]


def _problems_of_document(document: Document, variables: Mapping[str, Any], settings: Settings) -> list[GraphQLError]:
    """Found out once for each combination of page sizes: nothing else of the variables counts."""
    if document.page_sizes is not None:
        sizes = tuple(_as_size(variables.get(name)) for name in document.page_sizes)
        if sizes in document.problems:
            return document.problems[sizes]
    meter = _Meter(document.node, variables)
    problems = _limit(meter, [operation.node for operation in document.operations], settings)
    if not _is_storable_document(document.node, document.text):
        message = "The document holds U+0000 in a text, which cannot be kept"
        problems.append(GraphQLError(message, extensions={"code": BAD_INPUT}))
    document.page_sizes = tuple(sorted(meter.page_sizes))
    if len(document.problems) < _MOST_MEASURES:
        sizes = tuple(_as_size(variables.get(name)) for name in document.page_sizes)
        document.problems[sizes] = problems
    return problems


def _as_size(value: object) -> int | None:
    # What counts alike is alike.
    return max(1, min(value, MAX_PAGE_SIZE)) if type(value) is int else None


def _unstorable_variable() -> GraphQLError:
    message = "A variable holds U+0000 or half a surrogate pair, which is no text that can be kept"
    return GraphQLError(message, extensions={"code": BAD_INPUT})


def explain_abortion(errors: list[GraphQLError]) -> None:
    """Says why validation gave up, where graphql-core does not."""
    for error in errors:
        # The other reason, too many errors, says so itself.
        if isinstance(error, ValidationAbortedError) and error.message == "Validation aborted.":
            error.message = "The document repeats fields, or nests fragments, too much to be validated"
            error.extensions = {"code": TOO_COMPLEX}
