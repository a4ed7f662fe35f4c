"""Alembic's environment: the same settings and the same engine as the server."""

from __future__ import annotations

import asyncio
import warnings

from alembic import context
from sqlalchemy import Connection

from taskflow_gql.config import load_settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import foreign_keys_off
from taskflow_gql.models import Model

# Which is why their names are left alone below.
warnings.filterwarnings("ignore", message="Skipped unsupported reflection of expression-based index ex_")


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """What Alembic compares with the models: not the indexes on expressions (`ex_…`), which it cannot compare, and not
    the tables of SQLite's full text search, which the models do not know."""
    if kind == "index":
        return name is None or not name.startswith("ex_")
    if kind == "table":
        return name is None or not name.startswith("task_search")
    return True


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Model.metadata,
        include_name=is_ours,
        # SQLite cannot alter a table in place; Alembic copies it.
        render_as_batch=connection.dialect.name == "sqlite",
        # SQLite's DDL is transactional, though Alembic does not take it for granted.
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_with_own_engine() -> None:
    engine = create_engine(load_settings())
    # `writes`: on SQLite too, all in one transaction.
    async with engine.execution_options(writes=True).connect() as connection:
        await connection.run_sync(run_and_commit)
    await engine.dispose()


def run_and_commit(connection: Connection) -> None:
    with foreign_keys_off(connection):
        run(connection)
        connection.commit()


# `taskflow migrate` hands its connection over; the `alembic` command comes without one.
given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    asyncio.run(run_with_own_engine())
