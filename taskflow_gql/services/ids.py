"""Ids: version 7 UUIDs, unique across all types."""

from __future__ import annotations

import re
from uuid import UUID

from uuid_utils.compat import uuid7

from taskflow_gql.errors import BadUserInput, Refusal

# uuid.UUID() also accepts braces, `urn:uuid:` and misplaced hyphens. Here an id has one form, in either case.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def make_id() -> UUID:
    return uuid7()


def parse_id(value: str, *, field: str | None = None) -> UUID:
    """Raises BadUserInput for anything but a UUID."""
    if not _UUID.fullmatch(value):
        shown = value if len(value) <= 50 else f"{value[:50]}…"
        raise BadUserInput(f"{shown!r} is not an id: ids are UUIDs, as the server hands them out", field=field)
    return UUID(value)


def parse_optional_id(value: str | None, field: str, problems: list[Refusal]) -> UUID | None:
    """None for None, and for anything but a UUID, which is added to the problems."""
    try:
        return None if value is None else parse_id(value, field=field)
    except BadUserInput as problem:
        problems.append(problem)
        return None
