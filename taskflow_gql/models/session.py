"""Sessions and their refresh tokens.

Each access token names a session, so deleting the session revokes the token on every server process.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ForeignKey, LargeBinary, String, func
from sqlalchemy.orm import Mapped, mapped_column

from taskflow_gql.database.types import Model, UtcDateTime

MAX_USER_AGENT_LENGTH = 255


class Session(Model):
    """One sign-in. Deleting the row revokes its tokens."""

    __tablename__ = "sessions"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # When its last refresh token expires.
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    # When it was last signed in or refreshed. None for a session that a server of release 0.2 has opened.
    last_seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # The client that signed in or refreshed last. An IPv6 address with a zone has no fixed length.
    ip_address: Mapped[str | None] = mapped_column(String(64))
    user_agent: Mapped[str | None] = mapped_column(String(MAX_USER_AGENT_LENGTH))
    # The first refresh token is derived from it and from the server's key.
    nonce: Mapped[bytes | None] = mapped_column(LargeBinary(32))


class SessionRow(NamedTuple):
    """A session as its person sees it."""

    id: UUID
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    ip_address: str | None
    user_agent: str | None


_LAST_SEEN = func.coalesce(Session.last_seen_at, Session.created_at, type_=UtcDateTime)
SESSION_COLUMNS = tuple(_LAST_SEEN if name == "last_seen_at" else getattr(Session, name) for name in SessionRow._fields)


class RefreshToken(Model):
    """A refresh token, as its hash. Replaced ones are kept, to recognise one that is used again."""

    __tablename__ = "refresh_tokens"

    token_hash: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    session_id: Mapped[UUID] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), index=True)
    # Both None for the session's present token. The token and the nonce give its successor.
    replaced_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    nonce: Mapped[bytes | None] = mapped_column(LargeBinary(32))
