"""The connection pool, and a server that is restarted or unreachable."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import DBAPIError

from taskflow_gql.config import Settings
from taskflow_gql.database.connections import is_unreachable
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.units import Database
from tests.support.client import PATIENCE_SECONDS
from tests.support.servers import PostgresServer
from tests.support.serving import make_settings


async def test_load_slightly_above_pool_size_does_not_reconnect(
    postgresql_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskflow_gql.database.connections._IDLE_SECONDS", 1.0)
    sizes = {"database_pool_size": 2, "database_max_overflow": 10}
    database = Database(create_engine(postgresql_settings.model_copy(update=sizes)))
    opened: list[Any] = []
    event.listen(database.engine.sync_engine, "connect", lambda connection, _: opened.append(connection))

    async def write() -> None:
        async with database.write() as session:
            await session.run(Statement(select(func.pg_sleep(0.01))))

    for _ in range(5):
        await asyncio.gather(*(write() for _ in range(8)))
    assert len(opened) == 8
    # When idle, only pool_size connections stay open.
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sum(not one.driver_connection.is_closed() for one in opened) > 2:
            await use_connection(database)
    # While all are checked out, a caller that waits for the pool itself still gets one.
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*(write() for _ in range(40)), *(use_connection(database) for _ in range(5)))
    await database.close()
    assert [one.driver_connection.is_closed() for one in opened] == [True] * len(opened)


async def use_connection(database: Database) -> None:
    async with database.connect() as connection:
        await connection.execute(text("SELECT 1"))


async def test_the_pool_survives_a_restart_of_postgresql(own_postgres: PostgresServer) -> None:
    database = Database(create_engine(make_settings(database_url=own_postgres.url())))

    async def backend() -> int:
        async with database.read() as session:
            return (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()  # type: ignore[no-any-return]

    # Several connections, all of which the restart closes.
    before = set(await asyncio.gather(*(backend() for _ in range(5))))
    own_postgres.restart()
    after = set(await asyncio.gather(*(backend() for _ in range(5))))
    assert len(before) > 1
    assert before.isdisjoint(after)
    await database.close()


async def test_the_pool_recovers_when_postgresql_is_started_again(own_postgres: PostgresServer) -> None:
    database = Database(create_engine(make_settings(database_url=own_postgres.url())))
    async with database.read() as session:
        await session.execute(text("SELECT 1"))
    own_postgres.stop()
    with pytest.raises(ConnectionRefusedError) as failure:
        async with database.read() as session:
            await session.execute(text("SELECT 1"))
    assert is_unreachable(failure.value)
    own_postgres.start()
    async with database.read() as session:
        assert (await session.execute(text("SELECT 1"))).scalar_one() == 1
    await database.close()


async def test_a_server_without_free_connections_is_unreachable(own_postgres: PostgresServer) -> None:
    engine = create_engine(make_settings(database_url=own_postgres.url()))
    async with engine.begin() as connection:
        await connection.execute(text("CREATE ROLE guest LOGIN CONNECTION LIMIT 0"))
    await engine.dispose()
    engine = create_engine(make_settings(database_url=own_postgres.url().replace("postgres@", "guest@")))
    with pytest.raises(DBAPIError, match="too many connections") as failure:
        async with engine.connect():
            pass
    assert is_unreachable(failure.value)
    await engine.dispose()


async def test_a_failed_statement_does_not_count_as_unreachable(database: Database) -> None:
    with pytest.raises(DBAPIError) as failure:
        async with database.read() as session:
            await session.execute(text("SELECT nonsense FROM nowhere"))
    assert not is_unreachable(failure.value)
