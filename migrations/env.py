"""Alembic's environment: the same settings and the same engine as the server."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection

from taskflow_gql.config import load_settings
from taskflow_gql.database import create_engine
from taskflow_gql.models import Model


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Model.metadata,
        # SQLite cannot alter a table in place; Alembic copies it.
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_with_own_engine() -> None:
    engine = create_engine(load_settings())
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


# `taskflow migrate` hands its connection over; the `alembic` command comes without one.
given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    asyncio.run(run_with_own_engine())
