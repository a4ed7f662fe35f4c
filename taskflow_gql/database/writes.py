"""Two writes of one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import UpdateBase

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement


async def write_both(
    session: DatabaseSession,
    first: UpdateBase,
    first_values: Mapping[str, Any],
    second: UpdateBase,
    second_values: Mapping[str, Any],
) -> None:
    """Runs two writes that do not read each other's rows. PostgreSQL runs them as one statement, in one round trip.

    Their parameters need different names. Both are cached, so callers pass the same objects every time.
    """
    if session.dialect_name == "postgresql":
        await session.run(_together(first, second), {**first_values, **second_values})
    else:
        await session.run(_alone(first), first_values)
        await session.run(_alone(second), second_values)


@cache
def _together(first: UpdateBase, second: UpdateBase) -> Statement:
    return Statement(second.add_cte(first.cte("first")))


@cache
def _alone(write: UpdateBase) -> Statement:
    return Statement(write)
