"""What the record says of one subject, including events that have no position yet.

The ids of a subject's events follow the order of its changes, and so do the positions of those that have one. Events
without a position are the newest.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from sqlalchemy import Integer, Select, Subquery, and_, bindparam, literal_column, select, union_all

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.models import Event
from taskflow_gql.services.events import SUBJECT_OF_ROW

# How many of a subject's newest events are searched for a version.
MAX_VERSIONS = 1000


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
    newest = _together(_newest(events).limit(most) for events in _events(subject_type, Event.before))
    version = newest.c.before["version"].as_integer()
    return Statement(select(newest.c.before).where(version == bindparam("version", type_=Integer)))


# SQLite sorts NULL first and PostgreSQL last, so events with and without a position are two parts of a statement. Each
# part is a range of the index on (subject_id, position).
def _events(subject_type: str, *columns: Any) -> tuple[Select[Any], Select[Any]]:
    """The events of the subject in the parameter `subject_id`: those without a position, and those with one."""
    # The type is a literal, so that plans know it.
    is_subject = and_(
        Event.subject_type == literal_column(f"'{subject_type}'"), Event.subject_id == bindparam("subject_id")
    )
    found = select(*columns).where(is_subject)
    return found.where(Event.position.is_(None)), found.where(Event.position.is_not(None))


def _newest(events: Select[Any]) -> Select[Any]:
    return events.order_by(Event.position.desc(), Event.id.desc())


def _together(parts: Iterable[Select[Any]]) -> Subquery:
    # SQLite takes an ORDER BY in parts of a UNION only inside subqueries.
    return union_all(*(select(part.subquery()) for part in parts)).subquery()
