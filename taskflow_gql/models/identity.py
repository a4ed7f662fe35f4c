"""People of trusted issuers, by the subject of their tokens."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from taskflow_gql.database.types import Model, UtcDateTime


class ForeignIdentity(Model):
    """One person of one issuer. Deleting the row revokes that person's tokens, as with a session."""

    __tablename__ = "foreign_identities"
    # The subject first: reads know a few subjects, and most rows have the same issuer.
    __table_args__ = (UniqueConstraint("subject", "issuer"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    issuer: Mapped[str] = mapped_column(String(255))
    subject: Mapped[str] = mapped_column(String(255))
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
