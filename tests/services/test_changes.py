"""Events as one viewer is shown them, without a database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from taskflow_gql.models import (
    EventKind,
    TaskCategory,
    TaskPriority,
    TaskRow,
    TaskStatus,
    UserRole,
)
from taskflow_gql.services.changes import ChangePage, ChangeRequest, TaskChangeKind, change_for, history_page
from taskflow_gql.services.events import EventRow
from tests.support.factories import make_viewer

NOW = datetime(2026, 11, 24, tzinfo=UTC)
ANN, BOB, CID = (make_viewer(UUID(int=number)) for number in (1, 2, 3))
ADMIN = make_viewer(UUID(int=4), UserRole.ADMIN)
MINE = TaskRow(
    id=UUID(int=9),
    title="A task",
    description=None,
    status=TaskStatus.PENDING,
    priority=TaskPriority.MEDIUM,
    category=TaskCategory.OTHER,
    due_date=None,
    completed_at=None,
    creator_id=ANN.id,
    assignee_id=None,
    version=1,
    created_at=NOW,
    updated_at=NOW,
)
BOBS = MINE._replace(assignee_id=BOB.id)
EVENT = EventRow(
    id=1,
    position=1,
    row_class=TaskRow,
    subject_id=MINE.id,
    kind=EventKind.UPDATED,
    actor_id=ANN.id,
    audience=frozenset({ANN.id, BOB.id}),
    changed_fields=(),
    mutation_id=None,
    before=MINE,
    after=BOBS,
    occurred_at=NOW,
)
ASSIGNED = EVENT
UNASSIGNED = replace(EVENT, before=BOBS, after=MINE)
CREATED = replace(EVENT, kind=EventKind.CREATED, before=None, after=BOBS)
DELETED = replace(EVENT, kind=EventKind.DELETED, before=BOBS, after=None)


@pytest.mark.parametrize(
    ("event", "ann", "bob", "cid", "admin"),
    [
        (ASSIGNED, "UPDATED", "ENTERED", None, "UPDATED"),
        (UNASSIGNED, "UPDATED", "LEFT", None, "UPDATED"),
        (CREATED, "CREATED", "CREATED", None, "CREATED"),
        (DELETED, "DELETED", "DELETED", None, "DELETED"),
    ],
    ids=["assigned", "unassigned", "created", "deleted"],
)
def test_each_viewer_is_shown_the_kind_of_change_it_is_to_them(
    event: EventRow, ann: str, bob: str, cid: str | None, admin: str
) -> None:
    changes = [change_for(viewer, event) for viewer in (ANN, BOB, CID, ADMIN)]
    assert [change and change.kind for change in changes] == [ann, bob, cid, admin]


@pytest.mark.parametrize(("count", "has_next"), [(0, False), (2, False), (3, True)])
def test_a_page_of_a_history_has_a_next_one_if_an_event_is_left(count: int, has_next: bool) -> None:
    events = [replace(ASSIGNED, position=10 + number) for number in range(count)]
    page = history_page(ANN, events, ChangeRequest(2, after=7))
    assert (page.has_previous, page.has_next) == (True, has_next)
    assert [change.event.position for change in page.changes] == [10, 11][:count]
    assert (page.start, page.end) == ((10, 11) if count else (None, 7))


@pytest.mark.parametrize(("count", "has_previous"), [(0, False), (2, False), (3, True)])
def test_a_page_read_backward_has_a_previous_one_if_an_event_is_left(count: int, has_previous: bool) -> None:
    events = [replace(ASSIGNED, position=20 - number) for number in range(count)]
    page = history_page(ANN, events, ChangeRequest(2, backward=True, before=21))
    assert (page.has_previous, page.has_next) == (has_previous, True)
    assert [change.event.position for change in page.changes] == [19, 20][: 2 * bool(count)]
    assert page.start == (19 if count else None)


def test_the_next_page_of_a_history_starts_after_events_that_are_not_shown() -> None:
    assert history_page(CID, [ASSIGNED], ChangeRequest(2)) == ChangePage(
        [], has_previous=False, has_next=False, start=None, end=1
    )


def test_the_kinds_are_those_of_events_and_two_of_their_own() -> None:
    assert set(TaskChangeKind) == {*map(str, EventKind), "ENTERED", "LEFT"}
