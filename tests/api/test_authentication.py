"""Loading viewers: concurrent requests share one statement, and never one that started before they arrived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import delete, text, update

from taskflow_gql import clock
from taskflow_gql.api.authentication import ViewerLoader
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.observers import DatabaseObserver
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.errors import Unauthenticated
from taskflow_gql.models import Session, User, UserRole
from taskflow_gql.security.tokens import AccessToken
from taskflow_gql.services.access import Viewer
from tests.support.factories import make_session, make_user


class GatedDatabase(Database):
    """A database whose reads wait at a gate, so that a test decides what happens during a read."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(create_engine(settings))
        self.gate = asyncio.Event()
        self.gate.set()
        self.reads = 0
        self.has_begun = asyncio.Event()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[DatabaseSession]:
        self.reads += 1
        self.has_begun.set()
        async with super().read() as session:
            await self.gate.wait()
            yield session

    def shut(self) -> None:
        self.gate.clear()
        self.has_begun.clear()


@pytest.fixture
async def gated(settings: Settings) -> AsyncIterator[GatedDatabase]:
    database = GatedDatabase(settings)
    yield database
    await database.close()


async def sign_in(database: Database, name: str, *, role: UserRole = UserRole.MEMBER) -> AccessToken:
    async with database.write() as session:
        user = await make_user(session, name, role=role)
        sign_in = await make_session(session, user)
    return AccessToken(user.id, sign_in.session_id, sign_in.issued_at + timedelta(hours=1))


def viewer_of(token: AccessToken, role: UserRole = UserRole.MEMBER) -> Viewer:
    return Viewer(token.user_id, role, token.session_id, token.expires_at)


def loading(loader: ViewerLoader, *tokens: AccessToken) -> list[asyncio.Task[Viewer]]:
    async def load(token: AccessToken) -> Viewer:
        viewer, user = await loader.load(token)
        assert user.id == viewer.id
        return viewer

    return [asyncio.create_task(load(token)) for token in tokens]


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_concurrent_requests_share_one_statement_and_get_their_own_answers(gated: GatedDatabase) -> None:
    ann, bob = await sign_in(gated, "ann"), await sign_in(gated, "bob", role=UserRole.ADMIN)
    statements: list[Sequence[Any]] = []

    class Noting(DatabaseObserver):
        def on_statement(self, _sql: str, parameters: Any) -> None:
            statements.append(parameters)

    gated.observe(Noting())

    stranger = AccessToken(uuid4(), ann.session_id, ann.expires_at)
    borrowed = AccessToken(ann.user_id, bob.session_id, ann.expires_at)
    signed_out = AccessToken(ann.user_id, uuid4(), ann.expires_at)
    expired = AccessToken(bob.user_id, bob.session_id, clock.now())
    tokens = (ann, bob, ann, stranger, borrowed, signed_out, expired)
    found = await asyncio.gather(*loading(ViewerLoader(gated), *tokens), return_exceptions=True)
    assert found[:3] == [viewer_of(ann), viewer_of(bob, UserRole.ADMIN), viewer_of(ann)]
    assert [(type(error), str(error)) for error in found[3:] if isinstance(error, Exception)] == [
        (Unauthenticated, "Could not validate credentials")
    ] * 4
    assert len(statements) == 1


async def test_two_sessions_of_one_user_are_told_apart(gated: GatedDatabase) -> None:
    ann = await sign_in(gated, "ann")
    gone = AccessToken(ann.user_id, uuid4(), ann.expires_at)
    for tokens in ((ann, gone), (gone, ann)):
        found = await asyncio.gather(*loading(ViewerLoader(gated), *tokens), return_exceptions=True)
        assert [isinstance(one, Viewer) for one in found] == [token is ann for token in tokens]


async def test_requests_during_a_statement_share_the_next_one(gated: GatedDatabase) -> None:
    tokens = [await sign_in(gated, f"user{n}") for n in range(4)]
    loader = ViewerLoader(gated)
    gated.shut()
    first = loading(loader, tokens[0])
    await gated.has_begun.wait()
    later = loading(loader, *tokens[1:], tokens[0])
    await settle()
    assert gated.reads == 1
    gated.gate.set()
    assert await asyncio.gather(*first, *later) == [viewer_of(token) for token in (*tokens, tokens[0])]
    assert gated.reads == 2
    # Nothing is cached: a later request runs a new statement.
    await asyncio.gather(*loading(loader, tokens[0]))
    assert gated.reads == 3


@pytest.mark.parametrize("change", ["session", "user", "role"])
async def test_changes_during_a_statement_count_for_requests_that_arrive_then(
    gated: GatedDatabase, change: str
) -> None:
    ann, bob = await sign_in(gated, "ann"), await sign_in(gated, "bob")
    loader = ViewerLoader(gated)
    gated.shut()
    first = loading(loader, bob)
    await gated.has_begun.wait()
    async with gated.write() as session:
        match change:
            case "session":
                await session.execute(delete(Session).where(Session.id == ann.session_id))
            case "user":
                await session.execute(update(User).where(User.id == ann.user_id).values(is_active=False))
            case "role":
                await session.execute(update(User).where(User.id == ann.user_id).values(role=UserRole.ADMIN))
    second = loading(loader, ann)
    await settle()
    gated.gate.set()
    _, found = await asyncio.gather(*first, *second, return_exceptions=True)
    if change == "role":
        assert found == viewer_of(ann, UserRole.ADMIN)
    else:
        assert isinstance(found, Unauthenticated)


async def test_a_cancelled_request_takes_no_answer_from_others(gated: GatedDatabase) -> None:
    ann, bob = await sign_in(gated, "ann"), await sign_in(gated, "bob")
    loader = ViewerLoader(gated)
    gated.shut()
    asking, beside = loading(loader, ann, bob)
    await gated.has_begun.wait()
    waiting, behind = loading(loader, ann, bob)
    await settle()
    for task in (asking, waiting):
        task.cancel()
    await settle()
    assert asking.cancelled()
    assert waiting.cancelled()
    gated.gate.set()
    assert [await beside, await behind] == [viewer_of(bob)] * 2
    assert gated.reads == 2


async def test_requests_do_not_wait_long_behind_a_statement_that_hangs(
    gated: GatedDatabase,
) -> None:
    ann, bob, eva = [await sign_in(gated, name) for name in ("ann", "bob", "eva")]
    loader = ViewerLoader(gated)
    gated.shut()
    (stuck,) = loading(loader, ann)
    await gated.has_begun.wait()
    waiting = loading(loader, bob)
    stuck_gate, gated.gate = gated.gate, asyncio.Event()
    gated.gate.set()
    async with asyncio.timeout(5):
        assert await waiting[0] == viewer_of(bob)
        assert await asyncio.gather(*loading(loader, eva)) == [viewer_of(eva)]
    assert not stuck.done()
    stuck_gate.set()
    assert await stuck == viewer_of(ann)


async def test_one_statement_serves_at_most_100_tokens(gated: GatedDatabase) -> None:
    tokens = [await sign_in(gated, name) for name in ("ann", "bob")] * 125
    found = await asyncio.gather(*loading(ViewerLoader(gated), *tokens))
    assert found == [viewer_of(token) for token in tokens]
    assert gated.reads == 3


async def test_an_error_reaches_the_requests_of_its_statement_and_no_later_ones(gated: GatedDatabase) -> None:
    ann, bob = await sign_in(gated, "ann"), await sign_in(gated, "bob")
    loader = ViewerLoader(gated)
    async with gated.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE sessions RENAME TO away"))
    try:
        failed = await asyncio.gather(*loading(loader, ann, bob), return_exceptions=True)
    finally:
        async with gated.engine.begin() as connection:
            await connection.execute(text("ALTER TABLE away RENAME TO sessions"))
    assert ["sessions" in str(error) for error in failed] == [True, True]
    assert gated.reads == 1
    assert await asyncio.gather(*loading(loader, ann, bob)) == [viewer_of(ann), viewer_of(bob)]
