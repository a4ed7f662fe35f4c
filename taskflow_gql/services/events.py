"""The record of changes: written in the mutation's transaction, read by history, pull and stream."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NamedTuple,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, Select, UpdateBase, and_, bindparam, literal_column, or_, select

from taskflow_gql import clock
from taskflow_gql.database.constructs import among_few, top_of_each
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.writes import WritePair
from taskflow_gql.models import RECORDED, Event, EventKind, TaskRow
from taskflow_gql.services.access import PEOPLE_WHO_SEE, Viewer, events_visible

if TYPE_CHECKING:
    from sqlalchemy import Table

Row = TypeVar("Row", bound="tuple[Any, ...]")


@dataclass(frozen=True, slots=True)
class EventRow:
    """A placed event. At least one of `before` and `after` is set."""

    id: int
    position: int
    row_class: type[Any]
    subject_id: UUID
    kind: EventKind
    actor_id: UUID | None
    # The people, besides admins, who may see the subject before or after the change.
    audience: frozenset[UUID]
    # Fields and rows of the subject's noun.
    changed_fields: tuple[Any, ...]
    before: Any
    after: Any
    # The client's name for the mutation that made the change, of the actor's choice.
    mutation_id: str | None
    occurred_at: datetime


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


codec_of: Callable[[Any], RowCodec[Any]] = cache(RowCodec)


@dataclass(frozen=True, slots=True)
class Subject:
    """A noun as the record knows it: its codec, its fields, and the people who see its rows."""

    name: str
    row_class: type[Any]
    codec: RowCodec[Any]
    # The column behind each field that people change, in the order in which changes are reported.
    column_by_field: Mapping[Any, str]
    # The people, besides admins, who may see a row. None if its rows do not name them.
    audience: Callable[[Any], set[UUID]] | None

    def changed_fields(self, before: Any, after: Any) -> list[Any]:
        """Empty for a row that is new or gone."""
        if before is None or after is None:
            return []
        return [
            field for field, column in self.column_by_field.items() if getattr(before, column) != getattr(after, column)
        ]

    def audience_of(self, before: Any, after: Any) -> frozenset[UUID]:
        """Raises TypeError for a noun whose rows do not name the people who see them."""
        if self.audience is None:
            raise TypeError(f"Events of {self.name} are written with their audience")
        return frozenset().union(*(self.audience(row) for row in (before, after) if row is not None))

    def write(self, row: Any) -> dict[str, Any] | None:
        return None if row is None else self.codec.write(row)

    def read(self, value: Mapping[str, Any] | None) -> Any:
        return None if value is None else self.codec.read(value)


SUBJECT_OF_NAME = {
    name: Subject(
        name,
        noun.row_class,
        codec_of(noun.row_class),
        noun.column_by_field,
        PEOPLE_WHO_SEE.get(noun.row_class),
    )
    for name, noun in RECORDED.items()
}
SUBJECT_OF_ROW = {subject.row_class: subject for subject in SUBJECT_OF_NAME.values()}
_FIELDS = {name: {str(field): field for field in subject.column_by_field} for name, subject in SUBJECT_OF_NAME.items()}


# Writing


async def write_with_event(
    session: DatabaseSession,
    viewer: Viewer,
    write: UpdateBase,
    values: Mapping[str, Any],
    *,
    kind: EventKind,
    before: Any,
    after: Any,
    audience: Collection[UUID] | None = None,
    occurred_at: datetime | None = None,
) -> None:
    """Run a write with the values of its parameters, and record it in the same transaction.

    Give the time that the write gives to the row, so that both agree.

    Both run with the session's next statement or with the commit. Their errors are raised there.

    The write creates the row, or the caller holds its lock, or the write names its version. So the ids of a subject's
    events follow the order of its changes.
    """
    row = before if after is None else after
    subject = SUBJECT_OF_ROW[type(row)]
    recorded = {
        "subject_type": subject.name,
        "subject_id": row.id,
        "kind": kind,
        "actor_id": viewer.id,
        "audience": subject.audience_of(before, after) if audience is None else audience,
        "changed_fields": ",".join(subject.changed_fields(before, after)),
        "before": subject.write(before),
        "after": subject.write(after),
        "mutation_id": session.mutation_id,
        "occurred_at": occurred_at or clock.now(),
    }
    await session.write_pair(WritePair(write, values, _EVENTS, recorded))


_EVENTS = cast("Table", Event.__table__)


# Reading

EVENT_COLUMNS = (
    Event.id,
    Event.position,
    Event.subject_type,
    Event.subject_id,
    Event.kind,
    Event.actor_id,
    Event.audience,
    Event.changed_fields,
    Event.before,
    Event.after,
    Event.mutation_id,
    Event.occurred_at,
)


def event_of_row(row: Any) -> EventRow:
    """From a row of EVENT_COLUMNS."""
    (
        id_,
        position,
        subject_type,
        subject_id,
        kind,
        actor_id,
        audience,
        fields,
        before_json,
        after_json,
        mutation_id,
        at,
    ) = row
    subject, known_fields = SUBJECT_OF_NAME[subject_type], _FIELDS[subject_type]
    before, after = subject.read(before_json), subject.read(after_json)
    return EventRow(
        id=id_,
        position=position,
        row_class=subject.row_class,
        subject_id=subject_id,
        kind=kind,
        actor_id=actor_id,
        # Events stored before revision 0003 have their audience in other columns, which say the same as the rows.
        audience=frozenset(audience) if audience or not subject.audience else subject.audience_of(before, after),
        # A field that no longer exists is left out.
        changed_fields=tuple(known_fields[name] for name in fields.split(",") if name in known_fields),
        before=before,
        after=after,
        mutation_id=mutation_id,
        occurred_at=at,
    )


def _is_of(*types: str) -> ColumnElement[bool]:
    """Condition on `events`. The types are literals, so that plans know them."""
    return or_(*(Event.subject_type == literal_column(f"'{name}'") for name in types))


async def events_after(
    session: DatabaseSession,
    position: int,
    *,
    viewer: Viewer | None = None,
    row_class: type[Any] | None = None,
    limit: int,
) -> list[EventRow]:
    """Placed events in order of position; with a viewer, those that this person may see before or after the change."""
    # Without a viewer all events, as an admin sees them.
    types = tuple(SUBJECT_OF_NAME) if row_class is None else (SUBJECT_OF_ROW[row_class].name,)
    statement = _events_after(types, is_admin=viewer is None or viewer.is_admin)
    parameters = {"position": position, "most": limit, "viewer_id": viewer and viewer.id}
    return [event_of_row(row) for row in await session.run(statement, parameters)]


@cache
def _events_after(types: tuple[str, ...], *, is_admin: bool) -> Statement:
    """During an upgrade a newer release may record nouns that this one does not know. It passes over them."""
    after = select(*EVENT_COLUMNS).where(
        Event.position > bindparam("position"), _is_of(*types), events_visible(is_admin=is_admin)
    )
    return Statement(after.order_by(Event.position).limit(bindparam("most", type_=Integer)))


async def placed_events(session: DatabaseSession, ids: Collection[int]) -> list[EventRow]:
    """Those of them that are placed and kept, in order of position."""
    if not ids:
        return []
    return [event_of_row(row) for row in await session.run(_placed(tuple(SUBJECT_OF_NAME)), {"ids": ids})]


@cache
def _placed(types: tuple[str, ...]) -> Statement:
    found = select(*EVENT_COLUMNS).where(among_few(Event.id, "ids"), Event.position.is_not(None), _is_of(*types))
    return Statement(found.order_by(Event.position))


# Higher than every position.
AFTER_ALL_POSITIONS = 10**18


class Window(NamedTuple):
    """Placed events between two positions, both exclusive: the oldest of them, or the newest if `backward`."""

    after: int
    before: int
    limit: int
    backward: bool

    @property
    def bounds(self) -> dict[str, int]:
        """The parameters of `_within`."""
        return {"after": self.after, "before": self.before}


def _within(type_: str, *, is_admin: bool) -> Select[Any]:
    """The events of one noun between `after` and `before` that the viewer may see before or after the change."""
    between = and_(Event.position > bindparam("after"), Event.position < bindparam("before"))
    return select(*EVENT_COLUMNS).where(between, _is_of(type_), events_visible(is_admin=is_admin))


async def events_within(
    session: DatabaseSession, viewer: Viewer, row_class: type[Any], window: Window
) -> list[EventRow]:
    """The window's events of one noun, in the direction of reading. The database reads no event outside the window."""
    type_ = SUBJECT_OF_ROW[row_class].name
    statement = _window(type_, viewer.is_admin, window.limit, window.backward)
    return [event_of_row(row) for row in await session.run(statement, {**window.bounds, "viewer_id": viewer.id})]


@cache
def _window(type_: str, is_admin: bool, limit: int, backward: bool) -> Statement:
    found = _within(type_, is_admin=is_admin).order_by(_direction(Event.position, backward))
    # A literal, so that the generic plan knows how few rows it returns.
    return Statement(found.limit(literal_column(str(limit))))


async def history_of_tasks(
    session: DatabaseSession, viewer: Viewer, task_ids: Collection[UUID], window: Window
) -> dict[UUID, list[EventRow]]:
    """For each task the window's events that the viewer may see, in the direction of reading: one statement for all."""
    statement = _histories(viewer.is_admin, window.limit, window.backward)
    parameters = {**window.bounds, "task_ids": task_ids, "viewer_id": viewer.id}
    events_by_task: dict[UUID, list[EventRow]] = {task_id: [] for task_id in task_ids}
    for task_id, *values in await session.run(statement, parameters):
        events_by_task[task_id].append(event_of_row(values))
    return events_by_task


@cache
def _histories(is_admin: bool, limit: int, backward: bool) -> Statement:
    page = top_of_each(
        _within(SUBJECT_OF_ROW[TaskRow].name, is_admin=is_admin),
        # Deleted tasks have a history too.
        parent=None,
        child=Event.subject_id,
        keys="task_ids",
        order_by=[_direction(Event.position, backward)],
        limit=limit,
    )
    columns = [page.c[column.key] for column in EVENT_COLUMNS]
    return Statement(select(page.c.parent_id, *columns).order_by(_direction(page.c.position, backward)))


def _direction(position: Any, backward: bool) -> ColumnElement[Any]:
    return position.desc() if backward else position.asc()  # type: ignore[no-any-return]
