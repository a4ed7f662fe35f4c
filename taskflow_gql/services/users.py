"""Reading users, and the changes that admins make to them."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from functools import cache, lru_cache
from uuid import UUID

from sqlalchemy import ColumnElement, Text, and_, bindparam, delete, func, or_, select, true, update

from taskflow_gql import clock
from taskflow_gql.database.constructs import among_few, position_of
from taskflow_gql.database.rows import row_class_of
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Build, Statement
from taskflow_gql.errors import Forbidden, NotFound, Refusal
from taskflow_gql.models import USER_COLUMNS, Session, User, UserRole, UserRow
from taskflow_gql.services.access import Viewer, require_admin, users_visible
from taskflow_gql.services.paging import (
    Order,
    Page,
    PageRequest,
    PageShape,
    SortKey,
    make_page,
    page_of,
    shape_of,
    sort_columns,
)
from taskflow_gql.services.search_words import name_words, words_of
from taskflow_gql.services.sessions import end_sessions_of


class LastAdmin(Refusal):
    code = "LAST_ADMIN"


BY_USERNAME: Order[UserRow] = Order(
    # Equals the stored username_key: casefold() of a username, which has only ASCII letters, digits and `_.-`.
    keys=(SortKey("username", str, User.username_key, lambda user: user.username.casefold()),)
)


async def get_user(session: DatabaseSession, viewer: Viewer, user_id: UUID) -> UserRow | None:
    return (await users_by_id(session, [user_id])).get(user_id)


_WHOLE = Build(UserRow, tuple(range(len(USER_COLUMNS))))
_USERS_BY_ID = Statement(select(*USER_COLUMNS).where(among_few(User.id, "user_ids")), _WHOLE)


async def users_by_id(session: DatabaseSession, user_ids: Collection[UUID]) -> dict[UUID, UserRow]:
    """Users by id, including deactivated ones: everyone who may read a task may know who created it."""
    found: list[UserRow] = await session.run(_USERS_BY_ID, {"user_ids": user_ids})
    return {user.id: user for user in found}


async def list_users(
    session: DatabaseSession,
    viewer: Viewer,
    request: PageRequest,
    *,
    search: str | None = None,
    columns: tuple[str, ...] = UserRow._fields,
) -> Page[UserRow]:
    """The rows have only these columns."""
    shape, parameters = shape_of(BY_USERNAME, request)
    by_name, values = _search(search)
    rows = await session.run(_users_page(viewer.is_admin, by_name, shape, columns), {**parameters, **values})
    return make_page(rows, BY_USERNAME, request)


async def count_users(session: DatabaseSession, viewer: Viewer, *, search: str | None = None) -> int:
    by_name, values = _search(search)
    ((count,),) = await session.run(_users_count(viewer.is_admin, by_name), values)
    return int(count)


class _By(StrEnum):
    """The columns that a search looks at."""

    NOTHING = "nothing, and so in everybody"
    USERNAME = "username"
    NAMES = "username and full name"


def _search(search: str | None) -> tuple[_By, dict[str, str]]:
    start = (search or "").strip().casefold()
    if not start:
        return _By.NOTHING, {}
    if not words_of(start):
        return _By.USERNAME, {"start": start}
    return _By.NAMES, {"start": start, "words": name_words(start)}


def _found(by: _By) -> ColumnElement[bool]:
    """The username starts with `start`, or the full name contains `words`, the last of which may be a prefix."""
    if by is _By.NOTHING:
        return true()
    start = bindparam("start", type_=Text)
    in_username = func.substr(User.username_key, 1, func.length(start)) == start
    in_name = position_of(User.name_words, bindparam("words", type_=Text)) > 0
    return or_(in_username, in_name) if by is _By.NAMES else in_username


@lru_cache(maxsize=128)
def _users_page(is_admin: bool, by: _By, shape: PageShape, columns: tuple[str, ...]) -> Statement:
    """Parameters: the values of the search and those of the shape."""
    scope = and_(users_visible(is_admin=is_admin), _found(by))
    page = page_of([getattr(User, name) for name in columns], [scope], BY_USERNAME, shape)
    found = select(*(page.c[name] for name in columns)).order_by(*sort_columns(page, BY_USERNAME, shape))
    return Statement(found, Build(row_class_of(UserRow, columns), tuple(range(len(columns)))))


@cache
def _users_count(is_admin: bool, by: _By) -> Statement:
    """Parameters: the values of the search."""
    return Statement(select(func.count()).select_from(User).where(users_visible(is_admin=is_admin), _found(by)))


async def set_user_role(session: DatabaseSession, viewer: Viewer, user_id: UUID, role: UserRole) -> UserRow:
    require_admin(viewer)
    user = await _require_user_for_update(session, user_id)
    if user.role is role:
        return user
    if role is not UserRole.ADMIN:
        _refuse_last_admin(user, await _active_admins_for_update(session))
    return await _update_user(session, user.id, role=role)


async def deactivate_user(session: DatabaseSession, viewer: Viewer, user_id: UUID) -> UserRow:
    """Deactivate the user and delete all their sessions."""
    require_admin(viewer)
    user = await _require_user_for_update(session, user_id)
    if not user.is_active:
        return user
    _refuse_last_admin(user, await _active_admins_for_update(session))
    await session.execute(delete(Session).where(Session.user_id == user.id))
    return await _update_user(session, user.id, is_active=False)


async def reactivate_user(session: DatabaseSession, viewer: Viewer, user_id: UUID) -> UserRow:
    require_admin(viewer)
    user = await _require_user_for_update(session, user_id)
    if user.is_active:
        return user
    return await _update_user(session, user.id, is_active=True)


async def end_sessions_of_user(session: DatabaseSession, viewer: Viewer, user_id: UUID) -> tuple[UserRow, int]:
    """End all sessions of the user. Returns the user, and how many sessions have ended."""
    require_admin(viewer)
    user = await _require_user(session, user_id)
    return user, await end_sessions_of(session, user.id)


async def require_active_user(session: DatabaseSession, viewer: Viewer, user_id: UUID) -> UserRow:
    """For ADMINs. Raises a Refusal if the user does not exist or is deactivated."""
    require_admin(viewer)
    user = await _require_user(session, user_id)
    if not user.is_active:
        raise Forbidden("The user is deactivated", field="user_id")
    return user


async def _require_user(session: DatabaseSession, user_id: UUID) -> UserRow:
    user = (await users_by_id(session, [user_id])).get(user_id)
    if user is None:
        raise NotFound("There is no such user", field="user_id")
    return user


async def _require_user_for_update(session: DatabaseSession, user_id: UUID) -> UserRow:
    # Lock the admins first, in a fixed order. Two admins who demote each other at the same time must queue here and not
    # deadlock, and the second must see the change of the first.
    await _active_admins_for_update(session)
    row = (
        await session.execute(select(*USER_COLUMNS).where(User.id == user_id).with_for_update(key_share=True))
    ).first()
    if row is None:
        raise NotFound("There is no such user", field="user_id")
    return UserRow._make(row)


async def _active_admins_for_update(session: DatabaseSession) -> list[UUID]:
    statement = (
        select(User.id)
        .where(User.role == UserRole.ADMIN, User.is_active)
        .order_by(User.id)
        .with_for_update(key_share=True)
    )
    return list((await session.execute(statement)).scalars())


def _refuse_last_admin(user: UserRow, active_admins: list[UUID]) -> None:
    if active_admins == [user.id]:
        raise LastAdmin("This is the last active admin: make somebody else an admin first", field="user_id")


async def _update_user(session: DatabaseSession, user_id: UUID, **values: object) -> UserRow:
    statement = update(User).where(User.id == user_id).values(updated_at=clock.now(), **values)
    row = (await session.execute(statement.returning(*USER_COLUMNS))).one()
    return UserRow._make(row)
