"""SQL that is written differently for each database, and means the same."""

from __future__ import annotations

import re
from uuid import UUID, uuid4

import pytest
from sqlalchemy import ColumnElement, select

from taskflow_gql.config import Settings
from taskflow_gql.database.constructs import among, among_few
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.units import Database
from taskflow_gql.models import Task, User
from tests.support.factories import make_user


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


@pytest.mark.parametrize("condition", [among(Task.id, "ids"), among(Task.creator_id, "ids"), among_few(Task.id, "ids")])
async def test_sqlite_finds_a_list_of_values_in_the_index(
    sqlite_settings: Settings, condition: ColumnElement[bool]
) -> None:
    engine = create_engine(sqlite_settings)
    sql = str(select(Task.title).where(condition).compile(dialect=engine.dialect))
    async with engine.connect() as connection:
        plan = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", ("[]",))).all()
    await engine.dispose()
    assert re.match(r"SEARCH tasks USING INDEX", plan[0].detail), plan
