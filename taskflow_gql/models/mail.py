"""Mails that wait to be sent."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from taskflow_gql.database.types import Model, UtcDateTime


class OutgoingMail(Model):
    """One mail, committed with the change that it is about. The row is deleted when the mail is sent.

    The values can contain a secret link. They are never logged.
    """

    __tablename__ = "outgoing_mails"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    recipient: Mapped[str] = mapped_column(String(254))
    # The name and the values of the template. It is rendered when the mail is sent.
    template: Mapped[str] = mapped_column(String(32))
    template_values: Mapped[dict[str, Any]] = mapped_column(JSON)
    # How often a process has claimed the mail to send it.
    attempts: Mapped[int] = mapped_column(Integer)
    # While a process sends the mail, this is the end of its lease.
    next_attempt_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
