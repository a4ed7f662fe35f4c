"""Constructs that compile differently for each database return the same rows on both."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import ColumnElement, Dialect, Select, select
from sqlalchemy.dialects.postgresql.asyncpg import dialect as postgresql_dialect
from sqlalchemy.dialects.sqlite.aiosqlite import dialect as sqlite_dialect

from taskflow_gql.config import Settings
from taskflow_gql.database.constructs import among, among_few, look_up, top_of_each
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.units import Database
from taskflow_gql.models import Task, User
from tests.support.factories import make_task, make_user, make_viewer


def sql_of(statement: Select[Any], dialect: Dialect) -> str:
    return " ".join(str(statement.compile(dialect=dialect)).split())


async def test_among_takes_any_number_of_values_in_one_statement(database: Database) -> None:
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
async def test_sqlite_looks_up_lists_of_values_in_the_index(
    sqlite_settings: Settings, condition: ColumnElement[bool]
) -> None:
    engine = create_engine(sqlite_settings)
    sql = sql_of(select(Task.title).where(condition), engine.dialect)
    async with engine.connect() as connection:
        plan = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", ("[]",))).all()
    await engine.dispose()
    assert re.match("SEARCH tasks USING INDEX", plan[0].detail), plan


@pytest.mark.parametrize("parent", [User.id, None], ids=["of rows", "of keys"])
async def test_top_of_each_reads_the_first_rows_of_each_key(database: Database, parent: Any) -> None:
    async with database.write() as session:
        ann, bob, eva = [await make_user(session, name) for name in ("ann", "bob", "eva")]
        for user, titles in ((ann, ["aaa", "bbb", "ccc"]), (bob, ["ddd"]), (eva, ["eee"])):
            for title in titles:
                await make_task(session, make_viewer(user.id), title)
    for limit, excluded in ((2, "none"), (1, "none"), (1, "ccc")):
        page = top_of_each(
            select(Task.title).where(Task.title != excluded),
            parent=parent,
            child=Task.creator_id,
            keys="user_ids",
            order_by=[Task.title.desc()],
            limit=limit,
        )
        statement = Statement(select(page.c.parent_id, page.c.title).order_by(page.c.title))
        titles = [title for title in ("aaa", "bbb", "ccc") if title != excluded][-limit:]
        expected = [*((ann.id, title) for title in titles), (bob.id, "ddd")]
        async with database.read() as session:
            assert await session.run(statement, {"user_ids": [ann.id, bob.id, uuid4()]}) == expected


async def test_look_up_joins_the_row_of_an_id_or_nulls(database: Database) -> None:
    async with database.write() as session:
        ann, bob = [await make_user(session, name) for name in ("ann", "bob")]
        await make_task(session, make_viewer(ann.id), "assigned", assignee_id=bob.id)
        await make_task(session, make_viewer(bob.id), "free")
    statement, creator = look_up(select(Task.title), User, Task.creator_id, "creator")
    statement, assignee = look_up(statement, User, Task.assignee_id, "assignee")
    found = Statement(statement.add_columns(creator.username, assignee.username).order_by(Task.title))
    async with database.read() as session:
        assert await session.run(found) == [("assigned", "ann", "bob"), ("free", "bob", None)]


def test_look_up_compiles_for_each_database() -> None:
    statement, creator = look_up(select(Task.title), User, Task.creator_id, "creator")
    statement = statement.with_only_columns(creator.username)
    assert "LEFT OUTER JOIN users AS creator ON creator.id = tasks.creator_id" in sql_of(statement, sqlite_dialect())
    sql = sql_of(statement, postgresql_dialect())  # type: ignore[no-untyped-call]
    assert "WHERE users.id = tasks.creator_id LIMIT 1) AS creator ON true" in sql
