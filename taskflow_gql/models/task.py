"""The table of tasks, its indexes and sort expressions, and the row that reads return."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    Enum,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    func,
    literal_column,
)
from sqlalchemy.orm import Mapped, mapped_column

from taskflow_gql.database.constructs import AfterAllTimes, BeforeAllTimes
from taskflow_gql.database.types import Model, UtcDateTime, WordList, sorted_text


class TaskStatus(StrEnum):
    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"


class TaskPriority(StrEnum):
    LOW = "LOW"
    MEDIUM = "MEDIUM"
    HIGH = "HIGH"


class TaskCategory(StrEnum):
    WORK = "WORK"
    PERSONAL = "PERSONAL"
    HOME = "HOME"
    OTHER = "OTHER"


def _rank(column: str, values: type[StrEnum]) -> ColumnElement[int]:
    """The index of a value in its enum.

    Literal SQL without parameters, because an index on an expression is used only for exactly the same expression.
    """
    whens = " ".join(f"WHEN '{value}' THEN {place}" for place, value in enumerate(values))
    return literal_column(f"(CASE tasks.{column} {whens} END)", Integer)


# Sort keys for columns whose text does not sort in the right order. Filters compare the ranks too, so that the PENDING
# tasks, sorted by status, are one range of the index on the rank.
STATUS_RANK = _rank("status", TaskStatus)
PRIORITY_RANK = _rank("priority", TaskPriority)


class Task(Model):
    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint("version >= 1", name="version_positive"),
        CheckConstraint("(status = 'COMPLETED') = (completed_at IS NOT NULL)", name="completed_at_matches_status"),
        # PostgreSQL only: SQLite has no infinite times.
        CheckConstraint("isfinite(due_date)", name="due_date_finite").ddl_if(dialect="postgresql"),
        # Default order, newest first: all tasks, and those of one person.
        Index(None, "created_at", "id"),
        Index(None, "creator_id", "created_at", "id"),
        Index(None, "assignee_id", "created_at", "id"),
        # Other orders of all tasks. The indexes on expressions (STATUS_RANK, PRIORITY_RANK, due dates and search words)
        # are only in the migrations: Alembic cannot compare expressions, and env.py ignores the names `ex_…`.
        Index(None, "updated_at", "id"),
        Index(None, "title_key", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(Text)
    status: Mapped[TaskStatus] = mapped_column(
        Enum(TaskStatus, name="status", native_enum=False, create_constraint=True, length=16)
    )
    priority: Mapped[TaskPriority] = mapped_column(
        Enum(TaskPriority, name="priority", native_enum=False, create_constraint=True, length=16)
    )
    category: Mapped[TaskCategory] = mapped_column(
        Enum(TaskCategory, name="category", native_enum=False, create_constraint=True, length=16)
    )
    due_date: Mapped[datetime | None] = mapped_column(UtcDateTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    creator_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    assignee_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    version: Mapped[int] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Derived from title and description for comparing, sorting and searching: casefold() of each, and their words.
    title_key: Mapped[str] = mapped_column(sorted_text(765))
    description_key: Mapped[str | None] = mapped_column(Text)
    search_words: Mapped[str] = mapped_column(WordList)


# Sort keys for due dates. Tasks without one come last in both directions.
DUE_DATE_ASCENDING = func.coalesce(Task.due_date, AfterAllTimes())
DUE_DATE_DESCENDING = func.coalesce(Task.due_date, BeforeAllTimes())


class TaskRow(NamedTuple):
    """A task as read from the table or from an event."""

    id: UUID
    title: str
    description: str | None
    status: TaskStatus
    priority: TaskPriority
    category: TaskCategory
    due_date: datetime | None
    completed_at: datetime | None
    creator_id: UUID
    assignee_id: UUID | None
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def completed(self) -> bool:
        return self.status is TaskStatus.COMPLETED


class TaskField(StrEnum):
    """The fields that a person changes. The others (version, updatedAt, completedAt) follow from them."""

    TITLE = "TITLE"
    DESCRIPTION = "DESCRIPTION"
    STATUS = "STATUS"
    PRIORITY = "PRIORITY"
    CATEGORY = "CATEGORY"
    DUE_DATE = "DUE_DATE"
    ASSIGNEE = "ASSIGNEE"


# The column behind each field, in the order in which changes are reported.
COLUMN_BY_FIELD = {
    TaskField.TITLE: "title",
    TaskField.DESCRIPTION: "description",
    TaskField.STATUS: "status",
    TaskField.PRIORITY: "priority",
    TaskField.CATEGORY: "category",
    TaskField.DUE_DATE: "due_date",
    TaskField.ASSIGNEE: "assignee_id",
}

TASK_COLUMNS = tuple(getattr(Task, name) for name in TaskRow._fields)
