"""The record of changes: written in the mutation's transaction, read by history and stream."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from taskflow_gql import clock
from taskflow_gql.database import RECORDED_EVENT, dialect_of, top_of_each
from taskflow_gql.errors import CursorExpired
from taskflow_gql.events import EVENT_COLUMNS, TaskChanged, changed_fields, event_of_row, json_of_task
from taskflow_gql.models import EventKind, StreamState, Task, TaskEvent, TaskRow
from taskflow_gql.services.access import Viewer, events_visible_to

if TYPE_CHECKING:
    from sqlalchemy import CursorResult


class StreamStateRow(NamedTuple):
    """The stream's id, which cursors carry; the last position given; the last position deleted."""

    stream_id: str
    last_position: int
    expired_position: int


async def record_task_event(
    session: AsyncSession, viewer: Viewer, *, before: TaskRow | None, after: TaskRow | None
) -> None:
    """Add the change to the record, in the same transaction.

    The caller holds the task's row lock (or has just made the row), which makes the order of event ids within one
    task the order of its changes.
    """
    task = after or before
    assert task is not None
    kind = EventKind.CREATED if before is None else EventKind.DELETED if after is None else EventKind.UPDATED
    fields = changed_fields(before, after) if before is not None and after is not None else []
    await session.execute(
        insert(TaskEvent).values(
            kind=kind,
            task_id=task.id,
            actor_id=viewer.id,
            creator_id=task.creator_id,
            assignee_id=after and after.assignee_id,
            previous_assignee_id=before and before.assignee_id,
            changed_fields=",".join(fields),
            before=json_of_task(before),
            after=json_of_task(after),
            occurred_at=clock.now(),
        )
    )
    session.info[RECORDED_EVENT] = True


async def read_stream_state(session: AsyncSession) -> StreamStateRow:
    columns = (StreamState.stream_id, StreamState.last_position, StreamState.expired_position)
    return StreamStateRow._make((await session.execute(select(*columns))).one())


async def require_kept(session: AsyncSession, position: int) -> StreamStateRow:
    """Raises CursorExpired unless every event after the position is still there."""
    state = await read_stream_state(session)
    if position < state.expired_position:
        raise CursorExpired("The changes since this cursor are no longer kept: read again from a query")
    return state


async def expire_events(session: AsyncSession, older_than: datetime, *, limit: int) -> int:
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
    for position, occurred_at in await session.execute(oldest):
        if position is None or occurred_at >= older_than:
            break
        expired, expired_position = expired + 1, position
    if expired:
        await session.execute(delete(TaskEvent).where(TaskEvent.position <= expired_position))
        await session.execute(update(StreamState).values(expired_position=expired_position))
    return expired


async def read_stream_end(session: AsyncSession) -> tuple[int, frozenset[int]]:
    """Where "from now on" begins: the last position, and the ids of events that are committed but not placed yet.

    Everything committed before this read has a position up to the first or an id in the second; everything
    committed after it has neither.
    """
    statement = select(StreamState.last_position, TaskEvent.id).outerjoin(TaskEvent, TaskEvent.position.is_(None))
    rows = (await session.execute(statement)).all()
    return rows[0].last_position, frozenset(row.id for row in rows if row.id is not None)


async def place_events(session: AsyncSession, *, limit: int) -> tuple[int, int]:
    """Give positions to committed events that have none, oldest first. Returns how many, and the last position.

    The lock on the state's row is held until the transaction ends, so positions are given by one process at a time
    and become visible in order. The events are read by a statement of their own after the lock is there: one that
    waited for the lock would still look at the world of before it.
    """
    state = select(StreamState.last_position).where(StreamState.id == 1).with_for_update()
    last_position = (await session.execute(state)).scalar_one()
    unplaced = (
        select(TaskEvent.id, func.row_number().over(order_by=TaskEvent.id).label("number"))
        .where(TaskEvent.position.is_(None))
        .order_by(TaskEvent.id)
        .limit(limit)
        .subquery()
    )
    placed = await session.execute(
        update(TaskEvent)
        .where(TaskEvent.id == unplaced.c.id)
        .values(position=last_position + unplaced.c.number)
        .execution_options(synchronize_session=False)
    )
    count = cast("CursorResult[Any]", placed).rowcount
    if count:
        last_position += count
        await session.execute(update(StreamState).values(last_position=last_position))
    return count, last_position


async def has_unplaced_events(session: AsyncSession) -> bool:
    statement = select(TaskEvent.id).where(TaskEvent.position.is_(None)).limit(1)
    return (await session.execute(statement)).first() is not None


async def events_after(
    session: AsyncSession, position: int, *, viewer: Viewer | None = None, limit: int
) -> list[TaskChanged]:
    """Placed events in order of position; with a viewer, those that this person may see before or after the change."""
    statement = select(*EVENT_COLUMNS).where(TaskEvent.position > position)
    if viewer is not None:
        statement = statement.where(events_visible_to(viewer))
    statement = statement.order_by(TaskEvent.position).limit(limit)
    return [event_of_row(row) for row in await session.execute(statement)]


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
    session: AsyncSession, viewer: Viewer, task_ids: Collection[UUID], position: int, *, limit: int
) -> dict[UUID, list[TaskChanged]]:
    """For each task its first placed events after the position that the viewer may see: one statement for all."""
    rows = select(*EVENT_COLUMNS).where(TaskEvent.position > position, events_visible_to(viewer))
    page = top_of_each(
        dialect_of(session),
        rows,
        parent=Task.id,
        child=TaskEvent.task_id,
        keys=task_ids,
        order_by=[TaskEvent.position.asc()],
        limit=limit,
    )
    columns = [page.c[column.key] for column in EVENT_COLUMNS]
    events_by_task: dict[UUID, list[TaskChanged]] = {task_id: [] for task_id in task_ids}
    for task_id, *values in await session.execute(select(page.c.parent_id, *columns).order_by(page.c.position)):
        events_by_task[task_id].append(event_of_row(values))
    return events_by_task
