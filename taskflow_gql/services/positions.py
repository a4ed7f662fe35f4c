"""The record of changes: written in the mutation's transaction, read by history and stream."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import BigInteger, Integer, Select, UpdateBase, bindparam, delete, func, insert, select, update

from taskflow_gql import clock
from taskflow_gql.database.constructs import top_of_each
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.errors import CursorExpired
from taskflow_gql.models import EventKind, StreamState, Task, TaskEvent, TaskRow
from taskflow_gql.services.access import Viewer, events_visible
from taskflow_gql.services.events import EVENT_COLUMNS, TaskChanged, changed_fields, event_of_row, json_of_task

if TYPE_CHECKING:
    from sqlalchemy import Table


class StreamStateRow(NamedTuple):
    """The stream's id, which cursors carry; the last position given; the last position deleted."""

    stream_id: str
    last_position: int
    expired_position: int


async def record_task_event(
    session: DatabaseSession,
    viewer: Viewer,
    *,
    before: TaskRow | None,
    after: TaskRow | None,
    change: UpdateBase | None = None,
    values: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Add the change to the record, in the same transaction; and on PostgreSQL in the same statement as what changes
    the task, where that is given, with the values of its parameters.

    The caller holds the task's row lock (or has just made the row), which makes the order of event ids within one
    task the order of its changes.
    """
    task = after or before
    assert task is not None
    kind = EventKind.CREATED if before is None else EventKind.DELETED if after is None else EventKind.UPDATED
    fields = changed_fields(before, after) if before is not None and after is not None else []
    recorded = {
        "kind": kind,
        "task_id": task.id,
        "actor_id": viewer.id,
        "creator_id": task.creator_id,
        "assignee_id": after and after.assignee_id,
        "previous_assignee_id": before and before.assignee_id,
        "changed_fields": ",".join(fields),
        "before": json_of_task(before),
        "after": json_of_task(after),
        "occurred_at": clock.now(),
    }
    if change is not None and session.dialect_name == "postgresql":
        await session.run(_with_record(change), {**recorded, **values})
    else:
        if change is not None:
            # Without what is recorded: SQLAlchemy would set the columns of those names as well.
            await session.run(_alone(change), {**values, "task_id": task.id})
        await session.run(_RECORD, recorded)
    session.recorded_event = True


# All but what the database (`id`) and the relay (`position`) give.
_EVENTS = cast("Table", TaskEvent.__table__)
_RECORDED = [column.name for column in _EVENTS.columns if column.name not in ("id", "position")]
_INSERT = insert(_EVENTS).values({name: bindparam(name) for name in _RECORDED}).inline()


_RECORD = Statement(_INSERT)


@cache
def _with_record(change: UpdateBase) -> Statement:
    return Statement(_INSERT.add_cte(change.cte("change")))


@cache
def _alone(change: UpdateBase) -> Statement:
    return Statement(change)


async def read_stream_state(session: DatabaseSession) -> StreamStateRow:
    (row,) = await session.run(_STATE)
    return StreamStateRow._make(row)


_STATE = Statement(select(StreamState.stream_id, StreamState.last_position, StreamState.expired_position))


async def require_kept(session: DatabaseSession, position: int) -> StreamStateRow:
    """Raises CursorExpired unless every event after the position is still there."""
    state = await read_stream_state(session)
    if position < state.expired_position:
        raise CursorExpired("The changes since this cursor are no longer kept: read again from a query")
    return state


async def expire_events(session: DatabaseSession, older_than: datetime, *, limit: int) -> int:
    """Delete the oldest events, as far as they are older; how many that was.

    Only from the start of the stream: what is kept has no holes.
    """
    state = select(StreamState.expired_position).where(StreamState.id == 1).with_for_update()
    expired_position = (await session.execute(state)).scalar_one()
    oldest = (
        select(TaskEvent.position, TaskEvent.occurred_at)
        .where(TaskEvent.position > expired_position)
        .order_by(TaskEvent.position)
        .limit(limit)
    )
    expired = 0
    for row in await session.execute(oldest):
        if row.position is None or row.occurred_at >= older_than:
            break
        expired, expired_position = expired + 1, row.position
    if expired:
        await session.execute(delete(TaskEvent).where(TaskEvent.position <= expired_position))
        await session.execute(update(StreamState).values(expired_position=expired_position))
    return expired


async def read_stream_end(session: DatabaseSession) -> tuple[int, frozenset[int]]:
    """Where "from now on" begins: the last position, and the ids of events that are committed but not placed yet.

    Everything committed before this read has a position up to the first or an id in the second; everything
    committed after it has neither.
    """
    rows = await session.run(_STREAM_END)
    return rows[0][0], frozenset(event_id for _, event_id in rows if event_id is not None)


_STREAM_END = Statement(
    select(StreamState.last_position, TaskEvent.id).outerjoin(TaskEvent, TaskEvent.position.is_(None))
)


async def place_events(session: DatabaseSession, *, limit: int) -> tuple[int, bool]:
    """Give positions to committed events that have none, oldest first, in `Database.write_single_statement`. Returns
    how many, and whether there may be more.

    The lock on the state's row is held until the transaction ends, so positions are given by one process at a time
    and become visible in order.
    """
    if session.is_only_writer:
        ((last_position,),) = await session.run(_LAST_POSITION)
        placed = len(await session.run(_PLACE, {"last_position": last_position, "most": limit}))
        if placed:
            await session.run(_SET_LAST_POSITION, {"last": last_position + placed})
        return placed, placed == limit
    ((placed, found),) = await session.run(_PLACE_AT_ONCE, {"most": limit})
    return placed, placed < found or placed == limit


_LAST_POSITION = Statement(select(StreamState.last_position))
_SET_LAST_POSITION = Statement(update(cast("Table", StreamState.__table__)).values(last_position=bindparam("last")))


def _unplaced() -> Select[Any]:
    number = func.row_number().over(order_by=TaskEvent.id).label("number")
    unplaced = select(TaskEvent.id, number).where(TaskEvent.position.is_(None)).order_by(TaskEvent.id)
    return unplaced.limit(bindparam("most", type_=Integer))


def _place() -> Statement:
    unplaced = _unplaced().subquery()
    position = bindparam("last_position", type_=BigInteger) + unplaced.c.number
    placed = update(_EVENTS).where(_EVENTS.c.id == unplaced.c.id).values(position=position)
    return Statement(placed.returning(_EVENTS.c.id))


def _place_at_once() -> Statement:
    """How many events it placed, and how many it found.

    A statement that waited for the lock still looks at the world of before it: events that are placed by now look as
    if they were not. But then the state's row under the lock is another than the one it sees, and it places nothing;
    who comes next sees more. Where both are the same nobody has placed anything since the statement began, and what
    it sees without a position has none.
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


_ANY_UNPLACED = Statement(select(TaskEvent.id).where(TaskEvent.position.is_(None)).limit(1))


async def events_after(
    session: DatabaseSession, position: int, *, viewer: Viewer | None = None, limit: int
) -> list[TaskChanged]:
    """Placed events in order of position; with a viewer, those that this person may see before or after the change."""
    # Without a viewer everything, as an admin sees it.
    statement = _events_after(is_admin=viewer is None or viewer.is_admin)
    parameters = {"position": position, "most": limit, "viewer_id": viewer and viewer.id}
    return [event_of_row(row) for row in await session.run(statement, parameters)]


@cache
def _events_after(*, is_admin: bool) -> Statement:
    after = select(*EVENT_COLUMNS).where(TaskEvent.position > bindparam("position"), events_visible(is_admin=is_admin))
    return Statement(after.order_by(TaskEvent.position).limit(bindparam("most", type_=Integer)))


def audience(event: TaskChanged) -> set[UUID]:
    """The people, besides admins, who may see the task before or after the change."""
    people: set[UUID] = set()
    for task in (event.before, event.after):
        if task is not None:
            people.add(task.creator_id)
            if task.assignee_id is not None:
                people.add(task.assignee_id)
    return people


async def history_of_tasks(
    session: DatabaseSession, viewer: Viewer, task_ids: Collection[UUID], position: int, *, limit: int
) -> dict[UUID, list[TaskChanged]]:
    """For each task its first placed events after the position that the viewer may see: one statement for all."""
    statement = _histories(viewer.is_admin, limit)
    parameters = {"task_ids": task_ids, "position": position, "viewer_id": viewer.id}
    events_by_task: dict[UUID, list[TaskChanged]] = {task_id: [] for task_id in task_ids}
    for task_id, *values in await session.run(statement, parameters):
        events_by_task[task_id].append(event_of_row(values))
    return events_by_task


@cache
def _histories(is_admin: bool, limit: int) -> Statement:
    rows = select(*EVENT_COLUMNS).where(TaskEvent.position > bindparam("position"), events_visible(is_admin=is_admin))
    page = top_of_each(
        rows,
        parent=Task.id,
        child=TaskEvent.task_id,
        keys="task_ids",
        order_by=[TaskEvent.position.asc()],
        limit=limit,
    )
    columns = [page.c[column.key] for column in EVENT_COLUMNS]
    return Statement(select(page.c.parent_id, *columns).order_by(page.c.position))
