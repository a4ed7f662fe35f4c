"""Users and tasks written directly to a database: for tests below the API, and for many rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, event

from taskflow_gql.database.connections import Connections
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.models import TaskCategory, TaskPriority, TaskRow, UserRole, UserRow
from taskflow_gql.services import tasks
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.accounts import Registration, create_user
from taskflow_gql.services.ids import make_id
from taskflow_gql.services.sessions import Client, SignIn, open_session


def make_viewer(user_id: UUID | str, role: UserRole = UserRole.MEMBER) -> Viewer:
    """The viewer that the API makes from a valid token."""
    return Viewer(id=UUID(str(user_id)), role=role, session_id=make_id(), expires_at=datetime(2100, 1, 1, tzinfo=UTC))


async def make_user(session: DatabaseSession, username: str = "ann", *, role: UserRole = UserRole.MEMBER) -> UserRow:
    """A user with no valid password."""
    registration = Registration(f"{username}@example.com", username, username.title(), "")
    return await create_user(session, registration, "no hash", role=role)


async def make_session(session: DatabaseSession, user: UserRow) -> SignIn:
    """A session of a person of `make_user`."""
    client = Client(None, None)
    return await open_session(
        session, user, password_hash="no hash", lifetime=timedelta(days=1), client=client, key=b"key"
    )


async def make_task(session: DatabaseSession, viewer: Viewer, title: str = "A task", **fields: Any) -> TaskRow:
    given: dict[str, Any] = {
        "description": None,
        "priority": TaskPriority.MEDIUM,
        "category": TaskCategory.OTHER,
        "due_date": None,
        "assignee_id": None,
    }
    return await tasks.create_task(session, viewer, title=title, **(given | fields))


@contextmanager
def noting_statements(note: Callable[[str], None]) -> Iterator[None]:
    """Call `note` with the text of every SQL statement sent meanwhile, through SQLAlchemy or directly."""

    def note_directly(sql: str, _parameters: object) -> None:
        note(sql)

    def note_cursor(_connection: object, _cursor: object, sql: str, *_: object) -> None:
        note(sql)

    event.listen(Engine, "before_cursor_execute", note_cursor)
    Connections.on_statement = (note_directly,)
    try:
        yield
    finally:
        Connections.on_statement = ()
        event.remove(Engine, "before_cursor_execute", note_cursor)
