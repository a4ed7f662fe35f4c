"""Changes to tasks as facts: what the record holds, and the cursors that name a place in it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from taskflow_gql.errors import BadUserInput
from taskflow_gql.models import EventKind, TaskCategory, TaskEvent, TaskPriority, TaskRow, TaskStatus


class TaskField(StrEnum):
    """The fields that a person changes; the rest (version, updatedAt, completedAt) follows from them."""

    TITLE = "TITLE"
    DESCRIPTION = "DESCRIPTION"
    STATUS = "STATUS"
    PRIORITY = "PRIORITY"
    CATEGORY = "CATEGORY"
    DUE_DATE = "DUE_DATE"
    ASSIGNEE = "ASSIGNEE"


# The column behind each field, in the order in which changes are reported.
COLUMN_BY_FIELD = {
    TaskField.TITLE: "title",
    TaskField.DESCRIPTION: "description",
    TaskField.STATUS: "status",
    TaskField.PRIORITY: "priority",
    TaskField.CATEGORY: "category",
    TaskField.DUE_DATE: "due_date",
    TaskField.ASSIGNEE: "assignee_id",
}


def changed_fields(before: TaskRow, after: TaskRow) -> list[TaskField]:
    return [field for field, column in COLUMN_BY_FIELD.items() if getattr(before, column) != getattr(after, column)]


@dataclass(frozen=True, slots=True)
class TaskChanged:
    """A placed event. At least one of `before` and `after` is there."""

    id: int
    position: int
    kind: EventKind
    task_id: UUID
    actor_id: UUID | None
    changed_fields: tuple[TaskField, ...]
    before: TaskRow | None
    after: TaskRow | None
    occurred_at: datetime


EVENT_COLUMNS = (
    TaskEvent.id,
    TaskEvent.position,
    TaskEvent.kind,
    TaskEvent.task_id,
    TaskEvent.actor_id,
    TaskEvent.changed_fields,
    TaskEvent.before,
    TaskEvent.after,
    TaskEvent.occurred_at,
)


def event_of_row(row: Any) -> TaskChanged:
    """From a row of EVENT_COLUMNS."""
    id_, position, kind, task_id, actor_id, fields, before, after, occurred_at = row
    return TaskChanged(
        id=id_,
        position=position,
        kind=kind,
        task_id=task_id,
        actor_id=actor_id,
        changed_fields=tuple(TaskField(name) for name in fields.split(",") if name),
        before=_task_of_json(before),
        after=_task_of_json(after),
        occurred_at=occurred_at,
    )


def json_of_task(task: TaskRow | None) -> dict[str, Any] | None:
    if task is None:
        return None
    return {
        "id": str(task.id),
        "title": task.title,
        "description": task.description,
        "status": task.status,
        "priority": task.priority,
        "category": task.category,
        "due_date": task.due_date and task.due_date.isoformat(),
        "completed_at": task.completed_at and task.completed_at.isoformat(),
        "creator_id": str(task.creator_id),
        "assignee_id": task.assignee_id and str(task.assignee_id),
        "version": task.version,
        "created_at": task.created_at.isoformat(),
        "updated_at": task.updated_at.isoformat(),
    }


def _task_of_json(value: dict[str, Any] | None) -> TaskRow | None:
    if value is None:
        return None
    return TaskRow(
        id=UUID(value["id"]),
        title=value["title"],
        description=value["description"],
        status=TaskStatus(value["status"]),
        priority=TaskPriority(value["priority"]),
        category=TaskCategory(value["category"]),
        due_date=_moment(value["due_date"]),
        completed_at=_moment(value["completed_at"]),
        creator_id=UUID(value["creator_id"]),
        assignee_id=UUID(value["assignee_id"]) if value["assignee_id"] else None,
        version=value["version"],
        created_at=datetime.fromisoformat(value["created_at"]),
        updated_at=datetime.fromisoformat(value["updated_at"]),
    )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


_PLACE = re.compile(r"([0-9a-f]{16}):([0-9]{1,18})")


class StreamPlace(NamedTuple):
    """A position, and the stream that it is of."""

    stream_id: str
    position: int

    def __str__(self) -> str:
        return f"{self.stream_id}:{self.position}"

    @classmethod
    def parse(cls, text: str) -> StreamPlace:
        """The reverse of `str()`. Raises ValueError."""
        match = _PLACE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a place in a stream")
        return cls(match[1], int(match[2]))


def encode_cursor(stream_id: str, position: int) -> str:
    return base64.urlsafe_b64encode(str(StreamPlace(stream_id, position)).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, stream_id: str) -> int:
    """The position that a cursor names. Raises BadUserInput for one that is damaged or of another server."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        place = StreamPlace.parse(base64.b64decode(padded, altchars=b"-_", validate=True).decode())
    except ValueError as error:
        raise BadUserInput("after is not a cursor of the change stream") from error
    if place.stream_id != stream_id:
        raise BadUserInput("after is a cursor of another server: read again from a query")
    return place.position
