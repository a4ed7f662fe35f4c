"""Sessions: opening, refreshing and ending them.

A refresh replaces the refresh token. The one just replaced gives the same successor for a while, because two tabs may
refresh at the same time, and an answer may be lost. The successor is derived from the token and a stored nonce, so the
database holds no token. A token that was replaced earlier has been copied or stolen, and its session ends.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Select, delete, insert, select, union_all, update

from taskflow_gql import clock
from taskflow_gql.database.constructs import among, database_now
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.errors import NotFound, Refusal
from taskflow_gql.models import (
    SESSION_COLUMNS,
    USER_COLUMNS,
    ForeignIdentity,
    RefreshToken,
    Session,
    SessionRow,
    User,
    UserRole,
    UserRow,
)
from taskflow_gql.models.session import MAX_USER_AGENT_LENGTH
from taskflow_gql.security.opaque import OpaqueTokens, hash_of_token
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.accounts import InvalidCredentials
from taskflow_gql.services.ids import make_id

REFRESH_TOKENS = OpaqueTokens("tfr_")
# How long a replaced token gives its successor.
REUSE_WINDOW = timedelta(seconds=60)
MAX_SESSIONS_SHOWN = 1000
_NONCE_BYTES = 32


class InvalidToken(Refusal):
    code = "INVALID_TOKEN"


@dataclass(frozen=True, slots=True)
class Client:
    """The client of a request, as its session shows it."""

    ip_address: str | None
    user_agent: str | None

    @property
    def values(self) -> dict[str, str]:
        """The known values, by column."""
        agent = self.user_agent and "".join(filter(str.isprintable, self.user_agent))[:MAX_USER_AGENT_LENGTH]
        known = {"ip_address": self.ip_address, "user_agent": agent}
        return {name: value for name, value in known.items() if value}


class SignIn(NamedTuple):
    """A person's session, when its new access token begins, and its refresh token."""

    user: UserRow
    session_id: UUID
    issued_at: datetime
    refresh_token: str | None


class Reused(NamedTuple):
    """A refresh token was used again after it was replaced, and its session has been ended."""

    user: UserRow
    session_id: UUID


async def open_session(
    session: DatabaseSession, user: UserRow, *, password_hash: str, lifetime: timedelta, client: Client, key: bytes
) -> SignIn:
    """Sign in. Raises InvalidCredentials if the password was changed or the user deactivated since it was verified.

    `lifetime` is that of the refresh token, which is derived from the key. The user's row is locked, so that neither
    happens before the commit. The lock is `key_share`, so that inserts of tasks that refer to the user do not wait.
    """
    statement = select(User.id).where(User.id == user.id, User.is_active, User.password_hash == password_hash)
    if (await session.execute(statement.with_for_update(key_share=True))).first() is None:
        raise InvalidCredentials("Incorrect username or password")
    now = clock.now()
    session_id = make_id()
    nonce = secrets.token_bytes(_NONCE_BYTES)
    values = {"id": session_id, "user_id": user.id, "created_at": now, "nonce": nonce}
    await session.execute(insert(Session).values({**values, **_seen(now, lifetime, client)}))
    token = _first_token(session_id, nonce, key)
    await session.execute(insert(RefreshToken).values(token_hash=hash_of_token(token), session_id=session_id))
    return SignIn(user, session_id, now, token)


def _first_token(session_id: UUID, nonce: bytes, key: bytes) -> str:
    # The nonce makes the key alone useless: ids of sessions are in access tokens.
    return REFRESH_TOKENS.derive(key, session_id.bytes + nonce)


async def first_token_again(session: DatabaseSession, session_id: UUID, key: bytes) -> str | None:
    """The first refresh token of the session; None if it was used. Raises InvalidToken if the session has ended."""
    statement = select(Session.nonce).where(Session.id == session_id, Session.expires_at > clock.now())
    nonce = (await session.execute(statement)).scalar_one_or_none()
    if nonce is None:
        raise InvalidToken("This sign-in has ended: sign in again")
    token = _first_token(session_id, nonce, key)
    return token if await _still_refreshes(session, token) else None


def _seen(now: datetime, lifetime: timedelta, client: Client) -> dict[str, object]:
    return {
        "last_seen_at": now,
        "expires_at": now + lifetime,
        **client.values,
    }


async def refresh_session(
    session: DatabaseSession, token: str, *, lifetime: timedelta, client: Client
) -> SignIn | Reused:
    """Replace the refresh token. Raises InvalidToken if it is unknown or its session has ended."""
    session_id = await session_of_token(session, token)
    user = None if session_id is None else await _lock_session(session, session_id)
    # After the lock, so that a concurrent refresh is seen. Whoever ends the session locks it first too.
    found = await _find_token(session, token)
    if found is None or user is None:
        raise InvalidToken(
            "The refresh token is unknown or its session has ended: sign in again", field="refresh_token"
        )
    if found.replaced_at is not None and found.now - found.replaced_at > REUSE_WINDOW:
        await session.execute(delete(Session).where(Session.id == found.session_id))
        return Reused(user, found.session_id)
    nonce = found.nonce or await _replace(session, token, found.session_id)
    now = clock.now()
    seen = update(Session).where(Session.id == found.session_id).values(_seen(now, lifetime, client))
    await session.execute(seen)
    return SignIn(user, found.session_id, now, _successor(token, nonce))


class _Found(NamedTuple):
    session_id: UUID
    replaced_at: datetime | None
    nonce: bytes | None
    # By the clock of the database, as `replaced_at`: those of two servers may differ.
    now: datetime


async def session_of_token(session: DatabaseSession, token: str) -> UUID | None:
    """The session that the token is of, or was of before it was replaced."""
    found = await _find_token(session, token)
    return found and found.session_id


async def _find_token(session: DatabaseSession, token: str) -> _Found | None:
    if not REFRESH_TOKENS.is_whole(token):
        return None
    columns = (RefreshToken.session_id, RefreshToken.replaced_at, RefreshToken.nonce, database_now())
    statement = select(*columns).where(RefreshToken.token_hash == hash_of_token(token))
    row = (await session.execute(statement)).first()
    return None if row is None else _Found._make(row)


async def _lock_session(session: DatabaseSession, session_id: UUID) -> UserRow | None:
    """The person of the session; None if it has ended."""
    statement = select(*USER_COLUMNS).join(Session, Session.user_id == User.id)
    statement = statement.where(Session.id == session_id, Session.expires_at > clock.now(), User.is_active)
    row = (await session.execute(statement.with_for_update(of=Session))).first()
    return None if row is None else UserRow._make(row)


async def _replace(session: DatabaseSession, token: str, session_id: UUID) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    replaced = update(RefreshToken).where(RefreshToken.token_hash == hash_of_token(token))
    await session.execute(replaced.values(replaced_at=database_now(), nonce=nonce))
    successor = hash_of_token(_successor(token, nonce))
    await session.execute(insert(RefreshToken).values(token_hash=successor, session_id=session_id))
    return nonce


def _successor(token: str, nonce: bytes) -> str:
    return REFRESH_TOKENS.derive(token.encode(), nonce)


async def _still_refreshes(session: DatabaseSession, token: str) -> bool:
    """Whether the token would be taken now."""
    found = await _find_token(session, token)
    return found is not None and (found.replaced_at is None or found.now - found.replaced_at <= REUSE_WINDOW)


async def list_sessions(session: DatabaseSession, viewer: Viewer) -> list[SessionRow]:
    """The viewer's sessions, the one last seen first; at most MAX_SESSIONS_SHOWN."""
    statement = (
        select(*SESSION_COLUMNS)
        .where(Session.user_id == viewer.id, Session.expires_at > clock.now())
        .order_by(Session.last_seen_at.desc(), Session.id.desc())
        .limit(MAX_SESSIONS_SHOWN)
    )
    return [SessionRow._make(row) for row in await session.execute(statement)]


async def end_session(session: DatabaseSession, viewer: Viewer, session_id: UUID) -> None:
    """Raises NotFound if the viewer has no such session."""
    ended = delete(Session).where(Session.id == session_id, Session.user_id == viewer.id).returning(Session.id)
    if (await session.execute(ended)).first() is None:
        raise NotFound("Session not found", field="id")


async def end_other_sessions(session: DatabaseSession, viewer: Viewer) -> int:
    """End all sessions of the viewer but the present one, and return how many."""
    return await end_sessions_of(session, viewer.id, but=viewer.session_id)


async def end_sessions_of(session: DatabaseSession, user_id: UUID, *, but: UUID | None = None) -> int:
    ended = delete(Session).where(Session.user_id == user_id, Session.expires_at > clock.now())
    if but is not None:
        ended = ended.where(Session.id != but)
    return (await session.execute(ended)).rowcount


async def expire_sessions(session: DatabaseSession, older_than: datetime, *, limit: int) -> int:
    """Delete sessions that expired before this, at most `limit`, and return how many."""
    expired = select(Session.id).where(Session.expires_at < older_than).order_by(Session.expires_at).limit(limit)
    return (await session.execute(delete(Session).where(Session.id.in_(expired)))).rowcount


async def expire_refresh_tokens(session: DatabaseSession, older_than: datetime, *, limit: int) -> int:
    """Delete tokens that were replaced before this, at most `limit`, and return how many. They are unknown then."""
    replaced = (
        select(RefreshToken.token_hash)
        .where(RefreshToken.replaced_at < older_than)
        .order_by(RefreshToken.replaced_at)
        .limit(limit)
    )
    return (await session.execute(delete(RefreshToken).where(RefreshToken.token_hash.in_(replaced)))).rowcount


async def roles_by_session(session: DatabaseSession, session_ids: Collection[UUID]) -> dict[UUID, UserRole]:
    """The users' roles, by session id. Sessions that have ended or belong to deactivated users are left out.

    The session of a foreign token is the identity of its person.
    """
    rows = await session.run(_ROLES_BY_SESSION, {"session_ids": session_ids})
    return dict(rows)


def _roles_of(model: type[Session | ForeignIdentity]) -> Select[UUID, UserRole]:
    statement = select(model.id, User.role).join(User, User.id == model.user_id)
    return statement.where(among(model.id, "session_ids"), User.is_active)


_ROLES_BY_SESSION = Statement(union_all(_roles_of(Session), _roles_of(ForeignIdentity)))
