"""The table of users, and the row that reads return."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Enum, String
from sqlalchemy.orm import Mapped, mapped_column

from taskflow_gql.database.types import Model, UtcDateTime, sorted_text


class UserRole(StrEnum):
    MEMBER = "MEMBER"
    ADMIN = "ADMIN"


class User(Model):
    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(320))
    # casefold() of the address. A column and not lower(), because the two databases differ in lower() outside ASCII.
    email_key: Mapped[str] = mapped_column(String(640), unique=True)
    username: Mapped[str] = mapped_column(String(50))
    username_key: Mapped[str] = mapped_column(sorted_text(50), unique=True)
    full_name: Mapped[str] = mapped_column(String(255))
    # The words of the full name in order, each with a space before it; see services/search_words.py.
    name_words: Mapped[str] = mapped_column(String(1024))
    password_hash: Mapped[str] = mapped_column(String(255))
    role: Mapped[UserRole] = mapped_column(
        Enum(UserRole, name="role", native_enum=False, create_constraint=True, length=16)
    )
    is_active: Mapped[bool] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # When the address was changed, and when the person was last told by mail what has happened to the account.
    email_changed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    told_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class UserRow(NamedTuple):
    """A user as read. The password hash is not part of the row, so that it cannot leak."""

    id: UUID
    email: str
    username: str
    full_name: str
    role: UserRole
    is_active: bool
    created_at: datetime
    updated_at: datetime


USER_COLUMNS = tuple(getattr(User, name) for name in UserRow._fields)
