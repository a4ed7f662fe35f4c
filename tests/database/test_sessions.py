"""Sessions: `run`, which bypasses SQLAlchemy on PostgreSQL, and `execute`."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import asyncpg
import pytest
from sqlalchemy import func, literal, select, text
from sqlalchemy.exc import DBAPIError

from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.units import Database
from taskflow_gql.models import StreamState, Task, User
from tests.support.client import PATIENCE_SECONDS
from tests.support.factories import make_user


async def test_run_and_execute_share_one_transaction(database: Database) -> None:
    counted = Statement(select(func.count()).select_from(User))
    with suppress(ZeroDivisionError):
        async with database.write() as session:
            await make_user(session, "ann")
            (row,) = await session.run(counted)
            assert row[0] == 1
            assert (await session.execute(counted.clause)).scalar_one() == 1
            raise ZeroDivisionError
    async with database.read() as session:
        assert (await session.run(counted))[0][0] == 0


async def test_committing_a_failed_transaction_raises(postgresql_settings: Settings) -> None:
    database = Database(create_engine(postgresql_settings))
    wrong = Statement(select(literal(1) % literal(0)))

    async def write() -> None:
        async with database.write() as session:
            await make_user(session, "ann")
            with pytest.raises(DBAPIError):
                await session.run(wrong)

    with pytest.raises(RuntimeError, match="rolled back"):
        await write()
    async with database.read() as session:
        assert (await session.run(Statement(select(func.count()).select_from(User))))[0][0] == 0
    await database.close()


async def test_a_read_is_retried_when_its_connection_was_terminated(postgresql_settings: Settings) -> None:
    database = Database(create_engine(postgresql_settings))
    one = Statement(select(StreamState.id))
    async with database.read() as session:
        await asyncio.gather(*(session.run(one) for _ in range(8)))
    async with database.connect() as connection:
        terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        await connection.execute(text(f"{terminate} AND pid <> pg_backend_pid()"))
    async with database.read() as session:
        assert [len(rows) for rows in await asyncio.gather(*(session.run(one) for _ in range(8)))] == [1] * 8
    await database.close()


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_a_cancelled_statement_leaks_no_connection(postgresql_settings: Settings, kind: str) -> None:
    database = Database(create_engine(postgresql_settings.model_copy(update={"database_max_overflow": 0})))
    sleeping = Statement(select(func.pg_sleep(60)))

    async def sleep() -> None:
        async with getattr(database, kind)() as session:
            await session.run(sleeping)

    # Whether the server still runs the statement. The watcher does not use the pool, which may be exhausted.
    active = "state = 'active' AND query LIKE '%pg_sleep(%' AND pid <> pg_backend_pid()"
    running = f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {active}"  # noqa: S608
    watcher = await asyncpg.connect(postgresql_settings.database_url)
    for _ in range(postgresql_settings.database_pool_size + 2):
        task = asyncio.create_task(sleep())
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await watcher.fetchval(running):
                pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The server cancels the statement too.
        async with asyncio.timeout(5):
            while await watcher.fetchval(running):
                pass
    async with asyncio.timeout(5), database.read() as session:
        assert await session.run(Statement(select(func.count()).select_from(Task))) == [(0,)]
    await watcher.close()
    await database.close()


async def test_errors_do_not_contain_parameters(database: Database) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with database.write() as session:
            await session.execute(text("INSERT INTO nowhere VALUES (:hash)"), {"hash": "hash of a password"})
    assert "nowhere" in str(caught.value)
    assert "hash of a password" not in str(caught.value)
