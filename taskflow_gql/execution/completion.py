"""Makes a function for every level that turns a resolver's value into the answer's value.

These functions do the same as graphql-core's `complete_value` without its type tests, since the type of a level never
changes. They differ in one way: where graphql-core returns a coroutine, they return a `Wait`, which the caller places
in the answer. Unusual values go through `unusual`, and mostly from there to graphql-core itself.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from types import FunctionType
from typing import Any
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
from graphql.pyutils import Undefined, inspect

from .core import invalid_return_type_error
from .sources import MAX_CLASSES, PLAIN, IsInstance, Kind, kind_of
from .tree import (
    MAX_FAST_PATH_BUDGET,
    Complete,
    EnumNames,
    Execution,
    Field,
    Info,
    Level,
    Position,
    Selection,
    Wait,
)

# Classes of serialised leaves that need no further test: neither null nor awaitable.
SERIALISED = frozenset({str, int, float, bool, list, dict, datetime, date, time, Decimal, UUID})

# Classes whose objects serialise to IDs with `str`: int, and the UUID classes that have occurred so far.
PRINTED: set[type] = {int}


def completer(level: Level) -> Complete:
    type_ = level.nullable_type
    if is_leaf_type(type_):
        return _complete_leaf(level, type_)
    if is_list_type(type_):
        return _complete_list(level)
    if is_abstract_type(type_):
        return _complete_abstract(level, type_)
    return _complete_object(level, type_)


def unusual(run: Execution, level: Level, value: Any, position: Position, info: Info | None) -> Any:
    if value is None:
        return level.null()
    if run.is_awaitable(value):
        return run.wait(level, position, value, lambda resolved: resume(run, level, resolved, position, info))
    return run.exact(level, value, position, info)


def resume(run: Execution, level: Level, value: Any, position: Position, info: Info | None = None) -> Any:
    """Complete the result of an awaitable. It is not awaited again, even if it is awaitable itself."""
    if type(value) not in PLAIN and run.is_awaitable(value):
        return run.exact(level, value, position, info)
    return level.complete(run, value, position, info)


def is_ordinary(run: Execution, value: Any) -> bool:
    """Tell whether the value is neither null nor an exception nor awaitable, and its class is one to rely on."""
    cls = type(value)
    if cls in PLAIN:
        return True
    kind = kind_of(cls)
    return kind is Kind.PLAIN or (kind is Kind.ASK and not run.is_awaitable(value))


def _complete_leaf(level: Level, type_: GraphQLLeafType) -> Complete:
    serialise = _serialiser(level, type_)

    def complete_leaf(run: Execution, value: Any, position: Position, info: Info | None) -> Any:
        if type(value) not in PLAIN and not is_ordinary(run, value):
            return unusual(run, level, value, position, info)
        serialised = serialise(value)
        if type(serialised) not in SERIALISED and run.is_awaitable(serialised):
            return run.wait(level, position, serialised)
        return serialised

    return complete_leaf


def unusual_leaf(
    run: Execution,
    field: Field,
    value: Any,
    answer: dict[str, Any],
    position: Position,
    info: Info | None = None,
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
    run: Execution, field: Field, value: Any, serialised: Any, answer: dict[str, Any], position: Position
) -> Any:
    """Check what the generated code has serialised a leaf to: it may be awaitable, or null, which is an error."""
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


def _serialiser(level: Level, type_: GraphQLLeafType) -> Callable[[Any], Any]:
    """Return the type's `coerce_output_value`, with an error if it returns null."""

    def serialise(value: Any) -> Any:
        serialised = type_.coerce_output_value(value)
        require_serialised(type_, value, serialised)
        return serialised

    if type_ is GraphQLID:
        return _serialise_id
    return _remembering(serialise, level.enum_names) if is_enum_type(type_) else serialise


def _serialise_id(value: Any) -> Any:
    # graphql-core returns the same after a dozen tests.
    if not isinstance(value, UUID):
        return GraphQLID.coerce_output_value(value)
    if len(PRINTED) < MAX_CLASSES and _prints_as_uuid(type(value)):
        PRINTED.add(type(value))
    return str(value)


def _prints_as_uuid(cls: type) -> bool:
    # A `__str__` written in Python for a subclass may do anything.
    prints: object = cls.__str__
    return prints is UUID.__str__ or not isinstance(prints, FunctionType)


def _remembering(serialise: Callable[[Any], Any], names: EnumNames) -> Callable[[Any], Any]:
    def serialise_enum(value: Any) -> Any:
        name = names.get(value if type(value) is str else id(value))
        if name is None:
            name = serialise(value)
            names.remember(value, name)
        return name

    return serialise_enum


def _complete_list(level: Level) -> Complete:
    item_level = level.items
    assert item_level is not None
    complete_item = item_level.complete
    fills, budget = item_level.fills, item_level.fast_path_budget

    def complete_list(run: Execution, value: Any, position: Position, info: Info | None) -> Any:
        # Other iterables may fail midway or be asynchronous: graphql-core handles those.
        if type(value) is not list and type(value) is not tuple:
            return unusual(run, level, value, position, info)
        results: list[Any] = []
        quicks = item_level.quicks if budget.left > 0 else {}
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
        if misses or budget.left < MAX_FAST_PATH_BUDGET:
            budget.account(hits=len(results) - misses - unknown, misses=misses)
        return results

    return complete_list


def _complete_object(level: Level, type_: GraphQLObjectType) -> Complete:
    selection = level.selection_of(type_)
    is_told_by_class = isinstance(type_.is_type_of, IsInstance)
    if type_.is_type_of is None:
        level.fills, level.quicks = selection.fills, selection.quicks

    def complete_object(run: Execution, value: Any, position: Position, info: Info | None) -> Any:
        if type(value) in PLAIN or is_ordinary(run, value):
            return _fill(run, selection, value, position)
        return unusual(run, level, value, position, info)

    def complete_checked(run: Execution, value: Any, position: Position, info: Info | None) -> Any:
        if type(value) not in PLAIN and not is_ordinary(run, value):
            return unusual(run, level, value, position, info)
        if info is None and level.field.needs_info:
            info = run.info_at(level, position)
        completed = _check_and_fill(run, selection, value, position, info)
        if is_told_by_class and type(value) in selection.fills:
            # The type accepted this object, so it accepts all objects of the class.
            if len(level.fills) >= MAX_CLASSES:
                level.fills.clear()
                level.quicks.clear()
            level.fills[type(value)] = selection.fills[type(value)]
            if type(value) in selection.quicks:
                level.quicks[type(value)] = selection.quicks[type(value)]
        return completed

    return complete_object if type_.is_type_of is None else complete_checked


def _complete_abstract(level: Level, type_: GraphQLAbstractType) -> Complete:
    selections: dict[str, Selection] = {}

    def complete_abstract(run: Execution, value: Any, position: Position, info: Info | None) -> Any:
        if type(value) not in PLAIN and not is_ordinary(run, value):
            return unusual(run, level, value, position, info)
        info = info or run.info_at(level, position)
        name: Any = (type_.resolve_type or run.executor.type_resolver)(value, info, type_)
        if type(name) is not str and run.is_awaitable(name):
            return run.wait(level, position, name, lambda resolved: complete_as(run, resolved, value, position, info))
        return complete_as(run, name, value, position, info)

    def complete_as(run: Execution, name: Any, value: Any, position: Position, info: Info) -> Any:
        selection = selections.get(name) if type(name) is str else None
        if selection is None:
            object_type = run.executor.ensure_valid_runtime_type(name, type_, run.details(level.field), info, value)
            selection = selections[object_type.name] = level.selection_of(object_type)
        return _check_and_fill(run, selection, value, position, info)

    return complete_abstract


def _check_and_fill(run: Execution, selection: Selection, value: Any, position: Position, info: Info | None) -> Any:
    level = selection.level
    assert level is not None
    type_ = selection.type
    if type_.is_type_of is None:
        return _fill(run, selection, value, position)

    def fill_if(verdict: Any) -> Any:
        if not verdict:
            raise invalid_return_type_error(type_, value, run.details(level.field))
        return _fill(run, selection, value, position)

    # The info is None if the adapter knows that this function ignores it.
    verdict: Any = type_.is_type_of(value, info)  # type: ignore[arg-type]
    if type(verdict) is not bool and run.is_awaitable(verdict):
        return run.wait(level, position, verdict, fill_if)
    return fill_if(verdict)


def _fill(run: Execution, selection: Selection, value: Any, position: Position) -> Any:
    fill = selection.fills.get(type(value)) or selection.fill_for(type(value))
    if fill is None:
        return run.exact_fields(selection, value, position)
    answer: dict[str, Any] = {}
    fill(run, answer, value, position)
    return answer
