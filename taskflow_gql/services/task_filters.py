"""Filters of tasks, with two interpreters: a condition in SQL and a predicate in Python.

A filter is a tree of `AllOf`, `AnyOf`, `Not` and comparisons. Both interpreters agree on every task, which a property
test checks. A comparison with a null field is false, so its negation is true, in SQL too.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache, wraps
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, and_, bindparam, false, func, literal, not_, or_, select, true
from sqlalchemy.types import TypeEngine

from taskflow_gql.database.constructs import among, matches_words, position_of
from taskflow_gql.database.types import ValueList, WordsQuery
from taskflow_gql.models import Task, TaskPriority, TaskRow, TaskStatus
from taskflow_gql.models.task import PRIORITY_RANK, STATUS_RANK
from taskflow_gql.services.search_words import search_words, words_of

Value: TypeAlias = str | int | datetime | UUID | StrEnum


class Operator(StrEnum):
    EQ = "eq"
    NE = "ne"
    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    IN = "in"
    NOT_IN = "not_in"
    CONTAINS = "contains"
    STARTS_WITH = "starts_with"
    IS_NULL = "is_null"


@dataclass(frozen=True, slots=True)
class Slot:
    """A placeholder for a value. The statement takes the value as the parameter of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Compare:
    """A comparison of one field of TaskRow. Text is compared by its casefold(); `value` is already casefolded."""

    field: str
    operator: Operator
    value: Value | tuple[Value, ...] | bool | Slot


@dataclass(frozen=True, slots=True)
class Search:
    """Each of the words is a prefix of a word in the title or description. Without words, finds every task."""

    words: tuple[str, ...] | Slot


@dataclass(frozen=True, slots=True)
class Overdue:
    """Due before `now` and not completed."""

    now: datetime | Slot


@dataclass(frozen=True, slots=True)
class AllOf:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Filter


Filter: TypeAlias = Compare | Search | Overdue | AllOf | AnyOf | Not

EVERYTHING = AllOf(())

_NULLABLE = {"description", "due_date", "completed_at", "assignee_id"}
# Text is compared by a column with its casefold(), enums by their ranks.
_KEY_COLUMN: dict[str, Any] = {
    "title": Task.title_key,
    "description": Task.description_key,
    "status": STATUS_RANK,
    "priority": PRIORITY_RANK,
}
_RANKED: dict[str, type[StrEnum]] = {"status": TaskStatus, "priority": TaskPriority}
_COMPARISONS: dict[Operator, Callable[[Any, Any], Any]] = {
    Operator.EQ: operator.eq,
    Operator.NE: operator.ne,
    Operator.GT: operator.gt,
    Operator.GTE: operator.ge,
    Operator.LT: operator.lt,
    Operator.LTE: operator.le,
}


def search_for(text: str) -> Search:
    return Search(tuple(sorted(set(words_of(text)))))


def without_values(filter_: Filter) -> tuple[Filter, dict[str, Any]]:
    """The filter with slots in place of its values, and the values by slot name.

    Filters that differ only in their values then share one statement.
    """
    values: dict[str, Any] = {}
    return _with_slots(filter_, values), values


def _with_slots(part: Filter, values: dict[str, Any]) -> Filter:
    match part:
        case AllOf(parts):
            return AllOf(tuple(_with_slots(inner, values) for inner in parts))
        case AnyOf(parts):
            return AnyOf(tuple(_with_slots(inner, values) for inner in parts))
        case Not(inner):
            return Not(_with_slots(inner, values))
        case Search(words):
            return Search(_slot(words, values)) if words else part
        case Overdue(now):
            return Overdue(_slot(now, values))
        case Compare(_, Operator.IS_NULL, _):
            return part
        case Compare(field, op, value):
            return Compare(field, op, _slot(_ranked(field, value), values))


def _slot(value: Any, values: dict[str, Any]) -> Slot:
    name = f"filter_{len(values)}"
    values[name] = value
    return Slot(name)


Result = TypeVar("Result")

# The statement of a larger filter holds megabytes of SQLAlchemy objects, and clients can send any number of filters.
_MAX_CACHED_PARTS = 30


def cached_for_small_filters(maxsize: int) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """`lru_cache` for a function whose first argument is a filter. It does not cache results for large filters."""

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        cached = lru_cache(maxsize)(function)

        @wraps(function)
        def look_up(filter_: Filter, *rest: Any) -> Result:
            return cached(filter_, *rest) if _is_small(filter_) else function(filter_, *rest)

        return look_up

    return decorate


def _is_small(filter_: Filter) -> bool:
    parts = [filter_]
    for part in parts:
        if isinstance(part, AllOf | AnyOf):
            parts.extend(part.parts)
        elif isinstance(part, Not):
            parts.append(part.part)
        if len(parts) > _MAX_CACHED_PARTS:
            return False
    return True


def condition(filter_: Filter) -> ColumnElement[bool]:
    """The filter as a condition on `tasks`. It is true or false for every row, never null."""
    match filter_:
        case AllOf(parts):
            return and_(true(), *map(condition, parts))
        case AnyOf(parts):
            return or_(false(), *map(condition, parts))
        case Not(part):
            return not_(condition(part))
        case Search(words):
            return matches_words(Task.id, Task.search_words, _bound(words, WordsQuery())) if words else true()
        case Overdue(now):
            is_due = and_(Task.due_date.is_not(None), Task.due_date < _bound(now, Task.due_date.type))
            return and_(is_due, Task.status != TaskStatus.COMPLETED)
        case Compare(field, op, value):
            return _compare_column(field, op, value)


# If a search has more results than this, scanning the list in order finds the first page faster than sorting them all.
_MANY_RESULTS = 5000


def search_scopes(filter_: Filter) -> list[ColumnElement[bool]]:
    """`condition` split into two disjoint conditions, if the filter is a search or a conjunction with one.

    No planner can estimate how many tasks match a word prefix. If it assumes many, it scans the whole list for a rare
    word; if it assumes few, it sorts all results of a frequent one. So the statement first counts results in the index,
    up to a limit, and the count selects one of the two plans. The condition of the other one is false before it reads a
    row.
    """
    searches = [part for part in _conjuncts(filter_) if isinstance(part, Search) and part.words]
    if not searches:
        return [condition(filter_)]
    rest = AllOf(tuple(part for part in _conjuncts(filter_) if part not in searches))
    found = condition(AllOf(tuple(searches)))
    results = select(Task.id).where(found).limit(_MANY_RESULTS + 1).cte("results")
    is_rare = select(func.count()).select_from(results).scalar_subquery() <= _MANY_RESULTS
    return [
        and_(is_rare, Task.id.in_(select(results.c.id)), condition(rest)),
        and_(not_(is_rare), found, condition(rest)),
    ]


def _conjuncts(filter_: Filter) -> tuple[Filter, ...]:
    if isinstance(filter_, AllOf):
        return tuple(inner for part in filter_.parts for inner in _conjuncts(part))
    return (filter_,)


def _compare_column(field: str, op: Operator, value: Any) -> ColumnElement[bool]:
    column: Any = _KEY_COLUMN.get(field, getattr(Task, field))
    compared: ColumnElement[bool]
    match op:
        case Operator.IS_NULL:
            is_null: ColumnElement[bool] = column.is_(None)
            return is_null if value else not_(is_null)
        case Operator.IN | Operator.NOT_IN:
            compared = among(column, _bound(_ranked(field, value), ValueList(column.type)))
            if op is Operator.NOT_IN:
                compared = not_(compared)
        # Not LIKE: in SQLite it limits the length of the pattern and ignores case for ASCII letters.
        case Operator.CONTAINS:
            compared = position_of(column, _bound(value, column.type)) > 0
        case Operator.STARTS_WITH:
            start = _bound(value, column.type)
            compared = func.substr(column, 1, func.length(start)) == start
        case _:
            compared = _COMPARISONS[op](column, _bound(_ranked(field, value), column.type))
    return and_(column.is_not(None), compared) if field in _NULLABLE else compared


def _ranked(field: str, value: Any) -> Any:
    """The value, or values, as ranks if the field is compared by its rank."""
    if field not in _RANKED or isinstance(value, Slot):
        return value
    places = {each: place for place, each in enumerate(_RANKED[field])}
    return tuple(map(places.__getitem__, value)) if isinstance(value, tuple) else places[value]


def _bound(value: Any, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    return bindparam(value.name, type_=type_) if isinstance(value, Slot) else literal(value, type_)


def matches(filter_: Filter, task: TaskRow, now: datetime) -> bool:
    """Whether `condition(filter_)`, made at this time, finds the task. Raises TypeError for a filter with slots."""
    match filter_:
        case AllOf(parts):
            return all(matches(part, task, now) for part in parts)
        case AnyOf(parts):
            return any(matches(part, task, now) for part in parts)
        case Not(part):
            return not matches(part, task, now)
        case Search(tuple(words)):
            found = _sorted_words(task.title, task.description)
            return all(_starts_one_of(start, found) for start in words)
        case Overdue():
            is_due = task.due_date is not None and task.due_date < now
            return is_due and task.status is not TaskStatus.COMPLETED
        case Compare(field, op, value):
            return _compare_value(getattr(task, field), op, value)
    raise TypeError(f"{filter_} has no value")


# A few recent events are matched with the filters of many subscribers, each of which may search a hundred times.
@lru_cache(maxsize=16)
def _sorted_words(title: str, description: str | None) -> list[str]:
    return sorted(search_words(title, description).split())


def _starts_one_of(start: str, words: list[str]) -> bool:
    # If any word starts with it, the first word that is not less than it does.
    place = bisect_left(words, start)
    return place < len(words) and words[place].startswith(start)


def _compare_value(found: Any, op: Operator, value: Any) -> bool:
    if op is Operator.IS_NULL:
        return (found is None) is value
    if found is None:
        return False
    if isinstance(found, str) and not isinstance(found, StrEnum):
        found = found.casefold()
    match op:
        case Operator.IN:
            return found in value
        case Operator.NOT_IN:
            return found not in value
        case Operator.CONTAINS:
            return value in found
        case Operator.STARTS_WITH:
            return bool(found.startswith(value))
    return bool(_COMPARISONS[op](found, value))
