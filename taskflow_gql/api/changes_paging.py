"""Parts of the record of changes: the history of a task, and what has happened since a cursor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import strawberry

from taskflow_gql.api.context import Info
from taskflow_gql.api.enums import TaskChangeKind
from taskflow_gql.api.task_filters import TaskFilter, filter_of
from taskflow_gql.models import EventKind, TaskRow
from taskflow_gql.services.access import Viewer, may_see
from taskflow_gql.services.events import EventRow, events_after
from taskflow_gql.services.paging import PageRequest
from taskflow_gql.services.positions import read_stream_state, require_kept
from taskflow_gql.services.task_filters import matches

# Tasks have a history and changes have a task; one of the two modules has to name the other's type lazily.
TASK_CHANGE_CONNECTION: Any = Annotated["TaskChangeConnection", strawberry.lazy("taskflow_gql.api.changes")]  # noqa: F821

# How many events one request looks through for those that a filter finds.
_SCAN = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """An event as it looks to somebody."""

    event: EventRow
    kind: TaskChangeKind


@dataclass(frozen=True, slots=True)
class ChangeList:
    changes: list[Change]
    has_previous: bool
    has_next: bool
    # Up to here everything has been looked at; where to go on.
    end: int


def change_for(viewer: Viewer, event: EventRow, filter_: TaskFilter | None = None) -> Change | None:
    """The event as it looks to this person through the filter; None when it is none of their business."""
    # Made for each event: whether a task was overdue depends on the time of the change.
    made = filter_of(filter_, viewer, event.occurred_at)

    def shows(task: TaskRow | None) -> bool:
        return task is not None and may_see(viewer, task) and matches(made, task)

    match event.kind, shows(event.before), shows(event.after):
        case _, False, False:
            return None
        case EventKind.UPDATED, False, True:
            return Change(event, TaskChangeKind.ENTERED)
        case EventKind.UPDATED, True, False:
            return Change(event, TaskChangeKind.LEFT)
    return Change(event, TaskChangeKind(event.kind))


async def history_of_task(
    info: Info, viewer: Viewer, task: TaskRow, *, first: int | None, after: str | None
) -> ChangeList:
    size = PageRequest.of(first=first).size
    position = 0 if after is None else info.context.parts.fanout.decode(after)
    await info.context.loaders.catch_up(info.context.parts.relay)
    events = await info.context.loaders.history(viewer, position, size + 1).load(task.id)
    changes = [change for event in events[:size] if (change := change_for(viewer, event))]
    end = events[:size][-1].position if events else position
    return ChangeList(changes, has_previous=after is not None, has_next=len(events) > size, end=end)


async def changes_since(
    info: Info, viewer: Viewer, after: str, *, first: int | None, filter_: TaskFilter | None
) -> ChangeList:
    """A page of what the viewer may know since the cursor. With a rare match it may be short, even empty, and go on."""
    size = PageRequest.of(first=first).size
    filter_of(filter_, viewer, info.context.begun_at)
    position = await info.context.parts.fanout.position_of(after)
    await info.context.parts.relay.catch_up()
    async with info.context.read() as session:
        # The end is read first: what is placed after it is left to the next page.
        last_position = (await read_stream_state(session)).last_position
        events = await events_after(session, position, viewer=viewer, limit=_SCAN)
        # Once more: what is deleted between the first look and the reading must not be passed over in silence.
        await require_kept(session, position)
    changes: list[Change] = []
    for event in events:
        if len(changes) == size:
            return ChangeList(changes, has_previous=True, has_next=True, end=changes[-1].event.position)
        if change := change_for(viewer, event, filter_):
            changes.append(change)
    goes_on = len(events) == _SCAN
    end = events[-1].position if goes_on else max(last_position, *(event.position for event in events[-1:]), position)
    return ChangeList(changes, has_previous=True, has_next=goes_on, end=end)
