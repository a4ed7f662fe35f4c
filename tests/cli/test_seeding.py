"""Demonstration data: deterministic for a random seed, all or nothing, and on both databases."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console
from sqlalchemy import delete, func, select, text

from taskflow_gql.cli.seeding import Seeding, make_tasks, make_users, seed_database
from taskflow_gql.config import Settings
from taskflow_gql.database.units import Database
from taskflow_gql.errors import ConfigurationError
from taskflow_gql.models import (
    TASK_COLUMNS,
    USER_COLUMNS,
    Model,
    Task,
    TaskCategory,
    TaskPriority,
    TaskRow,
    TaskStatus,
    User,
    UserRole,
    UserRow,
)
from taskflow_gql.services.accounts import Registration, create_user
from tests.support.client import Api, Person
from tests.support.factories import make_user
from tests.support.processes import child
from tests.support.serving import make_admin

pytestmark = pytest.mark.slow

TASKFLOW = str(Path(sys.executable).with_name("taskflow"))
SMALL = Seeding(users=7, tasks=90, random_seed=1)


async def seed(database: Database, seeding: Seeding = SMALL) -> str:
    """Seed the database and return the final text of the progress bars."""
    console = Console(file=StringIO(), width=100)
    await seed_database(database.engine, seeding, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


async def seeded(database: Database, seeding: Seeding = SMALL) -> tuple[int, int]:
    """Seed the database and return the numbers of the first and last users made."""
    return await seed_database(database.engine, seeding, Console(file=StringIO()))


async def users_in(database: Database) -> list[UserRow]:
    async with database.read() as session:
        return [UserRow._make(row) for row in await session.execute(select(*USER_COLUMNS).order_by(User.id))]


async def tasks_in(database: Database) -> list[TaskRow]:
    async with database.read() as session:
        return [TaskRow._make(row) for row in await session.execute(select(*TASK_COLUMNS).order_by(Task.id))]


async def stored(database: Database) -> dict[str, list[Any]]:
    """Every column of every row, as the driver returns it."""
    async with database.read() as session:
        return {
            table: [tuple(row) for row in await session.execute(text(f"SELECT * FROM {table} ORDER BY id"))]  # noqa: S608
            for table in ("users", "tasks")
        }


async def empty(database: Database) -> None:
    async with database.write() as session:
        await session.execute(delete(Task))
        await session.execute(delete(User))


async def counts(database: Database) -> dict[str, int]:
    """The number of rows in each table that is not empty."""
    async with database.read() as session:
        numbers = {
            name: (await session.execute(select(func.count()).select_from(table))).scalar_one()
            for name, table in Model.metadata.tables.items()
        }
    return {name: number for name, number in numbers.items() if number}


# Deterministic


async def test_the_same_random_seed_makes_the_same_bytes_and_another_makes_others(database: Database) -> None:
    await seed(database)
    first = await stored(database)
    await empty(database)
    await seed(database)
    assert await stored(database) == first

    await empty(database)
    await seed(database, Seeding(users=7, tasks=90, random_seed=2))
    other = await stored(database)
    assert {table: len(rows) for table, rows in other.items()} == {"users": 7, "tasks": 90}
    for table, rows in other.items():
        assert set(rows).isdisjoint(first[table])


async def test_both_databases_store_exactly_what_was_generated(database: Database) -> None:
    await seed(database)
    users = list(make_users(SMALL))
    assert await users_in(database) == [UserRow(*(user[name] for name in UserRow._fields)) for user in users]
    tasks = make_tasks(SMALL, [user["id"] for user in users])
    assert await tasks_in(database) == [TaskRow(*(task[name] for name in TaskRow._fields)) for task in tasks]


def test_every_process_generates_the_same_data() -> None:
    script = (
        "import sys\n"
        "from taskflow_gql.cli.seeding import Seeding, make_tasks, make_users\n"
        "seeding = Seeding(users=7, tasks=90, random_seed=1)\n"
        "users = list(make_users(seeding))\n"
        "print(users, list(make_tasks(seeding, [user['id'] for user in users])))\n"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", script],
            # The hash seed determines the order of sets.
            env=os.environ | {"PYTHONHASHSEED": number},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for number in ("1", "2")
    ]
    assert printed[0] == printed[1]


# Content


async def test_users_are_numbered_and_the_first_is_an_admin(database: Database) -> None:
    await seed(database)
    users = await users_in(database)
    assert [user.username for user in users] == [f"user{number}" for number in range(1, 8)]
    assert [user.email for user in users] == [f"user{number}@example.com" for number in range(1, 8)]
    assert [user.role for user in users] == [UserRole.ADMIN] + [UserRole.MEMBER] * 6
    assert {user.is_active for user in users} == {True}


async def test_tasks_cover_all_enum_values_and_are_consistent(database: Database) -> None:
    await seed(database)
    user_ids = {user.id for user in await users_in(database)}
    tasks = await tasks_in(database)
    assert {task.status for task in tasks} == set(TaskStatus)
    assert {task.priority for task in tasks} == set(TaskPriority)
    assert {task.category for task in tasks} == set(TaskCategory)
    assert {task.creator_id for task in tasks} <= user_ids
    assert {task.assignee_id for task in tasks} - user_ids == {None}
    assert {task.due_date is None for task in tasks} == {True, False}
    assert {task.description is None for task in tasks} == {True, False}
    for task in tasks:
        assert task.id.version == 7
        assert task.created_at <= task.updated_at < datetime.now(UTC)
        assert (task.completed_at is not None) == (task.status is TaskStatus.COMPLETED)
        assert task.completed_at is None or task.created_at <= task.completed_at <= task.updated_at
    # Version 7: ids sort by creation time.
    assert [task.created_at for task in tasks] == sorted(task.created_at for task in tasks)


async def test_more_than_one_batch_is_complete(database: Database) -> None:
    said = await seed(database, Seeding(users=3, tasks=5_001, random_seed=1))
    assert re.search(r"People .* 3/3 ", said)
    assert re.search(r"Tasks .* 5001/5001 ", said)
    # No events: seeded rows are not changes.
    assert await counts(database) == {"users": 3, "tasks": 5_001, "stream_state": 1}


async def test_users_can_be_seeded_without_tasks(database: Database) -> None:
    await seed(database, Seeding(users=1, tasks=0, random_seed=1))
    assert (len(await users_in(database)), len(await tasks_in(database))) == (1, 0)


LOGIN = """
mutation($input: LoginInput!) { login(input: $input) { accessToken user { id role } errors { code } } }
"""


async def test_user1_signs_in_and_sees_all_tasks_with_new_ones_first(api: Api, database: Database) -> None:
    await seed(database)
    answer = await api.data(LOGIN, {"input": {"usernameOrEmail": "user1", "password": "password"}})
    assert answer["login"]["errors"] == []
    assert answer["login"]["user"]["role"] == "ADMIN"
    user1 = Person(
        answer["login"]["user"]["id"], "user1", "user1@example.com", "password", answer["login"]["accessToken"]
    )

    titles = [task.title for task in await tasks_in(database)]

    await api.create_task(user1, title="Newest of all")
    read = await api.data("{ tasks(first: 100) { totalCount nodes { title } } }", by=user1)
    assert read["tasks"]["totalCount"] == 91
    assert [node["title"] for node in read["tasks"]["nodes"]] == ["Newest of all", *reversed(titles)]


# In a database that has rows already


async def test_seeding_keeps_existing_rows_and_adds_the_same_as_to_an_empty_database(
    api: Api, database: Database
) -> None:
    await seed(database)
    alone = await stored(database)
    await empty(database)

    eva = await api.register("eva")
    task = await api.create_task(eva, title="Write the notes")
    before = await stored(database)
    assert await seeded(database) == (1, 7)
    after = await stored(database)
    for table, rows in after.items():
        assert sorted(rows) == sorted(before[table] + alone[table])
    # The seeded tasks belong to the seeded users, so no existing user's list changes without an event.
    read = await api.data("{ tasks { totalCount nodes { id } } }", by=eva)
    assert read["tasks"] == {"totalCount": 1, "nodes": [{"id": task["id"]}]}


async def test_a_second_seeding_adds_different_users_and_tasks(database: Database) -> None:
    assert await seeded(database) == (1, 7)
    first = await stored(database)
    assert await seeded(database) == (8, 14)
    assert await seeded(database, Seeding(users=1, tasks=5, random_seed=1)) == (15, 15)
    assert [set(rows) - set((await stored(database))[table]) for table, rows in first.items()] == [set(), set()]
    users, tasks = await users_in(database), await tasks_in(database)
    assert sorted(user.username for user in users) == sorted(f"user{number}" for number in range(1, 16))
    assert {user.username for user in users if user.role is UserRole.ADMIN} == {"user1", "user8", "user15"}
    assert len(tasks) == 90 + 90 + 5
    # The titles differ too: identical ones would look like a mistake.
    titles = [[task.title for task in tasks if task.creator_id in ids] for ids in _ids_of_seedings(users)]
    assert titles[0] != titles[1]


def _ids_of_seedings(users: list[UserRow]) -> tuple[set[UUID], set[UUID]]:
    numbers = {user.id: int(user.username.removeprefix("user")) for user in users}
    return (
        {id_ for id_, number in numbers.items() if number < 8},
        {id_ for id_, number in numbers.items() if 8 <= number < 15},
    )


async def test_taken_usernames_and_emails_are_skipped(database: Database) -> None:
    people = {"USER2": "eva@example.com", "bob": "User4@example.com", "user007": "user99x@example.com"}
    async with database.write() as session:
        for username, email in people.items():
            await create_user(session, Registration(email, username, "Eva", ""), "no hash")
    assert await seeded(database, Seeding(users=4, tasks=10, random_seed=1)) == (1, 6)
    names = {user.username for user in await users_in(database)}
    assert names == {"USER2", "bob", "user007", "user1", "user3", "user5", "user6"}
    assert await seeded(database, Seeding(users=1, tasks=0, random_seed=1)) == (7, 7)


async def test_search_and_stream_are_correct_after_two_seedings(api: Api, database: Database) -> None:
    eva = await api.register("eva")
    before = await api.data("{ tasks { changesCursor } }", by=eva)
    await seed(database)
    own = await api.create_task(eva, title="Repair the garden fence")
    await seed(database)
    await make_admin(database, eva.id)

    texts = [f"{task.title} {task.description}".lower() for task in await tasks_in(database)]
    for word in ("garden", "repair", "fence"):
        read = await api.data(
            "query($word: String!) { tasks(filter: {search: $word}) { totalCount } }", {"word": word}, by=eva
        )
        assert read["tasks"]["totalCount"] == sum(word in text for text in texts)
    changed = "query($after: String!) { taskChanges(after: $after) { nodes { kind taskId } } }"
    read = await api.data(changed, {"after": before["tasks"]["changesCursor"]}, by=eva)
    assert read["taskChanges"]["nodes"] == [{"kind": "CREATED", "taskId": own["id"]}]


async def test_concurrent_seedings_run_one_after_the_other(settings: Settings, database: Database) -> None:
    assert settings.database_url is not None
    environment = os.environ | {"TASKFLOW_DATABASE_URL": settings.database_url}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = (TASKFLOW, "seed", "--users", "20", "--tasks", "2000")
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        processes = [await stack.enter_async_context(child(*command, env=environment, **pipes)) for _ in range(3)]
        said = [await process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert {re.findall("Made (.*) and", out.decode())[0] for out, _ in said} == {
        "user1 to user20",
        "user21 to user40",
        "user41 to user60",
    }
    assert await counts(database) == {"users": 60, "tasks": 6000, "stream_state": 1}


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
async def test_a_seeding_that_loses_a_name_to_a_registration_makes_nothing(database: Database) -> None:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(database.write())
        await make_user(session, "user5")
        seeding = asyncio.create_task(seed(database))
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'COPY%'")
        async with asyncio.timeout(20), database.engine.connect() as other:
            while not (await other.execute(waiting)).scalar_one():
                await other.rollback()
    with pytest.raises(ConfigurationError, match="so nothing was made: run it again"):
        await seeding
    assert [user.username for user in await users_in(database)] == ["user5"]


# All or nothing


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
async def test_an_interrupted_seeding_leaves_nothing_and_can_be_repeated(
    settings: Settings, database: Database, number: signal.Signals
) -> None:
    assert settings.database_url is not None
    async with (
        child(
            *(TASKFLOW, "seed", "--users", "20", "--tasks", "100000000"),
            # Rich draws its bars only on terminals, or when TTY_COMPATIBLE claims one.
            env=os.environ | {"TASKFLOW_DATABASE_URL": settings.database_url, "TTY_COMPATIBLE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
        asyncio.timeout(60),
    ):
        assert process.stderr is not None
        said = ""
        while not re.search(r"[1-9]\d*/100000000", said):
            piece = await process.stderr.read(4096)
            assert piece, said
            said += piece.decode(errors="replace")
        process.send_signal(number)
        out, rest = await process.communicate()
    assert process.returncode != 0
    assert out == b""
    assert "Traceback" not in rest.decode(errors="replace")

    assert await counts(database) == {"stream_state": 1}
    await seed(database)
    assert len(await tasks_in(database)) == 90
