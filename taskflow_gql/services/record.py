"""The record of one subject, including events that have no position yet.

The ids of a subject's events follow the order of its changes, and so do the positions of those that have one. Events
without a position are the newest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, Select, Subquery, bindparam, literal_column, select, union_all
from sqlalchemy.orm import InstrumentedAttribute

from taskflow_gql.database.constructs import among_few
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.errors import BadUserInput
from taskflow_gql.models import Event
from taskflow_gql.services.events import SUBJECT_OF_NAME, SUBJECT_OF_ROW

# How many of a subject's newest events are searched for a version.
MAX_VERSIONS = 1000
_AFTER_ALL_IDS = 2**62


async def row_of_version(session: DatabaseSession, row: Any, version: int) -> Any:
    """The subject of the current `row` as it stood at an earlier version. None if the record does not have it.

    Each change makes one version and one event, so the event that ended the version is one of the newest.
    """
    newer = row.version - version
    if not 0 < newer <= MAX_VERSIONS:
        return None
    subject = SUBJECT_OF_ROW[type(row)]
    parameters = {"subject_id": row.id, "version": version, "most": newer}
    for (before,) in await session.run(_before_of_version(subject.name), parameters):
        return subject.read(before)
    return None


@cache
def _before_of_version(subject_type: str) -> Statement:
    """The database compares the versions, because rows with long texts are expensive to send and to read."""
    most = bindparam("most", type_=Integer)
    newest = _together(part.newest().limit(most) for part in _parts(subject_type, Event.before))
    version = newest.c.before["version"].as_integer()
    return Statement(select(newest.c.before).where(version == bindparam("version", type_=Integer)))


class _Part(NamedTuple):
    """Events of one subject, and the column that orders them."""

    events: Select[Any]
    order: InstrumentedAttribute[Any]

    def newest(self, *conditions: ColumnElement[bool]) -> Select[Any]:
        return self.events.where(*conditions).order_by(self.order.desc())

    def oldest(self) -> Select[Any]:
        return self.events.order_by(self.order)


def _parts(subject_type: str, *columns: Any) -> tuple[_Part, _Part]:
    """The events of the subject in the parameter `subject_id`, without a position and with one.

    Both parts are ranges of one index. Together they could not be read in order, because SQLite sorts NULL first and
    PostgreSQL sorts it last.
    """
    # The type is a literal, so that plans know it.
    is_type = Event.subject_type == literal_column(f"'{subject_type}'")
    found = select(*columns).where(is_type, Event.subject_id == bindparam("subject_id"))
    return (
        _Part(found.where(Event.position.is_(None)), Event.id),
        _Part(found.where(Event.position.is_not(None)), Event.position),
    )


def _together(parts: Iterable[Select[Any]]) -> Subquery:
    # SQLite takes an ORDER BY in parts of a UNION only inside subqueries.
    return union_all(*(select(part.subquery()) for part in parts)).subquery()


class Entry(NamedTuple):
    """An event of the subject."""

    id: int
    occurred_at: datetime
    before: Any
    after: Any


async def entries_around(session: DatabaseSession, row_class: Any, subject_id: UUID, time: datetime) -> list[Entry]:
    """In order, without repetitions: the oldest kept entry, the last one until this time, and the newest one.

    Within a subject the order of events counts, not their times: clocks of several servers differ.
    """
    subject = SUBJECT_OF_ROW[row_class]
    rows = await session.run(_events_around(subject.name), {"subject_id": subject_id, "time": time})
    found = {id_: Entry(id_, at, subject.read(before), subject.read(after)) for id_, at, before, after in rows}
    return [found[id_] for id_ in sorted(found)]


@cache
def _events_around(subject_type: str) -> Statement:
    has_happened = Event.occurred_at <= bindparam("time", type_=Event.occurred_at.type)
    parts = _parts(subject_type, Event.id, Event.occurred_at, Event.before, Event.after)
    found = [one for part in parts for one in (part.oldest(), part.newest(has_happened), part.newest())]
    return Statement(_together(each.limit(literal_column("1")) for each in found).select())


async def newest_change(
    session: DatabaseSession, row_class: Any, subject_id: UUID, *, before: int = _AFTER_ALL_IDS
) -> int | None:
    """The id of the subject's newest event before the event of that id."""
    parameters = {"subject_id": subject_id, "before": before}
    found = await session.run(_newest_ids(SUBJECT_OF_ROW[row_class].name), parameters)
    return max((id_ for (id_,) in found), default=None)


@cache
def _newest_ids(subject_type: str) -> Statement:
    is_before = Event.id < bindparam("before", type_=Event.id.type)
    newest = (part.newest(is_before).limit(literal_column("1")) for part in _parts(subject_type, Event.id))
    return Statement(_together(newest).select())


class RecordedChange(NamedTuple):
    """An event of any subject."""

    id: int
    row_class: type[Any]
    subject_id: UUID
    before: Any
    after: Any


async def changes_by_id(session: DatabaseSession, ids: Collection[int]) -> list[RecordedChange]:
    """Those of them that the record keeps, in any order."""
    if not ids:
        return []
    found = await session.run(_EVENTS_BY_ID, {"ids": ids})
    return [
        RecordedChange(id_, subject.row_class, subject_id, subject.read(before), subject.read(after))
        for id_, subject_type, subject_id, before, after in found
        # A newer release may have recorded nouns that this one does not know.
        if (subject := SUBJECT_OF_NAME.get(subject_type))
    ]


_EVENTS_BY_ID = Statement(
    select(Event.id, Event.subject_type, Event.subject_id, Event.before, Event.after).where(among_few(Event.id, "ids"))
)


class NotKept(BadUserInput):
    def __init__(self) -> None:
        super().__init__("asOf is older than the record of this object: name a later time", field="as_of")


def row_at(time: datetime, entries: Sequence[Entry], current: Any) -> Any:
    """The subject as it stood at the time, by its `entries_around` it and its current row, if it has one.

    None before its creation and after its deletion. Raises NotKept if the record does not say how it stood.
    """
    until = [entry for entry in entries if entry.occurred_at <= time]
    if until:
        return until[-1].after
    # Older events may have expired. The row before the oldest kept one tells since when it had stood like this.
    oldest = entries[0].before if entries else current
    if oldest is None:
        # It was made then, or brought back by an undo.
        if time < entries[0].after.created_at:
            return None
        raise NotKept
    if time < oldest.created_at:
        return None
    if time < oldest.updated_at:
        raise NotKept
    return oldest
