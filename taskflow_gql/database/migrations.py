"""Migrations: Alembic, run inside the process on the package's own engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine


def _migrations_folder() -> Path:
    """The folder is beside the package in a checkout, and inside it when installed from a wheel."""
    package = Path(__file__).parent.parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def head_revision() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


async def current_revision(engine: AsyncEngine) -> str | None:
    """The revision of the database, or None if it was never migrated."""

    def read(connection: Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    async with engine.connect() as connection:
        return await connection.run_sync(read)


async def migrate(engine: AsyncEngine, revision: str = "head") -> None:
    """Migrate up or down to the revision, all steps in one transaction.

    When several processes migrate at once, one of them does it and the others wait.
    """
    # `writes` makes the transaction on SQLite take the write lock before it reads the current revision.
    async with engine.execution_options(writes=True).connect() as connection:
        await connection.run_sync(_migrate, revision)


def _migrate(connection: Connection, revision: str) -> None:
    config = _config()
    script = ScriptDirectory.from_config(config)
    is_sqlite = connection.dialect.name == "sqlite"
    with foreign_keys_off(connection):
        if not is_sqlite:
            # The key is arbitrary, but the same in every process.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7416543001)")
        config.attributes["connection"] = connection
        current = MigrationContext.configure(connection).get_current_revision()
        target = script.get_revision(revision)
        is_down = current is not None and target is not None and _is_below(script, target.revision, current)
        if is_down or revision == "base":
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)
        if is_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
            raise CommandError("The migration would leave rows with broken foreign keys; nothing was changed")
        connection.commit()


@contextmanager
def foreign_keys_off(connection: Connection) -> Iterator[None]:
    """Disable foreign keys on SQLite, where Alembic alters a table by copying it and dropping the original.

    With foreign keys enabled, dropping it would delete the rows that refer to it.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    # Through the driver's cursor, because this PRAGMA has no effect inside a transaction.
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        connection.rollback()
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


def _is_below(script: ScriptDirectory, target: str, current: str) -> bool:
    return target != current and any(step.revision == target for step in script.iterate_revisions(current, "base"))
