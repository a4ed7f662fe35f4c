"""`Query.task(asOf:)`: tasks as they stood, from the record."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select

from taskflow_gql.database.units import Database
from taskflow_gql.models import Event
from taskflow_gql.services.positions import expire_events
from tests.support.client import Api, Person
from tests.support.serving import make_admin

FIELDS = """
id title description status completed completedAt priority category dueDate version createdAt updatedAt
creator { username } assignee { username }
"""
TASK = f"query($id: ID!, $asOf: DateTime) {{ task(id: $id, asOf: $asOf) {{ {FIELDS} }} }}"
CREATE = f"mutation($input: CreateTaskInput!) {{ createTask(input: $input) {{ task {{ {FIELDS} }} }} }}"
UPDATE = f"mutation($input: UpdateTaskInput!) {{ updateTask(input: $input) {{ task {{ {FIELDS} }} }} }}"
DELETE = "mutation($id: ID!) { deleteTask(input: {id: $id}) { errors { code } } }"
OLD_TIME = "asOf is older than the record of this object: name a later time"


async def create(api: Api, by: Person, **given: Any) -> dict[str, Any]:
    task: dict[str, Any] = (await api.data(CREATE, {"input": {"title": "First", **given}}, by=by))["createTask"]["task"]
    return task


async def change(api: Api, by: Person, task: dict[str, Any], **given: Any) -> dict[str, Any]:
    changed: dict[str, Any]
    changed = (await api.data(UPDATE, {"input": {"id": task["id"], **given}}, by=by))["updateTask"]["task"]
    return changed


async def delete(api: Api, by: Person, task: dict[str, Any]) -> datetime:
    """Delete it, and return a time after that."""
    assert (await api.data(DELETE, {"id": task["id"]}, by=by))["deleteTask"]["errors"] == []
    return datetime.now(UTC)


async def read(api: Api, by: Person, task: dict[str, Any], as_of: datetime | str | None) -> dict[str, Any] | None:
    time = as_of.isoformat() if isinstance(as_of, datetime) else as_of
    found: dict[str, Any] | None = (await api.data(TASK, {"id": task["id"], "asOf": time}, by=by))["task"]
    return found


async def error(api: Api, by: Person, task: dict[str, Any], as_of: datetime | str) -> tuple[str, str]:
    time = as_of.isoformat() if isinstance(as_of, datetime) else as_of
    answer = await api.post(TASK, {"id": task["id"], "asOf": time}, by=by)
    assert answer["data"] == {"task": None}
    (found,) = answer["errors"]
    assert found["path"] == ["task"]
    return found["extensions"]["code"], found["message"]


def at(task: dict[str, Any]) -> datetime:
    """When the task came to stand like this."""
    return datetime.fromisoformat(task["updatedAt"])


MOMENT = timedelta(microseconds=1)


async def history(api: Api, by: Person, bob: Person) -> list[dict[str, Any]]:
    """The states of a task."""
    states = [await create(api, by, description="Text", dueDate="2030-01-01T00:00:00.000001Z")]
    for given in (
        {"title": "Second", "status": "COMPLETED"},
        {"assigneeId": bob.id, "description": None},
        {"status": "IN_PROGRESS", "priority": "HIGH", "dueDate": None},
        {"category": "HOME"},
    ):
        states.append(await change(api, by, states[-1], **given))
    return states


async def test_a_task_is_read_as_it_stood_at_any_time(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    states = await history(api, ann, bob)
    for state, following in zip(states, [*states[1:], None], strict=True):
        assert await read(api, ann, state, at(state)) == state
        if following:
            assert await read(api, ann, state, at(following) - MOMENT) == state
    assert await read(api, ann, states[0], at(states[0]) - MOMENT) is None
    for time in (None, datetime.now(UTC) + timedelta(days=1), "9999-12-31T23:59:59.999999Z"):
        assert await read(api, ann, states[0], time) == states[-1]
    assert await read(api, ann, states[0], "0001-01-01T00:00:00Z") is None


async def test_a_deleted_task_is_read_as_it_stood(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    states = await history(api, ann, bob)
    deleted = await delete(api, ann, states[0])
    assert [await read(api, ann, state, at(state)) for state in states] == states
    for time in (at(states[0]) - MOMENT, deleted, deleted + timedelta(days=1), None):
        assert await read(api, ann, states[0], time) is None


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_the_viewer_must_have_been_allowed_to_see_it_then_and_now(
    api: Api, database: Database, is_deleted: bool
) -> None:
    ann, bob, eve, boss = [await api.register(name) for name in ("ann", "bob", "eve", "boss")]
    await make_admin(database, boss.id)
    first = await create(api, ann)
    of_eve = await change(api, ann, first, assigneeId=eve.id)
    of_bob = await change(api, ann, first, assigneeId=bob.id)
    if is_deleted:
        await delete(api, ann, first)
    states = [first, of_eve, of_bob]
    for person, seen in ((ann, states), (boss, states), (bob, [None, None, of_bob]), (eve, [None, None, None])):
        assert [await read(api, person, state, at(state)) for state in states] == seen, person.username


async def test_ids_of_nothing_and_of_nonsense(api: Api) -> None:
    ann = await api.register("ann")
    now = datetime.now(UTC)
    assert await read(api, ann, {"id": str(uuid4())}, now) is None
    assert await read(api, ann, {"id": ann.id}, now) is None
    assert (await error(api, ann, {"id": "nothing"}, now))[0] == "BAD_USER_INPUT"


async def expire(database: Database, until: datetime) -> None:
    """Delete events older than this, once every event has a position."""
    async with asyncio.timeout(10):
        while True:
            async with database.write() as session:
                await expire_events(session, until, limit=1000)
                oldest = (await session.execute(select(Event.occurred_at).order_by(Event.id))).scalars().first()
            if oldest is None or oldest >= until:
                return
            await asyncio.sleep(0.01)


async def test_a_time_older_than_the_record_is_refused(api: Api, database: Database) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    eve = await api.register("eve")
    states = await history(api, ann, bob)
    await expire(database, at(states[3]))
    # The oldest kept change is that from the third state to the fourth.
    assert [await read(api, ann, state, at(state)) for state in states[2:]] == states[2:]
    for time in (at(states[2]) - MOMENT, at(states[0])):
        assert await error(api, ann, states[0], time) == ("BAD_USER_INPUT", OLD_TIME)
        assert await read(api, eve, states[0], time) is None
    assert await read(api, ann, states[0], at(states[0]) - MOMENT) is None


async def test_a_task_without_events_is_known_since_its_last_change(api: Api, database: Database) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    states = await history(api, ann, bob)
    gone = await create(api, ann)
    deleted = await delete(api, ann, gone)
    await expire(database, deleted + timedelta(days=1))
    assert await read(api, ann, states[0], at(states[-1])) == states[-1]
    assert await error(api, ann, states[0], at(states[-1]) - MOMENT) == ("BAD_USER_INPUT", OLD_TIME)
    assert await read(api, ann, states[0], at(states[0]) - MOMENT) is None
    assert await read(api, ann, gone, at(gone)) is None


async def test_people_and_history_are_as_they_are_now(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    states = await history(api, ann, bob)
    rename = 'mutation { updateProfile(input: {fullName: "Robert"}) { errors { code } } }'
    await api.data(rename, by=bob)
    query = """
    query($id: ID!, $asOf: DateTime) {
      task(id: $id, asOf: $asOf) { version assignee { fullName } history { nodes { kind } } }
    }
    """
    found = await api.data(query, {"id": states[0]["id"], "asOf": states[2]["updatedAt"]}, by=ann)
    kinds = [{"kind": "CREATED"}] + [{"kind": "UPDATED"}] * 4
    assert found["task"] == {"version": 3, "assignee": {"fullName": "Robert"}, "history": {"nodes": kinds}}


async def test_a_change_occurs_when_its_task_is_updated(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    states = await history(api, ann, bob)
    query = "query($id: ID!) { task(id: $id) { history { nodes { occurredAt } } } }"
    found = await api.data(query, {"id": states[0]["id"]}, by=ann)
    times = [node["occurredAt"] for node in found["task"]["history"]["nodes"]]
    assert times == [state["updatedAt"] for state in states]


async def test_a_deleted_task_has_its_history(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    states = await history(api, ann, bob)
    await delete(api, ann, states[0])
    query = "query($id: ID!, $asOf: DateTime) { task(id: $id, asOf: $asOf) { history { nodes { kind } } } }"
    for person, number in ((ann, 0), (bob, 2)):
        found = await api.data(query, {"id": states[0]["id"], "asOf": states[number]["updatedAt"]}, by=person)
        kinds = ["CREATED", *["UPDATED"] * 4, "DELETED"]
        if person is bob:
            kinds = ["ENTERED", "UPDATED", "UPDATED", "DELETED"]
        assert [node["kind"] for node in found["task"]["history"]["nodes"]] == kinds
