"""What the lists of tasks have in common: their arguments, checked."""

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
    """A page of tasks, and how to count the whole list, which is done only when asked for."""

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
    """Raises BadUserInput for arguments that are out of bounds.

    The query knows where the stream stood before its page is read: by the cursor that the page goes on from, so that
    the pages of a list agree, or else, if the document selects `changesCursor`, by the stream's state now.
    """
    keys = [(key.field, key.direction is OrderDirection.DESC) for key in order or []]
    sorted_by = order_by(keys) if keys else NEWEST_FIRST
    request = PageRequest.of(first=first, after=after, last=last, before=before)
    # The operation's own moment, so that the same filter of fifty parents is one filter to their loader.
    made = filter_of(filter, viewer, context.begun_at)
    return TaskQuery(
        request=request,
        filter=made,
        order=sorted_by,
        columns=_columns_of_list(context, sorted_by),
        with_total=context.needs is not None and _CONNECTION in context.needs.counted,
        begun=list_begun(sorted_by, request) or await _stream_place(context),
    )


def columns_of_tasks(context: Context) -> TaskColumns:
    """What the document reads of tasks, and of the people that come with them."""
    return ALL_COLUMNS if context.needs is None else context.needs.derive(_columns)


def _columns(needs: Needs) -> TaskColumns:
    people, carried = needs.columns(UserRow), needs.relations(TaskRow)
    return TaskColumns(
        task=needs.columns(TaskRow),
        creator=people if "creator" in carried else None,
        assignee=people if "assignee" in carried else None,
    )


def _columns_of_list(context: Context, order: Order[TaskRow]) -> TaskColumns:
    """Cursors are made of the columns that the list is sorted by."""
    columns, needs = columns_of_tasks(context), context.needs
    makes_cursors = needs is None or needs.selects(_CONNECTION, "edges", "pageInfo")
    return columns.with_keys(order) if makes_cursors else columns


async def _stream_place(context: Context) -> StreamPlace | None:
    """Where the stream stands before the list is read, if the document selects `changesCursor`."""
    selected = context.needs is not None and context.needs.selects(_CONNECTION, "changesCursor")
    return await context.loaders.stream_place() if selected else None
