"""Column types return the same values from both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import insert, select

from taskflow_gql.database.units import Database
from tests.database.tables import MOMENTS


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (datetime(2026, 2, 3, 4, 5, 6, 789_012, UTC), datetime(2026, 2, 3, 4, 5, 6, 789_012, UTC)),
        (datetime(2026, 2, 3, 4, 5, 6, 0, UTC), datetime(2026, 2, 3, 4, 5, 6, 0, UTC)),
        (
            datetime(2026, 1, 1, 1, 30, 0, 1, timezone(timedelta(hours=5, minutes=45))),
            datetime(2025, 12, 31, 19, 45, 0, 1, UTC),
        ),
        (datetime(1969, 12, 31, 23, 0, tzinfo=timezone(timedelta(hours=-3))), datetime(1970, 1, 1, 2, 0, tzinfo=UTC)),
        (datetime(1, 1, 2, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC)),
        (datetime(9999, 12, 30, 23, 59, 59, 999_999, UTC), datetime(9999, 12, 30, 23, 59, 59, 999_999, UTC)),
        (None, None),
    ],
)
async def test_times_are_stored_with_microseconds_and_returned_in_utc(
    database: Database, given: datetime | None, kept: datetime | None
) -> None:
    async with database.write() as session:
        await session.execute(insert(MOMENTS).values(id=1, moment=given))
    async with database.read() as session:
        read = (await session.execute(select(MOMENTS.c.moment))).scalar_one()
    assert read == kept
    assert read is None or read.tzinfo is UTC


@pytest.mark.usefixtures("tables")
async def test_times_compare_and_sort_regardless_of_their_offset(database: Database) -> None:
    east, west = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    moments = [noon.astimezone(east), noon + timedelta(microseconds=1), (noon + timedelta(seconds=1)).astimezone(west)]
    async with database.write() as session:
        rows = [{"id": number, "moment": moment} for number, moment in enumerate(moments)]
        await session.execute(insert(MOMENTS), rows[::-1])
    async with database.read() as session:
        ordered = (await session.execute(select(MOMENTS.c.id).order_by(MOMENTS.c.moment))).scalars().all()
        later = (await session.execute(select(MOMENTS.c.id).where(MOMENTS.c.moment > noon.astimezone(west)))).scalars()
        assert (ordered, sorted(later)) == ([0, 1, 2], [1, 2])
