"""Statements that are built once, on both databases."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import bindparam, func, select
from sqlalchemy.exc import StatementError

from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.units import Database
from taskflow_gql.models import User, UserRole
from tests.support.factories import make_user


async def test_run_reads_the_same_rows_as_execute(database: Database) -> None:
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


async def test_a_missing_parameter_is_an_error_not_null(database: Database) -> None:
    statement = Statement(select(func.count()).select_from(User).where(User.username == bindparam("username")))
    async with database.read() as session:
        with pytest.raises((KeyError, StatementError)):
            await session.run(statement)
        assert await session.run(statement, {"username": "nobody"}) == [(0,)]


async def test_compiling_a_parameter_that_expands_raises(
    postgresql_settings: Settings,
) -> None:
    database = Database(create_engine(postgresql_settings))
    async with database.read() as session:
        with pytest.raises(TypeError, match="among"):
            await session.run(Statement(select(User.id).where(User.id.in_([uuid4()]))))
    await database.close()
