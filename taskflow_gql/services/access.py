"""Access rules: which tasks and users a person may see or change. Only this module decides, in SQL and in Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import ColumnElement, and_, bindparam, or_, true

from taskflow_gql.database.id_lists import includes
from taskflow_gql.errors import Forbidden
from taskflow_gql.models import Event, Task, TaskRow, User, UserRole


@dataclass(slots=True)
class Lease:
    """Until when a WebSocket may be used. A refresh extends it."""

    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Viewer:
    """The signed-in person. The token was checked for this operation."""

    id: UUID
    role: UserRole
    session_id: UUID
    # When the token expires.
    expires_at: datetime
    # The lease of the WebSocket that the operation came by.
    lease: Lease | None = None

    @property
    def ends_at(self) -> datetime:
        """When the viewer's streams end."""
        return self.lease.expires_at if self.lease else self.expires_at

    @property
    def is_admin(self) -> bool:
        return self.role is UserRole.ADMIN


class HasPeople(Protocol):
    @property
    def creator_id(self) -> UUID: ...

    @property
    def assignee_id(self) -> UUID | None: ...


# The viewer's id as a parameter, because a statement is built once and run for many viewers. It has no default, so that
# running a statement without a viewer fails.
VIEWER_ID = bindparam("viewer_id", type_=Task.creator_id.type)


def visible(*, is_admin: bool) -> ColumnElement[bool]:
    """Condition on `tasks` with the parameter VIEWER_ID: the viewer may see the task."""
    return true() if is_admin else or_(Task.creator_id == VIEWER_ID, Task.assignee_id == VIEWER_ID)


def visible_scopes(*, is_admin: bool) -> list[ColumnElement[bool]]:
    """`visible` split into disjoint conditions, each of which can use an index."""
    if is_admin:
        return [true()]
    is_assigned = and_(Task.assignee_id == VIEWER_ID, Task.creator_id != VIEWER_ID)
    return [Task.creator_id == VIEWER_ID, is_assigned]


def events_visible(*, is_admin: bool) -> ColumnElement[bool]:
    """Condition on `events`, with the parameter VIEWER_ID: the subject was visible before or after the change."""
    if is_admin:
        return true()
    return or_(
        includes(Event.audience, VIEWER_ID),
        # Events stored before revision 0003.
        Event.creator_id == VIEWER_ID,
        Event.assignee_id == VIEWER_ID,
        Event.previous_assignee_id == VIEWER_ID,
    )


def users_visible(*, is_admin: bool) -> ColumnElement[bool]:
    """Condition on `users`, for lists only. Reads by id find everybody: a task may refer to a deactivated person."""
    return true() if is_admin else User.is_active.is_(True)


def may_see(viewer: Viewer, task: HasPeople) -> bool:
    return viewer.is_admin or viewer.id in (task.creator_id, task.assignee_id)


def people_who_see(task: HasPeople) -> set[UUID]:
    """Everybody, besides admins, for whom `may_see` holds."""
    return {task.creator_id} if task.assignee_id is None else {task.creator_id, task.assignee_id}


# For nouns whose rows name the people who see them. For any other noun each event is written with its audience.
PEOPLE_WHO_SEE: dict[type, Callable[[Any], set[UUID]]] = {TaskRow: people_who_see}


def may_update(viewer: Viewer, task: HasPeople) -> bool:
    return viewer.is_admin or viewer.id == task.creator_id


def may_change_status(viewer: Viewer, task: HasPeople) -> bool:
    return may_see(viewer, task)


def may_delete(viewer: Viewer, task: HasPeople) -> bool:
    return may_update(viewer, task)


def require_admin(viewer: Viewer) -> None:
    if not viewer.is_admin:
        raise Forbidden("Only an admin can do this")
