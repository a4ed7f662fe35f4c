"""Lists of tasks: their arguments, and the query that they make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import strawberry

from taskflow_gql.api.context import Context
from taskflow_gql.api.enums import OrderDirection
from taskflow_gql.api.needs import Needs
from taskflow_gql.api.task_filters import TaskFilter, filter_of
from taskflow_gql.models import TaskRow, UserRow
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.paging import Order, Page, PageRequest, list_begun
from taskflow_gql.services.positions import StreamPlace
from taskflow_gql.services.task_orders import NEWEST_FIRST, TaskOrderField, order_by
from taskflow_gql.services.tasks import ALL_COLUMNS, TaskColumns, TaskQuery

_CONNECTION = "TaskConnection"


@dataclass(slots=True)
class TaskList:
    """A page of tasks, and a function that counts the whole list, called only if `totalCount` is selected."""

    page: Page[TaskRow]
    count: Callable[[], Awaitable[int]]


@strawberry.input(description="One key of an order.")
class TaskOrder:
    field: TaskOrderField = strawberry.field(description="What to sort by.")
    direction: OrderDirection = strawberry.field(default=OrderDirection.ASC, description="Which way.")


TaskOrderArgument = Annotated[
    list[TaskOrder] | None,
    strawberry.argument(
        description=(
            "The first key decides, the next where it is equal, at last the id. A key that was named before is left "
            "out; none at all means newest first."
        )
    ),
]


async def task_query(
    context: Context,
    viewer: Viewer,
    first: int | None,
    after: str | None,
    last: int | None,
    before: str | None,
    filter: TaskFilter | None,
    order: list[TaskOrder] | None,
) -> TaskQuery:
    """Convert the arguments to a query. Raises BadUserInput for invalid ones.

    The query contains the position of the stream before the page is read. It comes from the page's cursor, so that all
    pages of a list have the same one. Without it, the current position is used if the document selects `changesCursor`.
    """
    keys = [(key.field, key.direction is OrderDirection.DESC) for key in order or []]
    sorted_by = order_by(keys) if keys else NEWEST_FIRST
    request = PageRequest.of(first=first, after=after, last=last, before=before)
    # The time of the operation, not the current time: the filters of fifty parents are then equal and share a loader.
    made = filter_of(filter, viewer, context.begun_at)
    return TaskQuery(
        request=request,
        filter=made,
        order=sorted_by,
        columns=_columns_of_list(context, sorted_by),
        with_total=context.needs is not None and _CONNECTION in context.needs.counted,
        begun=list_begun(sorted_by, request) or await stream_place(context, _CONNECTION),
    )


def columns_of_tasks(context: Context) -> TaskColumns:
    """The columns that the document reads of tasks, and of the people that are joined to them."""
    return ALL_COLUMNS if context.needs is None else context.needs.derive(_columns)


def _columns(needs: Needs) -> TaskColumns:
    people, carried = needs.columns(UserRow), needs.relations(TaskRow)
    return TaskColumns(
        task=needs.columns(TaskRow),
        creator=people if "creator" in carried else None,
        assignee=people if "assignee" in carried else None,
    )


def _columns_of_list(context: Context, order: Order[TaskRow]) -> TaskColumns:
    """The columns, including the sort keys if the document selects cursors."""
    columns, needs = columns_of_tasks(context), context.needs
    makes_cursors = needs is None or needs.selects(_CONNECTION, "edges", "pageInfo")
    return columns.with_keys(order) if makes_cursors else columns


async def stream_place(context: Context, type_name: str) -> StreamPlace | None:
    """The current position of the stream, if the document selects `changesCursor` of this type."""
    selected = context.needs is not None and context.needs.selects(type_name, "changesCursor")
    return await context.loaders.stream_place() if selected else None
