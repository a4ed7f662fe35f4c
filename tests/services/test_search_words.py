"""Splitting text into words, and the two full-text indexes."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Select, select, text

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.models import Task
from taskflow_gql.services.search_words import name_words, search_words, text_keys, words_of
from taskflow_gql.services.task_filters import condition, search_for
from tests.support.client import Api, Person
from tests.support.task_filters import holding, random_tasks

FOUND = "query($search: String!) { tasks(filter: {search: $search}) { totalCount nodes { title } } }"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", []),
        (" \t\n\u00a0\u2028", []),
        ("Plan the WEEK", ["plan", "the", "week"]),
        ("again and again", ["again", "and", "again"]),
        ("Straße STRASSE ẞ", ["strasse", "strasse", "ss"]),
        ("ΟΔΟΣ οδός", ["οδοσ", "οδόσ"]),
        ("ǅ ǆ Ǆ", ["ǆ", "ǆ", "ǆ"]),
        # The casefold of İ is an i and a combining dot. The dot is not a letter.
        ("İzmir Izmir ızmir", ["i", "zmir", "izmir", "ızmir"]),
        ("é e\u0301tude", ["é", "e", "tude"]),
        ("v2.0 3rd ٣٤ ४२ ²½", ["v2", "0", "3rd", "٣٤", "४२", "²½"]),
        ("snake_case __init__ _", ["snake", "case", "init"]),
        ("日本語の文 한국어", ["日本語の文", "한국어"]),
        ("🙂 ok👍🏽go", ["ok", "go"]),
        ('O\'Brien "quoted" a&b|c !d :*', ["o", "brien", "quoted", "a", "b", "c", "d"]),
        ("(e) \\f -g NEAR(h, 1)", ["e", "f", "g", "near", "h", "1"]),
        ("x" * 250, ["x" * 100]),
        ("ß" * 60, ["s" * 100]),
    ],
)
def test_words_are_runs_of_letters_and_digits_after_casefold(given: str, words: list[str]) -> None:
    assert words_of(given) == words


def test_search_words_lists_each_word_of_all_texts_once() -> None:
    assert search_words("Buy milk, buy BREAD", None, "", "milk & honey") == "bread buy honey milk"
    assert search_words("!", None) == ""


def test_text_keys_derives_the_columns_of_title_and_description() -> None:
    assert text_keys("Große Pläne", None) == {
        "title_key": "grosse pläne",
        "description_key": None,
        "search_words": "grosse pläne",
    }
    assert text_keys("A", "B, a!") == {"title_key": "a", "description_key": "b, a!", "search_words": "a b"}


def test_name_words_keeps_the_words_in_order() -> None:
    assert name_words("Ann-Marie  O'Neill") == " ann marie o neill"
    assert name_words("...") == ""


# ---------------------------------------------------------------- the indexes


async def found(api: Api, by: Person, search: str) -> list[str]:
    """The titles of the tasks found, newest first."""
    tasks = (await api.data(FOUND, {"search": search}, by=by))["tasks"]
    assert tasks["totalCount"] == len(tasks["nodes"])
    return [node["title"] for node in tasks["nodes"]]


async def test_the_index_follows_every_change_of_title_and_description(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    plan = await api.create_task(ann, "Plan the week", description="milk and honey")
    await api.create_task(ann, "Other plans")
    assert await found(api, ann, "plan") == ["Other plans", "Plan the week"]
    assert await found(api, ann, "MILK, hon wee") == ["Plan the week"]

    await api.update_task(ann, plan["id"], title="Straße kehren")
    assert await found(api, ann, "plan") == ["Other plans"]
    assert await found(api, ann, "strasse milk") == ["Straße kehren"]

    await api.update_task(ann, plan["id"], description="eggs")
    assert await found(api, ann, "milk") == []
    assert await found(api, ann, "egg str") == ["Straße kehren"]

    await api.update_task(ann, plan["id"], status="COMPLETED", priority="HIGH")
    assert await found(api, ann, "egg str") == ["Straße kehren"]

    await api.update_task(ann, plan["id"], description=None)
    assert await found(api, ann, "egg") == []
    assert await found(api, ann, "kehr") == ["Straße kehren"]

    await api.data('mutation { deleteTask(input: {id: "%s"}) { errors { code } } }' % plan["id"], by=ann)  # noqa: UP031
    assert await found(api, ann, "kehr") == []
    assert await found(api, ann, "") == ["Other plans"]
    if database.is_sqlite:
        await check_fts5(database, rows=1)


async def test_a_refused_change_leaves_the_index_unchanged(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Plan the week")
    payload = await api.update_task(ann, task["id"], title="Milk", assigneeId=task["id"])
    assert [error["code"] for error in payload["errors"]] == ["ASSIGNEE_NOT_FOUND"]
    assert (await found(api, ann, "milk"), await found(api, ann, "plan")) == ([], ["Plan the week"])
    if database.is_sqlite:
        await check_fts5(database, rows=1)


async def check_fts5(database: Database, *, rows: int) -> None:
    """Check that FTS5 finds its index consistent, and that it has one row for each task."""
    async with database.write() as session:
        await session.execute(text("INSERT INTO task_search (task_search) VALUES ('integrity-check')"))
        for table in ("task_search", "task_search_ids", "tasks"):
            assert (await session.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() == rows  # noqa: S608


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
async def test_vacuum_may_renumber_rows_without_breaking_search(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    first = await api.create_task(ann, "Alpha")
    for title in ("Beta", "Gamma"):
        await api.create_task(ann, title)
    await api.data('mutation { deleteTask(input: {id: "%s"}) { errors { code } } }' % first["id"], by=ann)  # noqa: UP031
    async with database.connect() as connection:
        await connection.exec_driver_sql("VACUUM")
    assert [await found(api, ann, title) for title in ("alpha", "beta", "gamma")] == [[], ["Beta"], ["Gamma"]]
    await api.create_task(ann, "Delta")
    assert await found(api, ann, "del") == ["Delta"]
    await check_fts5(database, rows=3)


async def plan_of(database: Database, session: DatabaseSession, statement: Select[Any]) -> str:
    """The query plan of the statement, one step a line."""
    sql = str(statement.compile(dialect=database.engine.dialect, compile_kwargs={"literal_binds": True}))
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    explained = await session.execute(text(f"{explain} {sql}".replace(":", r"\:")))
    return "\n".join(str(row[-1]) for row in explained)


async def test_search_reads_the_index_and_does_not_scan_tasks(database: Database) -> None:
    statement = select(Task.id).where(condition(search_for("plan stra")))
    async with holding(database, random_tasks(0)) as session:
        if not database.is_sqlite:
            # For a few dozen rows the planner prefers a scan. The test is that the index can answer the query.
            await session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = await plan_of(database, session, statement)
    assert ("VIRTUAL TABLE INDEX" if database.is_sqlite else "ex_tasks_search") in plan
    assert "SCAN tasks" not in plan
    assert "Seq Scan on tasks" not in plan
