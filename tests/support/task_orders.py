"""Orders of tasks, and the same orders as sorting in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from taskflow_gql.models import TaskRow
from taskflow_gql.services.task_orders import TaskOrderField
from tests.support.task_filters import TIMES

# A field, and whether the order is descending.
Key: TypeAlias = tuple[TaskOrderField, bool]


KEYS: list[Key] = [(field, descending) for field in TaskOrderField for descending in (False, True)]


# LOW < MEDIUM < HIGH and PENDING < IN_PROGRESS < COMPLETED. Neither is alphabetical.
PRIORITIES = ["LOW", "MEDIUM", "HIGH"]


STATUSES = ["PENDING", "IN_PROGRESS", "COMPLETED"]


SORTED_BY: dict[TaskOrderField, Callable[[TaskRow], Any]] = {
    TaskOrderField.CREATED_AT: lambda task: task.created_at,
    TaskOrderField.UPDATED_AT: lambda task: task.updated_at,
    TaskOrderField.DUE_DATE: lambda task: task.due_date or TIMES[0],
    TaskOrderField.PRIORITY: lambda task: PRIORITIES.index(task.priority.name),
    TaskOrderField.STATUS: lambda task: STATUSES.index(task.status.name),
    TaskOrderField.TITLE: lambda task: task.title.casefold(),
}


def in_order(tasks: list[TaskRow], keys: list[Key]) -> list[TaskRow]:
    """Sort by the last key first and by the first key last. Python's sort is stable, so earlier keys win."""
    result = sorted(tasks, key=lambda task: task.id, reverse=keys[0][1])
    for field, descending in reversed(keys):
        result.sort(key=SORTED_BY[field], reverse=descending)
        if field is TaskOrderField.DUE_DATE:
            result.sort(key=lambda task: task.due_date is None)
    return result
