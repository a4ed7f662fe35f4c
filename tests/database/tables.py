"""Tables for tests of the database."""

from __future__ import annotations

from sqlalchemy import Column, Integer, MetaData, Table, select

from taskflow_gql.database.types import UtcDateTime
from taskflow_gql.database.units import Database

# Created beside the application's tables.
TABLES = MetaData()
COUNTERS = Table("test_counters", TABLES, Column("id", Integer, primary_key=True), Column("value", Integer))
MOMENTS = Table("test_moments", TABLES, Column("id", Integer, primary_key=True), Column("moment", UtcDateTime))


async def counted(database: Database) -> int:
    async with database.read() as session:
        return (await session.execute(select(COUNTERS.c.value))).scalar_one()  # type: ignore[no-any-return]
