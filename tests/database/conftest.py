"""Fixtures for tests of the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from taskflow_gql.config import Settings
from taskflow_gql.database.units import Database
from tests.database.tables import COUNTERS, TABLES
from tests.support.servers import PostgresServer
from tests.support.serving import make_settings


@pytest.fixture
async def tables(database: Database) -> AsyncIterator[None]:
    """The tables of `tests.database.tables`, with one counter at 0."""
    async with database.engine.begin() as connection:
        await connection.run_sync(TABLES.drop_all)
        await connection.run_sync(TABLES.create_all)
        await connection.execute(insert(COUNTERS).values(id=1, value=0))
    yield
    async with database.engine.begin() as connection:
        await connection.run_sync(TABLES.drop_all)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings with a database without tables."""
    if request.param == "sqlite":
        return make_settings(data_dir=tmp_path, database_url=f"sqlite:///{tmp_path}/new.sqlite3")
    return make_settings(data_dir=tmp_path, database_url=request.getfixturevalue("new_postgres"))


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server without TLS that tests can restart."""
    with PostgresServer() as server:
        yield server
