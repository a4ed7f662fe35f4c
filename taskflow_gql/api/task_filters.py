"""The filter inputs of the schema, and their conversion to filters of `services/task_filters.py`.

In all these inputs null means the same as absent, so that a client can always send the same variables. `isNull` finds
fields without a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, Any

import strawberry

from taskflow_gql.database.texts import is_storable
from taskflow_gql.errors import BadUserInput
from taskflow_gql.models import TaskCategory, TaskPriority, TaskStatus
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.ids import parse_id
from taskflow_gql.services.task_filters import (
    EVERYTHING,
    AllOf,
    AnyOf,
    Compare,
    Filter,
    Not,
    Operator,
    Overdue,
    Search,
    search_for,
)

# Far more than a user interface builds, and far less than a database can handle.
MAX_DEPTH = 10
MAX_COMPARISONS = 200
MAX_LIST_LENGTH = 500
# All lists of a filter together.
MAX_VALUES = 5000

_EMPTY_LIST = "An empty list finds nothing."
_EMPTY_NOT_LIST = "An empty list finds everything that has a value."


@strawberry.input(description="Compares text without regard to case. What is given is ANDed; null is as left out.")
class StringFilter:
    eq: str | None = strawberry.field(default=None, description="Is exactly this.")
    ne: str | None = strawberry.field(default=None, description="Has a value, which is not this.")
    in_: list[str] | None = strawberry.field(
        default=None, name="in", description=f"Is one of these; at most 500. {_EMPTY_LIST}"
    )
    contains: str | None = strawberry.field(default=None, description="Has this somewhere.")
    starts_with: str | None = strawberry.field(default=None, description="Begins with this.")


@strawberry.input(description="Compares ids. What is given is ANDed; null is as left out.")
class IDFilter:
    eq: strawberry.ID | None = strawberry.field(default=None, description="Is this one.")
    ne: strawberry.ID | None = strawberry.field(default=None, description="Has a value, which is not this one.")
    in_: list[strawberry.ID] | None = strawberry.field(
        default=None, name="in", description=f"Is one of these; at most 500. {_EMPTY_LIST}"
    )
    not_in: list[strawberry.ID] | None = strawberry.field(
        default=None, description=f"Has a value, which is none of these; at most 500. {_EMPTY_NOT_LIST}"
    )


@strawberry.input(
    description="Compares times. What is given is ANDed; null is as left out. No comparison but `isNull` finds null."
)
class DateTimeFilter:
    eq: datetime | None = strawberry.field(default=None, description="Is this instant, to the microsecond.")
    gt: datetime | None = strawberry.field(default=None, description="Is after this.")
    gte: datetime | None = strawberry.field(default=None, description="Is this or after it.")
    lt: datetime | None = strawberry.field(default=None, description="Is before this.")
    lte: datetime | None = strawberry.field(default=None, description="Is this or before it.")
    is_null: bool | None = strawberry.field(default=None, description="Has no value (true), or has one (false).")


@strawberry.input(description="Compares the status. What is given is ANDed; null is as left out.")
class TaskStatusFilter:
    eq: TaskStatus | None = strawberry.field(default=None, description="Is this.")
    ne: TaskStatus | None = strawberry.field(default=None, description="Is not this.")
    in_: list[TaskStatus] | None = strawberry.field(
        default=None, name="in", description=f"Is one of these. {_EMPTY_LIST}"
    )
    not_in: list[TaskStatus] | None = strawberry.field(
        default=None, description="Is none of these. An empty list finds everything."
    )


@strawberry.input(description="Compares the priority. What is given is ANDed; null is as left out.")
class TaskPriorityFilter:
    eq: TaskPriority | None = strawberry.field(default=None, description="Is this.")
    ne: TaskPriority | None = strawberry.field(default=None, description="Is not this.")
    in_: list[TaskPriority] | None = strawberry.field(
        default=None, name="in", description=f"Is one of these. {_EMPTY_LIST}"
    )
    not_in: list[TaskPriority] | None = strawberry.field(
        default=None, description="Is none of these. An empty list finds everything."
    )


@strawberry.input(description="Compares the category. What is given is ANDed; null is as left out.")
class TaskCategoryFilter:
    eq: TaskCategory | None = strawberry.field(default=None, description="Is this.")
    ne: TaskCategory | None = strawberry.field(default=None, description="Is not this.")
    in_: list[TaskCategory] | None = strawberry.field(
        default=None, name="in", description=f"Is one of these. {_EMPTY_LIST}"
    )
    not_in: list[TaskCategory] | None = strawberry.field(
        default=None, description="Is none of these. An empty list finds everything."
    )


@strawberry.input(description="Compares a person. What is given is ANDed; null is as left out.")
class UserFilter:
    id: IDFilter | None = strawberry.field(default=None, description="By id.")
    is_me: bool | None = strawberry.field(
        default=None, description="Is you (true); is not you, or nobody (false): one is the opposite of the other."
    )
    is_null: bool | None = strawberry.field(default=None, description="Is nobody (true), or somebody (false).")


@strawberry.input(
    description=(
        "Which tasks. All that is given has to hold; an empty object finds everything, and null is as left out. A "
        "comparison with a field that has no value is false, so its `not` is true. At most 200 comparisons, of which "
        "an empty object and each word of a search are one; at most 5000 values in lists; nested at most 10 deep. One "
        "language for queries, statistics and subscriptions."
    )
)
class TaskFilter:
    and_: list[TaskFilter] | None = strawberry.field(
        default=None, name="and", description="All of these hold. An empty list finds everything."
    )
    or_: list[TaskFilter] | None = strawberry.field(
        default=None, name="or", description="At least one of these holds. An empty list is BAD_USER_INPUT."
    )
    not_: TaskFilter | None = strawberry.field(default=None, name="not", description="This does not hold.")
    id: IDFilter | None = strawberry.field(default=None, description="By id.")
    title: StringFilter | None = strawberry.field(default=None, description="By title.")
    description: StringFilter | None = strawberry.field(default=None, description="By description.")
    status: TaskStatusFilter | None = strawberry.field(default=None, description="By status.")
    priority: TaskPriorityFilter | None = strawberry.field(default=None, description="By priority.")
    category: TaskCategoryFilter | None = strawberry.field(default=None, description="By category.")
    due_date: DateTimeFilter | None = strawberry.field(default=None, description="By due date.")
    completed_at: DateTimeFilter | None = strawberry.field(default=None, description="By the time of completion.")
    created_at: DateTimeFilter | None = strawberry.field(default=None, description="By the time of creation.")
    updated_at: DateTimeFilter | None = strawberry.field(default=None, description="By the time of the last change.")
    overdue: bool | None = strawberry.field(
        default=None, description="Due in the past and not COMPLETED (true), or not so (false)."
    )
    creator: UserFilter | None = strawberry.field(default=None, description="By who made it.")
    assignee: UserFilter | None = strawberry.field(default=None, description="By who should do it.")
    search: str | None = strawberry.field(
        default=None,
        description=(
            "Every word of this starts a word of the title or the description. Words are runs of letters and digits, "
            "case does not matter, and everything else only separates them; without a word it finds everything."
        ),
    )


TaskFilterArgument = Annotated[
    TaskFilter | None, strawberry.argument(description="Only tasks for which this holds; null finds all.")
]


def filter_of(given: TaskFilter | None, viewer: Viewer, now: datetime) -> Filter:
    """Convert the input. Raises BadUserInput for malformed ids, an empty `or` and exceeded limits."""
    if given is None:
        return EVERYTHING
    made = _task_filter(given, viewer, now, depth=1)
    if _count_comparisons(made) > MAX_COMPARISONS:
        raise BadUserInput(f"A filter may make at most {MAX_COMPARISONS} comparisons")
    if _count_values(made) > MAX_VALUES:
        raise BadUserInput(f"The lists of a filter may have at most {MAX_VALUES} values together")
    return made


def _task_filter(given: TaskFilter, viewer: Viewer, now: datetime, *, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise BadUserInput(f"A filter may be nested at most {MAX_DEPTH} deep")
    if given.or_ is not None and not given.or_:
        raise BadUserInput("`or` needs at least one filter: of none, none can hold")

    def nested(parts: Iterable[TaskFilter]) -> tuple[Filter, ...]:
        return tuple(_task_filter(part, viewer, now, depth=depth + 1) for part in parts)

    parts: list[Filter] = []
    if given.and_ is not None:
        parts.extend(nested(given.and_))
    if given.or_ is not None:
        parts.append(AnyOf(nested(given.or_)))
    if given.not_ is not None:
        parts.append(Not(*nested([given.not_])))
    parts += _comparisons("id", given.id, parse_id)
    parts += _comparisons("title", given.title, _text)
    parts += _comparisons("description", given.description, _text)
    parts += _comparisons("status", given.status)
    parts += _comparisons("priority", given.priority)
    parts += _comparisons("category", given.category)
    parts += _comparisons("due_date", given.due_date)
    parts += _comparisons("completed_at", given.completed_at)
    parts += _comparisons("created_at", given.created_at)
    parts += _comparisons("updated_at", given.updated_at)
    if given.overdue is not None:
        parts.append(Overdue(now) if given.overdue else Not(Overdue(now)))
    parts += _person("creator_id", given.creator, viewer)
    parts += _person("assignee_id", given.assignee, viewer)
    if given.search is not None:
        parts.append(search_for(_text(given.search)))
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


# The operators, by the attributes of the comparison inputs.
_OPERATORS = {
    "eq": Operator.EQ,
    "ne": Operator.NE,
    "gt": Operator.GT,
    "gte": Operator.GTE,
    "lt": Operator.LT,
    "lte": Operator.LTE,
    "in_": Operator.IN,
    "not_in": Operator.NOT_IN,
    "contains": Operator.CONTAINS,
    "starts_with": Operator.STARTS_WITH,
    "is_null": Operator.IS_NULL,
}


def _comparisons(field: str, given: Any, convert: Callable[[Any], Any] = lambda value: value) -> list[Filter]:
    """One comparison for each attribute of a comparison input that has a value."""
    made: list[Filter] = []
    if given is None:
        return made
    for attribute, value in vars(given).items():
        if value is None:
            continue
        operator, converted = _OPERATORS[attribute], value
        if isinstance(value, list):
            if len(value) > MAX_LIST_LENGTH:
                raise BadUserInput(f"A list of a filter may have at most {MAX_LIST_LENGTH} values")
            converted = tuple(convert(item) for item in value)
        elif operator is not Operator.IS_NULL:
            converted = convert(value)
        made.append(Compare(field, operator, converted))
    return made


def _person(field: str, given: UserFilter | None, viewer: Viewer) -> list[Filter]:
    if given is None:
        return []
    made = _comparisons(field, given.id, parse_id)
    if given.is_me is not None:
        is_me = Compare(field, Operator.EQ, viewer.id)
        made.append(is_me if given.is_me else Not(is_me))
    if given.is_null is not None:
        made.append(Compare(field, Operator.IS_NULL, given.is_null))
    return made


def _text(value: str) -> str:
    # `operations/cost.py` has already checked variables. This check is for literals in the document.
    if not is_storable(value):
        raise BadUserInput("U+0000 and half surrogate pairs are in no text that is kept here")
    return value.casefold()


def _count_comparisons(filter_: Filter) -> int:
    """Count the leaves. Empty filters count too, because ten thousand of them are as large as that many comparisons."""
    match filter_:
        case AllOf(parts) | AnyOf(parts):
            return max(1, sum(map(_count_comparisons, parts)))
        case Not(part):
            return _count_comparisons(part)
        case Search(tuple(words)):
            return max(1, len(words))
    return 1


def _count_values(filter_: Filter) -> int:
    match filter_:
        case AllOf(parts) | AnyOf(parts):
            return sum(map(_count_values, parts))
        case Not(part):
            return _count_values(part)
        case Compare(value=tuple(values)):
            return len(values)
    return 0
