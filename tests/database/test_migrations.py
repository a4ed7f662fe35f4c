"""Migrations on both databases: up and down, by one process and by several."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic.util import CommandError
from rich.console import Console
from sqlalchemy import Connection, func, insert, inspect, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from taskflow_gql import clock
from taskflow_gql.cli.seeding import Seeding, seed_database
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import current_revision, head_revision, migrate
from taskflow_gql.models import Model, Session, StreamState, Task, User
from tests.support.processes import blocking_child, child
from tests.support.serving import make_settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def engine(empty: Settings) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(empty)
    yield engine
    await engine.dispose()


def by_name(constraints: Sequence[Any]) -> list[Any]:
    return sorted(constraints, key=lambda constraint: str(constraint["name"]))


def tables_of(connection: Connection) -> dict[str, Any]:
    """The models' tables as the database describes them."""
    inspector = inspect(connection)
    return {
        name: {
            # By name, because a later migration adds columns at the end of the table.
            "columns": {column["name"]: repr(column) for column in inspector.get_columns(name)},
            "primary key": inspector.get_pk_constraint(name),
            "foreign keys": by_name(inspector.get_foreign_keys(name)),
            "unique": by_name(inspector.get_unique_constraints(name)),
            "checks": by_name(inspector.get_check_constraints(name)),
        }
        for name in Model.metadata.tables
    }


async def names_of_tables(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: inspect(sync).get_table_names())


async def test_migrations_create_the_tables_columns_and_constraints_of_the_models(engine: AsyncEngine) -> None:
    await migrate(engine)
    async with engine.connect() as connection:
        migrated = await connection.run_sync(tables_of)
    await migrate(engine, "base")
    async with engine.begin() as connection:
        await connection.run_sync(Model.metadata.create_all)
        assert await connection.run_sync(tables_of) == migrated


async def test_every_constraint_has_a_unique_name(engine: AsyncEngine) -> None:
    await migrate(engine)
    async with engine.connect() as connection:
        tables = await connection.run_sync(tables_of)
    kinds = ("foreign keys", "unique", "checks")
    names = [constraint["name"] for table in tables.values() for kind in kinds for constraint in table[kind]]
    # The primary key that is a row number in SQLite has none there.
    names += [table["primary key"]["name"] for name, table in tables.items() if name != "events"]
    assert [name for name in names if not re.match("(pk|fk|uq|ck)_", str(name))] == []
    assert sorted(names) == sorted(set(names))
    assert {"pk_users", "uq_users_email_key", "ck_tasks_status", "fk_tasks_creator_id_users"} <= set(names)


async def test_ids_of_events_are_not_reused_after_any_migration(tmp_path: Path) -> None:
    """SQLite copies a table to change it, and Alembic's copy is without AUTOINCREMENT and its highest id."""
    engine = create_engine(make_settings(database_url=f"sqlite:///{tmp_path}/new.sqlite3"))
    await migrate(engine, "0003")
    async with engine.execution_options(writes=True).begin() as connection:
        await connection.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', 77)")
    await migrate(engine)
    async with engine.connect() as connection:
        highest = await connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        table = await connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'events'")
        found = highest.scalars().all(), table.scalar_one()
    await engine.dispose()
    assert found[0] == [77]
    assert "AUTOINCREMENT" in found[1]


async def test_migrating_sets_the_newest_revision(engine: AsyncEngine) -> None:
    assert await current_revision(engine) is None
    await migrate(engine)
    assert await current_revision(engine) == head_revision()
    await migrate(engine)
    assert await current_revision(engine) == head_revision()


async def test_a_new_stream_starts_at_0_with_a_unique_id(engine: AsyncEngine) -> None:
    statement = select(StreamState.id, StreamState.stream_id, StreamState.last_position)
    ids = []
    for _ in range(2):
        await migrate(engine)
        async with engine.connect() as connection:
            rows = (await connection.execute(statement)).all()
        ids.append(rows[0].stream_id)
        assert rows == [(1, ids[-1], 0)]
        assert re.fullmatch("[0-9a-f]{16}", ids[-1])
        await migrate(engine, "base")
    assert ids[0] != ids[1]


async def fill(engine: AsyncEngine) -> None:
    await seed_database(engine, Seeding(users=5, tasks=50, random_seed=1), Console(file=StringIO()))
    async with engine.execution_options(writes=True).begin() as connection:
        user_id = (await connection.execute(select(User.id))).scalars().first()
        now = clock.now()
        values = {"id": uuid4(), "user_id": user_id, "created_at": now, "last_seen_at": now, "expires_at": now}
        # Older revisions have fewer columns.
        columns = await connection.run_sync(lambda each: inspect(each).get_columns("sessions"))
        present = {column["name"] for column in columns}
        await connection.execute(insert(Session).values({name: values[name] for name in values.keys() & present}))


async def count(engine: AsyncEngine) -> dict[str, int]:
    async with engine.connect() as connection:
        return {
            model.__tablename__: (await connection.execute(select(func.count()).select_from(model))).scalar_one()
            for model in (User, Task, Session)
        }


async def test_downgrading_to_base_drops_everything_and_upgrading_works_again(engine: AsyncEngine) -> None:
    await migrate(engine)
    await fill(engine)
    await migrate(engine, "base")
    assert await names_of_tables(engine) == ["alembic_version"]
    assert await current_revision(engine) is None
    await migrate(engine)
    await fill(engine)
    assert await count(engine) == {"users": 5, "tasks": 50, "sessions": 1}


async def test_an_unknown_revision_is_refused_and_changes_nothing(engine: AsyncEngine) -> None:
    await migrate(engine)
    with pytest.raises(CommandError, match="Can't locate revision identified by 'nonsense'"):
        await migrate(engine, "nonsense")
    assert await current_revision(engine) == head_revision()


async def test_foreign_keys_are_enforced_after_a_migration(engine: AsyncEngine) -> None:
    """On SQLite this is a setting of the connection, which returns to the pool after the migration."""
    await migrate(engine)
    if engine.dialect.name == "sqlite":
        async with engine.connect() as connection:
            assert (await connection.exec_driver_sql("PRAGMA foreign_keys")).scalar_one() == 1
    await fill(engine)


async def test_a_migration_releases_its_lock(engine: AsyncEngine, empty: Settings) -> None:
    await migrate(engine)
    other = create_engine(empty)
    async with asyncio.timeout(5):
        await migrate(other)
    await other.dispose()


MIGRATE_WHEN_TOLD = """
import asyncio, sys
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import migrate

async def main():
    engine = create_engine(Settings(_env_file=None, database_url=sys.argv[1]))
    print("ready", flush=True)
    sys.stdin.readline()
    await migrate(engine)
    await engine.dispose()

asyncio.run(main())
"""


def migrate_at_once(settings: Settings, count: int) -> list[int]:
    """The exit codes of `count` processes, which start to migrate when all are ready."""
    command = [sys.executable, "-c", MIGRATE_WHEN_TOLD, str(settings.database_url)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ExitStack() as stack:
        processes = [stack.enter_context(blocking_child(command, cwd=ROOT, **pipes)) for _ in range(count)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for process in processes:
            process.communicate()
    return [process.returncode for process in processes]


async def test_processes_that_migrate_at_once_wait_for_one_another(engine: AsyncEngine, empty: Settings) -> None:
    assert await asyncio.to_thread(migrate_at_once, empty, 3) == [0, 0, 0]
    assert await current_revision(engine) == head_revision()
    async with engine.connect() as connection:
        assert (await connection.execute(select(func.count()).select_from(StreamState))).scalar_one() == 1


async def test_the_earliest_and_latest_due_dates_are_moved_by_a_microsecond(engine: AsyncEngine) -> None:
    """The first release stored them, on PostgreSQL as infinities. The migration moves them inside the range."""
    await migrate(engine, "0001")
    await fill(engine)
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    dates = [first, last, first + timedelta(microseconds=1), last - timedelta(microseconds=1), None]
    async with engine.execution_options(writes=True).begin() as connection:
        ids = (await connection.execute(select(Task.id).order_by(Task.id))).scalars().all()[: len(dates)]
        for task_id, date in zip(ids, dates, strict=True):
            await connection.execute(update(Task).where(Task.id == task_id).values(due_date=date))
        others = (await connection.execute(select(Task.id, Task.due_date).where(Task.id.not_in(ids)))).all()
    await migrate(engine)
    async with engine.connect() as connection:
        found = dict((await connection.execute(select(Task.id, Task.due_date))).all())
        assert [found[task_id] for task_id in ids] == [dates[2], dates[3], *dates[2:]]
        assert [found[task_id] for task_id, _ in others] == [due_date for _, due_date in others]
    await migrate(engine, "0001")
    await migrate(engine)


async def test_postgresql_refuses_infinite_due_dates(new_postgres: str) -> None:
    engine = create_engine(make_settings(database_url=new_postgres))
    await migrate(engine)
    await fill(engine)
    async with engine.connect() as connection:
        for moment in (datetime.min, datetime.max):
            with pytest.raises(IntegrityError, match="ck_tasks_due_date_finite"):
                await connection.execute(update(Task).values(due_date=moment.replace(tzinfo=UTC)))
            await connection.rollback()
    await engine.dispose()


# The `alembic` command


async def alembic(settings: Settings, *arguments: str) -> str:
    """The output of `alembic`, run in the root of the repository."""
    assert settings.database_url is not None
    environment = os.environ | {"TASKFLOW_DATABASE_URL": settings.database_url}
    command = (sys.executable, "-m", "alembic", *arguments)
    async with child(*command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    return said.strip()


@pytest.fixture
def copied_migrations(tmp_path: Path) -> Path:
    """A copy of the repository's migrations that a test can add to."""
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def add_migration(folder: Path, steps: str) -> None:
    """Add a migration after the newest one."""
    (folder / "migrations/versions/next.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision = 'next', {head_revision()!r}\n"
        f"def upgrade():\n{steps}"
    )


async def test_the_alembic_command_migrates_and_detects_no_difference(
    engine: AsyncEngine, empty: Settings, copied_migrations: Path
) -> None:
    await alembic(empty, "upgrade", "head")
    assert await current_revision(engine) == head_revision()
    assert await alembic(empty, "current") == f"{head_revision()} (head)"
    assert await alembic(empty, "check") == "No new upgrade operations detected."

    ini = str(copied_migrations / "alembic.ini")
    await alembic(empty, "-c", ini, "revision", "--autogenerate", "-m", "nothing", "--rev-id", "9999")
    made = (copied_migrations / "migrations/versions/9999_nothing.py").read_text()
    assert re.findall(r"def (\w+)\(.*\).*:\n(?:    #.*\n)*    pass\n", made) == ["upgrade", "downgrade"]


async def test_the_alembic_command_downgrades(engine: AsyncEngine, empty: Settings) -> None:
    await migrate(engine)
    await alembic(empty, "downgrade", "base")
    assert await names_of_tables(engine) == ["alembic_version"]


async def test_altering_a_table_keeps_the_rows_that_refer_to_it(
    engine: AsyncEngine, empty: Settings, copied_migrations: Path
) -> None:
    await migrate(engine)
    await fill(engine)
    before = await count(engine)
    add_migration(
        copied_migrations,
        "    with op.batch_alter_table('users') as users:\n"
        "        users.alter_column('full_name', type_=sa.String(300))\n",
    )
    await engine.dispose()
    await alembic(empty, "-c", str(copied_migrations / "alembic.ini"), "upgrade", "head")
    assert await current_revision(engine) == "next"
    assert await count(engine) == before == {"users": 5, "tasks": 50, "sessions": 1}


async def test_a_migration_that_fails_changes_nothing(
    engine: AsyncEngine, empty: Settings, copied_migrations: Path
) -> None:
    await migrate(engine)
    before = await names_of_tables(engine)
    add_migration(
        copied_migrations,
        "    op.create_table('notes', sa.Column('id', sa.Integer(), primary_key=True))\n"
        "    op.execute('UPDATE stream_state SET last_position = 7')\n"
        "    op.execute('nonsense')\n",
    )
    with pytest.raises(AssertionError, match="syntax error"):
        await alembic(empty, "-c", str(copied_migrations / "alembic.ini"), "upgrade", "head")
    assert await current_revision(engine) == head_revision()
    assert await names_of_tables(engine) == before
    async with engine.connect() as connection:
        assert (await connection.execute(select(StreamState.last_position))).scalar_one() == 0
