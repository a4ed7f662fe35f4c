"""Positions, which order events, and the cursors that name a position to clients."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy import BigInteger, Integer, Select, bindparam, delete, func, select, update

from taskflow_gql.database.constructs import among_few
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.errors import BadUserInput, TaskflowError
from taskflow_gql.models import Event, StreamState

if TYPE_CHECKING:
    from sqlalchemy import Table


class CursorExpired(TaskflowError):
    code = "CURSOR_EXPIRED"


class StreamStateRow(NamedTuple):
    """The stream's id, which is part of every cursor; the last position assigned; the last position deleted."""

    stream_id: str
    last_position: int
    expired_position: int


_STREAM_PLACE = re.compile(r"([0-9a-f]{16}):([0-9]{1,18})")


class StreamPlace(NamedTuple):
    """A position, and the stream that it belongs to."""

    stream_id: str
    position: int

    def __str__(self) -> str:
        return f"{self.stream_id}:{self.position}"

    @classmethod
    def parse(cls, text: str) -> StreamPlace:
        """The reverse of `str()`. Raises ValueError."""
        match = _STREAM_PLACE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a place in a stream")
        return cls(match[1], int(match[2]))


def encode_cursor(stream_id: str, position: int) -> str:
    return base64.urlsafe_b64encode(str(StreamPlace(stream_id, position)).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, stream_id: str, *, argument: str = "after") -> int:
    """The position that a cursor names. Raises BadUserInput if it is damaged or belongs to another database."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        place = StreamPlace.parse(base64.b64decode(padded, altchars=b"-_", validate=True).decode())
    except ValueError as error:
        raise BadUserInput(f"{argument} is not a cursor of the change stream") from error
    if place.stream_id != stream_id:
        raise BadUserInput(f"{argument} is a cursor of another server: read again from a query")
    return place.position


async def read_stream_state(session: DatabaseSession) -> StreamStateRow:
    (row,) = await session.run(_STATE)
    return StreamStateRow._make(row)


_STATE = Statement(select(StreamState.stream_id, StreamState.last_position, StreamState.expired_position))


async def require_kept(session: DatabaseSession, position: int) -> StreamStateRow:
    """Raises CursorExpired unless every event after the position is still stored."""
    state = await read_stream_state(session)
    if position < state.expired_position:
        raise CursorExpired("The changes since this cursor are no longer kept: read again from a query")
    return state


async def expire_events(session: DatabaseSession, older_than: datetime, *, limit: int) -> int:
    """Delete events older than this from the start of the stream, and return how many.

    An old event behind a younger one stays, so the events that are kept have no gaps.
    """
    state = select(StreamState.expired_position).where(StreamState.id == 1).with_for_update()
    expired_position = (await session.execute(state)).scalar_one()
    oldest = (
        select(Event.position, Event.occurred_at)
        .where(Event.position > expired_position)
        .order_by(Event.position)
        .limit(limit)
    )
    expired = 0
    for row in await session.execute(oldest):
        if row.position is None or row.occurred_at >= older_than:
            break
        expired, expired_position = expired + 1, row.position
    if expired:
        await session.execute(delete(Event).where(Event.position <= expired_position))
        await session.execute(update(StreamState).values(expired_position=expired_position))
    return expired


async def read_stream_end(session: DatabaseSession) -> tuple[int, frozenset[int]]:
    """The start of "from now on": the last position, and the ids of committed events without a position.

    An event committed before this read has a position up to the first or an id in the second. An event committed after
    it has neither.
    """
    rows = await session.run(_STREAM_END)
    return rows[0][0], frozenset(event_id for _, event_id in rows if event_id is not None)


_STREAM_END = Statement(select(StreamState.last_position, Event.id).outerjoin(Event, Event.position.is_(None)))


async def place_events(session: DatabaseSession, *, limit: int) -> tuple[int, bool]:
    """Assign positions to committed events that have none, in order of their ids.

    Runs within `Database.write_single_statement`. Returns how many events it placed, and whether there may be more.

    The lock on the state row is held until the transaction ends. So one process at a time assigns positions, and they
    become visible in order.
    """
    if session.is_only_writer:
        ((last_position,),) = await session.run(_LAST_POSITION)
        placed = len(await session.run(_PLACE, {"last_position": last_position, "most": limit}))
        if placed:
            await session.run(_SET_LAST_POSITION, {"last": last_position + placed})
        return placed, placed == limit
    ((placed, found),) = await session.run(_PLACE_AT_ONCE, {"most": limit})
    return placed, placed < found or placed == limit


_EVENTS = cast("Table", Event.__table__)
_LAST_POSITION = Statement(select(StreamState.last_position))
_SET_LAST_POSITION = Statement(update(cast("Table", StreamState.__table__)).values(last_position=bindparam("last")))


def _unplaced() -> Select[Any]:
    number = func.row_number().over(order_by=Event.id).label("number")
    unplaced = select(Event.id, number).where(Event.position.is_(None)).order_by(Event.id)
    return unplaced.limit(bindparam("most", type_=Integer))


def _place() -> Statement:
    unplaced = _unplaced().subquery()
    position = bindparam("last_position", type_=BigInteger) + unplaced.c.number
    placed = update(_EVENTS).where(_EVENTS.c.id == unplaced.c.id).values(position=position)
    return Statement(placed.returning(_EVENTS.c.id))


def _place_at_once() -> Statement:
    """Returns how many events it placed, and how many it found.

    A statement that waited for the lock still reads its old snapshot, in which events already placed look unplaced.
    It compares the locked last_position with the snapshot's. If they differ, it places nothing and the caller retries.
    If they are equal, no event was placed since the snapshot.
    """
    state = cast("Table", StreamState.__table__)
    locked = select(state.c.last_position).with_for_update().cte("locked")
    seen = select(state.c.last_position).scalar_subquery()
    unplaced = _unplaced().cte("unplaced")
    placed = (
        update(_EVENTS)
        .where(_EVENTS.c.id == unplaced.c.id, locked.c.last_position == seen)
        .values(position=locked.c.last_position + unplaced.c.number)
        .returning(_EVENTS.c.position)
        .cte("placed")
    )
    last = select(func.max(placed.c.position).label("position")).cte("last")
    moved = (
        update(state)
        .where(last.c.position.is_not(None))
        .values(last_position=last.c.position)
        .returning(state.c.id)
        .cte("moved")
    )
    counts = [select(func.count()).select_from(each).scalar_subquery() for each in (placed, unplaced)]
    return Statement(select(*counts).add_cte(moved))


_PLACE = _place()
_PLACE_AT_ONCE = _place_at_once()


async def has_unplaced_events(session: DatabaseSession) -> bool:
    return bool(await session.run(_ANY_UNPLACED))


async def positions_of_events(session: DatabaseSession, ids: Collection[int]) -> dict[int, int]:
    """By event id, of those that are placed and kept."""
    return dict(await session.run(_POSITIONS, {"ids": ids}))


_POSITIONS = Statement(select(Event.id, Event.position).where(among_few(Event.id, "ids"), Event.position.is_not(None)))
_ANY_UNPLACED = Statement(select(Event.id).where(Event.position.is_(None)).limit(1))
