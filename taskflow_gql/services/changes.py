"""Changes: events as one viewer is shown them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.models import EventKind, TaskRow
from taskflow_gql.services.access import Viewer, may_see
from taskflow_gql.services.events import AFTER_ALL_POSITIONS, EventRow, Window, events_within
from taskflow_gql.services.positions import StreamStateRow, read_stream_state, require_kept
from taskflow_gql.services.task_filters import EVERYTHING, Filter, matches

# How many visible events one page examines for those that match a filter.
_SCAN = 1000
# How many positions one page covers. The database passes over the events that the viewer may not see: without this
# limit, a person with few tasks would make it read the whole record.
_SPAN = 20_000


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
class ChangeRequest:
    """A page of the changes after one position and before another: the oldest of them, or the newest if `backward`."""

    size: int
    backward: bool = False
    after: int | None = None
    before: int | None = None

    def window_of_history(self) -> Window:
        """One event more than the page, to learn whether the history continues."""
        before = AFTER_ALL_POSITIONS if self.before is None else self.before
        return Window(self.after or 0, before, self.size + 1, self.backward)


@dataclass(frozen=True, slots=True)
class ChangePage:
    """The changes of one page, oldest first also when read backward."""

    changes: list[Change]
    has_previous: bool
    has_next: bool
    # The previous page ends before this position, the next page starts after `end`: everything from `start` to `end`
    # has been examined. `start` is None on an empty page unless there is a previous one.
    start: int | None
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


def history_page(viewer: Viewer, events: Sequence[EventRow], request: ChangeRequest) -> ChangePage:
    """A page of one subject's events, from those of `window_of_history`."""
    shown = events[: request.size]
    changes = [change for event in shown if (change := change_for(viewer, event))]
    positions = [event.position for event in shown] or [request.after or 0]
    return _page(request, changes, goes_on=len(events) > request.size, examined=(min(positions), max(positions)))


async def changes_page(
    session: DatabaseSession, viewer: Viewer, request: ChangeRequest, filter_: Filter = EVERYTHING
) -> ChangePage:
    """A page of what the viewer may see.

    If few events match, the page may be short or empty and still have a next or previous one. Raises CursorExpired if
    events next to a position of the request are no longer kept.
    """
    # Read before the events: an event placed after it belongs to the next page.
    state = await read_stream_state(session)
    # Without a filter each event that is visible is a change.
    limit = request.size + 1 if filter_ == EVERYTHING else _SCAN
    window, is_cut = _window(request, state, limit)
    events = await events_within(session, viewer, TaskRow, window)
    given = [position for position in (request.after, request.before) if position is not None]
    if given:
        # Checked after the events: retention may have deleted some of them before they were read.
        await require_kept(session, min(given))
    changes, count = _first_changes(viewer, events, filter_, request.size)
    oldest, newest = window.after + 1, max(window.before - 1, window.after)
    if is_full := count < len(events) or count == limit:
        reached = events[count - 1].position
        oldest, newest = (reached, newest) if request.backward else (oldest, reached)
    return _page(request, changes, goes_on=is_full or is_cut, examined=(oldest, newest))


def _window(request: ChangeRequest, state: StreamStateRow, limit: int) -> tuple[Window, bool]:
    """The positions that one page examines, and whether the request asks for more."""
    after = state.expired_position if request.after is None else request.after
    before = state.last_position + 1 if request.before is None else request.before
    is_cut = before - after - 1 > _SPAN
    if is_cut and request.backward:
        after = before - 1 - _SPAN
    elif is_cut:
        before = after + 1 + _SPAN
    return Window(after, before, limit, request.backward), is_cut


def _first_changes(viewer: Viewer, events: Sequence[EventRow], filter_: Filter, size: int) -> tuple[list[Change], int]:
    """The changes of a page, and how many of the events were examined for them."""
    changes: list[Change] = []
    for count, event in enumerate(events):
        if len(changes) == size:
            return changes, count
        if change := change_for(viewer, event, filter_):
            changes.append(change)
    return changes, len(events)


def _page(request: ChangeRequest, changes: list[Change], *, goes_on: bool, examined: tuple[int, int]) -> ChangePage:
    """The page, from its changes in the direction of reading, and the oldest and the newest position examined."""
    oldest, newest = examined
    if request.backward:
        changes = changes[::-1]
    start = changes[0].event.position if changes else None
    if request.backward:
        return ChangePage(
            changes,
            has_previous=goes_on,
            has_next=request.before is not None,
            start=oldest if goes_on else start,
            end=newest,
        )
    return ChangePage(changes, has_previous=request.after is not None, has_next=goes_on, start=start, end=newest)
