"""A function for every level: given what a resolver returned, the value that goes into the answer.

These are graphql-core's `complete_value` with the type tests taken out, since the type of a level never changes.
They differ in one way: where graphql-core would return a coroutine they return a `Wait`, which the caller places in
the answer. What is out of the ordinary goes through `unusual`, and mostly from there to graphql-core itself.
"""

from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from types import FunctionType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from graphql import (
    GraphQLAbstractType,
    GraphQLID,
    GraphQLLeafType,
    GraphQLObjectType,
    is_abstract_type,
    is_enum_type,
    is_leaf_type,
    is_list_type,
)
from graphql.execution.executor import invalid_return_type_error
from graphql.pyutils import Undefined, inspect

from .sources import MOST_CLASSES, PLAIN, IsInstance, Kind, kind_of
from .wait import Wait

if TYPE_CHECKING:
    from .run import Info, Position, Run
    from .tree import Complete, Field, Level, Selection

# What leaves serialise to that needs no second look: neither null nor awaitable.
SERIALISED = frozenset({str, int, float, bool, list, dict, datetime, date, time, Decimal, UUID})

# Classes whose objects serialise to IDs as they print: whole numbers, and those of UUIDs that have come so far.
PRINTED: set[type] = {int}


def completer(level: "Level") -> "Complete":
    type_ = level.nullable_type
    if is_leaf_type(type_):
        return _complete_leaf(level, type_)
    if is_list_type(type_):
        return _complete_list(level)
    if is_abstract_type(type_):
        return _complete_abstract(level, type_)
    return _complete_object(level, type_)


def unusual(run: "Run", level: "Level", value: Any, position: "Position", info: "Info | None") -> Any:
    if value is None:
        return level.null()
    if run.is_awaitable(value):
        return run.wait(level, position, value, lambda resolved: resume(run, level, resolved, position, info))
    return run.exact(level, value, position, info)


def resume(run: "Run", level: "Level", value: Any, position: "Position", info: "Info | None" = None) -> Any:
    """Complete what an awaitable has resolved to. It is not awaited again, even if it could be."""
    if type(value) not in PLAIN and run.is_awaitable(value):
        return run.exact(level, value, position, info)
    return level.complete(run, value, position, info)


def is_ordinary(run: "Run", value: Any) -> bool:
    """Whether the value is none of: null, an exception, awaitable, of a class that may be anything."""
    cls = type(value)
    if cls in PLAIN:
        return True
    kind = kind_of(cls)
    return kind is Kind.PLAIN or (kind is Kind.ASK and not run.is_awaitable(value))


def _complete_leaf(level: "Level", type_: GraphQLLeafType) -> "Complete":
    serialise = _serialiser(level, type_)

    def complete_leaf(run: "Run", value: Any, position: "Position", info: "Info | None") -> Any:
        if type(value) not in PLAIN and not is_ordinary(run, value):
            return unusual(run, level, value, position, info)
        serialised = serialise(value)
        if type(serialised) not in SERIALISED and run.is_awaitable(serialised):
            return run.wait(level, position, serialised)
        return serialised

    return complete_leaf


def unusual_leaf(
    run: "Run",
    field: "Field",
    value: Any,
    answer: dict[str, Any],
    position: "Position",
    info: "Info | None" = None,
) -> Any:
    """Complete a leaf for which the generated code has no shortcut."""
    at = (position, field.name, field.parent_type.name)
    if field.is_read_by_default and callable(value):
        info = run.info(field, at)
        value = value(info)
    value = field.level.complete(run, value, at, info)
    if type(value) is Wait:
        value.place(answer, field.name)
    return value


def place_serialised(
    run: "Run", field: "Field", value: Any, serialised: Any, answer: dict[str, Any], position: "Position"
) -> Any:
    """Look at what a leaf of the generated code has serialised to: it may have to be awaited, or be nothing."""
    require_serialised(field.level.nullable_type, value, serialised)
    if not run.is_awaitable(serialised):
        return serialised
    wait = run.wait(field.level, (position, field.name, field.parent_type.name), serialised)
    wait.place(answer, field.name)
    return wait


def require_serialised(type_: GraphQLLeafType, value: Any, serialised: Any) -> None:
    if serialised is None or serialised is Undefined:
        raise TypeError(
            f"Expected `{inspect(type_)}.coerce_output_value({inspect(value)})`"
            f" to return non-nullable value, returned: {inspect(serialised)}"
        )


def _serialiser(level: "Level", type_: GraphQLLeafType) -> Callable[[Any], Any]:
    """The type's `coerce_output_value`, which refuses to return null."""

    def serialise(value: Any) -> Any:
        serialised = type_.coerce_output_value(value)
        require_serialised(type_, value, serialised)
        return serialised

    if type_ is GraphQLID:
        return _serialise_id
    return _remembering(serialise, level.enum_names) if is_enum_type(type_) else serialise


def _serialise_id(value: Any) -> Any:
    # graphql-core comes to the same after a dozen questions.
    if not isinstance(value, UUID):
        return GraphQLID.coerce_output_value(value)
    if len(PRINTED) < MOST_CLASSES and _prints_as_uuid(type(value)):
        PRINTED.add(type(value))
    return str(value)


def _prints_as_uuid(cls: type) -> bool:
    # Not what somebody has written for a class of his own, which may do anything.
    prints: object = cls.__str__
    return prints is UUID.__str__ or not isinstance(prints, FunctionType)


# What `quick` may waste before it is left alone, and how many lists it then rests.
MOST_CREDIT = 100


class EnumNames(dict[str | int, Any]):
    """Names of an enum's values, by text or by the identity of a member."""

    def __init__(self) -> None:
        super().__init__()
        # Kept, so that no other object gets their identity.
        self._members: list[Enum] = []

    def remember(self, value: Any, name: Any) -> None:
        if type(value) is str:
            self[value] = name
        elif isinstance(value, Enum):
            self._members.append(value)
            self[id(value)] = name


def _remembering(serialise: Callable[[Any], Any], names: EnumNames) -> Callable[[Any], Any]:
    def serialise_enum(value: Any) -> Any:
        name = names.get(value if type(value) is str else id(value))
        if name is None:
            name = serialise(value)
            names.remember(value, name)
        return name

    return serialise_enum


def _complete_list(level: "Level") -> "Complete":
    item_level = level.items
    assert item_level is not None
    complete_item = item_level.complete
    fills = item_level.fills

    def complete_list(run: "Run", value: Any, position: "Position", info: "Info | None") -> Any:
        # Other iterables may fail midway or be asynchronous: graphql-core knows what then.
        if type(value) is not list and type(value) is not tuple:
            return unusual(run, level, value, position, info)
        results: list[Any] = []
        quicks = item_level.quicks if item_level.credit > 0 else {}
        misses = unknown = 0
        for index, item in enumerate(value):
            try:
                quick = quicks.get(type(item))
                completed: Any = None if quick is None else quick(item)
                if completed is None:
                    if quick is None:
                        unknown += 1
                    else:
                        misses += 1
                    at = (position, index, None)
                    fill = fills.get(type(item))
                    if fill is not None:
                        completed = {}
                        fill(run, completed, item, at)
                    else:
                        completed = complete_item(run, item, at, info)
                        if type(completed) is Wait:
                            completed.place(results, index)
            except Exception as error:
                completed = run.item_failed(item_level, error, (position, index, None), value)
            results.append(completed)
        if misses or item_level.credit < MOST_CREDIT:
            item_level.settle_credit(hits=len(results) - misses - unknown, misses=misses)
        return results

    return complete_list


def _complete_object(level: "Level", type_: GraphQLObjectType) -> "Complete":
    selection = level.selection_of(type_)
    is_told_by_class = isinstance(type_.is_type_of, IsInstance)
    if type_.is_type_of is None:
        level.fills, level.quicks = selection.fills, selection.quicks

    def complete_object(run: "Run", value: Any, position: "Position", info: "Info | None") -> Any:
        if type(value) in PLAIN or is_ordinary(run, value):
            return _fill(run, selection, value, position)
        return unusual(run, level, value, position, info)

    def complete_checked(run: "Run", value: Any, position: "Position", info: "Info | None") -> Any:
        if type(value) not in PLAIN and not is_ordinary(run, value):
            return unusual(run, level, value, position, info)
        if info is None and level.field.needs_info:
            info = run.info_at(level, position)
        completed = _check_and_fill(run, selection, value, position, info)
        if is_told_by_class and type(value) in selection.fills:
            # It was let in, so every other of its class will be.
            if len(level.fills) >= MOST_CLASSES:
                level.fills.clear()
                level.quicks.clear()
            level.fills[type(value)] = selection.fills[type(value)]
            if type(value) in selection.quicks:
                level.quicks[type(value)] = selection.quicks[type(value)]
        return completed

    return complete_object if type_.is_type_of is None else complete_checked


def _complete_abstract(level: "Level", type_: GraphQLAbstractType) -> "Complete":
    selections: dict[str, Selection] = {}

    def complete_abstract(run: "Run", value: Any, position: "Position", info: "Info | None") -> Any:
        if type(value) not in PLAIN and not is_ordinary(run, value):
            return unusual(run, level, value, position, info)
        info = info or run.info_at(level, position)
        name: Any = (type_.resolve_type or run.executor.type_resolver)(value, info, type_)
        if type(name) is not str and run.is_awaitable(name):
            return run.wait(level, position, name, lambda resolved: complete_as(run, resolved, value, position, info))
        return complete_as(run, name, value, position, info)

    def complete_as(run: "Run", name: Any, value: Any, position: "Position", info: "Info") -> Any:
        selection = selections.get(name) if type(name) is str else None
        if selection is None:
            object_type = run.executor.ensure_valid_runtime_type(name, type_, run.details(level.field), info, value)
            selection = selections[object_type.name] = level.selection_of(object_type)
        return _check_and_fill(run, selection, value, position, info)

    return complete_abstract


def _check_and_fill(run: "Run", selection: "Selection", value: Any, position: "Position", info: "Info | None") -> Any:
    level = selection.level
    assert level is not None
    type_ = selection.type
    if type_.is_type_of is None:
        return _fill(run, selection, value, position)

    def fill_if(verdict: Any) -> Any:
        if not verdict:
            raise invalid_return_type_error(type_, value, run.details(level.field))
        return _fill(run, selection, value, position)

    # An adapter may know that this function has no use for its `info`, which then is None.
    verdict: Any = type_.is_type_of(value, info)  # type: ignore[arg-type]
    if type(verdict) is not bool and run.is_awaitable(verdict):
        return run.wait(level, position, verdict, fill_if)
    return fill_if(verdict)


def _fill(run: "Run", selection: "Selection", value: Any, position: "Position") -> Any:
    fill = selection.fills.get(type(value)) or selection.fill_for(type(value))
    if fill is None:
        return run.exact_fields(selection, value, position)
    answer: dict[str, Any] = {}
    fill(run, answer, value, position)
    return answer
