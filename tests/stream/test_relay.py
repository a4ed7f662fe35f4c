"""Positions are assigned after commit, in order and without gaps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import insert, select, text

from taskflow_gql import clock
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.units import Database
from taskflow_gql.models import Event, EventKind
from taskflow_gql.services import tasks
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.events import EventRow, events_after
from taskflow_gql.services.positions import place_events, read_stream_state
from taskflow_gql.stream.bus import MemoryBus
from taskflow_gql.stream.relay import Relay
from tests.support.client import PATIENCE_SECONDS
from tests.support.factories import make_task, make_user, make_viewer


class Process:
    """The parts of one server process: its connections, its relay, and news of placed events."""

    def __init__(self, settings: Settings) -> None:
        self.database = Database(create_engine(settings))
        self.bus = MemoryBus()
        self.relay = Relay(self.database, self.bus)
        self.database.observe(self.relay)
        self.news = asyncio.Event()
        self.bus.listen(self.news.set)

    async def until_placed(self, count: int) -> list[EventRow]:
        """Waits until this many events have positions, and returns all of them."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(events := await placed(self.database)) < count:
                self.news.clear()
                if len(events := await placed(self.database)) < count:
                    await self.news.wait()
        return events


@asynccontextmanager
async def process(settings: Settings, *, relays: bool = True) -> AsyncIterator[Process]:
    started = Process(settings)
    if relays:
        started.relay.start()
    try:
        yield started
    finally:
        if relays:
            await started.relay.close()
        await started.database.close()


async def placed(database: Database) -> list[EventRow]:
    """All placed events in order of position."""
    async with database.read() as session:
        return await events_after(session, 0, limit=100_000)


async def sign_up(database: Database) -> Viewer:
    async with database.write() as session:
        return make_viewer((await make_user(session)).id)


async def create(database: Database, viewer: Viewer, title: str = "A task") -> UUID:
    async with database.write() as session:
        return (await make_task(session, viewer, title)).id


async def update(database: Database, viewer: Viewer, task_id: UUID, title: str) -> None:
    async with database.write() as session:
        await tasks.update_task(session, viewer, task_id, {"title": title})


def titles(events: list[EventRow]) -> list[str]:
    return [event.after.title for event in events if event.after]


def assert_positions_are_sound(events: list[EventRow]) -> None:
    """Positions start at 1 without gaps, and each task's events follow each other."""
    assert [event.position for event in events] == list(range(1, len(events) + 1))
    last: dict[UUID, Any] = {}
    for event in events:
        assert event.before == last.get(event.subject_id)
        last[event.subject_id] = event.after


async def test_positions_have_no_gaps_and_follow_each_task_while_many_write(settings: Settings) -> None:
    async with process(settings) as only:
        ann = await sign_up(only.database)
        task_ids = [await create(only.database, ann) for _ in range(10)]
        await asyncio.gather(
            *(update(only.database, ann, task_id, f"Title {n}") for n in range(20) for task_id in task_ids)
        )
        assert_positions_are_sound(await only.until_placed(210))


async def test_two_relays_on_one_database_share_the_work(postgresql_settings: Settings) -> None:
    async with process(postgresql_settings) as one, process(postgresql_settings) as other:
        ann = await sign_up(one.database)
        task_ids = [await create(one.database, ann) for _ in range(10)]
        await asyncio.gather(
            *(
                update((one, other)[n % 2].database, ann, task_id, f"Title {n}")
                for n in range(20)
                for task_id in task_ids
            )
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(events := await placed(one.database)) < 210:
                # Either relay may place the last event.
                await asyncio.wait(
                    [asyncio.ensure_future(each.news.wait()) for each in (one, other)],
                    return_when=asyncio.FIRST_COMPLETED,
                    timeout=0.1,
                )
        assert_positions_are_sound(events)
        async with one.database.read() as session:
            assert (await read_stream_state(session))[1] == 210


async def test_a_stale_snapshot_places_no_events(postgresql_settings: Settings) -> None:
    async with process(postgresql_settings, relays=False) as one, process(postgresql_settings, relays=False) as other:
        ann = await sign_up(one.database)
        await create(one.database, ann, "First")

        async def place() -> tuple[int, bool]:
            async with other.database.write_single_statement() as session:
                return await place_events(session, limit=10)

        async with one.database.write() as session:
            assert await place_events(session, limit=10) == (1, False)
            waiting = asyncio.create_task(place())
            await until_somebody_waits_for_a_lock(other.database)
            # Committed after the other statement began, so its snapshot does not have it.
            await create(one.database, ann, "Second")
        assert await waiting == (0, True)
        assert await place() == (1, False)
        assert await place() == (0, False)
        events = await placed(one.database)
        assert titles(events) == ["First", "Second"]
        assert_positions_are_sound(events)


async def until_somebody_waits_for_a_lock(database: Database) -> None:
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    async with asyncio.timeout(PATIENCE_SECONDS), database.read() as session:
        while not (await session.execute(waiting)).scalar_one():
            pass


async def test_relays_that_place_at_the_same_time_leave_no_gap(postgresql_settings: Settings) -> None:
    async with process(postgresql_settings, relays=False) as one, process(postgresql_settings, relays=False) as other:
        ann = await sign_up(one.database)
        task_ids = [await create(one.database, ann) for _ in range(4)]

        async def change_and_place(database: Database, task_id: UUID) -> None:
            for n in range(25):
                await update(database, ann, task_id, f"Title {n}")
                may_be_more = True
                while may_be_more:
                    async with database.write_single_statement() as session:
                        _, may_be_more = await place_events(session, limit=3)

        databases = (one.database, other.database) * 2
        await asyncio.gather(*map(change_and_place, databases, task_ids))
        events = await placed(one.database)
        assert len(events) == 104
        assert_positions_are_sound(events)


async def test_a_transaction_that_commits_late_gets_a_later_position(postgresql_settings: Settings) -> None:
    async with process(postgresql_settings) as one, process(postgresql_settings, relays=False) as other:
        ann = await sign_up(one.database)
        async with other.database.write() as late:
            await make_task(late, ann, "Begun first")
            await late.flush()
            for n in range(3):
                await create(one.database, ann, f"Meanwhile {n}")
            before = await one.until_placed(3)
            assert titles(before) == ["Meanwhile 0", "Meanwhile 1", "Meanwhile 2"]
        # Committed by a process whose relay never runs. The other process's relay finds it.
        events = await one.until_placed(4)
        assert events[:3] == before
        assert (titles(events[3:]), events[3].position) == (["Begun first"], 4)
        assert events[3].id < events[0].id


async def test_events_of_a_dead_process_are_placed_by_another(settings: Settings) -> None:
    async with process(settings, relays=False) as dead:
        ann = await sign_up(dead.database)
        task_id = await create(dead.database, ann, "First")
        await update(dead.database, ann, task_id, "Second")
    async with process(settings) as heir:
        # No doorbell rings: the other relay finds the event on its timer.
        events = await heir.until_placed(2)
        assert titles(events) == ["First", "Second"]
        assert_positions_are_sound(events)


async def test_a_rolled_back_event_leaves_no_gap(settings: Settings) -> None:
    async with process(settings) as only:
        ann = await sign_up(only.database)
        await create(only.database, ann, "Before")
        for _ in range(3):
            with suppress(ZeroDivisionError):
                async with only.database.write() as session:
                    await make_task(session, ann, "Never")
                    raise ZeroDivisionError
        await create(only.database, ann, "After")
        events = await only.until_placed(2)
        assert titles(events) == ["Before", "After"]
        assert_positions_are_sound(events)


async def test_a_closing_relay_places_the_events_of_its_process(settings: Settings) -> None:
    async with process(settings, relays=False) as only:
        ann = await sign_up(only.database)
        relay = Relay(only.database, only.bus)
        relay.start()
        await create(only.database, ann)
        await relay.close()
        assert_positions_are_sound(await placed(only.database))
        assert only.news.is_set()
        # A relay that was never started can be closed too.
        await Relay(only.database, only.bus).close()


async def test_a_backlog_is_placed_in_the_order_of_its_ids(settings: Settings) -> None:
    async with process(settings, relays=False) as only:
        async with only.database.write() as session:
            await session.execute(insert(Event), [an_event(n) for n in range(2500)])
        only.relay.start()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await count_unplaced(only.database):
                await only.news.wait()
                only.news.clear()
        await only.relay.close()
        async with only.database.read() as session:
            statement = select(Event.position).order_by(Event.id)
            assert list((await session.execute(statement)).scalars()) == list(range(1, 2501))


def an_event(n: int) -> dict[str, Any]:
    return {
        "kind": EventKind.UPDATED,
        "subject_type": "TASK",
        "subject_id": uuid4(),
        "audience": [uuid4()],
        "changed_fields": "TITLE",
        "occurred_at": clock.now(),
    }


async def count_unplaced(database: Database) -> int:
    async with database.read() as session:
        return len((await session.execute(select(Event.id).where(Event.position.is_(None)))).all())
