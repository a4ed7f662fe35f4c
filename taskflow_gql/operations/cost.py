"""Limits of what one operation may request, checked before any expensive work.

A document is measured in one pass before it is validated, because validation itself can be slow. Variables are counted
before they are coerced. Nothing here recurses, because clients choose the depth of documents and variables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
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

# Nested selection sets, including those of inline fragments and spreads. graphql-core recurses over them.
MAX_NESTING = 100
# Nested lists and objects in a variable. Coercion recurses over them.
MAX_VALUE_NESTING = 100
# The costs of GraphQL's own fields, in values.
_INTROSPECTION = {"__schema": 30_000, "__type": 1_000}
# A string counts as one more value for each so many characters: it may be decoded or searched for at each use.
_CHARACTERS_OF_VALUE = 250
# An alias is repeated for each object in the answer and in the path of each error.
MAX_ALIAS_LENGTH = 100


class Prices:
    """The costs of a schema's fields and lists, in values.

    `weights` holds the costs of fields that cost more than one value, by field name. A list counts as its page size, at
    most `max_page_size`, or as `default_page_size` if none is given. `lists` names the fields that return their page
    as a list, not as a connection. A list of ids counts as at most `max_ids`.

    `batches` holds the cost of one change by a field that makes several: as many as its input has literal `mutations`,
    else `max_batch`. `items` names the fields of connections and batches that are lists of their length.
    """

    def __init__(
        self,
        weights: Mapping[str, int] = {},
        *,
        lists: Collection[str] = (),
        items: Collection[str] = ("edges", "nodes"),
        batches: Mapping[str, int] = {},
        default_page_size: int,
        max_page_size: int,
        max_ids: int,
        max_batch: int = 0,
    ) -> None:
        self.weights = {**_INTROSPECTION, **weights}
        self.lists = lists
        self.items = items
        self.batches = batches
        self.max_batch = max_batch
        self.default_page_size = default_page_size
        self.max_page_size = max_page_size
        self.max_ids = max_ids


class Measure(NamedTuple):
    """The size of what one operation requests. A fragment counts once for each spread."""

    # Depth of nested selection sets.
    nesting: int
    # Depth of nested fields.
    depth: int
    aliases: int
    # Characters of the longest alias.
    longest_alias: int
    # The maximum number of objects and values in the answer, counted from the page sizes.
    cost: int
    # Values in the lists and objects of arguments, multiplied likewise: an argument may be read for each object.
    literals: int
    # How often each variable is used, multiplied likewise, and how many values its default has.
    uses: Mapping[str, int]
    defaults: Mapping[str, int]


class _Set(NamedTuple):
    """A selection set of a definition. `parent` is the index of the enclosing set, -1 for the outermost."""

    node: SelectionSetNode
    parent: int
    # The field that the set belongs to; None for an inline fragment and the outermost.
    field: FieldNode | None
    nesting: int
    depth: int


def _sets_of(outermost: SelectionSetNode) -> list[_Set]:
    """All selection sets of a definition, each after the enclosing one."""
    sets = [_Set(outermost, -1, None, 1, 1)]
    for index, around in enumerate(sets):
        for selection in around.node.selections:
            if isinstance(selection, FieldNode) and selection.selection_set:
                # Introspection has no depth here: the standard query is deep, and graphql-core has its own rule against
                # deeper ones.
                is_introspection = around.depth == 0 or selection.name.value in ("__schema", "__type")
                depth = 0 if is_introspection else around.depth + 1
                sets.append(_Set(selection.selection_set, index, selection, around.nesting + 1, depth))
            elif isinstance(selection, InlineFragmentNode):
                sets.append(_Set(selection.selection_set, index, None, around.nesting + 1, around.depth))
    return sets


class _Definition:
    """An operation or a fragment, without what it spreads."""

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
    """Return the measure and the names of the variables that it depends on, which are page sizes."""
    fragments = {name: _Definition(fragment.selection_set) for name, fragment in document.fragments.items()}
    asked = _Definition(operation.node.selection_set)
    order = _outermost_first(asked, fragments)
    # Fragments in a cycle have no order. Validation refuses them, but only after it has followed the cycle.
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
        # Includes fragments that are not used, because validation visits them too.
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


def _outermost_first(asked: _Definition, fragments: Mapping[str, _Definition]) -> list[str]:
    """The fragments, each after all that spread it.

    Leaves out fragments in cycles and everything that they spread.
    """
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
    """The depths of nested selection sets and of nested fields, including what the definition spreads."""
    nesting, depth = definition.nesting, definition.depth
    for name, around in definition.spreads:
        nesting = max(nesting, around.nesting + nestings.get(name, 0))
        if around.depth:
            depth = max(depth, around.depth - 1 + depths.get(name, 0))
    return nesting, depth


class _Counts:
    """Adds up the counts of definitions. A fragment must be added after all definitions that spread it."""

    def __init__(self, variables: Mapping[str, Any], prices: Prices) -> None:
        self._variables = variables
        self._prices = prices
        self.aliases = self.longest_alias = self.cost = self.literals = 0
        self.uses: defaultdict[str, int] = defaultdict(int)
        self.page_sizes: set[str] = set()
        # By fragment: the number of objects it is selected on, the length of a list in it, and the number of spreads.
        self.objects: defaultdict[str, int] = defaultdict(int)
        self.items: defaultdict[str, int] = defaultdict(int)
        self.times: defaultdict[str, int] = defaultdict(int)

    def add(self, definition: _Definition, objects: int, items_of_lists: int, times: int) -> None:
        # By selection set: the number of objects it is selected on, and the total length of a list in it.
        counts: list[tuple[int, int]] = []
        for around in definition.sets:
            count, items = counts[around.parent] if around.parent >= 0 else (objects, items_of_lists)
            if around.field is not None:
                is_list = around.field.name.value in self._prices.items
                count = (items if is_list else count) * self._id_count(around.field)
                items = count if is_list else count * self._length(around.field)
                if around.field.name.value in self._prices.lists:
                    count = items
            counts.append((count, items))
            for selection in around.node.selections:
                if isinstance(selection, FieldNode):
                    self.cost += count * self._price(selection)
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
        # The first value is free: it is counted with its field.
        self.literals -= count
        for value in _values_in(argument):
            self.literals += count
            if isinstance(value, StringValueNode):
                self.literals += count * (len(value.value) // _CHARACTERS_OF_VALUE)
            if isinstance(value, VariableNode):
                self.uses[value.name.value] += count

    def _price(self, field: FieldNode) -> int:
        name = field.name.value
        if name in self._prices.batches:
            return self._prices.batches[name] * self._length(field)
        return self._prices.weights.get(name, 1)

    def _length(self, field: FieldNode) -> int:
        return self._batch_size(field) if field.name.value in self._prices.batches else self._page_size(field)

    def _batch_size(self, field: FieldNode) -> int:
        for argument in field.arguments or ():
            if isinstance(argument.value, ObjectValueNode):
                for given in argument.value.fields:
                    if given.name.value == "mutations" and isinstance(given.value, ListValueNode):
                        return min(len(given.value.values), self._prices.max_batch)
        return self._prices.max_batch

    def _page_size(self, field: FieldNode) -> int:
        sizes = [
            self._int(argument.value) for argument in field.arguments or () if argument.name.value in ("first", "last")
        ]
        return max(1, min(max(sizes), self._prices.max_page_size)) if sizes else self._prices.default_page_size

    def _id_count(self, field: FieldNode) -> int:
        """How many objects the field selects by id. A variable counts as the longest possible list."""
        for argument in field.arguments or ():
            if argument.name.value == "ids":
                ids = argument.value
                most = self._prices.max_ids
                return min(len(ids.values), most) if isinstance(ids, ListValueNode) else most
        return 1

    def _int(self, value: object) -> int:
        match value:
            case IntValueNode():
                # int() of a literal with millions of digits is slow, and such a page size is refused later.
                return int(value.value) if len(value.value) < 10 else self._prices.max_page_size
            case VariableNode():
                self.page_sizes.add(value.name.value)
                given = self._variables.get(value.name.value)
                return given if type(given) is int else self._prices.max_page_size
        return self._prices.default_page_size


def _values_in(node: ValueNode) -> Iterator[ValueNode]:
    """The literals and variables in a value, including itself and nested lists and objects."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ListValueNode):
            stack += node.values
        elif isinstance(node, ObjectValueNode):
            stack += [field.value for field in node.fields]


class Verdict(NamedTuple):
    """The measure of an operation for one set of page sizes, and its problems."""

    measure: Measure
    problems: list[GraphQLError]


# Cached verdicts of one operation. Further combinations of page sizes are measured each time.
_MAX_VERDICTS = 16


def problems_of_request(
    document: Document, operation: Operation, variables: Mapping[str, Any], settings: Settings, prices: Prices
) -> tuple[list[GraphQLError], int]:
    """Return the problems that forbid validating the document, and the cost of the operation.

    The problems are requests for too much, and text that the database cannot store.
    """
    verdict = _verdict(document, operation, variables, settings, prices)
    # A copy, because the verdict is cached.
    problems = [*verdict.problems]
    values = _Values(settings.max_query_values)
    sizes = {name: values.add(value) for name, value in variables.items() if values.are_few}
    count = verdict.measure.literals
    for name, uses in verdict.measure.uses.items():
        # The variable itself is already counted among the literals.
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
    """Counts the values of variables, level by level. Stops when there are too many or they are nested too deeply."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0
        self.is_too_deep = False
        self.are_storable = True

    @property
    def are_few(self) -> bool:
        return self.count <= self._limit

    def add(self, value: Any) -> int:
        """Count the value and return how many values it has, including itself."""
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
    """The verdict, cached by the page sizes: it depends on no other variables."""
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
    # Clamped like `_page_size`, so that sizes that count the same share a verdict.
    return max(1, min(value, prices.max_page_size)) if type(value) is int else None


def _too_much(operation: Operation, what: str, limit: int) -> GraphQLError:
    message = f"The operation asks for too much: {what}; the limit is {limit}"
    return GraphQLError(message, nodes=[operation.node], extensions={"code": TOO_COMPLEX})


def _shown(count: int) -> str:
    # A chain of fragments that each spread the next one twice gives numbers of thousands of digits, slow to print.
    return str(count) if count < 10**18 else "over 10^18"


def _bad(message: str) -> GraphQLError:
    return GraphQLError(message, extensions={"code": BAD_USER_INPUT})


class _StringChecker(Visitor):
    """Finds out whether the database can store all strings of a document."""

    def __init__(self) -> None:
        super().__init__()
        self.all_storable = True

    def enter_string_value(self, node: StringValueNode, *_: Any) -> None:
        self.all_storable = self.all_storable and is_storable(node.value)


def _is_storable_document(document: DocumentNode, source: str) -> bool:
    # U+0000 can only be written in these two ways, and few documents contain either.
    if "\x00" not in source and "\\u" not in source:
        return True
    finder = _StringChecker()
    visit(document, finder)
    return finder.all_storable
