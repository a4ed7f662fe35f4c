"""People who sign in at a trusted issuer: an account is made at the first sight of their token."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Collection, Iterator
from typing import TypeAlias
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from taskflow_gql import clock
from taskflow_gql.database.constructs import among_few
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.errors import NotFound, Refusal, Refusals, Unauthenticated
from taskflow_gql.models import USER_COLUMNS, ForeignIdentity, User, UserRow
from taskflow_gql.security.issuers import ForeignToken
from taskflow_gql.security.passwords import NO_PASSWORD
from taskflow_gql.security.tokens import could_not_validate, is_expired
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.accounts import EmailTaken, Registration, create_user, find_candidate
from taskflow_gql.services.checks import (
    MAX_FULL_NAME_LENGTH,
    MAX_USERNAME_LENGTH,
    MIN_USERNAME_LENGTH,
    check_email,
)
from taskflow_gql.services.ids import make_id

# The users of some tokens by issuer and subject, each with the id of the identity.
Identities: TypeAlias = dict[tuple[str, str], tuple[UUID, UserRow]]
# Room for a dash and eight digits.
_MAX_BASE_LENGTH = MAX_USERNAME_LENGTH - 9


class UnknownPerson(Unauthenticated):
    """The token is valid, and there is no account for it."""

    def __init__(self) -> None:
        super().__init__("Could not validate credentials")


async def read_identities(session: DatabaseSession, tokens: Collection[ForeignToken]) -> Identities:
    """Read what `require_known_person` needs to check these tokens, in one statement."""
    rows = await session.run(_IDENTITIES, {"subjects": {token.subject for token in tokens}})
    return {(issuer, subject): (id_, UserRow._make(columns)) for issuer, subject, id_, *columns in rows}


_IDENTITIES = Statement(
    select(ForeignIdentity.issuer, ForeignIdentity.subject, ForeignIdentity.id.label("identity_id"), *USER_COLUMNS)
    .join(User, User.id == ForeignIdentity.user_id)
    .where(among_few(ForeignIdentity.subject, "subjects"))
)


def require_known_person(identities: Identities, token: ForeignToken) -> tuple[Viewer, UserRow]:
    """The person of a token whose signature was verified. Raises UnknownPerson, and Unauthenticated with the reason.

    The viewer's session is the identity: it is what revokes the token.
    """
    found = identities.get((token.issuer, token.subject))
    if found is None:
        raise UnknownPerson
    identity_id, user = found
    if is_expired(token.expires_at):
        raise could_not_validate()
    if not user.is_active:
        raise Unauthenticated("Could not validate credentials: the user is deactivated")
    return Viewer(id=user.id, role=user.role, session_id=identity_id, expires_at=token.expires_at), user


async def make_person(session: DatabaseSession, token: ForeignToken) -> None:
    """Make the account of a token, unless there is one already. Raises Unauthenticated with the reason.

    An account that has the address is not taken over: whoever made it may be somebody else.
    """
    email = _require_email(token)
    for username in _usernames(token):
        registration = Registration(email, username, _full_name(token) or username, "")
        try:
            async with session.savepoint():
                user = await create_user(session, registration, NO_PASSWORD)
                await _link(session, user.id, token.issuer, token.subject)
            return
        except (Refusals, IntegrityError) as error:
            # Another request of the same person may have been faster.
            if await _is_linked(session, token.issuer, token.subject):
                return
            if isinstance(error, Refusals) and any(isinstance(one, EmailTaken) for one in error.refusals):
                raise Unauthenticated(
                    "The address of this token belongs to an account that is not linked to it: sign in to that account "
                    "with its password, or ask an admin to link the two"
                ) from error
    raise could_not_validate()


async def link_identity(session: DatabaseSession, username: str, *, issuer: str, subject: str) -> UserRow:
    """Let the tokens of an issuer's person sign in to an existing account. Raises NotFound and IntegrityError."""
    user = (await find_candidate(session, username)).user
    if user is None:
        raise NotFound(f"There is nobody active called {username}")
    await _link(session, user.id, issuer, subject)
    return user


async def _link(session: DatabaseSession, user_id: UUID, issuer: str, subject: str) -> None:
    values = {
        "id": make_id(),
        "issuer": issuer,
        "subject": subject,
        "user_id": user_id,
        "created_at": clock.now(),
    }
    await session.execute(insert(ForeignIdentity).values(values))


async def _is_linked(session: DatabaseSession, issuer: str, subject: str) -> bool:
    statement = select(ForeignIdentity.id).where(ForeignIdentity.issuer == issuer, ForeignIdentity.subject == subject)
    return (await session.execute(statement)).first() is not None


def _require_email(token: ForeignToken) -> str:
    if token.email is None:
        raise Unauthenticated("The token has no email address, which a new account needs: let the issuer add it")
    problems: list[Refusal] = []
    email = check_email(token.email, problems)
    if problems:
        raise Unauthenticated(f"The token's address cannot be used: {problems[0].message}")
    return email


def _full_name(token: ForeignToken) -> str:
    return (token.name or "").strip()[:MAX_FULL_NAME_LENGTH]


def _usernames(token: ForeignToken) -> Iterator[str]:
    """Names to try. Not made from the address, which others do not see."""
    words = unicodedata.normalize("NFKD", token.username or token.name or "").encode("ascii", "ignore").decode()
    base = re.sub(r"[^A-Za-z0-9_.-]+", ".", words).strip(".")[:_MAX_BASE_LENGTH]
    if len(base) < MIN_USERNAME_LENGTH:
        base = "user"
    else:
        yield base
    for _ in range(2):
        yield f"{base}-{secrets.token_hex(4)}"
