"""Requests for a link to set a new password, and the tokens of these links."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from taskflow_gql.database.types import Model, UtcDateTime


class PasswordResetRequest(Model):
    """Somebody asked for a link. The row is deleted when the request is answered, by a mail or by nothing."""

    __tablename__ = "password_reset_requests"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    # casefold() of the address, whether there is such an account or not.
    email_key: Mapped[str] = mapped_column(String(640))


class PasswordResetToken(Model):
    """The token of a link, as its hash. It is deleted when it is used."""

    __tablename__ = "password_reset_tokens"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
