"""What tests of the database share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import insert

from taskflow_gql.database.units import Database
from tests.database.tables import COUNTERS, TABLES
from tests.support.servers import PostgresServer


@pytest.fixture
async def tables(database: Database) -> AsyncIterator[None]:
    """Two tables of our own beside the server's, with a counter at 0."""
    async with database.engine.begin() as connection:
        await connection.run_sync(TABLES.drop_all)
        await connection.run_sync(TABLES.create_all)
        await connection.execute(insert(COUNTERS).values(id=1, value=0))
    yield
    async with database.engine.begin() as connection:
        await connection.run_sync(TABLES.drop_all)


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """One that may be restarted, and that certainly speaks no TLS."""
    with PostgresServer() as server:
        yield server
