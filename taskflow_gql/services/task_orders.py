"""The orders in which tasks are listed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from uuid import UUID

from taskflow_gql.database.constructs import AfterAllTimes, BeforeAllTimes
from taskflow_gql.models import Task, TaskPriority, TaskRow, TaskStatus
from taskflow_gql.models.task import DUE_DATE_ASCENDING, DUE_DATE_DESCENDING, PRIORITY_RANK, STATUS_RANK
from taskflow_gql.services.paging import Order, SortKey

_STATUS_PLACE = {status: place for place, status in enumerate(TaskStatus)}
_PRIORITY_PLACE = {priority: place for place, priority in enumerate(TaskPriority)}


class TaskOrderField(StrEnum):
    CREATED_AT = "CREATED_AT"
    UPDATED_AT = "UPDATED_AT"
    DUE_DATE = "DUE_DATE"
    PRIORITY = "PRIORITY"
    STATUS = "STATUS"
    TITLE = "TITLE"


def order_by(keys: Sequence[tuple[TaskOrderField, bool]]) -> Order[TaskRow]:
    """The order by these pairs of a field and whether it is descending; the first pair decides, then the next.

    Tasks that are equal in all of them are sorted by id. A repeated field has no effect and is dropped.
    """
    return _order_by(tuple(keys))


@lru_cache(maxsize=256)
def _order_by(keys: tuple[tuple[TaskOrderField, bool], ...]) -> Order[TaskRow]:
    descending_by_field: dict[TaskOrderField, bool] = {}
    for field, descending in keys:
        descending_by_field.setdefault(field, descending)
    sort_keys = [_sort_key(field, descending) for field, descending in descending_by_field.items()]
    # The id has the direction of the first key: if all directions are equal, a page is one range of an index.
    id_descends = sort_keys[0].descending
    return Order((*sort_keys, SortKey("id", UUID, Task.id, lambda task: task.id, descending=id_descends)))


def _sort_key(field: TaskOrderField, descending: bool) -> SortKey[TaskRow]:
    match field:
        case TaskOrderField.CREATED_AT:
            return SortKey("created_at", datetime, Task.created_at, lambda task: task.created_at, descending)
        case TaskOrderField.UPDATED_AT:
            return SortKey("updated_at", datetime, Task.updated_at, lambda task: task.updated_at, descending)
        case TaskOrderField.TITLE:
            return SortKey("title", str, Task.title_key, lambda task: task.title.casefold(), descending)
        case TaskOrderField.STATUS:
            return SortKey("status", int, STATUS_RANK, lambda task: _STATUS_PLACE[task.status], descending)
        case TaskOrderField.PRIORITY:
            return SortKey("priority", int, PRIORITY_RANK, lambda task: _PRIORITY_PLACE[task.priority], descending)
        case TaskOrderField.DUE_DATE:
            return SortKey(
                "due_date",
                datetime,
                DUE_DATE_DESCENDING if descending else DUE_DATE_ASCENDING,
                lambda task: task.due_date,
                descending,
                null_as=BeforeAllTimes() if descending else AfterAllTimes(),
            )


NEWEST_FIRST = order_by([(TaskOrderField.CREATED_AT, True)])
