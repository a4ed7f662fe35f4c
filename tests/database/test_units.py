"""Units of work on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import literal, select, text, update

from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.observers import DatabaseObserver
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.units import BoundedReads, Database
from tests.database.tables import COUNTERS, counted


@pytest.mark.usefixtures("tables")
async def test_writes_become_visible_when_the_block_ends(database: Database) -> None:
    async with database.write() as session:
        await session.execute(update(COUNTERS).values(value=1))
        assert await counted(database) == 0
    assert await counted(database) == 1


@pytest.mark.usefixtures("tables")
async def test_a_block_that_raises_is_rolled_back(database: Database) -> None:
    async def write_and_fail() -> None:
        async with database.write() as session:
            await session.execute(update(COUNTERS).values(value=1))
            raise LookupError

    with pytest.raises(LookupError):
        await write_and_fail()
    assert await counted(database) == 0
    async with database.write() as session:
        await session.execute(update(COUNTERS).values(value=2))
    assert await counted(database) == 2


@pytest.mark.usefixtures("tables")
async def test_a_cancelled_block_is_rolled_back_and_releases_the_writer_lock(database: Database) -> None:
    written = asyncio.Event()

    async def write_and_wait() -> None:
        async with database.write() as session:
            await session.execute(update(COUNTERS).values(value=1))
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write_and_wait())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.write() as session:
        assert (await session.execute(select(COUNTERS.c.value))).scalar_one() == 0


async def increment(database: Database, times: int) -> None:
    for _ in range(times):
        async with database.write() as session:
            # If two writers read before either writes, one increment is lost.
            statement = select(COUNTERS.c.value).with_for_update()
            value = (await session.execute(statement)).scalar_one()
            await session.execute(update(COUNTERS).values(value=value + 1))


@pytest.mark.usefixtures("tables")
async def test_concurrent_writers_lose_no_increment(database: Database) -> None:
    await asyncio.gather(*(increment(database, 25) for _ in range(4)))
    assert await counted(database) == 100


@pytest.mark.usefixtures("tables")
async def test_writers_in_two_processes_lose_no_increment(database: Database, settings: Settings) -> None:
    """Two `Database` objects share no lock in Python, just like two processes."""
    other = Database(create_engine(settings))
    await asyncio.gather(increment(database, 50), increment(other, 50))
    await other.close()
    assert await counted(database) == 100


@pytest.mark.usefixtures("tables")
async def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    async with database.write() as session:
        await session.execute(update(COUNTERS).values(value=1))
        async with asyncio.timeout(5):
            assert await asyncio.gather(*(counted(database) for _ in range(5))) == [0] * 5


class Committed(DatabaseObserver):
    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def on_event_committed(self) -> None:
        self._call()


class Statements(DatabaseObserver):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_statement(self, sql: str, _parameters: object) -> None:
        self.seen.append(sql)


async def test_observers_are_told_of_statements_on_both_ways_until_they_stop(database: Database) -> None:
    observer = Statements()
    stop = database.observe(observer)
    async with database.read() as session:
        await session.run(Statement(select(literal(1))))
        await session.execute(select(literal(2)))
    told = [sql for sql in observer.seen if sql.startswith("SELECT ")]
    assert len(told) == 2
    stop()
    async with database.read() as session:
        await session.run(Statement(select(literal(3))))
        await session.execute(select(literal(4)))
    assert [sql for sql in observer.seen if sql.startswith("SELECT ")] == told


@pytest.mark.parametrize("records", [True, False])
async def test_observers_are_told_only_after_a_commit_that_recorded_an_event(
    database: Database, settings: Settings, records: bool
) -> None:
    calls: list[bool] = []
    observed = Database(database.engine)
    observed.observe(Committed(lambda: calls.append(True)))
    async with observed.write() as session:
        if records:
            session.returned_ids.append(1)
        await session.execute(text("UPDATE stream_state SET last_position = last_position"))
        assert calls == []
    assert calls == [True] * records


async def test_observers_are_not_told_of_a_block_that_raises(database: Database) -> None:
    calls: list[bool] = []
    observed = Database(database.engine)
    observed.observe(Committed(lambda: calls.append(True)))

    async def record_and_fail() -> None:
        async with observed.write() as session:
            session.returned_ids.append(1)
            raise LookupError

    with pytest.raises(LookupError):
        await record_and_fail()
    async with observed.write() as session:
        await session.execute(text("SELECT 1"))
    assert calls == []


@pytest.mark.usefixtures("tables")
async def test_observers_can_read_what_was_committed(database: Database, settings: Settings) -> None:
    seen: list[asyncio.Task[int]] = []
    observed = Database(database.engine)
    observed.observe(Committed(lambda: seen.append(asyncio.create_task(counted(database)))))
    async with observed.write() as session:
        await session.execute(update(COUNTERS).values(value=1))
        session.returned_ids.append(1)
    assert await asyncio.gather(*seen) == [1]


async def test_bounded_reads_keep_their_limit_after_errors_and_cancellations(database: Database) -> None:
    reads = BoundedReads(database, 2)
    open_now = most = 0

    async def read(number: int) -> None:
        nonlocal open_now, most
        async with reads.read() as session:
            open_now += 1
            most = max(most, open_now)
            try:
                await session.execute(text("SELECT 1"))
                if number % 3 == 0:
                    raise ValueError(number)
            finally:
                open_now -= 1

    tasks = [asyncio.create_task(read(number)) for number in range(30)]
    await asyncio.sleep(0)
    for task in tasks[1::4]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 2
    assert {type(outcome) for outcome in outcomes} == {type(None), ValueError, asyncio.CancelledError}
    async with asyncio.timeout(5), reads.read(), reads.read():
        pass
