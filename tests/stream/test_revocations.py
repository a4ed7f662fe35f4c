"""Streams of people who were signed out or deactivated, or whose token has expired, end; a new role is applied."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from taskflow_gql import clock
from taskflow_gql.database.units import Database
from taskflow_gql.errors import Unauthenticated
from taskflow_gql.models import Session, User, UserRole
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.ids import make_id
from taskflow_gql.services.positions import place_events
from taskflow_gql.stream.bus import MemoryBus
from taskflow_gql.stream.fanout import Fanout
from taskflow_gql.stream.revocations import SessionWatch
from tests.support.factories import make_session, make_task, make_user


@pytest.fixture
async def fanout(database: Database) -> AsyncIterator[Fanout]:
    fanout = Fanout(database, MemoryBus())
    await fanout.start()
    yield fanout
    await fanout.close()


async def sign_in(database: Database, name: str = "ann", *, role: UserRole = UserRole.MEMBER) -> Viewer:
    async with database.write() as session:
        user = await make_user(session, name, role=role)
        sign_in = await make_session(session, user)
    return Viewer(user.id, role, sign_in.session_id, sign_in.issued_at + timedelta(hours=1))


async def change_something(database: Database, viewer: Viewer) -> None:
    async with database.write() as session:
        await make_task(session, viewer)
    async with database.write() as session:
        await place_events(session, limit=10)


async def test_signed_in_viewers_streams_continue(database: Database, fanout: Fanout) -> None:
    ann = await sign_in(database)
    async with fanout.subscribe(ann, after=0) as subscriber:
        await SessionWatch(database, fanout).look()
        await change_something(database, ann)
        assert len(await subscriber.next_batch(database)) == 1
        assert subscriber.viewer == ann


@pytest.mark.parametrize("end", ["session", "user", "token"])
async def test_revoked_viewers_streams_end_with_the_reason(database: Database, fanout: Fanout, end: str) -> None:
    ann, bob = await sign_in(database), await sign_in(database, "bob")
    if end == "token":
        ann = replace(ann, expires_at=clock.now())
    async with fanout.subscribe(ann, after=0) as of_ann, fanout.subscribe(bob, after=0) as of_bob:
        await change_something(database, ann)
        await change_something(database, bob)
        async with database.write() as session:
            if end == "session":
                await session.execute(delete(Session).where(Session.id == ann.session_id))
            elif end == "user":
                await session.execute(update(User).where(User.id == ann.id).values(is_active=False))
        await SessionWatch(database, fanout).look()
        # Queued events are not delivered either.
        with pytest.raises(Unauthenticated, match="Could not validate credentials"):
            await of_ann.next_batch(database)
        assert len(await of_bob.next_batch(database)) == 1


async def test_a_new_role_changes_what_is_delivered(database: Database, fanout: Fanout) -> None:
    ann, boss = await sign_in(database), await sign_in(database, "boss", role=UserRole.ADMIN)
    watch = SessionWatch(database, fanout)

    async def set_role(role: UserRole) -> None:
        async with database.write() as session:
            await session.execute(update(User).where(User.id == boss.id).values(role=role))
        await watch.look()

    async with fanout.subscribe(boss, after=0) as subscriber:
        await set_role(UserRole.MEMBER)
        assert subscriber.viewer == replace(boss, role=UserRole.MEMBER)
        await change_something(database, ann)
        await change_something(database, boss)
        (own,) = await subscriber.next_batch(database)
        assert own.actor_id == boss.id

        await set_role(UserRole.ADMIN)
        assert subscriber.viewer == boss
        subscriber.replay(own.position)
        await change_something(database, ann)
        (other,) = await subscriber.next_batch(database)
        assert other.actor_id == ann.id


async def test_another_session_of_the_same_person_continues(database: Database, fanout: Fanout) -> None:
    ann = await sign_in(database)
    values: dict[str, Any] = {
        "id": make_id(),
        "user_id": ann.id,
        "created_at": clock.now(),
        "last_seen_at": clock.now(),
        "expires_at": ann.expires_at,
    }
    async with database.write() as session:
        await session.execute(insert(Session).values(values))
    other = replace(ann, session_id=values["id"])
    async with fanout.subscribe(ann, after=0) as ended, fanout.subscribe(other, after=0) as kept:
        async with database.write() as session:
            await session.execute(delete(Session).where(Session.id == ann.session_id))
        await change_something(database, ann)
        await SessionWatch(database, fanout).look()
        with pytest.raises(Unauthenticated):
            await ended.next_batch(database)
        assert len(await kept.next_batch(database)) == 1
