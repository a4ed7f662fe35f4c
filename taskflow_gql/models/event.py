"""The record of all changes to tasks. History, pull and stream are three views of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, CheckConstraint, Enum, Index, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from taskflow_gql.database.types import Model, UtcDateTime

# SQLite makes ids of its own only for a column that is exactly INTEGER PRIMARY KEY.
_BigId = BigInteger().with_variant(Integer, "sqlite")


class EventKind(StrEnum):
    CREATED = "CREATED"
    UPDATED = "UPDATED"
    DELETED = "DELETED"


class TaskEvent(Model):
    """One committed change.

    `id` is given at insertion, while the writer holds the task's row lock: within one task it follows the order
    of the changes. Across tasks neither ids nor times follow the order of commits, so readers go by `position`,
    which the relay gives after commit, without gaps.
    """

    __tablename__ = "task_events"
    __table_args__ = (
        Index(
            "ix_task_events_unplaced",
            "id",
            postgresql_where=text("position IS NULL"),
            sqlite_where=text("position IS NULL"),
        ),
        Index(None, "task_id", "position"),
        # AUTOINCREMENT: an id is never used again after retention has deleted the newest rows.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_BigId, primary_key=True)
    position: Mapped[int | None] = mapped_column(BigInteger, unique=True)
    kind: Mapped[EventKind] = mapped_column(
        Enum(EventKind, name="kind", native_enum=False, create_constraint=True, length=16)
    )
    # No foreign keys: the record outlives the task.
    task_id: Mapped[UUID] = mapped_column()
    actor_id: Mapped[UUID | None] = mapped_column()
    # Who may see it: the creator never changes, the assignee may.
    creator_id: Mapped[UUID] = mapped_column()
    assignee_id: Mapped[UUID | None] = mapped_column()
    previous_assignee_id: Mapped[UUID | None] = mapped_column()
    # Comma separated names of TaskField; empty for CREATED and DELETED.
    changed_fields: Mapped[str] = mapped_column(String(255))
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    occurred_at: Mapped[datetime] = mapped_column(UtcDateTime)


class StreamState(Model):
    """The one row that says how far positions are given. Whoever gives positions holds its lock."""

    __tablename__ = "stream_state"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    # Random, made with the database: a cursor of another server is told apart from a cursor of ours.
    stream_id: Mapped[str] = mapped_column(String(16))
    last_position: Mapped[int] = mapped_column(BigInteger)
    # Up to here events have been deleted; a cursor before it cannot be resumed from.
    expired_position: Mapped[int] = mapped_column(BigInteger)
