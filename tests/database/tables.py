"""Tables for tests of the database."""

from __future__ import annotations

from sqlalchemy import ARRAY, JSON, BigInteger, Column, Integer, MetaData, Table, Text, select

from taskflow_gql.database.types import UtcDateTime
from taskflow_gql.database.units import Database

# Created beside the application's tables.
TABLES = MetaData()
COUNTERS = Table("test_counters", TABLES, Column("id", Integer, primary_key=True), Column("value", Integer))
MOMENTS = Table("test_moments", TABLES, Column("id", Integer, primary_key=True), Column("moment", UtcDateTime))
# Lists of ids, as receipts have them.
LISTS = Table(
    "test_lists",
    TABLES,
    Column("name", Text, primary_key=True),
    Column("numbers", ARRAY(BigInteger).with_variant(JSON(), "sqlite")),
)


async def counted(database: Database) -> int:
    async with database.read() as session:
        return (await session.execute(select(COUNTERS.c.value))).scalar_one()  # type: ignore[no-any-return]
