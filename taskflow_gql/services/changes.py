"""Changes: events as one viewer is shown them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.models import EventKind, TaskRow
from taskflow_gql.services.access import Viewer, may_see
from taskflow_gql.services.events import EventRow, events_after
from taskflow_gql.services.positions import read_stream_state, require_kept
from taskflow_gql.services.task_filters import EVERYTHING, Filter, matches

# How many events one page examines for those that match a filter.
_SCAN = 1000


class TaskChangeKind(StrEnum):
    CREATED = "CREATED"
    UPDATED = "UPDATED"
    DELETED = "DELETED"
    ENTERED = "ENTERED"
    LEFT = "LEFT"


@dataclass(frozen=True, slots=True)
class Change:
    event: EventRow
    kind: TaskChangeKind


@dataclass(frozen=True, slots=True)
class ChangePage:
    changes: list[Change]
    has_previous: bool
    has_next: bool
    # All events up to this position have been examined; the next page starts after it.
    end: int


def change_for(viewer: Viewer, event: EventRow, filter_: Filter = EVERYTHING) -> Change | None:
    """The event as this viewer is shown it. None if they may not see it or the filter excludes it."""

    def shows(task: TaskRow | None) -> bool:
        return task is not None and may_see(viewer, task) and matches(filter_, task, event.occurred_at)

    match event.kind, shows(event.before), shows(event.after):
        case _, False, False:
            return None
        case EventKind.UPDATED, False, True:
            return Change(event, TaskChangeKind.ENTERED)
        case EventKind.UPDATED, True, False:
            return Change(event, TaskChangeKind.LEFT)
    return Change(event, TaskChangeKind(event.kind))


def history_page(
    viewer: Viewer, events: Sequence[EventRow], position: int, *, size: int, has_previous: bool
) -> ChangePage:
    """A page of one subject's events after the position. `events` holds one more than fits if there is a next page."""
    shown = events[:size]
    changes = [change for event in shown if (change := change_for(viewer, event))]
    end = shown[-1].position if shown else position
    return ChangePage(changes, has_previous=has_previous, has_next=len(events) > size, end=end)


async def changes_since(
    session: DatabaseSession, viewer: Viewer, position: int, filter_: Filter, *, size: int
) -> ChangePage:
    """A page of what the viewer may see after the position.

    If few events match, the page may be short or empty and still have a next one. Raises CursorExpired if events after
    the position are no longer kept.
    """
    # Read before the events: an event placed after it belongs to the next page.
    last_position = (await read_stream_state(session)).last_position
    events = await events_after(session, position, viewer=viewer, row_class=TaskRow, limit=_SCAN)
    # Checked after the events: retention may have deleted some of them before they were read.
    await require_kept(session, position)
    changes: list[Change] = []
    for event in events:
        if len(changes) == size:
            return ChangePage(changes, has_previous=True, has_next=True, end=changes[-1].event.position)
        if change := change_for(viewer, event, filter_):
            changes.append(change)
    has_next = len(events) == _SCAN
    end = events[-1].position if has_next else max(last_position, *(event.position for event in events[-1:]), position)
    return ChangePage(changes, has_previous=True, has_next=has_next, end=end)
