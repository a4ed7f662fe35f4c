"""What the lists of tasks have in common: their arguments, checked, and what is asked for within them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import strawberry
from graphql import FieldNode, FragmentSpreadNode, InlineFragmentNode, SelectionSetNode

from taskflow_gql.api.context import Context, Info
from taskflow_gql.api.enums import OrderDirection
from taskflow_gql.api.filters import TaskFilter, filter_of
from taskflow_gql.models import TaskRow
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.paging import Page, PageRequest
from taskflow_gql.services.task_order import NEWEST_FIRST, TaskOrderField, order_by
from taskflow_gql.services.tasks import TaskQuery


@dataclass(frozen=True, slots=True)
class TaskList:
    """A page of tasks, and how to count the whole list, which is done only when asked for."""

    page: Page[TaskRow]
    count: Callable[[], Awaitable[int]]
    # Read before the page was, when the document asks for it.
    changes_cursor: str | None


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


def task_query(
    context: Context,
    viewer: Viewer,
    first: int | None,
    after: str | None,
    last: int | None,
    before: str | None,
    filter: TaskFilter | None,
    order: list[TaskOrder] | None,
) -> TaskQuery:
    """Raises BadUserInput for what cannot be taken of the arguments."""
    keys = [(key.field, key.direction is OrderDirection.DESC) for key in order or []]
    return TaskQuery(
        request=PageRequest.of(first=first, after=after, last=last, before=before),
        # The operation's own moment, so that the same filter of fifty parents is one filter to their loader.
        filter=filter_of(filter, viewer, context.begun_at),
        order=order_by(keys) if keys else NEWEST_FIRST,
    )


def selects(info: Info, *names: str) -> bool:
    """Whether one of these fields is asked for within the list: what it needs is then read with the page."""
    return any(_selects(info, node.selection_set, names, depth=0) for node in info._raw_info.field_nodes)


def _selects(info: Info, selections: SelectionSetNode | None, names: tuple[str, ...], *, depth: int) -> bool:
    # The fields of a task stand at most three levels below their list: edges, node, creator.
    if selections is None or depth > 2:
        return False
    for selection in selections.selections:
        match selection:
            case FieldNode():
                found = selection.name.value in names or _selects(info, selection.selection_set, names, depth=depth + 1)
            case InlineFragmentNode():
                found = _selects(info, selection.selection_set, names, depth=depth)
            case FragmentSpreadNode():
                fragment = info._raw_info.fragments[selection.name.value]
                found = _selects(info, fragment.selection_set, names, depth=depth)
            case _:
                found = False
        if found:
            return True
    return False
