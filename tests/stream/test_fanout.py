"""The fan-out and its queues, on a real database."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.errors import BadUserInput, ServerStops, Unauthenticated
from taskflow_gql.models import EventKind, TaskField, TaskRow, UserRole, UserRow
from taskflow_gql.services import tasks
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.events import EventRow
from taskflow_gql.services.positions import CursorExpired, encode_cursor, expire_events, place_events
from taskflow_gql.stream.bus import MemoryBus
from taskflow_gql.stream.fanout import Fanout, Subscriber, TooManySubscriptions
from taskflow_gql.stream.relay import Relay
from tests.support.client import PATIENCE_SECONDS
from tests.support.factories import make_task, make_user, make_viewer


@pytest.fixture
async def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
async def ann(database: Database) -> Viewer:
    return await sign_up(database, "ann")


@asynccontextmanager
async def running(database: Database, bus: MemoryBus, *, queue_size: int = 2) -> AsyncIterator[Fanout]:
    """A fan-out with short queues. No relay runs: the test places events."""
    fanout = Fanout(database, bus, queue_size=queue_size)
    await fanout.start()
    try:
        yield fanout
    finally:
        await fanout.close()


@asynccontextmanager
async def placing(database: Database, bus: MemoryBus) -> AsyncIterator[None]:
    """A running relay."""
    relay = Relay(database, bus)
    database.observe(relay)
    relay.start()
    try:
        yield
    finally:
        await relay.close()


async def sign_up(database: Database, username: str, role: UserRole = UserRole.MEMBER) -> Viewer:
    async with database.write() as session:
        user = await make_user(session, username, role=role)
    return make_viewer(user.id, role)


async def create(database: Database, viewer: Viewer, *titles: str) -> list[UUID]:
    """Create the tasks in one transaction, and return their ids."""
    async with database.write() as session:
        return [(await make_task(session, viewer, title)).id for title in titles]


async def create_and_roll_back(database: Database, viewer: Viewer) -> None:
    with suppress(ZeroDivisionError):
        async with database.write() as session:
            await make_task(session, viewer, "Never")
            raise ZeroDivisionError


async def place(database: Database, bus: MemoryBus) -> None:
    async with database.write() as session:
        await place_events(session, limit=10_000)
    bus.announce()


async def hear(subscriber: Subscriber, database: Database, count: int) -> list[str]:
    """The titles of the next events, at least this many."""
    titles: list[str] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(titles) < count:
            titles += [title_of(event) for event in await subscriber.next_batch(database)]
    return titles


def title_of(event: EventRow) -> str:
    task = event.after or event.before
    assert task is not None
    return str(task.title)


def numbered(count: int, start: int = 0) -> list[str]:
    return [f"Task {n}" for n in range(start, start + count)]


async def test_a_slow_subscriber_reads_the_table_and_misses_nothing(
    database: Database, bus: MemoryBus, ann: Viewer
) -> None:
    async with (
        running(database, bus) as fanout,
        placing(database, bus),
        fanout.subscribe(ann) as slow,
        fanout.subscribe(ann) as quick,
    ):
        for title in numbered(9):
            await create(database, ann, title)
            # The fast subscriber got every event, so all were offered to the slow one, whose queue holds two.
            assert await hear(quick, database, 1) == [title]
        assert await hear(slow, database, 9) == numbered(9)
        # From the table back to the queue, and past its end again.
        await create(database, ann, *numbered(1, 9))
        assert await hear(slow, database, 1) == numbered(1, 9)
        await create(database, ann, *numbered(5, 10))
        assert await hear(quick, database, 6) == numbered(6, 9)
        assert await hear(slow, database, 5) == numbered(5, 10)


async def test_events_placed_while_the_table_is_read_are_delivered_without_further_news(
    database: Database, bus: MemoryBus, ann: Viewer
) -> None:
    async with (
        running(database, bus) as fanout,
        fanout.subscribe(ann, after=0) as reader,
        fanout.subscribe(ann) as other,
    ):

        class Interrupted(Database):
            has_read = False

            @asynccontextmanager
            async def read(self) -> AsyncIterator[DatabaseSession]:
                async with database.read() as session:
                    yield session
                if not self.has_read:
                    self.has_read = True
                    await create(database, ann, "Meanwhile")
                    await place(database, bus)
                    assert await hear(other, database, 1) == ["Meanwhile"]

        assert await hear(reader, Interrupted(database.engine), 1) == ["Meanwhile"]


@pytest.mark.slow
async def test_a_subscriber_far_behind_reads_the_table_in_batches(
    database: Database, bus: MemoryBus, ann: Viewer
) -> None:
    async with running(database, bus) as fanout, fanout.subscribe(ann) as slow, fanout.subscribe(ann) as quick:
        await create(database, ann, *numbered(1100))
        await place(database, bus)
        assert await hear(quick, database, 1100) == numbered(1100)
        await create(database, ann, "The last")
        await place(database, bus)
        assert await hear(slow, database, 1101) == [*numbered(1100), "The last"]


async def test_fast_and_slow_subscribers_get_every_event_once_while_many_write(
    database: Database, bus: MemoryBus, ann: Viewer
) -> None:
    async with (
        running(database, bus) as fanout,
        placing(database, bus),
        fanout.subscribe(ann) as slow,
        fanout.subscribe(ann) as quick,
    ):

        async def write(writer: int) -> None:
            for n in range(8):
                await create(database, ann, f"{writer}, {n}")

        heard_quickly, *_ = await asyncio.gather(hear(quick, database, 64), *(write(writer) for writer in range(8)))
        heard_slowly = await hear(slow, database, 64)
        assert heard_quickly == heard_slowly
        assert sorted(heard_slowly) == sorted(f"{writer}, {n}" for writer in range(8) for n in range(8))


@pytest.mark.parametrize("later", [1, 5])
async def test_events_committed_before_the_subscription_are_not_delivered_placed_or_not(
    database: Database, bus: MemoryBus, ann: Viewer, later: int
) -> None:
    async with running(database, bus, queue_size=2) as fanout:
        await create(database, ann, "Placed before")
        await place(database, bus)
        await create(database, ann, "Committed before", "Committed before, too")
        async with fanout.subscribe(ann) as subscriber:
            # One event goes through the queue, five are read from the table. Neither delivers earlier events.
            await create(database, ann, *numbered(later))
            await place(database, bus)
            assert await hear(subscriber, database, later) == numbered(later)


async def test_a_transaction_begun_before_and_committed_after_the_subscription_is_delivered(
    database: Database, bus: MemoryBus, ann: Viewer
) -> None:
    async with running(database, bus) as fanout:
        async with database.write() as session:
            await make_task(session, ann, "Begun before")
            # Readers of SQLite do not see it either.
            subscription = fanout.subscribe(ann)
            subscriber = await subscription.__aenter__()
        await place(database, bus)
        assert await hear(subscriber, database, 1) == ["Begun before"]
        await subscription.__aexit__(None, None, None)


async def test_an_event_is_delivered_to_its_audience_and_to_admins(
    database: Database, bus: MemoryBus, ann: Viewer
) -> None:
    old, new, eve = [await sign_up(database, name) for name in ("old", "new", "eve")]
    boss = await sign_up(database, "boss", UserRole.ADMIN)
    async with database.write() as session:
        task = await make_task(session, ann, assignee_id=old.id)
    await place(database, bus)
    # Once with room for all events in the queue, and once without, so that they are read from the table.
    for queue_size in (10, 0):
        async with running(database, bus, queue_size=queue_size) as fanout:
            subscriptions = {
                name: fanout.subscribe(viewer)
                for name, viewer in {"ann": ann, "old": old, "new": new, "eve": eve, "boss": boss}.items()
            }
            subscribers = {name: await each.__aenter__() for name, each in subscriptions.items()}
            async with database.write() as session:
                await tasks.update_task(session, ann, task.id, {"assignee_id": new.id})
                await tasks.update_task(session, ann, task.id, {"title": f"Title {queue_size}"})
                await tasks.update_task(session, ann, task.id, {"title": "A task"})
                await tasks.update_task(session, ann, task.id, {"assignee_id": old.id})
                await make_task(session, eve, "Eve's")
            await place(database, bus)
            update, renamed = "A task", f"Title {queue_size}"
            for name, expected in {
                "ann": [update, renamed, update, update],
                "old": [update, update],
                "new": [update, renamed, update, update],
                "eve": ["Eve's"],
                "boss": [update, renamed, update, update, "Eve's"],
            }.items():
                assert await hear(subscribers[name], database, len(expected)) == expected, (name, queue_size)
            for each in subscriptions.values():
                await each.__aexit__(None, None, None)


async def test_a_rolled_back_event_is_never_delivered(database: Database, bus: MemoryBus, ann: Viewer) -> None:
    async with running(database, bus) as fanout, placing(database, bus), fanout.subscribe(ann) as subscriber:
        await create(database, ann, "Before")
        await create_and_roll_back(database, ann)
        await create(database, ann, "After")
        assert await hear(subscriber, database, 2) == ["Before", "After"]


async def test_lost_news_delays_events_and_loses_none(database: Database, bus: MemoryBus, ann: Viewer) -> None:
    # The relay's bus has no listeners: the fan-out finds the events on its timer.
    async with running(database, bus) as fanout, placing(database, MemoryBus()), fanout.subscribe(ann) as subscriber:
        await create(database, ann, *numbered(5))
        assert await hear(subscriber, database, 5) == numbered(5)


async def test_events_hold_the_task_before_and_after(database: Database, bus: MemoryBus, ann: Viewer) -> None:
    async with running(database, bus) as fanout, fanout.subscribe(ann) as subscriber:
        async with database.write() as session:
            made = await make_task(session, ann, "Made")
            updated = await tasks.update_task(session, ann, made.id, {"title": "Changed"})
            await tasks.delete_task(session, ann, made.id)
        await place(database, bus)
        events = await subscriber.next_batch(database)
        assert [(event.position, event.kind, event.before, event.after, event.actor_id) for event in events] == [
            (1, EventKind.CREATED, None, made, ann.id),
            (2, EventKind.UPDATED, made, updated, ann.id),
            (3, EventKind.DELETED, updated, None, ann.id),
        ]
        assert [event.changed_fields for event in events] == [(), (TaskField.TITLE,), ()]


@pytest.mark.parametrize("queue_size", [0, 2, 100])
async def test_a_replay_joins_the_live_events_without_a_gap_or_a_repeat(
    database: Database, bus: MemoryBus, ann: Viewer, queue_size: int
) -> None:
    async with running(database, bus, queue_size=queue_size) as fanout, placing(database, bus):
        await create(database, ann, *numbered(6))
        async with fanout.subscribe(ann, after=0) as from_start, fanout.subscribe(ann, after=4) as from_four:
            writing = asyncio.gather(*(create(database, ann, f"Live {n}") for n in range(4)))
            heard = await hear(from_start, database, 10)
            await writing
            assert heard[:6] == numbered(6)
            assert sorted(heard[6:]) == [f"Live {n}" for n in range(4)]
            assert await hear(from_four, database, 6) == heard[4:]


async def test_a_draining_fanout_ends_every_stream_and_refuses_new_ones(
    database: Database, bus: MemoryBus, ann: Viewer
) -> None:
    async with running(database, bus) as fanout, fanout.subscribe(ann) as subscriber:
        waiting = asyncio.ensure_future(subscriber.next_batch(database))
        fanout.drain()
        with pytest.raises(ServerStops):
            await waiting
        async with fanout.subscribe(ann) as late:
            with pytest.raises(ServerStops):
                await late.next_batch(database)


async def test_an_ended_stream_raises_the_reason_and_delivers_nothing(
    database: Database, bus: MemoryBus, ann: Viewer
) -> None:
    for queue_size in (0, 100):
        async with running(database, bus, queue_size=queue_size) as fanout, fanout.subscribe(ann) as subscriber:
            await create(database, ann, "Never told")
            await place(database, bus)
            subscriber.end(Unauthenticated("Signed out"))
            with pytest.raises(Unauthenticated, match="Signed out"):
                await subscriber.next_batch(database)


async def test_the_subscriptions_of_one_person_are_limited(database: Database, bus: MemoryBus, ann: Viewer) -> None:
    fanout = Fanout(database, bus, max_per_user=2)
    bob = await sign_up(database, "bob")
    async with fanout.subscribe(ann), fanout.subscribe(bob):
        async with fanout.subscribe(ann):
            with pytest.raises(TooManySubscriptions) as caught:
                await fanout.subscribe(ann).__aenter__()
            assert caught.value.message == "You have 2 subscriptions open, which is the limit: close some first"
        async with fanout.subscribe(ann) as instead:
            assert len(fanout.subscribers()) == 3
            assert instead in fanout.subscribers()
    assert fanout.subscribers() == []


async def test_a_new_role_changes_what_is_delivered_from_then_on(
    database: Database, bus: MemoryBus, ann: Viewer
) -> None:
    bob = await sign_up(database, "bob")
    async with running(database, bus) as fanout, fanout.subscribe(bob) as subscriber:
        for role, title in ((UserRole.MEMBER, "Unseen"), (UserRole.ADMIN, "Seen"), (UserRole.MEMBER, "Unseen again")):
            fanout.set_viewer(subscriber, replace(bob, role=role))
            await create(database, ann, title)
            await place(database, bus)
            await create(database, bob, f"Bob's as {role}")
            await place(database, bus)
            expected = ["Seen", "Bob's as ADMIN"] if role is UserRole.ADMIN else [f"Bob's as {role}"]
            assert await hear(subscriber, database, len(expected)) == expected


async def test_a_cursor_must_lie_between_the_oldest_and_the_newest_stored_event(
    database: Database, bus: MemoryBus, ann: Viewer
) -> None:
    async with running(database, bus) as fanout:
        await create(database, ann, *numbered(5))
        await place(database, bus)
        assert [await fanout.position_of(fanout.cursor(position)) for position in range(6)] == list(range(6))
        with pytest.raises(BadUserInput, match="after is a cursor from the future: read again from a query"):
            await fanout.position_of(fanout.cursor(6))
        with pytest.raises(BadUserInput, match="after is a cursor of another server"):
            await fanout.position_of(encode_cursor("0" * 16, 1))
        async with database.write() as session:
            assert await expire_events(session, datetime(2100, 1, 1, tzinfo=UTC), limit=3) == 3
        assert await fanout.position_of(fanout.cursor(3)) == 3
        with pytest.raises(CursorExpired, match="no longer kept: read again from a query"):
            await fanout.position_of(fanout.cursor(2))
        async with fanout.subscribe(ann, after=2) as subscriber:
            with pytest.raises(CursorExpired):
                await subscriber.next_batch(database)


@pytest.mark.slow
async def test_an_ended_subscription_leaves_no_subscriber(database: Database, bus: MemoryBus, ann: Viewer) -> None:
    boss = await sign_up(database, "boss", UserRole.ADMIN)
    async with running(database, bus) as fanout:
        for viewer in (ann, boss):
            async with fanout.subscribe(viewer) as subscriber:
                left = weakref.ref(subscriber)
            del subscriber
            gc.collect()
            assert left() is None
        waiting = asyncio.ensure_future(anext(fanout.events(ann, TaskRow)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # The fan-out goes on without subscribers.
        await create(database, ann, "Unheard")
        await place(database, bus)
        async with fanout.subscribe(ann) as subscriber:
            await create(database, ann, "Heard")
            await place(database, bus)
            assert await hear(subscriber, database, 1) == ["Heard"]


async def test_a_subscriber_of_one_noun_queues_no_other_events(database: Database, bus: MemoryBus, ann: Viewer) -> None:
    async with (
        running(database, bus) as fanout,
        placing(database, bus),
        fanout.subscribe(ann, TaskRow) as subscriber,
        fanout.subscribe(ann, UserRow) as other,
    ):
        await create(database, ann, "Task")
        (event,) = await subscriber.next_batch(database)
        other.offer(event)
        other.offer(replace(event, row_class=UserRow, position=event.position + 1))
        assert [event.row_class for event in await other.next_batch(database)] == [UserRow]
