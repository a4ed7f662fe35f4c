"""The data that the parts of the executor share: plans, positions in the answer, and pending values.

A `Plan` is a tree that mirrors the answer. A `Selection` holds what is selected of one object type at one place, a
`Field` is one entry of it, and a `Level` is one position a value can have: the field itself, or the items of its list.
A selection is planned when its first object arrives, so types that never occur cost nothing.

graphql-core's own `collect_fields` decides which fields are selected, with the variables of the request. A plan is
therefore valid for one set of values of the variables that @skip and @include use.

This module imports no other module of the package except `arguments`, `batch` and `core`.
"""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import Context
from enum import Enum
from typing import Any, Protocol, TypeAlias

from graphql import (
    GraphQLField,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLResolveInfo,
    GraphQLSchema,
    OperationDefinitionNode,
    is_abstract_type,
    is_leaf_type,
    is_non_null_type,
)
from graphql.pyutils import Path

from .arguments import ArgumentReaders, Read
from .batch import Batch
from .core import FieldDetailsList, GroupedFieldSet, IncrementalExecutor

Info: TypeAlias = GraphQLResolveInfo[Any]

# The contents of a `Path` (previous position, key, type name) as a bare tuple: cheaper to make, and rarely read.
Position: TypeAlias = Any

# An object that asks for a related one: its answer, the key, its position.
Slot: TypeAlias = tuple[dict[str, Any], Any, Position]

CollectSubfields = Callable[[GraphQLObjectType, FieldDetailsList], GroupedFieldSet]

# The budget of a fast path, in misses saved up, and the number of lists for which an exhausted one rests.
MAX_FAST_PATH_BUDGET = 100


def path_of(position: Position) -> Any:
    # A loop instead of recursion: an asynchronous answer may be deeper than the stack.
    inner: list[tuple[Position, str | int, str | None]] = []
    while type(position) is tuple:
        inner.append(position)
        position = position[0]
    path = position
    for _, key, type_name in reversed(inner):
        path = Path(path, key, type_name)
    return path


def is_below(position: Position, above: Position) -> bool:
    while position is not above:
        if type(position) is not tuple:
            return False
        position = position[0]
    return True


class Execution(Protocol):
    """The part of a running execution that generated functions and completions use. `run.Run` implements it."""

    # The parts that graphql-core's executor does.
    executor: IncrementalExecutor
    is_awaitable: Callable[[Any], bool]
    # Keys of batched relations, by field, that the current completion has asked for.
    asked: defaultdict[Field, list[Slot]]

    def info(self, field: Field, position: Position) -> Info: ...

    def info_at(self, level: Level, position: Position) -> Info: ...

    def details(self, field: Field) -> FieldDetailsList: ...

    def arguments(self, field: Field) -> dict[str, Any]: ...

    def wait(
        self,
        level: Level,
        position: Position,
        awaitable: Awaitable[Any],
        complete: Callable[[Any], Any] | None = None,
    ) -> Wait: ...

    def exact(self, level: Level, value: Any, position: Position, info: Info | None) -> Any: ...

    def exact_fields(self, selection: Selection, value: Any, position: Position) -> Any: ...

    def field_failed(self, field: Field, error: Exception, position: Position) -> None: ...

    def item_failed(self, level: Level, error: Exception, position: Position, items: Sequence[Any]) -> Any: ...


Fill = Callable[[Execution, dict[str, Any], Any, Position], None]
Quick = Callable[[Any], dict[str, Any] | None]
Complete = Callable[[Execution, Any, Position, Info | None], Any]


class Planning(Protocol):
    """The part of the planner that a plan uses to grow. `planner.Planner` implements it."""

    def fields_of(self, selection: Selection) -> list[Field]: ...

    def fill_for(self, selection: Selection, cls: type) -> Fill | None: ...

    def function(self, selection: Selection, of_mapping: bool, cls: type = object) -> Fill | None: ...


class EnumNames(dict[str | int, Any]):
    """Names of an enum's values, by text or by the identity of a member."""

    def __init__(self) -> None:
        super().__init__()
        # Members are kept so that no other object gets their identity.
        self._members: list[Enum] = []

    def remember(self, value: Any, name: Any) -> None:
        if type(value) is str:
            self[value] = name
        elif isinstance(value, Enum):
            self._members.append(value)
            self[id(value)] = name


class FastPathBudget:
    """Decides whether the items of a list try the fast path (`quick`), by how often it succeeded lately.

    A miss costs more time than a hit saves. Hits fill the budget up to its maximum, misses use up two units each. An
    exhausted budget switches the fast path off for `MAX_FAST_PATH_BUDGET` lists; then it gets another chance.
    """

    __slots__ = ("left",)

    def __init__(self) -> None:
        # Below zero: minus the number of lists for which the fast path is still switched off.
        self.left = MAX_FAST_PATH_BUDGET

    def account(self, *, hits: int, misses: int) -> None:
        """Account for one list, whether or not it tried the fast path."""
        if self.left <= 0:
            self.left += 1
            return
        self.left = min(MAX_FAST_PATH_BUDGET, self.left + hits - 2 * misses)
        if self.left <= 0:
            self.left = -MAX_FAST_PATH_BUDGET


class Level:
    """A position in the answer and its type. `parent` is the enclosing position, None at the root."""

    # Completes a value of this level, and the level of a list's items; the planner sets both.
    complete: Complete
    items: Level | None = None

    def __init__(self, field: Field, type_: GraphQLOutputType, parent: Level | None) -> None:
        self.field = field
        self.type = type_
        self.parent = parent
        self.nullable = not is_non_null_type(type_)
        self.nullable_type: Any = type_.of_type if is_non_null_type(type_) else type_
        self.selections: dict[str, Selection] = {}
        self.enum_names = EnumNames()
        # True for an item of a list, and for every position within one.
        self.is_in_list: bool = parent is not None and (parent.field is field or parent.is_in_list)
        # Functions by the class of the source, for objects whose type needs no check; empty for other types.
        self.fills: dict[type, Fill] = {}
        self.quicks: dict[type, Quick] = {}
        # For the items of a list.
        self.fast_path_budget = FastPathBudget()

    def null(self) -> None:
        if not self.nullable:
            field = self.field
            raise TypeError(f"Cannot return null for non-nullable field {field.parent_type}.{field.field_name}.")

    def selection_of(self, type_: GraphQLObjectType) -> Selection:
        """Return what is selected of objects of this type at this level."""
        selection = self.selections.get(type_.name)
        if selection is None:
            path = self.field.path
            if is_abstract_type(self.nullable_type):
                path = f"{path}<{type_}>"
            selection = self.selections[type_.name] = Selection(self.field.plan, type_, self, path)
        return selection


class Field:
    """One entry of a selection, under its response name. The planner sets how its value is read."""

    level: Level
    is_leaf: bool
    # Exactly one of these applies: the value is loaded in a batch, read from an attribute, returned by a function of
    # the source or by the resolver, or read as graphql-core does by default.
    batch: Batch | None = None
    attribute: str | None = None
    function: Callable[[Any], Any] | None = None
    resolve: Callable[..., Any] | None = None
    is_read_by_default = False
    # Reads the arguments from the variables. None if the field has none, or if graphql-core has to read them.
    read_arguments: Read | None = None
    # True if completing the value takes an info even if the resolver takes none.
    needs_info = False
    is_typename = False

    def __init__(self, selection: Selection, name: str, details: FieldDetailsList, definition: GraphQLField) -> None:
        self.plan = selection.plan
        self.selection = selection
        self.name = name
        self.details = details
        self.definition = definition
        self.nodes = [detail.node for detail in details]
        self.field_name = self.nodes[0].name.value
        self.parent_type = selection.type
        self.path = f"{selection.path}.{name}"
        self.has_arguments = bool(definition.args or self.nodes[0].arguments)

    def set_level(self, level: Level) -> None:
        self.level = level
        self.is_leaf = is_leaf_type(level.nullable_type)

    def is_carried_by(self, cls: type) -> bool:
        """Tell whether objects of this class carry the related object, so that nothing has to be loaded."""
        return self.batch is not None and not self.has_arguments and self.batch.is_carried_by(cls)


class Selection:
    """The fields selected of one object type at one place, and the functions that fill in its answer."""

    def __init__(
        self,
        plan: Plan,
        type_: GraphQLObjectType,
        level: Level | None,
        path: str,
        groups: GroupedFieldSet | None = None,
    ) -> None:
        self.plan = plan
        self.type = type_
        self.level = level
        self.path = path
        # By the class of the source. It is read for every object, so it holds plain classes only.
        self.fills: dict[type, Fill] = {}
        # By class likewise, for classes whose objects store everything that is selected.
        self.quicks: dict[type, Quick] = {}
        self.quicks_made = 0
        # By what of the class matters: whether it is a mapping, and which relations its objects carry.
        self.generated: dict[tuple[bool, frozenset[str]], Fill] = {}
        self._groups = groups
        self._fields: list[Field] | None = None

    @property
    def groups(self) -> GroupedFieldSet:
        if self._groups is None:
            assert self.level is not None
            self._groups = self.plan.collect_subfields(self.type, self.level.field.details)
        return self._groups

    @property
    def fields(self) -> list[Field]:
        if self._fields is None:
            self._fields = self.plan.planner.fields_of(self)
        return self._fields

    def fill_for(self, cls: type) -> Fill | None:
        """Return the function for objects of this class, None if the plan is full and graphql-core has to do it."""
        return self.plan.planner.fill_for(self, cls)


class Plan:
    """The plan of one operation for one set of @skip and @include values.

    `admit(count)` tells whether `count` more fields may be planned. All plans of a document share the argument readers.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        planner: Planning,
        operation: OperationDefinitionNode,
        root_type: GraphQLObjectType,
        groups: GroupedFieldSet,
        collect_subfields: CollectSubfields,
        admit: Callable[[int], bool],
        argument_readers: ArgumentReaders,
    ) -> None:
        self.schema = schema
        self.planner = planner
        # The operation that the nodes of the fields belong to.
        self.operation = operation
        self.collect_subfields = collect_subfields
        self.admit = admit
        self.argument_readers = argument_readers
        self.root = Selection(self, root_type, None, root_type.name, groups)
        # The fields of a mutation run one after the other, so each is a selection of its own.
        self.serial = [
            Selection(self, root_type, None, root_type.name, {name: details}) for name, details in groups.items()
        ]


class Wait:
    """A pending value: an awaitable, the function that completes its value, and the value's place in the answer.

    The Wait itself takes that place until the value is there. `complete` is None if the value needs no completion.
    """

    __slots__ = ("awaitable", "complete", "container", "key", "level", "position")

    def __init__(
        self,
        level: Level,
        position: Position,
        awaitable: Awaitable[Any],
        complete: Callable[[Any], Any] | None,
    ) -> None:
        self.level = level
        self.position = position
        self.awaitable = awaitable
        self.complete = complete
        self.container: Any = None
        self.key: Any = None

    def place(self, container: dict[str, Any] | list[Any], key: str | int) -> None:
        self.container = container
        self.key = key

    def forget(self) -> None:
        """Drop the place and the completion when no value will come.

        The Wait may stay in the answer and would otherwise be part of a reference cycle.
        """
        self.container = None
        self.complete = None


@types.coroutine
def in_context(context: Context, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await the coroutine in the current task, but in a context of its own.

    A task would do the same at ten times the cost.
    """
    try:
        awaited = context.run(coroutine.send, None)
        while True:
            try:
                value = yield awaited
            except GeneratorExit:
                context.run(coroutine.close)
                raise
            except BaseException as error:
                awaited = context.run(coroutine.throw, error)
            else:
                awaited = context.run(coroutine.send, value)
    except StopIteration as stop:
        return stop.value
