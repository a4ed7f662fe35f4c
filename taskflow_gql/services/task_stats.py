"""Counts of the tasks that a viewer may see."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Integer, bindparam, func, select

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.models import Task, TaskCategory, TaskPriority, TaskStatus
from taskflow_gql.services.access import Viewer, visible
from taskflow_gql.services.task_filters import (
    Filter,
    Overdue,
    Slot,
    cached_for_small_filters,
    condition,
    without_values,
)


class TaskStats(NamedTuple):
    total: int
    by_status: dict[TaskStatus, int]
    by_priority: dict[TaskPriority, int]
    by_category: dict[TaskCategory, int]
    overdue: int


async def task_stats(session: DatabaseSession, viewer: Viewer, filter_: Filter, now: datetime) -> TaskStats:
    """All counts, from one statement that reads each task once."""
    filter_, values = without_values(filter_)
    parameters = {**values, "viewer_id": viewer.id, "now": now}
    ((total, *counts),) = await session.run(_stats_statement(filter_, viewer.is_admin), parameters)
    rest = iter(counts)
    return TaskStats(
        total=total,
        by_status={status: next(rest) for status in TaskStatus},
        by_priority={priority: next(rest) for priority in TaskPriority},
        by_category={category: next(rest) for category in TaskCategory},
        overdue=next(rest),
    )


@cached_for_small_filters(maxsize=128)
def _stats_statement(filter_: Filter, is_admin: bool) -> Statement:
    """Parameters: `viewer_id`, `now` and the filter's values."""
    conditions = [
        *(Task.status == status for status in TaskStatus),
        *(Task.priority == priority for priority in TaskPriority),
        *(Task.category == category for category in TaskCategory),
        condition(Overdue(Slot("now"))),
    ]
    counts = select(func.count(), *(func.count().filter(one) for one in conditions))
    return Statement(counts.select_from(Task).where(visible(is_admin=is_admin), condition(filter_)))


async def count_by_assignee(
    session: DatabaseSession, viewer: Viewer, filter_: Filter, *, limit: int
) -> list[tuple[UUID | None, int]]:
    """The assignees with most tasks and how many each has, most first; None stands for tasks without one."""
    filter_, values = without_values(filter_)
    parameters = {**values, "viewer_id": viewer.id, "most": limit}
    return await session.run(_assignees_statement(filter_, viewer.is_admin), parameters)


@cached_for_small_filters(maxsize=128)
def _assignees_statement(filter_: Filter, is_admin: bool) -> Statement:
    """Parameters: `viewer_id`, `most` and the filter's values. Rows: pairs of an assignee's id and a count."""
    found = select(Task.assignee_id, func.count()).where(visible(is_admin=is_admin), condition(filter_))
    # Without NULLS LAST the databases disagree about where equal counts put the tasks without an assignee.
    most_first = (func.count().desc(), Task.assignee_id.asc().nulls_last())
    return Statement(found.group_by(Task.assignee_id).order_by(*most_first).limit(bindparam("most", type_=Integer)))
