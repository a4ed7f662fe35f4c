"""Counts over the tasks that somebody may see."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from taskflow_gql.models import Task, TaskCategory, TaskPriority, TaskStatus
from taskflow_gql.services.access import Viewer, visible_to
from taskflow_gql.services.filters import Filter, Overdue, condition


class TaskStats(NamedTuple):
    total: int
    by_status: dict[TaskStatus, int]
    by_priority: dict[TaskPriority, int]
    by_category: dict[TaskCategory, int]
    overdue: int


async def task_stats(session: AsyncSession, viewer: Viewer, filter_: Filter, now: datetime) -> TaskStats:
    """One statement, which reads each task once."""
    conditions = [
        *(Task.status == status for status in TaskStatus),
        *(Task.priority == priority for priority in TaskPriority),
        *(Task.category == category for category in TaskCategory),
        condition(Overdue(now)),
    ]
    statement = select(func.count(), *(func.count().filter(one) for one in conditions))
    statement = statement.select_from(Task).where(visible_to(viewer), condition(filter_))
    total, *counts = (await session.execute(statement)).one()
    rest = iter(counts)
    return TaskStats(
        total=total,
        by_status={status: next(rest) for status in TaskStatus},
        by_priority={priority: next(rest) for priority in TaskPriority},
        by_category={category: next(rest) for category in TaskCategory},
        overdue=next(rest),
    )
