"""What one operation may ask for. Everything is bounded before it is worked on.

A document is measured in one pass before it is validated: validation itself is worth protecting. Variables are counted
before they are coerced. Nothing here recurses over what a client has nested.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    ObjectValueNode,
    SelectionSetNode,
    StringValueNode,
    ValueNode,
    VariableNode,
    Visitor,
    visit,
)

from taskflow_gql.config import Settings
from taskflow_gql.database.texts import is_storable
from taskflow_gql.operations.documents import Document, Operation
from taskflow_gql.operations.errors import BAD_USER_INPUT, TOO_COMPLEX

# Selection sets in each other; inline fragments and spreads count. graphql-core recurses over them.
MAX_NESTING = 100
# Lists and objects in each other in a variable. Coercion recurses over them.
MAX_VALUE_NESTING = 100
# The costs of GraphQL's own fields, in values.
_INTROSPECTION = {"__schema": 30_000, "__type": 1_000}
# A text counts as one value more for so many characters: it may be decoded or searched for at each place.
_CHARACTERS_OF_VALUE = 250
# The fields of a connection that are as long as its page.
_ITEMS = ("edges", "nodes")
# An alias is repeated for each object of the answer and in the path of each error.
MAX_ALIAS_LENGTH = 100


class Prices:
    """The costs of a schema's fields and lists, in values.

    `weights` has the fields, by name, that cost more than one value. A list without a page size counts as
    `default_page_size`, with one as that number up to `max_page_size`. A list of ids counts as `max_ids` at most.
    """

    def __init__(
        self, weights: Mapping[str, int] = {}, *, default_page_size: int, max_page_size: int, max_ids: int
    ) -> None:
        self.weights = {**_INTROSPECTION, **weights}
        self.default_page_size = default_page_size
        self.max_page_size = max_page_size
        self.max_ids = max_ids


class Measure(NamedTuple):
    """What one operation asks for. A fragment counts as often as it is spread."""

    # Selection sets in each other.
    nesting: int
    # Fields in each other.
    depth: int
    aliases: int
    # The characters of the longest alias.
    longest_alias: int
    # Objects and values that the answer may have. A list counts as many times as its page is long.
    cost: int
    # Values in the lists and objects of arguments, counted in the same way: an argument may be read for each object.
    literals: int
    # How often each variable is used, counted in the same way; and how many values its default has.
    uses: Mapping[str, int]
    defaults: Mapping[str, int]


class _Set(NamedTuple):
    """A selection set of a definition. `parent` is the index of the set around it, -1 for the outermost."""

    node: SelectionSetNode
    parent: int
    # The field that the set belongs to; None for an inline fragment and the outermost.
    field: FieldNode | None
    nesting: int
    depth: int


def _sets_of(outermost: SelectionSetNode) -> list[_Set]:
    """All selection sets of a definition, each after the one around it."""
    sets = [_Set(outermost, -1, None, 1, 1)]
    for index, around in enumerate(sets):
        for selection in around.node.selections:
            if isinstance(selection, FieldNode) and selection.selection_set:
                # The standard introspection query is deep; graphql-core has a rule of its own against deeper ones.
                is_introspection = around.depth == 0 or selection.name.value in ("__schema", "__type")
                depth = 0 if is_introspection else around.depth + 1
                sets.append(_Set(selection.selection_set, index, selection, around.nesting + 1, depth))
            elif isinstance(selection, InlineFragmentNode):
                sets.append(_Set(selection.selection_set, index, None, around.nesting + 1, around.depth))
    return sets


class _Definition:
    """An operation or a fragment, by itself."""

    def __init__(self, outermost: SelectionSetNode) -> None:
        self.sets = _sets_of(outermost)
        self.spreads = [
            (selection.name.value, around)
            for around in self.sets
            for selection in around.node.selections
            if isinstance(selection, FragmentSpreadNode)
        ]
        self.nesting = max(around.nesting for around in self.sets)
        self.depth = max(around.depth for around in self.sets)


def measure(
    document: Document, operation: Operation, variables: Mapping[str, Any], prices: Prices
) -> tuple[Measure, set[str]]:
    """The measure, and the names of the variables that it depends on: those that are page sizes."""
    fragments = {name: _Definition(fragment.selection_set) for name, fragment in document.fragments.items()}
    asked = _Definition(operation.node.selection_set)
    order = _from_the_outside(asked, fragments)
    # Those that spread each other in a circle have no order. Validation refuses them, after it has followed the circle.
    circular = [fragment for name, fragment in fragments.items() if name not in order]
    circular_nesting = sum(fragment.nesting for fragment in circular)
    nestings = dict.fromkeys(fragments, circular_nesting)
    depths = dict.fromkeys(fragments, 0)
    for name in reversed(order):
        nestings[name], depths[name] = _heights(fragments[name], nestings, depths)
    nesting, depth = _heights(asked, nestings, depths)
    counts = _Counts(variables, prices)
    counts.add(asked, 1, 1, 1)
    for name in order:
        counts.add(fragments[name], counts.objects[name], counts.items[name], counts.times[name])
    made = Measure(
        # Of fragments that are not used too: validation does not know that yet.
        nesting=max(nesting, circular_nesting, *nestings.values()),
        depth=depth,
        aliases=counts.aliases,
        longest_alias=counts.longest_alias,
        cost=counts.cost,
        literals=counts.literals,
        uses=counts.uses,
        defaults={
            definition.variable.name.value: sum(1 for _ in _values_in(definition.default_value))
            for definition in operation.node.variable_definitions or ()
            if definition.default_value
        },
    )
    return made, counts.page_sizes


def _from_the_outside(asked: _Definition, fragments: Mapping[str, _Definition]) -> list[str]:
    """The fragments, each after all that spread it. Without those of circles and what only these spread."""
    waiting_for = dict.fromkeys(fragments, 0)
    for definition in fragments.values():
        for name, _ in definition.spreads:
            if name in waiting_for:
                waiting_for[name] += 1
    order = [name for name, count in waiting_for.items() if count == 0]
    for each in order:
        for name, _ in fragments[each].spreads:
            if name in waiting_for:
                waiting_for[name] -= 1
                if waiting_for[name] == 0:
                    order.append(name)
    return order


def _heights(definition: _Definition, nestings: Mapping[str, int], depths: Mapping[str, int]) -> tuple[int, int]:
    """How deep the definition is, what it spreads included: selection sets in each other, fields in each other."""
    nesting, depth = definition.nesting, definition.depth
    for name, around in definition.spreads:
        nesting = max(nesting, around.nesting + nestings.get(name, 0))
        if around.depth:
            depth = max(depth, around.depth - 1 + depths.get(name, 0))
    return nesting, depth


class _Counts:
    """Adds up what definitions ask for, from the outside to the inside."""

    def __init__(self, variables: Mapping[str, Any], prices: Prices) -> None:
        self._variables = variables
        self._prices = prices
        self.aliases = self.longest_alias = self.cost = self.literals = 0
        self.uses: defaultdict[str, int] = defaultdict(int)
        self.page_sizes: set[str] = set()
        # By fragment: for how many objects it is asked, how many items a list in it has, and how often it is spread.
        self.objects: defaultdict[str, int] = defaultdict(int)
        self.items: defaultdict[str, int] = defaultdict(int)
        self.times: defaultdict[str, int] = defaultdict(int)

    def add(self, definition: _Definition, objects: int, items_of_lists: int, times: int) -> None:
        # By selection set: for how many objects it is asked, and how many items a list in it has for all of them.
        counts: list[tuple[int, int]] = []
        for around in definition.sets:
            count, items = counts[around.parent] if around.parent >= 0 else (objects, items_of_lists)
            if around.field is not None:
                is_list = around.field.name.value in _ITEMS
                count = (items if is_list else count) * self._id_count(around.field)
                items = count if is_list else count * self._page_size(around.field)
            counts.append((count, items))
            for selection in around.node.selections:
                if isinstance(selection, FieldNode):
                    self.cost += count * self._prices.weights.get(selection.name.value, 1)
                    if selection.alias:
                        self.aliases += times
                        self.longest_alias = max(self.longest_alias, len(selection.alias.value))
                    for argument in selection.arguments or ():
                        self._add_values(argument.value, count)
                elif isinstance(selection, FragmentSpreadNode):
                    self.objects[selection.name.value] += count
                    self.items[selection.name.value] += items
                    self.times[selection.name.value] += times

    def _add_values(self, argument: ValueNode, count: int) -> None:
        # A number or a text by itself costs nothing beside its field.
        self.literals -= count
        for value in _values_in(argument):
            self.literals += count
            if isinstance(value, StringValueNode):
                self.literals += count * (len(value.value) // _CHARACTERS_OF_VALUE)
            if isinstance(value, VariableNode):
                self.uses[value.name.value] += count

    def _page_size(self, field: FieldNode) -> int:
        sizes = [
            self._int(argument.value) for argument in field.arguments or () if argument.name.value in ("first", "last")
        ]
        return max(1, min(max(sizes), self._prices.max_page_size)) if sizes else self._prices.default_page_size

    def _id_count(self, field: FieldNode) -> int:
        """How many objects a field asks for by their ids. A variable counts as the longest list."""
        for argument in field.arguments or ():
            if argument.name.value == "ids":
                ids = argument.value
                most = self._prices.max_ids
                return min(len(ids.values), most) if isinstance(ids, ListValueNode) else most
        return 1

    def _int(self, value: object) -> int:
        match value:
            case IntValueNode():
                # int() of a literal with millions of digits is slow; such a page size is refused later anyway.
                return int(value.value) if len(value.value) < 10 else self._prices.max_page_size
            case VariableNode():
                self.page_sizes.add(value.name.value)
                given = self._variables.get(value.name.value)
                return given if type(given) is int else self._prices.max_page_size
        return self._prices.default_page_size


def _values_in(node: ValueNode) -> Iterator[ValueNode]:
    """The literals and variables in a value, itself and the lists and objects in it included."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ListValueNode):
            stack += node.values
        elif isinstance(node, ObjectValueNode):
            stack += [field.value for field in node.fields]


class Verdict(NamedTuple):
    """The measure of an operation for one set of page sizes, and what is wrong with it."""

    measure: Measure
    problems: list[GraphQLError]


# A client that sends ever new page sizes is measured each time.
_MAX_VERDICTS = 16


def problems_of_request(
    document: Document, operation: Operation, variables: Mapping[str, Any], settings: Settings, prices: Prices
) -> tuple[list[GraphQLError], int]:
    """Why the document must not even be validated: it asks for too much, or holds text that no database could hold.
    And the cost of the operation.
    """
    verdict = _verdict(document, operation, variables, settings, prices)
    # A copy: the verdict is kept.
    problems = [*verdict.problems]
    values = _Values(settings.max_query_values)
    sizes = {name: values.add(value) for name, value in variables.items() if values.are_few}
    count = verdict.measure.literals
    for name, uses in verdict.measure.uses.items():
        # The variable itself is among the literals.
        count += uses * (sizes.get(name, verdict.measure.defaults.get(name, 1)) - 1)
    count = max(count, values.count)
    if count > settings.max_query_values:
        problems.append(_too_much(operation, f"{_shown(count)} values in arguments", settings.max_query_values))
    elif values.is_too_deep:
        problems.append(_bad(f"A variable is nested more than {MAX_VALUE_NESTING} deep"))
    elif not values.are_storable:
        problems.append(_bad("A variable holds U+0000 or half a surrogate pair, which is no text that can be kept"))
    return problems, verdict.measure.cost


class _Values:
    """Looks through variables, level by level, and stops when there are too many or they are too deep."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0
        self.is_too_deep = False
        self.are_storable = True

    @property
    def are_few(self) -> bool:
        return self.count <= self._limit

    def add(self, value: Any) -> int:
        """How many values it has, itself included."""
        if not isinstance(value, dict | list):
            size = 1
            if isinstance(value, str):
                size += len(value) // _CHARACTERS_OF_VALUE
                self.are_storable = self.are_storable and is_storable(value)
            self.count += size
            return size
        before = self.count
        level, depth = [value], 0
        while level and self.are_few and not self.is_too_deep:
            self.count += len(level)
            depth += 1
            self.is_too_deep = depth > MAX_VALUE_NESTING
            inner: list[Any] = []
            for each in level:
                if isinstance(each, str):
                    self.count += len(each) // _CHARACTERS_OF_VALUE
                    self.are_storable = self.are_storable and is_storable(each)
                elif isinstance(each, dict):
                    self.are_storable = self.are_storable and all(map(is_storable, each))
                    inner.extend(each.values())
                elif isinstance(each, list):
                    inner.extend(each)
            level = inner
        return self.count - before


def _verdict(
    document: Document, operation: Operation, variables: Mapping[str, Any], settings: Settings, prices: Prices
) -> Verdict:
    """Found once for each combination of page sizes: nothing else of the variables counts."""
    if operation.page_sizes is not None:
        sizes = tuple(_as_size(variables.get(name), prices) for name in operation.page_sizes)
        known: Verdict | None = operation.verdicts.get(sizes)
        if known is not None:
            return known
    measured, page_sizes = measure(document, operation, variables, prices)
    verdict = Verdict(measured, _problems_of_document(document, operation, measured, settings))
    operation.page_sizes = tuple(sorted(page_sizes))
    if len(operation.verdicts) < _MAX_VERDICTS:
        sizes = tuple(_as_size(variables.get(name), prices) for name in operation.page_sizes)
        operation.verdicts[sizes] = verdict
    return verdict


def _problems_of_document(
    document: Document, operation: Operation, measured: Measure, settings: Settings
) -> list[GraphQLError]:
    problems = [
        _too_much(operation, f"{_shown(found)} {what}", allowed)
        for found, allowed, what in (
            (measured.nesting, MAX_NESTING, "selection sets in each other, counted through fragments"),
            (measured.depth, settings.max_query_depth, "deep, counted in nested selections"),
            (measured.aliases, settings.max_query_aliases, "aliases"),
            (measured.longest_alias, MAX_ALIAS_LENGTH, "characters in an alias"),
            (measured.cost, settings.max_query_cost, "values at most, counted from the page sizes"),
        )
        if found > allowed
    ]
    if not _is_storable_document(document.node, document.text):
        problems.append(_bad("The document holds U+0000 in a text, which cannot be kept"))
    return problems


def _as_size(value: object, prices: Prices) -> int | None:
    # What counts alike is alike.
    return max(1, min(value, prices.max_page_size)) if type(value) is int else None


def _too_much(operation: Operation, what: str, limit: int) -> GraphQLError:
    message = f"The operation asks for too much: {what}; the limit is {limit}"
    return GraphQLError(message, nodes=[operation.node], extensions={"code": TOO_COMPLEX})


def _shown(count: int) -> str:
    # Fragments that spread each other twice make numbers of thousands of digits, which are slow to print.
    return str(count) if count < 10**18 else "over 10^18"


def _bad(message: str) -> GraphQLError:
    return GraphQLError(message, extensions={"code": BAD_USER_INPUT})


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
