"""Pages of changes: paging in either direction finds every visible change once, also while events are added."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, insert, update

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.models import Event, EventKind, StreamState, TaskRow
from taskflow_gql.services import changes
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.changes import ChangePage, ChangeRequest, changes_page, history_page
from taskflow_gql.services.events import SUBJECT_OF_ROW, history_of_tasks
from taskflow_gql.services.positions import CursorExpired
from taskflow_gql.services.task_filters import EVERYTHING, Filter, matches
from tests.support.factories import make_viewer, noting_statements
from tests.support.task_filters import ANN, BOSS, NOW, examples, holding, random_tasks, read_filter

TASKS = SUBJECT_OF_ROW[TaskRow]
PENDING = read_filter({"status": {"eq": "PENDING"}})
NOTHING = read_filter({"title": {"in": []}})
Read: TypeAlias = Callable[[ChangeRequest], Awaitable[ChangePage]]


class Record:
    """A record with random events at the positions after `expired`."""

    def __init__(self, session: DatabaseSession, random: Random, tasks: Sequence[TaskRow], expired: int) -> None:
        self.session = session
        self._random = random
        self._tasks = tasks
        self.expired = self.last = expired
        # The task that the event at each position has created.
        self.by_position: dict[int, TaskRow] = {}

    async def add(self, count: int) -> None:
        rows = []
        for _ in range(count):
            self.last += 1
            task = self.by_position[self.last] = self._random.choice(self._tasks)
            rows.append(_event(self.last, task))
        if rows:
            await self.session.execute(insert(Event), rows)
        await self._set_state()

    async def expire(self, position: int) -> None:
        self.expired = position
        await self.session.execute(delete(Event).where(Event.position <= position))
        await self._set_state()

    async def _set_state(self) -> None:
        values = {"last_position": self.last, "expired_position": self.expired}
        await self.session.execute(update(StreamState).values(**values))

    def visible(self, viewer: Viewer, filter_: Filter, after: int = 0, before: int = 10**9) -> list[int]:
        return [
            position
            for position, task in self.by_position.items()
            if max(after, self.expired) < position < before
            and (viewer.is_admin or viewer.id in (task.creator_id, task.assignee_id))
            and matches(filter_, task, NOW)
        ]


def _event(position: int, task: TaskRow) -> dict[str, Any]:
    return {
        "position": position,
        "subject_type": TASKS.name,
        "subject_id": task.id,
        "kind": EventKind.CREATED,
        "actor_id": task.creator_id,
        "audience": TASKS.audience_of(None, task),
        "changed_fields": "",
        "after": TASKS.write(task),
        "occurred_at": NOW,
    }


@asynccontextmanager
async def record_of(database: Database, seed: int, *, expired: int = 0, count: int = 0) -> AsyncIterator[Record]:
    tasks = random_tasks(seed)
    async with holding(database, tasks) as session:
        record = Record(session, Random(seed), tasks, expired)
        await record.add(count)
        yield record


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few events already need several pages."""
    monkeypatch.setattr(changes, "_SCAN", 4)
    monkeypatch.setattr(changes, "_SPAN", 7)


def positions(page: ChangePage) -> list[int]:
    return [change.event.position for change in page.changes]


async def walk_back(
    read: Read, size: int, *, before: int | None = None, after: int | None = None, meanwhile: Callable[[], Any]
) -> list[int]:
    """The positions that a client gets by following `startCursor`, in the order of the record."""
    found: list[int] = []
    while True:
        page = await read(ChangeRequest(size, backward=True, before=before, after=after))
        assert len(page.changes) <= size
        assert page.has_next is (before is not None)
        found = positions(page) + found
        if not page.has_previous:
            return found
        assert page.start is not None
        before = page.start
        await meanwhile()


async def walk_on(read: Read, size: int, *, after: int, meanwhile: Callable[[], Any]) -> list[int]:
    """The positions that a client gets by following `endCursor`."""
    found: list[int] = []
    while True:
        page = await read(ChangeRequest(size, after=after))
        assert len(page.changes) <= size
        found += positions(page)
        after = page.end
        if not page.has_next:
            return found
        await meanwhile()


@pytest.mark.slow
@pytest.mark.parametrize("viewer", [ANN, BOSS], ids=["member", "admin"])
@pytest.mark.parametrize("filter_", [EVERYTHING, PENDING, NOTHING], ids=["everything", "pending", "nothing"])
@examples(15)
@given(
    seed=st.integers(0, 2**32 - 1),
    expired=st.sampled_from([0, 1, 30]),
    count=st.integers(0, 40),
    size=st.integers(1, 9),
    added=st.integers(0, 3),
)
async def test_paging_back_and_on_finds_every_visible_change_once_while_events_are_added(
    database: Database, viewer: Viewer, filter_: Filter, seed: int, expired: int, count: int, size: int, added: int
) -> None:
    async with record_of(database, seed, expired=expired, count=count) as record:
        rest = 12

        async def add() -> None:
            nonlocal rest
            number = min(added, rest)
            rest -= number
            await record.add(number)

        async def read(request: ChangeRequest) -> ChangePage:
            return await changes_page(record.session, viewer, request, filter_)

        newest = await read(ChangeRequest(size, backward=True))
        assert (newest.end, newest.has_next) == (record.last, False)
        expected = record.visible(viewer, filter_)
        if newest.has_previous:
            await add()
            earlier = await walk_back(read, size, before=newest.start, meanwhile=add)
            assert earlier + positions(newest) == expected
        else:
            assert positions(newest) == expected
        # On from the newest page: what has been added since, and what is added meanwhile.
        await add()
        later = await walk_on(read, size, after=newest.end, meanwhile=add)
        assert expected + later == record.visible(viewer, filter_)
        # From the beginning, and back from the end to a cursor in the middle.
        assert await walk_on(read, size, after=expired, meanwhile=add) == record.visible(viewer, filter_)
        middle, end = (expired + record.last) // 2, record.last + 1
        back = await walk_back(read, size, after=middle, before=end, meanwhile=add)
        assert back == record.visible(viewer, filter_, after=middle, before=end)


async def page_of(record: Record, viewer: Viewer, size: int, filter_: Filter = EVERYTHING, **bounds: Any) -> ChangePage:
    return await changes_page(record.session, viewer, ChangeRequest(size, **bounds), filter_)


async def test_a_page_covers_a_limited_number_of_positions_that_the_viewer_may_not_see(database: Database) -> None:
    stranger = make_viewer(UUID(int=1))
    async with record_of(database, 1, count=20) as record:
        for before, expected in (
            (None, (True, 14, 20)),
            (14, (True, 7, 13)),
            (7, (False, None, 6)),
        ):
            page = await page_of(record, stranger, 5, backward=True, before=before)
            assert (page.changes, (page.has_previous, page.start, page.end)) == ([], expected)
        page = await page_of(record, stranger, 5, after=3)
        assert (page.changes, page.has_next, page.start, page.end) == ([], True, None, 10)
        page = await page_of(record, stranger, 5, after=13)
        assert (page.changes, page.has_next, page.start, page.end) == ([], False, None, 20)


async def test_a_page_examines_a_limited_number_of_events_for_a_filter(database: Database) -> None:
    async with record_of(database, 1, count=20) as record:
        page = await page_of(record, BOSS, 5, NOTHING, backward=True)
        assert (page.changes, page.has_previous, page.start, page.end) == ([], True, 17, 20)
        page = await page_of(record, BOSS, 5, NOTHING, after=3)
        assert (page.changes, page.has_next, page.start, page.end) == ([], True, None, 7)


async def test_a_full_page_has_another_only_if_something_is_left(database: Database) -> None:
    async with record_of(database, 1, expired=9, count=5) as record:
        for size, goes_on in ((4, True), (5, False), (6, False)):
            page = await page_of(record, BOSS, size, backward=True)
            assert (positions(page), page.has_previous) == ([*range(10, 15)][-size:], goes_on)
            page = await page_of(record, BOSS, size, after=9)
            assert (positions(page), page.has_next) == ([*range(10, 15)][:size], goes_on)


async def test_a_page_between_two_positions_excludes_both(database: Database) -> None:
    async with record_of(database, 1, count=9) as record:
        assert positions(await page_of(record, BOSS, 2, after=3, before=8)) == [4, 5]
        assert positions(await page_of(record, BOSS, 2, after=3, before=8, backward=True)) == [6, 7]
        assert positions(await page_of(record, BOSS, 9, after=3, before=5)) == [4]
        assert positions(await page_of(record, BOSS, 2, before=8)) == [1, 2]
        for backward in (False, True):
            page = await page_of(record, BOSS, 2, after=8, before=3, backward=backward)
            assert (page.changes, page.start, page.end) == ([], None, 8)


async def test_paging_backward_ends_at_what_is_kept_without_an_error(database: Database) -> None:
    async with record_of(database, 1, count=9) as record:
        newest = await page_of(record, BOSS, 3, backward=True)
        # Retention catches up with the reader.
        await record.expire(5)
        page = await page_of(record, BOSS, 3, backward=True, before=newest.start)
        assert (positions(page), page.has_previous, page.start) == ([6], False, 6)
        for before in (6, 5):
            page = await page_of(record, BOSS, 3, backward=True, before=before)
            assert (page.changes, page.has_previous, page.has_next, page.start) == ([], False, True, None)
        expired: list[dict[str, int]] = [
            {"before": 4},
            {"after": 4},
            {"after": 4, "before": 8},
            {"after": 8, "before": 4},
        ]
        for bounds in expired:
            for backward in (False, True):
                with pytest.raises(CursorExpired):
                    await changes_page(record.session, BOSS, ChangeRequest(3, backward, **bounds))


@pytest.mark.parametrize("expired", [0, 7])
async def test_the_newest_page_of_an_empty_record_is_empty(database: Database, expired: int) -> None:
    async with record_of(database, 1, expired=expired) as record:
        assert await page_of(record, BOSS, 3, backward=True) == ChangePage([], False, False, None, expired)
        assert await page_of(record, BOSS, 3, backward=True, before=expired) == ChangePage(
            [], False, True, None, expired
        )


@examples(15)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 40), size=st.integers(1, 9))
async def test_paging_histories_in_either_direction_finds_every_change_once(
    database: Database, seed: int, count: int, size: int
) -> None:
    async with record_of(database, seed, count=count) as record:
        ids = {task.id for task in record.by_position.values()}
        expected = {
            id: [place for place in record.visible(ANN, EVERYTHING) if record.by_position[place].id == id] for id in ids
        }
        for id in ids:

            async def read(request: ChangeRequest, id: UUID = id) -> ChangePage:
                statements: list[str] = []
                with noting_statements(statements.append):
                    events = await history_of_tasks(record.session, ANN, ids, request.window_of_history())
                assert len(statements) == 1
                return history_page(ANN, events[id], request)

            async def add() -> None:
                pass

            assert await walk_back(read, size, meanwhile=add) == expected[id]
            assert await walk_on(read, size, after=0, meanwhile=add) == expected[id]
