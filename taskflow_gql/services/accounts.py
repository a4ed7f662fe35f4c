"""Registration, signing in, and changes to one's own account.

Hashing a password takes tens of milliseconds on purpose. Callers hash between units of work: inside one it would hold a
connection for that time, and on SQLite the only writer. So signing in and changing a password are two functions each,
one before the hash and one after it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from taskflow_gql import clock
from taskflow_gql.database.constructs import among_few
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.texts import is_storable
from taskflow_gql.errors import (
    BadUserInput,
    Refusal,
    Unauthenticated,
    refuse_if_any,
)
from taskflow_gql.models import USER_COLUMNS, PasswordResetToken, Session, User, UserRole, UserRow
from taskflow_gql.security.tokens import AccessToken, could_not_validate, is_expired
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.checks import check_email, check_full_name, check_password, check_username
from taskflow_gql.services.ids import make_id
from taskflow_gql.services.mail import tell
from taskflow_gql.services.search_words import name_words


class EmailTaken(Refusal):
    code = "EMAIL_TAKEN"

    def __init__(self) -> None:
        super().__init__("Email already registered", field="email")


class UsernameTaken(Refusal):
    code = "USERNAME_TAKEN"

    def __init__(self) -> None:
        super().__init__("Username already taken", field="username")


class InvalidCredentials(Refusal):
    code = "INVALID_CREDENTIALS"


@dataclass(frozen=True, slots=True)
class Registration:
    """Checked and stripped input of a registration."""

    email: str
    username: str
    full_name: str
    password: str

    @property
    def email_key(self) -> str:
        return self.email.casefold()

    @property
    def username_key(self) -> str:
        return self.username.casefold()


async def check_registration(
    session: DatabaseSession, *, email: str, username: str, full_name: str, password: str
) -> Registration:
    """Raises Refusals with all problems, including a taken username or email address."""
    problems: list[Refusal] = []
    registration = Registration(
        email=check_email(email, problems),
        username=check_username(username, problems),
        full_name=check_full_name(full_name, problems),
        password=check_password(password, problems),
    )
    bad_fields = {name for problem in problems for name in problem.field or ()}
    for taken in await _taken(session, registration):
        if taken.field is not None and bad_fields.isdisjoint(taken.field):
            problems.append(taken)
    refuse_if_any(problems)
    return registration


async def create_user(
    session: DatabaseSession,
    registration: Registration,
    password_hash: str,
    *,
    role: UserRole = UserRole.MEMBER,
) -> UserRow:
    """Raises Refusals with EmailTaken or UsernameTaken if another registration took the name after the check."""
    now = clock.now()
    values = {
        "id": make_id(),
        "email": registration.email,
        "email_key": registration.email_key,
        "username": registration.username,
        "username_key": registration.username_key,
        "full_name": registration.full_name,
        "name_words": name_words(registration.full_name),
        "password_hash": password_hash,
        "role": role,
        "is_active": True,
        "created_at": now,
        "updated_at": now,
    }
    try:
        async with session.savepoint():
            row = (await session.execute(insert(User).values(values).returning(*USER_COLUMNS))).one()
    except IntegrityError as error:
        refuse_if_any(await _taken(session, registration))
        raise error
    return UserRow._make(row)


async def _taken(session: DatabaseSession, registration: Registration) -> list[Refusal]:
    if not is_storable(registration.email + registration.username):
        return []
    statement = select(User.email_key, User.username_key).where(
        or_(User.email_key == registration.email_key, User.username_key == registration.username_key)
    )
    taken = (await session.execute(statement)).all()
    problems: list[Refusal] = []
    if any(row.email_key == registration.email_key for row in taken):
        problems.append(EmailTaken())
    if any(row.username_key == registration.username_key for row in taken):
        problems.append(UsernameTaken())
    return problems


@dataclass(frozen=True, slots=True)
class Candidate:
    """The active user who may be signing in, and the hash to verify. Both are None if there is no such user."""

    user: UserRow | None
    password_hash: str | None


def key_of_name(username_or_email: str) -> str:
    return username_or_email.strip().casefold()


async def find_candidate(session: DatabaseSession, username_or_email: str) -> Candidate:
    key = key_of_name(username_or_email)
    return await _read_candidate(session, or_(User.username_key == key, User.email_key == key))


async def find_active_candidate(session: DatabaseSession, user_id: UUID) -> Candidate:
    return await _read_candidate(session, User.id == user_id)


async def _read_candidate(session: DatabaseSession, condition: ColumnElement[bool]) -> Candidate:
    # Usernames have no @ and addresses have one, so at most one row matches.
    statement = select(User.password_hash, *USER_COLUMNS).where(condition, User.is_active)
    row = (await session.execute(statement)).first()
    if row is None:
        return Candidate(None, None)
    return Candidate(UserRow._make(row[1:]), row[0])


def require_match(candidate: Candidate, matches: bool) -> UserRow:
    """Raises the same InvalidCredentials for an unknown name, a wrong password and a deactivated user."""
    if candidate.user is None or not matches:
        raise InvalidCredentials("Incorrect username or password")
    return candidate.user


class SignIns(NamedTuple):
    """The users of some tokens, and pairs of user id and session id for those of their sessions that still exist."""

    users: dict[UUID, UserRow]
    sessions: set[tuple[UUID, UUID]]


async def read_sign_ins(session: DatabaseSession, tokens: Collection[AccessToken]) -> SignIns:
    """Read what `require_viewer` needs to check these tokens, in one statement."""
    users: dict[UUID, UserRow] = {}
    sessions: set[tuple[UUID, UUID]] = set()
    parameters = {
        "user_ids": {token.user_id for token in tokens},
        "session_ids": {token.session_id for token in tokens},
    }
    for *columns, session_id in await session.run(_SIGN_INS, parameters):
        user = UserRow._make(columns)
        users[user.id] = user
        sessions.add((user.id, session_id))
    return SignIns(users, sessions)


# An outer join: without a session the user is still read, because `require_viewer` gives the reason for refusal.
_SIGN_INS = Statement(
    select(*USER_COLUMNS, Session.id.label("session_id"))
    .outerjoin(Session, (Session.user_id == User.id) & among_few(Session.id, "session_ids"))
    .where(among_few(User.id, "user_ids"))
)


def require_viewer(sign_ins: SignIns, token: AccessToken) -> tuple[Viewer, UserRow]:
    """The person of a token whose signature was verified. Raises Unauthenticated with the reason."""
    user = sign_ins.users.get(token.user_id)
    if user is None or is_expired(token.expires_at):
        raise could_not_validate()
    if not user.is_active:
        raise Unauthenticated("Could not validate credentials: the user is deactivated")
    if (token.user_id, token.session_id) not in sign_ins.sessions:
        raise could_not_validate()
    viewer = Viewer(id=user.id, role=user.role, session_id=token.session_id, expires_at=token.expires_at)
    return viewer, user


def check_new_password(new_password: str) -> str:
    problems: list[Refusal] = []
    check_password(new_password, problems, field="new_password")
    refuse_if_any(problems)
    return new_password


async def change_password(session: DatabaseSession, viewer: Viewer, *, old_hash: str, new_hash: str) -> None:
    """Replace the hash and delete the viewer's other sessions. Raises InvalidCredentials if `old_hash` is outdated."""
    statement = update(User).where(User.id == viewer.id, User.password_hash == old_hash)
    statement = statement.values(password_hash=new_hash, updated_at=clock.now())
    if (await session.execute(statement.returning(User.id))).first() is None:
        # The password was changed after the check, so the verified one is no longer valid.
        raise InvalidCredentials("The current password is not correct", field="current_password")
    await session.execute(delete(Session).where(Session.user_id == viewer.id, Session.id != viewer.session_id))
    await _delete_links(session, viewer.id)


async def _delete_links(session: DatabaseSession, user_id: UUID) -> None:
    """Links to set a new password are for the present password and address."""
    await session.execute(delete(PasswordResetToken).where(PasswordResetToken.user_id == user_id))


async def update_profile(
    session: DatabaseSession, viewer: Viewer, changes: dict[str, Any], *, sends_mail: bool
) -> UserRow:
    """`changes` may contain `full_name` and `email`. Raises Refusals for None and for invalid values."""
    problems: list[Refusal] = []
    values: dict[str, Any] = {}
    if "full_name" in changes:
        if changes["full_name"] is None:
            problems.append(BadUserInput("Full name cannot be null", field="full_name"))
        else:
            values["full_name"] = check_full_name(changes["full_name"], problems)
            values["name_words"] = name_words(values["full_name"])
    if "email" in changes:
        if changes["email"] is None:
            problems.append(BadUserInput("Email address cannot be null", field="email"))
        else:
            values["email"] = check_email(changes["email"], problems)
            values["email_key"] = values["email"].casefold()
    refuse_if_any(problems)
    if not values:
        return UserRow._make((await session.execute(select(*USER_COLUMNS).where(User.id == viewer.id))).one())
    before = UserRow._make((await session.execute(select(*USER_COLUMNS).where(User.id == viewer.id))).one())
    is_new_address = values.get("email_key", before.email.casefold()) != before.email.casefold()
    if is_new_address:
        values["email_changed_at"] = clock.now()
    statement = update(User).where(User.id == viewer.id).values(updated_at=clock.now(), **values)
    try:
        async with session.savepoint():
            row = (await session.execute(statement.returning(*USER_COLUMNS))).one()
    except IntegrityError as error:
        raise EmailTaken from error
    if is_new_address:
        await _delete_links(session, viewer.id)
        if sends_mail:
            # To the old address: somebody else may have changed it.
            await tell(session, before, "email_changed", new_email=values["email"])
    return UserRow._make(row)
