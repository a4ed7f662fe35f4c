"""Statements that are built once, on both ways to a database."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import bindparam, event, func, literal, select, text
from sqlalchemy.exc import DBAPIError, StatementError

from taskflow_gql.config import Settings
from taskflow_gql.database.constructs import among
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.units import Database
from taskflow_gql.models import StreamState, Task, User, UserRole
from tests.support.client import PATIENCE_SECONDS
from tests.support.factories import make_user


async def test_what_a_statement_reads_is_what_sqlalchemy_reads(database: Database) -> None:
    async with database.write() as session:
        users = [
            await make_user(session, name, role=role) for name, role in zip("abc", [*UserRole, "ADMIN"], strict=True)
        ]
    columns = (User.id, User.username, User.role, User.is_active, User.created_at)
    statement = Statement(select(*columns).where(User.username >= bindparam("least")).order_by(User.username))
    async with database.read() as session:
        found = await session.run(statement, {"least": "b"})
        expected = await session.execute(statement.clause, {"least": "b"})
        assert [tuple(row) for row in found] == [tuple(row) for row in expected]
    assert [row[0] for row in found] == [user.id for user in users[1:]]
    assert found[0][2] is UserRole.ADMIN
    assert found[0][4].utcoffset() is not None


async def test_a_parameter_without_a_value_is_no_null(database: Database) -> None:
    statement = Statement(select(func.count()).select_from(User).where(User.username == bindparam("username")))
    async with database.read() as session:
        with pytest.raises((KeyError, StatementError)):
            await session.run(statement)
        assert await session.run(statement, {"username": "nobody"}) == [(0,)]


async def test_any_number_of_values_is_one_statement(database: Database) -> None:
    async with database.write() as session:
        users = [await make_user(session, name) for name in ("ann", "bob", "eva")]
    by_id = Statement(select(User.username).where(among(User.id, "ids")).order_by(User.username))
    by_name = Statement(select(User.username).where(among(User.username, "names")).order_by(User.username))
    async with database.read() as session:
        for chosen in ([], users[:1], users):
            ids: list[UUID] = [user.id for user in chosen]
            names = [user.username for user in chosen]
            assert [row[0] for row in await session.run(by_id, {"ids": [*ids, uuid4()]})] == names
            assert [row[0] for row in await session.run(by_name, {"names": [*names, "it's", '"']})] == names


async def test_a_parameter_that_expands_is_refused_where_statements_are_compiled(
    postgresql_settings: Settings,
) -> None:
    database = Database(create_engine(postgresql_settings))
    async with database.read() as session:
        with pytest.raises(TypeError, match="among"):
            await session.run(Statement(select(User.id).where(User.id.in_([uuid4()]))))
    await database.close()


async def test_both_ways_are_one_transaction(database: Database) -> None:
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


async def test_a_transaction_that_has_failed_is_not_taken_for_committed(postgresql_settings: Settings) -> None:
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


async def test_a_read_finds_another_connection_when_its_own_was_ended(postgresql_settings: Settings) -> None:
    database = Database(create_engine(postgresql_settings))
    one = Statement(select(StreamState.id))
    async with database.read() as session:
        await asyncio.gather(*(session.run(one) for _ in range(8)))
    async with database.connect() as connection:
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        await connection.execute(text(f"{ended} AND pid <> pg_backend_pid()"))
    async with database.read() as session:
        assert [len(rows) for rows in await asyncio.gather(*(session.run(one) for _ in range(8)))] == [1] * 8
    await database.close()


async def test_a_few_more_at_once_than_the_pool_s_size_keep_their_connections_while_they_come(
    postgresql_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskflow_gql.database.connections._AT_HAND_SECONDS", 1.0)
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
    # Afterwards there are so many as the pool keeps.
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sum(not one.driver_connection.is_closed() for one in opened) > 2:
            await use_connection(database)
    # And with all of them out, somebody who asks the pool itself gets one.
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*(write() for _ in range(40)), *(use_connection(database) for _ in range(5)))
    await database.close()
    assert [one.driver_connection.is_closed() for one in opened] == [True] * len(opened)


async def use_connection(database: Database) -> None:
    async with database.connect() as connection:
        await connection.execute(text("SELECT 1"))


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_who_is_cancelled_in_a_statement_leaves_no_connection_behind(
    postgresql_settings: Settings, kind: str
) -> None:
    database = Database(create_engine(postgresql_settings.model_copy(update={"database_max_overflow": 0})))
    sleeping = Statement(select(func.pg_sleep(60)))

    async def sleep() -> None:
        async with getattr(database, kind)() as session:
            await session.run(sleeping)

    # Whether the server is at work on it; seen from outside the pool, which must not need a connection for it.
    active = "state = 'active' AND query LIKE '%pg_sleep(%' AND pid <> pg_backend_pid()"
    at_work = f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {active}"  # noqa: S608
    watcher = await asyncpg.connect(postgresql_settings.database_url)
    for _ in range(postgresql_settings.database_pool_size + 2):
        task = asyncio.create_task(sleep())
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await watcher.fetchval(at_work):
                pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # Nor the server at work on what nobody waits for any more.
        async with asyncio.timeout(5):
            while await watcher.fetchval(at_work):
                pass
    async with asyncio.timeout(5), database.read() as session:
        assert await session.run(Statement(select(func.count()).select_from(Task))) == [(0,)]
    await watcher.close()
    await database.close()
