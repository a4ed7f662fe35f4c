"""Pairs of writes, and the insert that lists the ids they returned."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from taskflow_gql.database.observers import DatabaseObserver
from taskflow_gql.database.sessions import DatabaseSession, Outdated
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.units import Database
from taskflow_gql.database.writes import InsertWithIds, WritePair
from tests.database.tables import COUNTERS, LISTS, MOMENTS, counted

pytestmark = pytest.mark.usefixtures("tables")

FIRST = insert(COUNTERS).values(id=bindparam("counter"), value=bindparam("new_value")).inline()
DELETE = delete(COUNTERS).where(COUNTERS.c.id == bindparam("counter"))
VALUES = Statement(select(COUNTERS.c.value).where(COUNTERS.c.value > 1))


def pair(number: int) -> WritePair:
    return WritePair(FIRST, {"counter": number, "new_value": number}, MOMENTS, {"id": number})


def listing(name: str) -> InsertWithIds:
    return InsertWithIds(LISTS, "numbers", {"name": name})


class Statements(DatabaseObserver):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_statement(self, sql: str, parameters: Any) -> None:
        self.seen.append(sql)


async def lists(database: Database) -> list[tuple[str, list[int]]]:
    async with database.read() as session:
        return [
            tuple(row) for row in await session.execute(select(LISTS.c.name, LISTS.c.numbers).order_by(LISTS.c.name))
        ]


async def count(session: DatabaseSession) -> int:
    return len(await session.run(VALUES))


async def test_a_pair_runs_before_the_next_statement(database: Database) -> None:
    async with database.write() as session:
        await session.write_pair(pair(2))
        assert session.returned_ids == []
        assert await count(session) == 1
        assert session.returned_ids == [2]
        await session.write_pair(pair(3))
        assert (await session.execute(select(func.count()).select_from(MOMENTS))).scalar_one() == 2
        await session.write_pair(pair(4))
        await session.write_pair(WritePair(DELETE, {"counter": 2}, MOMENTS, {"id": 5}))
    assert session.returned_ids == [2, 3, 4, 5]
    async with database.read() as session:
        assert sorted(await session.run(VALUES)) == [(3,), (4,)]


@pytest.mark.parametrize(("pairs", "statements"), [(0, 1), (1, 1), (2, 2)])
async def test_the_last_insert_lists_the_ids_of_all_pairs(database: Database, pairs: int, statements: int) -> None:
    observer = Statements()
    stop = database.observe(observer)
    async with database.write() as session:
        for number in range(2, pairs + 2):
            await session.write_pair(pair(number))
        session.write_last(listing("all"))
    stop()
    ids = [*range(2, pairs + 2)]
    assert session.returned_ids == ids
    assert await lists(database) == [("all", ids)]
    if not database.is_sqlite:
        assert len(observer.seen) == statements


async def test_a_block_that_raises_writes_no_pair(database: Database) -> None:
    async def write_and_fail(*, reads: bool) -> None:
        async with database.write() as session:
            await session.write_pair(pair(2))
            session.write_last(listing("lost"))
            if reads:
                assert await count(session) == 1
            raise LookupError

    for reads in (False, True):
        with pytest.raises(LookupError):
            await write_and_fail(reads=reads)
    async with database.read() as session:
        assert await count(session) == 0
    assert await lists(database) == []


async def test_a_commit_raises_the_errors_of_its_writes_and_leaves_nothing(database: Database) -> None:
    async def write(number: int, name: str, *, reads: bool = False) -> None:
        async with database.write() as session:
            if reads:
                await count(session)
            await session.write_pair(pair(number))
            session.write_last(listing(name))

    await write(2, "one")
    for reads in (False, True):
        for number, name in ((2, "two"), (3, "one")):
            with pytest.raises(IntegrityError):
                await write(number, name, reads=reads)
    async with database.read() as session:
        assert await count(session) == 1
    # The connections stay usable.
    await write(3, "three", reads=True)
    assert await lists(database) == [("one", [2]), ("three", [3])]


RAISE = update(COUNTERS).where(COUNTERS.c.id == 1, COUNTERS.c.value == bindparam("seen"))
RAISE = RAISE.values(value=COUNTERS.c.value + 1)
COUNTER = select(COUNTERS.c.value).where(COUNTERS.c.id == 1)
VALUE = Statement(COUNTER)
LOCKED = Statement(COUNTER.with_for_update())


async def raise_counter(database: Database, number: int, *, locks: bool, first: Callable[[], Awaitable[None]]) -> None:
    async with database.write(locks=locks) as session:
        ((seen,),) = await session.run(LOCKED if session.locks else VALUE)
        await first()
        await session.write_pair(WritePair(RAISE, {"seen": seen}, MOMENTS, {"id": number}))
        session.write_last(listing(f"{number}"))


async def test_without_locks_a_pair_is_not_written_if_its_row_has_changed(database: Database) -> None:
    observer = Statements()

    async def nothing() -> None:
        pass

    async def change() -> None:
        await raise_counter(database, 1, locks=True, first=nothing)

    if database.is_sqlite:
        # There is one writer, so nothing can change.
        await raise_counter(database, 1, locks=False, first=nothing)
    else:
        with pytest.raises(Outdated):
            await raise_counter(database, 2, locks=False, first=change)
    assert await lists(database) == [("1", [1])]
    stop = database.observe(observer)
    await raise_counter(database, 3, locks=False, first=nothing)
    stop()
    assert await counted(database) == 2
    assert await lists(database) == [("1", [1]), ("3", [3])]
    if not database.is_sqlite:
        assert len(observer.seen) == 2


async def test_without_locks_a_second_pair_begins_a_transaction(database: Database) -> None:
    async def write() -> None:
        async with database.write(locks=False) as session:
            await session.run(VALUE)
            await session.write_pair(pair(2))
            await session.write_pair(pair(3))
            raise LookupError

    with pytest.raises(LookupError):
        await write()
    async with database.read() as session:
        assert await count(session) == 0
