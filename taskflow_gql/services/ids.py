"""Ids: version 7 UUIDs, unique across all types."""

from __future__ import annotations

import re
from uuid import UUID

from sqlalchemy import Table, Uuid, bindparam, select, union_all
from uuid_utils.compat import uuid7

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.errors import BadUserInput, Refusal
from taskflow_gql.models import Event, Model

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


class IdTaken(Refusal):
    code = "ID_TAKEN"

    def __init__(self) -> None:
        super().__init__("This id is taken: make another one", field="id")


def _has_ids(table: Table) -> bool:
    return "id" in table.c and isinstance(table.c.id.type, Uuid)


async def check_free_id(session: DatabaseSession, id_: UUID, problems: list[Refusal]) -> None:
    """An id is unique over all types. It is taken for as long as the record keeps a change of its object."""
    if await session.run(_OWNERS, {"id": id_}):
        problems.append(IdTaken())


_ID = bindparam("id", type_=Uuid())
# All tables that have ids, and the record, which keeps the ids of deleted objects.
_OWNERS = Statement(
    union_all(
        *(select(table.c.id).where(table.c.id == _ID) for table in Model.metadata.sorted_tables if _has_ids(table)),
        select(Event.subject_id).where(Event.subject_id == _ID).limit(1).subquery().select(),
    )
)
