"""Changes to tasks as facts: what the record holds, and the cursors that name a place in it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from taskflow_gql.errors import BadUserInput
from taskflow_gql.models import EventKind, TaskEvent, TaskRow

Row = TypeVar("Row", bound="tuple[Any, ...]")


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


_FIELDS = {str(field): field for field in TaskField}


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
        # A field that no longer exists is left out.
        changed_fields=tuple(_FIELDS[name] for name in fields.split(",") if name in _FIELDS),
        before=_task_of_json(before),
        after=_task_of_json(after),
        occurred_at=occurred_at,
    )


class RowCodec(Generic[Row]):
    """Rows of one NamedTuple class as JSON objects with its field names as keys, and back.

    It reads objects written by any version of the server. A key that did not exist then gets the default that the
    class declares for its field, or None. A key whose field no longer exists is ignored.
    """

    def __init__(self, row_class: type[Row]) -> None:
        types = get_type_hints(row_class)
        fields: tuple[str, ...] = row_class._fields  # type: ignore[attr-defined]
        defaults: dict[str, Any] = row_class._field_defaults  # type: ignore[attr-defined]
        self._make = row_class._make  # type: ignore[attr-defined]
        writers = [(name, _conversion_of(types[name], _WRITERS)) for name in fields]
        self._writers = [(name, convert) for name, convert in writers if convert is not None]
        self._readers = [(name, _conversion_of(types[name], _READERS), defaults.get(name)) for name in fields]

    def write(self, row: Row) -> dict[str, Any]:
        value: dict[str, Any] = row._asdict()  # type: ignore[attr-defined]
        for name, convert in self._writers:
            if value[name] is not None:
                value[name] = convert(value[name])
        return value

    def read(self, value: Mapping[str, Any]) -> Row:
        row: Row = self._make(
            [
                default
                if name not in value
                else found
                if (found := value[name]) is None or convert is None
                else convert(found)
                for name, convert, default in self._readers
            ]
        )
        return row


_Conversion: TypeAlias = Callable[[Any], Any]
# Types that JSON does not have. Enums are text in both.
_WRITERS: dict[type, _Conversion] = {UUID: str, datetime: datetime.isoformat}
_READERS: dict[type, _Conversion] = {UUID: UUID, datetime: datetime.fromisoformat}
_PLAIN_TYPES = (str, int, bool, float)


def _conversion_of(type_: Any, conversions: Mapping[type, _Conversion]) -> _Conversion | None:
    """None for a type whose values are the same in JSON. Raises TypeError for a type that the codec does not know."""
    options = get_args(type_) if get_origin(type_) in (Union, UnionType) else (type_,)
    options = tuple(option for option in options if option is not NoneType)
    if len(options) == 1:
        (plain,) = options
        if plain in conversions:
            return conversions[plain]
        if isinstance(plain, type) and issubclass(plain, StrEnum):
            return {str(member): member for member in plain}.__getitem__ if conversions is _READERS else None
        if plain in _PLAIN_TYPES:
            return None
    raise TypeError(f"The record has no JSON for values of {type_}")


TASK_CODEC = RowCodec(TaskRow)


def json_of_task(task: TaskRow | None) -> dict[str, Any] | None:
    return None if task is None else TASK_CODEC.write(task)


def _task_of_json(value: Mapping[str, Any] | None) -> TaskRow | None:
    return None if value is None else TASK_CODEC.read(value)


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
