"""What the lists of tasks have in common: their arguments, checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import strawberry

from taskflow_gql.api.context import Context
from taskflow_gql.api.enums import OrderDirection
from taskflow_gql.api.task_filters import TaskFilter, filter_of
from taskflow_gql.models import TaskRow
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.paging import Page, PageRequest, list_begun
from taskflow_gql.services.task_orders import NEWEST_FIRST, TaskOrderField, order_by
from taskflow_gql.services.tasks import TaskQuery


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
        columns=context.columns_of_list(sorted_by),
        with_total=context.wants_total,
        begun=list_begun(sorted_by, request) or await context.stream_place(),
    )
