"""Scalars of the contract."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import strawberry
from graphql import GraphQLError
from strawberry.types.scalar import ScalarDefinition

from taskflow_gql.execution import AsItIs

# RFC 3339: a `T`, seconds, and an offset. fromisoformat() alone would also take week dates and bare dates.
_RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


def parse_datetime(value: Any) -> datetime:
    """The instant in UTC; GraphQLError, hence BAD_USER_INPUT, for anything else."""
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        raise GraphQLError(f"DateTime must be RFC 3339 with an offset, like 2026-01-31T08:00:00Z, not {value!r}")
    # Python keeps microseconds; more digits are cut, as PostgreSQL would.
    text = re.sub(r"(\.\d{6})\d+", r"\1", value.upper().replace(" ", "T"))
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise GraphQLError(f"DateTime {value!r} is no time that exists") from error


DATE_TIME: ScalarDefinition = strawberry.scalar(
    name="DateTime",
    description=(
        "An instant of the years 1 to 9999 as RFC 3339 text. Answers are always UTC, like "
        "`2026-01-31T08:00:00+00:00`; input needs an offset (`Z` or `+02:00`) and keeps microseconds."
    ),
    specified_by_url="https://www.rfc-editor.org/rfc/rfc3339",
    # As it is: orjson writes it the same, ten times as fast as `isoformat()`.
    serialize=AsItIs(datetime),
    parse_value=parse_datetime,
)
