"""The record of all changes, and how far the stream of it has come."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import JSON, BigInteger, CheckConstraint, Enum, Index, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from taskflow_gql.database.id_lists import IdList
from taskflow_gql.database.types import Model, UtcDateTime

# SQLite generates ids only for a column that is exactly INTEGER PRIMARY KEY.
_BigId = BigInteger().with_variant(Integer, "sqlite")


class Recorded(NamedTuple):
    """A noun whose changes are recorded."""

    row_class: type[Any]
    # The column behind each field that people change, in the order in which changes are reported.
    column_by_field: Mapping[Any, str]


class EventKind(StrEnum):
    CREATED = "CREATED"
    UPDATED = "UPDATED"
    DELETED = "DELETED"


class Event(Model):
    """One committed change to one subject.

    `id` is assigned on insertion, while the writer holds the subject's row lock, so the ids of one subject follow the
    order of its changes. Across subjects neither ids nor times follow the order of commits. Readers go by `position`,
    which the relay assigns after commit, without gaps.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index(
            "ix_events_unplaced",
            "id",
            postgresql_where=text("position IS NULL"),
            sqlite_where=text("position IS NULL"),
        ),
        Index(None, "subject_id", "position"),
        # AUTOINCREMENT: an id is not reused after retention has deleted the newest rows.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_BigId, primary_key=True)
    position: Mapped[int | None] = mapped_column(BigInteger, unique=True)
    # Names of `RECORDED`, without a CHECK: a server passes over the types of a newer release that it does not know.
    subject_type: Mapped[str] = mapped_column(String(16))
    # No foreign keys: the record outlives its subjects.
    subject_id: Mapped[UUID] = mapped_column()
    kind: Mapped[EventKind] = mapped_column(
        Enum(EventKind, name="kind", native_enum=False, create_constraint=True, length=16)
    )
    actor_id: Mapped[UUID | None] = mapped_column()
    # The people, besides admins, who may see the subject before or after the change.
    audience: Mapped[Collection[UUID]] = mapped_column(IdList)
    # Comma-separated names of the subject's fields; empty for CREATED and DELETED.
    changed_fields: Mapped[str] = mapped_column(String(255))
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # The client's name for the mutation that made the change.
    mutation_id: Mapped[str | None] = mapped_column(String(64))
    occurred_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # The audience of events that were stored before revision 0003. Null in all others, and dropped by a later revision
    # (docs/decisions/0011-one-record.md).
    creator_id: Mapped[UUID | None] = mapped_column()
    assignee_id: Mapped[UUID | None] = mapped_column()
    previous_assignee_id: Mapped[UUID | None] = mapped_column()


class StreamState(Model):
    """The one row that says how far positions are assigned. Whoever assigns positions holds its lock."""

    __tablename__ = "stream_state"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    # Random, made with the database: it tells a cursor of this server from a cursor of another one.
    stream_id: Mapped[str] = mapped_column(String(16))
    last_position: Mapped[int] = mapped_column(BigInteger)
    # Events up to here have been deleted; a cursor before it cannot be resumed from.
    expired_position: Mapped[int] = mapped_column(BigInteger)
