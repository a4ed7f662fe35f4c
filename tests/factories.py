"""People and tasks made directly in a database: for tests below the API, and for many rows at once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from taskflow_gql.models import TaskCategory, TaskPriority, TaskRow, UserRole, UserRow
from taskflow_gql.services import tasks
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.accounts import Registration, create_user
from taskflow_gql.services.ids import make_id


def make_viewer(user_id: UUID | str, role: UserRole = UserRole.MEMBER) -> Viewer:
    """As the API makes it of a good token."""
    return Viewer(id=UUID(str(user_id)), role=role, session_id=make_id(), expires_at=datetime(2100, 1, 1, tzinfo=UTC))


async def make_user(session: AsyncSession, username: str = "ann", *, role: UserRole = UserRole.MEMBER) -> UserRow:
    """Without a password that anybody could know."""
    registration = Registration(f"{username}@example.com", username, username.title(), "")
    return await create_user(session, registration, "no hash", role=role)


async def make_task(session: AsyncSession, viewer: Viewer, title: str = "A task", **fields: Any) -> TaskRow:
    given: dict[str, Any] = {
        "description": None,
        "priority": TaskPriority.MEDIUM,
        "category": TaskCategory.OTHER,
        "due_date": None,
        "assignee_id": None,
    }
    return await tasks.create_task(session, viewer, title=title, **(given | fields))
