"""Links to set a new password.

A request is only stored, for any address, and answered later beside the requests (stream/password_resets.py). So its
answer takes the same time whether the address is known or not.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update

from taskflow_gql import clock
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.errors import Refusal, refuse_if_any
from taskflow_gql.models import (
    USER_COLUMNS,
    PasswordResetRequest,
    PasswordResetToken,
    Session,
    User,
    UserRow,
)
from taskflow_gql.security.opaque import OpaqueTokens, hash_of_token
from taskflow_gql.security.passwords import NO_PASSWORD
from taskflow_gql.services.checks import check_email
from taskflow_gql.services.ids import make_id
from taskflow_gql.services.mail import post_mail
from taskflow_gql.services.sessions import InvalidToken

RESET_TOKENS = OpaqueTokens("tfw_")
LIFETIME = timedelta(minutes=30)
# More valid links than this are not sent to one person, so that nobody fills a mailbox.
MAX_LINKS = 3

# How long a changed address gets no links.
SETTLING_TIME = timedelta(days=3)

# The announcement of a unit of work that stored a request.
RESET_REQUESTED = "password reset requested"


async def request_reset(session: DatabaseSession, email: str) -> None:
    """Store the request, whether the address is known or not."""
    problems: list[Refusal] = []
    email_key = check_email(email, problems).casefold()
    refuse_if_any(problems)
    await session.execute(insert(PasswordResetRequest).values(id=make_id(), email_key=email_key))
    session.announcements.add(RESET_REQUESTED)


async def answer_requests(session: DatabaseSession, *, links_base: str, limit: int) -> int:
    """Post the mails of the oldest requests, and return how many requests there were."""
    oldest = (
        select(PasswordResetRequest.id, PasswordResetRequest.email_key)
        .order_by(PasswordResetRequest.id)
        .limit(limit)
        # SQLite, which has one writer at a time, ignores it.
        .with_for_update(skip_locked=True)
    )
    requests = (await session.execute(oldest)).all()
    for request in requests:
        # Locked, so that two workers do not send more links than are allowed.
        statement = select(*USER_COLUMNS).where(User.email_key == request.email_key, _may_ask())
        row = (await session.execute(statement.with_for_update(key_share=True))).first()
        if row is not None:
            user = UserRow._make(row)
            if await _count_links(session, user.id) < MAX_LINKS:
                await send_link(session, user, links_base=links_base)
    answered = PasswordResetRequest.id.in_([request.id for request in requests])
    await session.execute(delete(PasswordResetRequest).where(answered))
    return len(requests)


def _may_ask() -> ColumnElement[bool]:
    """Active people with a password, whose address is theirs: not one that a thief of a token has just set."""
    is_settled = or_(User.email_changed_at.is_(None), User.email_changed_at <= clock.now() - SETTLING_TIME)
    return and_(User.is_active, User.password_hash != NO_PASSWORD, is_settled)


async def _count_links(session: DatabaseSession, user_id: UUID) -> int:
    valid = (PasswordResetToken.user_id == user_id) & (PasswordResetToken.expires_at > clock.now())
    statement = select(func.count()).select_from(PasswordResetToken).where(valid)
    return int((await session.execute(statement)).scalar_one())


async def send_link(session: DatabaseSession, user: UserRow, *, links_base: str) -> None:
    token = RESET_TOKENS.make()
    values = {"token_hash": hash_of_token(token), "user_id": user.id, "expires_at": clock.now() + LIFETIME}
    await session.execute(insert(PasswordResetToken).values(values))
    # In the fragment, which browsers send to no server.
    link = f"{links_base}/reset-password#token={token}"
    # Not the full name: it could be the text of somebody else's advertisement.
    names = {"name": user.username, "link": link}
    await post_mail(session, to=user.email, template="password_reset", values=names, lifetime=LIFETIME)


async def require_token(session: DatabaseSession, token: str) -> None:
    """Raises InvalidToken for a token that cannot be used, before the new password is hashed."""
    if RESET_TOKENS.is_whole(token):
        valid = (PasswordResetToken.token_hash == hash_of_token(token)) & (PasswordResetToken.expires_at > clock.now())
        if (await session.execute(select(PasswordResetToken.user_id).where(valid))).first() is not None:
            return
    raise _unusable()


async def reset_password(session: DatabaseSession, token: str, *, new_hash: str) -> UserRow:
    """Use up the token, set the password, and end all sessions and other links of the person."""
    used = delete(PasswordResetToken).where(PasswordResetToken.token_hash == hash_of_token(token))
    used = used.where(PasswordResetToken.expires_at > clock.now())
    user_id = (await session.execute(used.returning(PasswordResetToken.user_id))).scalar_one_or_none()
    changed = update(User).where(User.id == user_id, User.is_active)
    changed = changed.values(password_hash=new_hash, updated_at=clock.now())
    row = (await session.execute(changed.returning(*USER_COLUMNS))).first()
    if row is None:
        raise _unusable()
    await session.execute(delete(PasswordResetToken).where(PasswordResetToken.user_id == user_id))
    await session.execute(delete(Session).where(Session.user_id == user_id))
    return UserRow._make(row)


def _unusable() -> InvalidToken:
    return InvalidToken("The link was used or has expired: ask for another one", field="token")


async def expire_reset_tokens(session: DatabaseSession, older_than: datetime, *, limit: int) -> int:
    """Delete tokens that expired before this, at most `limit`, and return how many."""
    expired = (
        select(PasswordResetToken.token_hash)
        .where(PasswordResetToken.expires_at < older_than)
        .order_by(PasswordResetToken.expires_at)
        .limit(limit)
    )
    statement = delete(PasswordResetToken).where(PasswordResetToken.token_hash.in_(expired))
    return (await session.execute(statement)).rowcount
