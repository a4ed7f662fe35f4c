"""Revision 0003 on a database that the previous release has written to and, on PostgreSQL, still writes to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import migrate
from taskflow_gql.database.units import Database
from taskflow_gql.models import Event, EventKind, Task, TaskRow, UserRole
from taskflow_gql.services import tasks
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.events import AFTER_ALL_POSITIONS, EventRow, Window, events_after, history_of_tasks
from taskflow_gql.services.positions import (
    decode_cursor,
    encode_cursor,
    expire_events,
    has_unplaced_events,
    place_events,
    read_stream_end,
    read_stream_state,
)
from taskflow_gql.services.search_words import text_keys
from taskflow_gql.stream.bus import MemoryBus
from taskflow_gql.stream.fanout import Fanout
from tests.support.factories import make_user, make_viewer

FROZEN: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "services/frozen_events/0001.json").read_text())
STARTED = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)

# The statements of the previous release on the record, as SQLAlchemy compiled them, with named parameters.

INSERT = (
    "INSERT INTO task_events (kind, task_id, actor_id, creator_id, assignee_id, previous_assignee_id, changed_fields,"
    ' "before", "after", occurred_at) VALUES (:kind, :task_id, :actor_id, :creator_id, :assignee_id,'
    " :previous_assignee_id, :changed_fields, :before, :after, :occurred_at)"
)
DELETE_AND_INSERT = (
    "WITH change AS (DELETE FROM tasks WHERE tasks.id = $2::UUID) INSERT INTO task_events (kind, task_id, actor_id,"
    " creator_id, assignee_id, previous_assignee_id, changed_fields, before, after, occurred_at) VALUES ($1, $2::UUID,"
    " $3::UUID, $4::UUID, $5::UUID, $6::UUID, $7::VARCHAR, $8::JSON, $9::JSON, $10::TIMESTAMP WITH TIME ZONE)"
)
PLACE = (
    "UPDATE task_events SET position=(:last_position + anon_1.number) FROM (SELECT task_events.id AS id, row_number()"
    " OVER (ORDER BY task_events.id) AS number FROM task_events WHERE task_events.position IS NULL ORDER BY"
    " task_events.id LIMIT :most) AS anon_1 WHERE task_events.id = anon_1.id RETURNING task_events.id"
)
PLACE_AT_ONCE = (
    "WITH unplaced AS (SELECT task_events.id AS id, row_number() OVER (ORDER BY task_events.id) AS number"
    " FROM task_events WHERE task_events.position IS NULL ORDER BY task_events.id LIMIT $1::INTEGER), locked AS"
    " (SELECT stream_state.last_position AS last_position FROM stream_state FOR UPDATE), placed AS (UPDATE task_events"
    " SET position=(locked.last_position + unplaced.number) FROM unplaced, locked WHERE task_events.id = unplaced.id"
    " AND locked.last_position = (SELECT stream_state.last_position FROM stream_state) RETURNING"
    " task_events.position), last AS (SELECT max(placed.position) AS position FROM placed), moved AS (UPDATE"
    " stream_state SET last_position=last.position FROM last WHERE last.position IS NOT NULL RETURNING"
    " stream_state.id) SELECT (SELECT count(*) AS count_1 FROM placed) AS anon_1, (SELECT count(*) AS count_2 FROM"
    " unplaced) AS anon_2"
)
EVENTS_AFTER = (
    "SELECT task_events.id, task_events.position, task_events.kind, task_events.task_id, task_events.actor_id,"
    " task_events.changed_fields, task_events.before, task_events.after, task_events.occurred_at FROM task_events"
    " WHERE task_events.position > $1::BIGINT AND (task_events.creator_id = $2::UUID OR task_events.assignee_id ="
    " $2::UUID OR task_events.previous_assignee_id = $2::UUID) ORDER BY task_events.position LIMIT $3::INTEGER"
)
EXPIRE = "DELETE FROM task_events WHERE task_events.position <= $1::BIGINT"
STREAM_END = (
    "SELECT stream_state.last_position, task_events.id FROM stream_state LEFT OUTER JOIN task_events ON"
    " task_events.position IS NULL"
)


@pytest.fixture
async def engine(empty: Settings) -> AsyncIterator[AsyncEngine]:
    """A database with the tables of the previous release."""
    engine = create_engine(empty)
    await migrate(engine, "0002")
    yield engine
    await engine.dispose()


@pytest.fixture
async def database(engine: AsyncEngine) -> AsyncIterator[Database]:
    database = Database(engine)
    yield database
    await database.close()


@pytest.fixture
async def people(database: Database) -> tuple[Viewer, Viewer, Viewer]:
    """The creator of the task, its assignee, and somebody whom it does not concern."""
    async with database.write() as session:
        made = [await make_user(session, name) for name in ("ann", "bob", "cid")]
    ann, bob, cid = (make_viewer(user.id) for user in made)
    return ann, bob, cid


def parameters_of(event: dict[str, Any], people: tuple[Viewer, Viewer, Viewer], task_id: UUID) -> dict[str, Any]:
    """Of INSERT, for a frozen event with other ids."""
    ann, bob, _ = people
    ids = {
        "01939c4e-7c00-7000-8000-000000000001": str(task_id),
        "01939c4e-7c00-7000-8000-00000000000a": str(ann.id),
        "01939c4e-7c00-7000-8000-00000000000b": str(bob.id),
    }
    before, after = (
        event[name] and {key: ids.get(value, value) for key, value in event[name].items()}
        for name in ("before", "after")
    )
    return {
        "kind": event["kind"],
        "task_id": task_id,
        "actor_id": ann.id,
        "creator_id": ann.id,
        "assignee_id": UUID(after["assignee_id"]) if after and after["assignee_id"] else None,
        "previous_assignee_id": UUID(before["assignee_id"]) if before and before["assignee_id"] else None,
        "changed_fields": event["changed_fields"],
        "before": before and json.dumps(before),
        "after": after and json.dumps(after),
        "occurred_at": STARTED,
    }


def stored(parameters: dict[str, Any], engine: AsyncEngine) -> dict[str, Any]:
    """As the driver of the database takes them from raw SQL."""
    if engine.dialect.name == "postgresql":
        return parameters
    values = {name: value.hex if isinstance(value, UUID) else value for name, value in parameters.items()}
    return values | {"occurred_at": "2026-11-21 08:30:00.000000"}


async def write(connection: AsyncConnection, parameters: dict[str, Any], engine: AsyncEngine) -> None:
    sql = INSERT
    if engine.dialect.name == "postgresql":
        casts = {"before": "JSON", "after": "JSON", "assignee_id": "UUID", "previous_assignee_id": "UUID"}
        for name, type_ in casts.items():
            sql = sql.replace(f" :{name},", f" CAST(:{name} AS {type_}),")
    await connection.execute(text(sql), stored(parameters, engine))


async def place(connection: AsyncConnection, last_position: int) -> int:
    found = await connection.execute(text(PLACE), {"last_position": last_position, "most": 1000})
    placed = len(found.all())
    await connection.execute(text("UPDATE stream_state SET last_position = :last"), {"last": last_position + placed})
    return placed


async def write_as_the_previous_release(
    engine: AsyncEngine, people: tuple[Viewer, Viewer, Viewer], *, expired: bool = False
) -> tuple[UUID, UUID]:
    """A task that is changed twice and stands, and one that is deleted. The last event has no position yet. Returns
    the ids of the two tasks."""
    standing, deleted = uuid4(), uuid4()
    async with engine.execution_options(writes=True).begin() as connection:
        for event in FROZEN[:2]:
            await write(connection, parameters_of(event, people, standing), engine)
        for event in FROZEN:
            await write(connection, parameters_of(event, people, deleted), engine)
        assert await place(connection, 0) == 5
        if expired:
            # Retention has deleted all events, the newest too.
            await connection.execute(text("DELETE FROM task_events"))
            await connection.execute(text("UPDATE stream_state SET expired_position = 5"))
            return standing, deleted
        after = parameters_of(FROZEN[1], people, standing)
        await write(connection, {**after, "changed_fields": "TITLE"}, engine)
        task = json.loads(after["after"])
        values = {
            **{name: value for name, value in task.items() if not name.endswith(("_id", "_at", "_date"))},
            **text_keys(task["title"], task["description"]),
            "id": standing,
            "creator_id": people[0].id,
            "assignee_id": people[1].id,
            "completed_at": STARTED,
            "created_at": STARTED,
            "updated_at": STARTED,
        }
        await connection.execute(insert(Task).values(values))
    return standing, deleted


async def place_all(database: Database) -> None:
    async with database.write_single_statement() as session:
        await place_events(session, limit=1000)


async def read_after(database: Database, viewer: Viewer, position: int) -> list[EventRow]:
    async with database.read() as session:
        return await events_after(session, position, viewer=viewer, limit=100)


async def test_a_cursor_from_before_the_migration_resumes_and_misses_nothing(
    engine: AsyncEngine, database: Database, people: tuple[Viewer, Viewer, Viewer]
) -> None:
    standing, deleted = await write_as_the_previous_release(engine, people)
    async with database.read() as session:
        state = await read_stream_state(session)
    cursor = encode_cursor(state.stream_id, 2)
    await migrate(engine)
    ann, bob, cid = people
    admin = make_viewer(uuid4(), UserRole.ADMIN)
    async with database.write() as session:
        await tasks.update_task(session, ann, standing, {"assignee_id": cid.id})
    await place_all(database)

    async with database.read() as session:
        assert (await read_stream_state(session)).last_position == 7
    position = decode_cursor(cursor, state.stream_id)
    events = await read_after(database, admin, position)
    assert [(event.position, event.subject_id, event.kind) for event in events] == [
        (3, deleted, EventKind.CREATED),
        (4, deleted, EventKind.UPDATED),
        (5, deleted, EventKind.DELETED),
        (6, standing, EventKind.UPDATED),
        (7, standing, EventKind.UPDATED),
    ]
    # The audience is what it was: the creator, and the assignee from the first UPDATED on.
    assert [event.position for event in await read_after(database, ann, position)] == [3, 4, 5, 6, 7]
    assert [event.position for event in await read_after(database, bob, position)] == [4, 5, 6, 7]
    assert [event.position for event in await read_after(database, cid, position)] == [7]
    assert [event.audience for event in events] == [
        {ann.id},
        {ann.id, bob.id},
        {ann.id, bob.id},
        {ann.id, bob.id},
        {ann.id, bob.id, cid.id},
    ]

    fanout = Fanout(database, MemoryBus())
    await fanout.start()
    async with fanout.subscribe(bob, after=await fanout.position_of(cursor)) as subscriber:
        assert [event.position for event in await subscriber.next_batch(database)] == [4, 5, 6, 7]
    await fanout.close()


async def test_the_history_of_a_task_is_complete(
    engine: AsyncEngine, database: Database, people: tuple[Viewer, Viewer, Viewer]
) -> None:
    standing, _ = await write_as_the_previous_release(engine, people)
    await migrate(engine)
    ann, bob, _ = people
    async with database.write() as session:
        await tasks.update_task(session, ann, standing, {"title": "New"})
    await place_all(database)
    window = Window(0, AFTER_ALL_POSITIONS, limit=10, backward=False)
    async with database.read() as session:
        (history,) = (await history_of_tasks(session, ann, [standing], window)).values()
        (seen_by_bob,) = (await history_of_tasks(session, bob, [standing], window)).values()
    assert [(event.position, event.kind) for event in history] == [
        (1, EventKind.CREATED),
        (2, EventKind.UPDATED),
        (6, EventKind.UPDATED),
        (7, EventKind.UPDATED),
    ]
    assert [event.position for event in seen_by_bob] == [2, 6, 7]
    assert isinstance(history[0].after, TaskRow)
    assert history[-1].after == history[-1].before._replace(
        title="New",
        version=3,
        updated_at=history[-1].after.updated_at,
    )


async def test_ids_go_on_after_the_last_one_assigned(
    engine: AsyncEngine, database: Database, people: tuple[Viewer, Viewer, Viewer]
) -> None:
    """Also when retention has deleted the event that had it."""
    await write_as_the_previous_release(engine, people, expired=True)
    for revision in ("head", "0002", "head"):
        await migrate(engine, revision)
    async with database.write() as session:
        await tasks.create_task(session, people[0], **NEW_TASK)
    await place_all(database)
    (event,) = await read_after(database, people[0], 5)
    assert (event.id, event.position) == (6, 6)


NEW_TASK: dict[str, Any] = {
    "title": "A task",
    "description": None,
    "priority": "MEDIUM",
    "category": "OTHER",
    "due_date": None,
    "assignee_id": None,
}


async def test_retention_deletes_events_from_before_the_migration(
    engine: AsyncEngine, database: Database, people: tuple[Viewer, Viewer, Viewer]
) -> None:
    await write_as_the_previous_release(engine, people)
    await migrate(engine)
    await place_all(database)
    async with database.write() as session:
        assert await expire_events(session, STARTED + timedelta(days=1), limit=100) == 6
        assert (await session.execute(select(func.count()).select_from(Event))).scalar_one() == 0


async def test_down_and_up_again_keeps_every_event(
    engine: AsyncEngine, database: Database, people: tuple[Viewer, Viewer, Viewer]
) -> None:
    standing, _ = await write_as_the_previous_release(engine, people)
    await migrate(engine)
    ann, bob, cid = people
    async with database.write() as session:
        await tasks.update_task(session, ann, standing, {"assignee_id": cid.id})
    await place_all(database)
    before = {viewer.id: await read_after(database, viewer, 0) for viewer in people}
    assert [len(events) for events in before.values()] == [7, 5, 1]

    await migrate(engine, "0002")
    columns = select(text("creator_id, assignee_id, previous_assignee_id")).select_from(text("task_events"))
    async with engine.connect() as connection:
        rows = (await connection.execute(columns.order_by(text("id")))).all()
    kept = [tuple(value and UUID(str(value)) for value in row) for row in rows]
    assert kept == [
        (ann.id, None, None),
        (ann.id, bob.id, None),
        (ann.id, None, None),
        (ann.id, bob.id, None),
        (ann.id, None, bob.id),
        (ann.id, bob.id, None),
        (ann.id, cid.id, bob.id),
    ]
    await migrate(engine)
    assert {viewer.id: await read_after(database, viewer, 0) for viewer in people} == before


@pytest.mark.parametrize("empty", ["postgresql"], indirect=True)
async def test_the_previous_release_goes_on_after_the_migration(
    empty: Settings, engine: AsyncEngine, database: Database, people: tuple[Viewer, Viewer, Viewer]
) -> None:
    """On PostgreSQL, with statements that its connections prepared before."""
    standing, _ = await write_as_the_previous_release(engine, people)
    ann, bob, cid = people
    old = await asyncpg.connect(empty.database_url)
    statements = {
        name: await old.prepare(sql)
        for name, sql in {
            "delete": DELETE_AND_INSERT,
            "place": PLACE_AT_ONCE,
            "after": EVENTS_AFTER,
            "expire": EXPIRE,
            "end": STREAM_END,
        }.items()
    }
    assert [row["position"] for row in await statements["after"].fetch(0, bob.id, 100)] == [2, 4, 5]
    await migrate(engine)

    # Written by the new release, placed and read by the previous one.
    async with database.write() as session:
        await tasks.update_task(session, ann, standing, {"assignee_id": cid.id})
    assert [row["id"] for row in await statements["end"].fetch()] == [6, 7]
    assert [tuple(row) for row in await statements["place"].fetch(1000)] == [(2, 2)]
    positions = {
        viewer.id: [row["position"] for row in await statements["after"].fetch(0, viewer.id, 100)] for viewer in people
    }
    assert positions == {ann.id: [1, 2, 3, 4, 5, 6, 7], bob.id: [2, 4, 5, 6, 7], cid.id: [7]}
    (last,) = await statements["after"].fetch(6, ann.id, 100)
    assert (last["task_id"], last["kind"], last["changed_fields"]) == (standing, "UPDATED", "ASSIGNEE")
    assert json.loads(last["after"])["assignee_id"] == str(cid.id)

    # Written by the previous release, placed and read by the new one.
    task = last["after"]
    await statements["delete"].fetch(
        "DELETED", standing, ann.id, ann.id, None, cid.id, "", task, None, STARTED + timedelta(days=9)
    )
    async with database.read() as session:
        assert await has_unplaced_events(session)
        assert await read_stream_end(session) == (7, frozenset({8}))
    await place_all(database)
    for viewer in (ann, cid):
        (event,) = await read_after(database, viewer, 7)
        assert (event.position, event.kind, event.subject_id) == (8, EventKind.DELETED, standing)
        assert event.audience == {ann.id, cid.id}
    assert await read_after(database, bob, 7) == []
    async with database.read() as session:
        assert await tasks.get_task(session, ann, standing) is None

    await statements["expire"].fetch(3)
    assert [event.position for event in await read_after(database, ann, 0)] == [4, 5, 6, 7, 8]
    await old.close()
