"""Old events are deleted from the start of the stream, a batch at a time, and cursors before them expire."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from taskflow_gql import clock
from taskflow_gql.database.units import Database
from taskflow_gql.models import Event, Receipt
from taskflow_gql.services.events import events_after
from taskflow_gql.services.ids import make_id
from taskflow_gql.services.positions import CursorExpired, expire_events, place_events, read_stream_state, require_kept
from taskflow_gql.services.receipts import MutationIdReused, Request, expire_receipts, find_receipt, write_receipt
from taskflow_gql.stream.retention import Kept, Retention
from tests.support.factories import make_task, make_user, make_viewer

EVENTS = Kept("events", 30, expire_events)


async def record_events(database: Database, days_ago: Sequence[float | None]) -> None:
    """One event for each age, in this order of positions. None stands for a new event without a position."""
    async with database.write() as session:
        viewer = make_viewer((await make_user(session)).id)
        for age in days_ago:
            if age is None:
                await place_events(session, limit=10_000)
            await make_task(session, viewer)
            if age is not None:
                last = select(func.max(Event.id)).scalar_subquery()
                occurred_at = clock.now() - timedelta(days=age)
                await session.execute(update(Event).where(Event.id == last).values(occurred_at=occurred_at))
        if None not in days_ago:
            await place_events(session, limit=10_000)


async def positions(database: Database) -> list[int | None]:
    async with database.read() as session:
        return list(await session.scalars(select(Event.position).order_by(Event.id)))


async def expired_position(database: Database) -> int:
    async with database.read() as session:
        return (await read_stream_state(session)).expired_position


async def test_older_events_are_deleted_and_the_others_stay(database: Database) -> None:
    await record_events(database, [40, 31, 30.001, 29.999, 1, 0])
    assert await Retention(database, EVENTS).expire() == 3
    assert await positions(database) == [4, 5, 6]
    assert await expired_position(database) == 3
    assert await Retention(database, EVENTS).expire() == 0
    assert await positions(database) == [4, 5, 6]


async def test_an_old_event_behind_a_young_one_waits_for_it(database: Database) -> None:
    """Clocks differ between servers, and transactions take time. The events that are kept must have no gaps."""
    await record_events(database, [40, 1, 40, 1])
    assert await Retention(database, EVENTS).expire() == 1
    assert await positions(database) == [2, 3, 4]


async def test_an_event_without_a_position_is_never_deleted(database: Database) -> None:
    await record_events(database, [40, None])
    async with database.write() as session:
        await session.execute(update(Event).values(occurred_at=clock.now() - timedelta(days=40)))
    assert await Retention(database, EVENTS).expire() == 1
    assert await positions(database) == [None]


async def test_nothing_is_deleted_from_an_empty_record(database: Database) -> None:
    assert await Retention(database, EVENTS).expire() == 0
    assert await expired_position(database) == 0


async def test_a_batch_has_the_given_size_and_continues_after_the_last_one(database: Database) -> None:
    await record_events(database, [40] * 5)
    for deleted, left in ((2, [3, 4, 5]), (2, [5]), (1, []), (0, [])):
        async with database.write() as session:
            assert await expire_events(session, clock.now(), limit=2) == deleted
        assert await positions(database) == left


@pytest.mark.slow
async def test_many_events_are_deleted_in_several_batches(database: Database) -> None:
    await record_events(database, [40.0] * 1001 + [1.0])
    assert await Retention(database, EVENTS).expire() == 1001
    assert await positions(database) == [1002]


async def test_positions_continue_after_all_events_are_deleted(database: Database) -> None:
    await record_events(database, [40, 40])
    assert await Retention(database, EVENTS).expire() == 2
    async with database.write() as session:
        viewer = make_viewer((await make_user(session, "bob")).id)
        await make_task(session, viewer)
        assert await place_events(session, limit=10) == (1, False)
    assert await positions(database) == [3]


async def test_a_cursor_is_accepted_while_all_events_after_it_are_stored(database: Database) -> None:
    await record_events(database, [40, 40, 1])
    await Retention(database, EVENTS).expire()
    async with database.read() as session:
        for position in (2, 3):
            assert (await require_kept(session, position)).expired_position == 2
        assert [event.position for event in await events_after(session, 2, limit=10)] == [3]
        for position in (0, 1):
            with pytest.raises(CursorExpired, match="no longer kept: read again from a query"):
                await require_kept(session, position)


async def test_two_servers_that_delete_at_the_same_time_delete_each_event_once(database: Database) -> None:
    await record_events(database, [40] * 20)
    deleted = await asyncio.gather(*(Retention(database, EVENTS).expire() for _ in range(2)))
    assert sum(deleted) == 20
    assert await positions(database) == []
    assert await expired_position(database) == 20


async def test_retention_starts_immediately_and_stops_when_closed(database: Database) -> None:
    await record_events(database, [40, 1])
    retention = Retention(database, EVENTS)
    retention.start()
    async with asyncio.timeout(10):
        while await positions(database) != [2]:
            pass
    await retention.close()


async def test_old_receipts_are_deleted_and_their_mutations_can_be_done_again(database: Database) -> None:
    owner, ages = make_id(), {"old": 31, "older": 40, "kept": 29}
    for name, days in ages.items():
        async with database.write() as session:
            write_receipt(session, Request(owner, name, "createTask", b"hash"), {"title": name})
        async with database.write() as session:
            created_at = clock.now() - timedelta(days=days)
            await session.execute(update(Receipt).where(Receipt.mutation_id == name).values(created_at=created_at))
    async with database.write() as session:
        assert await expire_receipts(session, clock.now() - timedelta(days=30), limit=1) == 1
    assert await Retention(database, EVENTS, Kept("receipts", 30, expire_receipts)).expire() == 1
    async with database.read() as session:
        assert list(await session.scalars(select(Receipt.mutation_id))) == ["kept"]
        found = await find_receipt(session, Request(owner, "kept", "createTask", b"hash"))
        assert found is not None
        assert found.answer == {"title": "kept"}
        for name in ("old", "older"):
            assert await find_receipt(session, Request(owner, name, "createTask", b"hash")) is None
        with pytest.raises(MutationIdReused):
            await find_receipt(session, Request(owner, "kept", "updateTask", b"hash"))
