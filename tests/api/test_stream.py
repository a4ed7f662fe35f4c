"""taskChanged, taskChanges, Task.history and changesCursor: four views of one record, on three transports."""

from __future__ import annotations

import asyncio
import json
import os
import socket as sockets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from taskflow_gql import clock
from taskflow_gql.config import Settings
from taskflow_gql.database.units import Database
from taskflow_gql.models import Task
from taskflow_gql.services.positions import encode_cursor, expire_events, read_stream_state
from taskflow_gql.transport.streaming import ServerSentEvents
from tests.support.accounts import CHANGE_PASSWORD, forge, login
from tests.support.client import PATIENCE_SECONDS, UPDATE_TASK, Api, Person, Socket
from tests.support.factories import make_task, make_viewer
from tests.support.serve import environment_of, serve
from tests.support.servers import RedisServer
from tests.support.serving import make_admin, serving

# A revocation is effective on every process within so long of its commit.
REVOKED_SECONDS = 2.0

CHANGE = """
  cursor kind taskId changedFields
  task { title status version assignee { id } }
  previous { title status version assigneeId }
  actor { id }
"""
CHANGED = f"""
subscription($filter: TaskFilter, $after: String) {{
  taskChanged(filter: $filter, after: $after) {{ {CHANGE} }}
}}
"""
KINDS = """
subscription($filter: TaskFilter, $after: String) {
  taskChanged(filter: $filter, after: $after) { kind taskId task { title } }
}
"""
CHANGES = f"""
query($after: String, $first: Int, $last: Int, $before: String, $filter: TaskFilter) {{
  taskChanges(after: $after, first: $first, last: $last, before: $before, filter: $filter) {{
    nodes {{ {CHANGE} }} edges {{ cursor node {{ cursor }} }}
    pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }}
  }}
}}
"""
HISTORY = """
query($id: ID!, $first: Int, $after: String, $last: Int, $before: String) {
  task(id: $id) {
    history(first: $first, after: $after, last: $last, before: $before) {
      nodes { cursor kind changedFields task { version } previous { version } }
      pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    }
  }
}
"""
CHANGES_CURSOR = "{ tasks { changesCursor } }"
STATUS = "mutation($i: SetTaskStatusInput!) { setTaskStatus(input: $i) { errors { code } } }"
DELETE = "mutation($i: DeleteTaskInput!) { deleteTask(input: $i) { errors { code } } }"
SET_ROLE = "mutation($id: ID!, $role: UserRole!) { setUserRole(input: {userId: $id, role: $role}) { errors { code } } }"
DEACTIVATE = "mutation($id: ID!) { deactivateUser(input: {userId: $id}) { errors { code } } }"

PENDING = {"status": {"eq": "PENDING"}}
NEVER = {"title": {"eq": "no task has this title"}}


async def end_of_stream(api: Api, by: Person) -> str:
    """The cursor behind everything that is committed."""
    cursor = (await api.data(CHANGES_CURSOR, by=by))["tasks"]["changesCursor"]
    while True:
        info = (await pull(api, by, cursor, first=100))["pageInfo"]
        if not info["hasNextPage"]:
            end: str = info["endCursor"]
            return end
        cursor = info["endCursor"]


async def pull(api: Api, by: Person, after: str | None = None, **arguments: Any) -> dict[str, Any]:
    changes: dict[str, Any] = (await api.data(CHANGES, {"after": after, **arguments}, by=by))["taskChanges"]
    return changes


async def make_tasks(database: Database, by: Person, count: int) -> None:
    """In one transaction, and without a doorbell."""
    async with database.write() as session:
        for _ in range(count):
            await make_task(session, make_viewer(by.id))


async def set_status(api: Api, by: Person, task_id: str, status: str) -> None:
    answer = await api.data(STATUS, {"i": {"id": task_id, "status": status}}, by=by)
    assert answer == {"setTaskStatus": {"errors": []}}


async def delete(api: Api, by: Person, task_id: str) -> None:
    assert await api.data(DELETE, {"i": {"id": task_id}}, by=by) == {"deleteTask": {"errors": []}}


async def hear(socket: Socket, count: int = 1, *, id: str = "1") -> list[dict[str, Any]]:
    return [(await socket.next(id))["taskChanged"] for _ in range(count)]


@asynccontextmanager
async def listening(
    api: Api, by: Person, after: str, *, query: str = CHANGED, **variables: Any
) -> AsyncIterator[Socket]:
    async with api.signed_in_socket(by) as socket:
        await socket.subscribe(query, variables={"after": after, **variables})
        yield socket


async def kinds_until(api: Api, by: Person, socket: Socket, **task: Any) -> list[str]:
    """What the socket is told before a task that is made now, which must be for it."""
    end = (await api.create_task(by, title="the end", **task))["id"]
    kinds: list[str] = []
    while (change := (await hear(socket))[0])["taskId"] != end:
        kinds.append(change["kind"])
    return kinds


# From a cursor on


async def test_whoever_resumes_anywhere_is_told_the_rest_once_and_in_order(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    task = await api.create_task(ann, title="Change 0")
    for number in range(1, 5):
        await api.update_task(ann, task["id"], title=f"Change {number}")
    async with listening(api, ann, start) as socket:
        changes = await hear(socket, 5)
    assert [change["task"]["title"] for change in changes] == [f"Change {number}" for number in range(5)]
    # Of a list, of a change and of a page: all are cursors of the one stream.
    cursors = [start, *(change["cursor"] for change in changes)]
    assert (await api.data(CHANGES_CURSOR, by=ann))["tasks"]["changesCursor"] == cursors[-1]
    assert await end_of_stream(api, ann) == cursors[-1]
    for index, cursor in enumerate(cursors):
        assert (await pull(api, ann, cursor))["nodes"] == changes[index:]
        async with listening(api, ann, cursor) as socket:
            assert await hear(socket, len(changes) - index) == changes[index:]
            # What is live follows what was not, without a repeat.
            await api.update_task(ann, task["id"], title=f"Live {index}")
            (live,) = await hear(socket)
        assert live["task"]["title"] == f"Live {index}"
        changes.append(live)


async def test_without_a_cursor_the_stream_begins_now(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, title="Change 0")
    async with api.signed_in_socket(ann) as socket:
        await socket.subscribe(CHANGED)
        first = asyncio.create_task(hear(socket))
        number = 0
        while not first.done():
            number += 1
            await api.update_task(ann, task["id"], title=f"Change {number}")
        (change,) = await first
        assert change["kind"] == "UPDATED"
        heard = int(change["task"]["title"].removeprefix("Change "))
        rest = [int(each["task"]["title"].removeprefix("Change ")) for each in await hear(socket, number - heard)]
        assert rest == list(range(heard + 1, number + 1))


@pytest.mark.slow
async def test_many_changes_while_away_are_all_told(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    # More than are read from the table at once.
    await make_tasks(database, ann, 1100)
    async with listening(api, ann, start, query=KINDS) as socket:
        ids = {change["taskId"] for change in await hear(socket, 1100)}
        assert len(ids) == 1100
        assert await kinds_until(api, ann, socket) == []


async def test_a_list_and_the_changes_since_its_cursor_make_the_next_list(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    read = "{ tasks { changesCursor nodes { id title version } } }"
    tasks = [await api.create_task(ann, title=f"Task {number}") for number in range(4)]
    before = (await api.data(read, by=ann))["tasks"]
    await api.update_task(ann, tasks[0]["id"], title="Changed")
    await delete(api, ann, tasks[1]["id"])
    made = await api.create_task(bob, title="Given", assigneeId=ann.id)
    taken = await api.create_task(bob, title="Given and taken", assigneeId=ann.id)
    await api.update_task(bob, taken["id"], assigneeId=None)
    replica = {task["id"]: (task["title"], task["version"]) for task in before["nodes"]}
    for change in (await pull(api, ann, before["changesCursor"]))["nodes"]:
        if change["task"] is None:
            replica.pop(change["taskId"], None)
        else:
            replica[change["taskId"]] = (change["task"]["title"], change["task"]["version"])
    after = (await api.data(read, by=ann))["tasks"]["nodes"]
    assert replica == {task["id"]: (task["title"], task["version"]) for task in after}
    assert made["id"] in replica


# What a change looks like to whom

FOR_CACHES = """
query($after: String!, $filter: TaskFilter) {
  taskChanges(after: $after, filter: $filter) {
    nodes {
      id cursor kind deletedTaskId taskId
      task { id version } taskEdge { cursor node { id version } } previous { assigneeId assignee { id username } }
    }
  }
}
"""


async def changes_for_caches(api: Api, by: Person, after: str, **variables: Any) -> list[dict[str, Any]]:
    data = await api.data(FOR_CACHES, {"after": after, **variables}, by=by)
    nodes: list[dict[str, Any]] = data["taskChanges"]["nodes"]
    return nodes


async def test_a_change_says_what_to_drop_and_what_to_add(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    start = await end_of_stream(api, ann)
    task = await api.create_task(ann, title="Old", assigneeId=bob.id)
    await api.update_task(ann, task["id"], assigneeId=None)
    await delete(api, ann, task["id"])
    changes = await changes_for_caches(api, ann, start)
    assert [change["kind"] for change in changes] == ["CREATED", "UPDATED", "DELETED"]
    assert [change["deletedTaskId"] for change in changes] == [None, None, task["id"]]
    for change in changes:
        assert (change["taskEdge"] and change["taskEdge"]["node"]) == change["task"]
    bobs = await changes_for_caches(api, bob, start)
    assert [(change["kind"], change["deletedTaskId"]) for change in bobs] == [("CREATED", None), ("LEFT", task["id"])]
    assert bobs[1]["taskEdge"] is None
    assert [change["previous"] and change["previous"]["assignee"] for change in changes] == [
        None,
        {"id": bob.id, "username": "bob"},
        None,
    ]


async def test_the_edge_of_a_change_has_the_cursor_of_the_task_in_the_list(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    for number in range(3):
        await api.create_task(ann, title=f"Task {number}")
    edges = (await api.data("{ tasks { edges { cursor node { id version } } } }", by=ann))["tasks"]["edges"]
    assert [change["taskEdge"] for change in await changes_for_caches(api, ann, start)] == edges[::-1]


async def test_the_id_of_a_change_is_its_own_and_the_same_to_everybody(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    start = await end_of_stream(api, ann)
    task = await api.create_task(ann, assigneeId=bob.id)
    await api.update_task(ann, task["id"], title="Changed", status="COMPLETED")
    await delete(api, ann, task["id"])
    ids = [change["id"] for change in await changes_for_caches(api, ann, start)]
    assert len({*ids, task["id"], ann.id, bob.id}) == 6
    assert [change["id"] for change in await changes_for_caches(api, bob, start)] == ids
    # The same change, shown as UPDATED to one and as LEFT to the other.
    assert [change["id"] for change in await changes_for_caches(api, bob, start, filter=PENDING)] == ids[:2]
    only_ids = "subscription($after: String) { taskChanged(after: $after) { id } }"
    async with listening(api, bob, start, query=only_ids) as socket:
        assert [change["id"] for change in await hear(socket, 3)] == ids


async def test_a_change_says_what_it_changed_and_what_was_before(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    start = await end_of_stream(api, ann)
    task = await api.create_task(ann, title="Old")
    given = {
        "title": "New",
        "description": "Some",
        "status": "IN_PROGRESS",
        "priority": "HIGH",
        "category": "WORK",
        "dueDate": "2030-01-01T00:00:00Z",
        "assigneeId": bob.id,
    }
    await api.update_task(ann, task["id"], **given)
    await set_status(api, bob, task["id"], "COMPLETED")
    await delete(api, ann, task["id"])
    changes = (await pull(api, ann, start))["nodes"]
    assert [{**change, "cursor": None} for change in changes] == [
        {
            "cursor": None,
            "kind": "CREATED",
            "taskId": task["id"],
            "changedFields": [],
            "task": {"title": "Old", "status": "PENDING", "version": 1, "assignee": None},
            "previous": None,
            "actor": {"id": ann.id},
        },
        {
            "cursor": None,
            "kind": "UPDATED",
            "taskId": task["id"],
            "changedFields": ["TITLE", "DESCRIPTION", "STATUS", "PRIORITY", "CATEGORY", "DUE_DATE", "ASSIGNEE"],
            "task": {"title": "New", "status": "IN_PROGRESS", "version": 2, "assignee": {"id": bob.id}},
            "previous": {"title": "Old", "status": "PENDING", "version": 1, "assigneeId": None},
            "actor": {"id": ann.id},
        },
        {
            "cursor": None,
            "kind": "UPDATED",
            "taskId": task["id"],
            "changedFields": ["STATUS"],
            "task": {"title": "New", "status": "COMPLETED", "version": 3, "assignee": {"id": bob.id}},
            "previous": {"title": "New", "status": "IN_PROGRESS", "version": 2, "assigneeId": bob.id},
            "actor": {"id": bob.id},
        },
        {
            "cursor": None,
            "kind": "DELETED",
            "taskId": task["id"],
            "changedFields": [],
            "task": None,
            "previous": {"title": "New", "status": "COMPLETED", "version": 3, "assigneeId": bob.id},
            "actor": {"id": ann.id},
        },
    ]
    # Subscribers are told the same, word for word.
    async with listening(api, ann, start) as socket:
        assert await hear(socket, 4) == changes


async def test_entered_and_left_in_every_combination_of_permission_and_filter(api: Api) -> None:
    """Bob watches what is PENDING. Ann gives him tasks and takes them back, ticks them off and opens them again."""
    ann, bob = await api.register("ann"), await api.register("bob")
    for was_his, was_pending, is_his, is_pending in product([True, False], repeat=4):
        task = await api.create_task(ann, title="Old", assigneeId=bob.id if was_his else None)
        if not was_pending:
            await set_status(api, ann, task["id"], "COMPLETED")
        start = await end_of_stream(api, bob)
        status = "PENDING" if is_pending else "COMPLETED"
        await api.update_task(ann, task["id"], title="New", assigneeId=bob.id if is_his else None, status=status)
        found, finds = was_his and was_pending, is_his and is_pending
        expected = {(True, True): "UPDATED", (True, False): "LEFT", (False, True): "ENTERED"}.get((found, finds))
        pulled = (await pull(api, bob, start, filter=PENDING))["nodes"]
        assert [change["kind"] for change in pulled] == ([expected] if expected else [])
        for change in pulled:
            assert (change["task"] is None, change["previous"] is None) == (expected == "LEFT", expected == "ENTERED")
        async with listening(api, bob, start, filter=PENDING) as socket:
            assert await hear(socket, len(pulled)) == pulled
            assert await kinds_until(api, bob, socket) == []


async def test_making_and_deleting_through_a_filter(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    task = await api.create_task(ann)
    done = await api.create_task(ann)
    await set_status(api, ann, done["id"], "COMPLETED")
    await delete(api, ann, task["id"])
    await delete(api, ann, done["id"])

    async def kinds(filter_: object) -> list[tuple[str, str]]:
        names = {task["id"]: "task", done["id"]: "done"}
        changes = (await pull(api, ann, start, filter=filter_))["nodes"]
        async with listening(api, ann, start, filter=filter_) as socket:
            assert await hear(socket, len(changes)) == changes
        return [(names[change["taskId"]], change["kind"]) for change in changes]

    assert await kinds(PENDING) == [("task", "CREATED"), ("done", "CREATED"), ("done", "LEFT"), ("task", "DELETED")]
    assert await kinds({"status": {"eq": "COMPLETED"}}) == [("done", "ENTERED"), ("done", "DELETED")]
    assert await kinds(NEVER) == []


async def test_others_hear_nothing_and_an_admin_everything(api: Api, database: Database) -> None:
    ann, bob, boss = [await api.register(name) for name in ("ann", "bob", "boss")]
    await make_admin(database, boss.id)
    start = await end_of_stream(api, bob)
    task = await api.create_task(ann)
    await api.update_task(ann, task["id"], title="Changed")
    await delete(api, ann, task["id"])
    assert (await pull(api, bob, start))["nodes"] == []
    async with listening(api, boss, start, query=KINDS) as of_boss, listening(api, bob, start, query=KINDS) as of_bob:
        assert [change["kind"] for change in await hear(of_boss, 3)] == ["CREATED", "UPDATED", "DELETED"]
        assert await kinds_until(api, bob, of_bob) == []


async def test_anonymous_callers_get_none_of_it(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    assert await api.codes(CHANGES, {"after": start}) == ["UNAUTHENTICATED"]
    async with api.socket() as socket:
        await socket.send(type="connection_init")
        assert await socket.receive() == {"type": "connection_ack"}
        await socket.subscribe(CHANGED, variables={"after": start})
        message = await socket.receive()
        assert (message["type"], message["payload"][0]["extensions"]) == ("error", {"code": "UNAUTHENTICATED"})


# Bad cursors and bad filters


async def refusal_of_stream(api: Api, by: Person, variables: dict[str, Any]) -> dict[str, Any]:
    """What the subscription is refused with; the socket must stay open."""
    async with api.signed_in_socket(by) as socket:
        await socket.subscribe(CHANGED, variables=variables)
        message = await socket.receive()
        assert (message["type"], message["id"]) == ("error", "1"), message
        await socket.subscribe("{ me { id } }", id="2")
        assert (await socket.next("2")) == {"me": {"id": by.id}}
    (error,) = message["payload"]
    return {"message": error["message"], "code": error["extensions"]["code"]}


async def refusal_of_pull(api: Api, by: Person, variables: dict[str, Any]) -> dict[str, Any]:
    (error,) = (await api.post(CHANGES, variables, by=by))["errors"]
    return {"message": error["message"], "code": error["extensions"]["code"]}


async def test_a_cursor_that_is_none_or_not_ours_is_refused(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    await api.create_task(ann)
    good = await end_of_stream(api, ann)
    async with database.read() as session:
        stream_id, position, _ = await read_stream_state(session)
    damaged = "after is not a cursor of the change stream"
    for cursor, message in [
        (good[:-3], damaged),
        ("", damaged),
        ("€", damaged),
        ("rubbish!", damaged),
        (encode_cursor(stream_id, 1) + "A" * 400, damaged),
        (encode_cursor("0123456789abcdef", 1), "after is a cursor of another server: read again from a query"),
        (encode_cursor(stream_id, position + 1), "after is a cursor from the future: read again from a query"),
    ]:
        expected = {"message": message, "code": "BAD_USER_INPUT"}
        assert await refusal_of_pull(api, ann, {"after": cursor}) == expected, cursor
        assert await refusal_of_stream(api, ann, {"after": cursor}) == expected, cursor


async def test_a_cursor_whose_changes_are_no_longer_kept_has_expired(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    task = await api.create_task(ann)
    await api.update_task(ann, task["id"], title="Changed")
    kept_from = await end_of_stream(api, ann)
    async with database.write() as session:
        assert await expire_events(session, clock.now() + timedelta(days=1), limit=100) == 2
    expected = {
        "message": "The changes since this cursor are no longer kept: read again from a query",
        "code": "CURSOR_EXPIRED",
    }
    assert await refusal_of_pull(api, ann, {"after": start}) == expected
    assert await refusal_of_stream(api, ann, {"after": start}) == expected
    # Nothing is missing since this one; and the history has become shorter, without an error.
    async with listening(api, ann, kept_from, query=KINDS) as socket:
        assert await kinds_until(api, ann, socket) == []
    assert (await api.data(HISTORY, {"id": task["id"]}, by=ann))["task"]["history"]["nodes"] == []


async def test_a_bad_filter_is_refused_before_the_stream_begins(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    bad: list[dict[str, Any]] = [{"or": []}, {"id": {"eq": "no uuid"}}]
    for filter_ in bad:
        for refusal in (refusal_of_pull, refusal_of_stream):
            assert (await refusal(api, ann, {"after": start, "filter": filter_}))["code"] == "BAD_USER_INPUT"


# Pages of changes


async def test_pages_of_changes_follow_each_other_to_the_end(api: Api) -> None:
    ann = await api.register("ann")
    start = cursor = await end_of_stream(api, ann)
    task = await api.create_task(ann)
    for number in range(6):
        await api.update_task(ann, task["id"], title=f"Change {number}")
    pages: list[dict[str, Any]] = []
    while not pages or pages[-1]["pageInfo"]["hasNextPage"]:
        pages.append(await pull(api, ann, cursor, first=3))
        cursor = pages[-1]["pageInfo"]["endCursor"]
    assert [len(page["nodes"]) for page in pages] == [3, 3, 1]
    nodes = [node for page in pages for node in page["nodes"]]
    assert nodes == (await pull(api, ann, start))["nodes"]
    for page in pages:
        cursors = [node["cursor"] for node in page["nodes"]]
        assert page["edges"] == [{"cursor": each, "node": {"cursor": each}} for each in cursors]
        assert page["pageInfo"]["startCursor"] == cursors[0]
        assert page["pageInfo"]["hasPreviousPage"] is True
    # Nothing more: an empty page whose end is where it began.
    assert await pull(api, ann, cursor) == {
        "nodes": [],
        "edges": [],
        "pageInfo": {"hasNextPage": False, "hasPreviousPage": True, "startCursor": None, "endCursor": cursor},
    }


async def test_an_empty_page_still_goes_on(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    start = await end_of_stream(api, ann)
    task = await api.create_task(bob)
    await api.create_task(ann)
    page = await pull(api, ann, start, filter=NEVER)
    assert (page["nodes"], page["pageInfo"]["hasNextPage"], page["pageInfo"]["startCursor"]) == ([], False, None)
    # What does not concern her has been looked at, too.
    assert page["pageInfo"]["endCursor"] == await end_of_stream(api, bob) != start
    await delete(api, bob, task["id"])
    assert (await pull(api, ann, page["pageInfo"]["endCursor"]))["nodes"] == []


async def test_a_rare_match_is_found_behind_empty_pages(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    start = cursor = await end_of_stream(api, ann)
    # More than one request looks through.
    await make_tasks(database, ann, 1050)
    rare = await api.create_task(ann, title="Rare")
    pages: list[dict[str, Any]] = []
    while not pages or pages[-1]["pageInfo"]["hasNextPage"]:
        pages.append(await pull(api, ann, cursor, filter={"title": {"eq": "Rare"}}))
        cursor = pages[-1]["pageInfo"]["endCursor"]
    assert [[node["taskId"] for node in page["nodes"]] for page in pages] == [[], [rare["id"]]]
    # A page that is full when the scan could still find more says so.
    assert (await pull(api, ann, start, first=2))["pageInfo"]["hasNextPage"] is True


@pytest.mark.parametrize("size", [0, -1, 101])
async def test_a_page_of_changes_has_1_to_100(api: Api, size: int) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann)
    start = await end_of_stream(api, ann)
    assert await api.codes(CHANGES, {"after": start, "first": size}, by=ann) == ["BAD_USER_INPUT"]
    assert await api.codes(CHANGES, {"last": size}, by=ann) == ["BAD_USER_INPUT"]
    assert await api.codes(HISTORY, {"id": task["id"], "last": size}, by=ann) == ["BAD_USER_INPUT"]


async def make_feed(api: Api, by: Person, count: int) -> list[str]:
    """Make changes of one task, and return their cursors."""
    start = await end_of_stream(api, by)
    task = await api.create_task(by)
    for number in range(count - 1):
        await api.update_task(by, task["id"], title=f"Change {number}")
    return cursors(await pull(api, by, start, first=100))


def cursors(page: dict[str, Any]) -> list[str]:
    return [edge["cursor"] for edge in page["edges"]]


async def test_without_a_cursor_changes_begin_with_the_newest(api: Api) -> None:
    ann = await api.register("ann")
    made = await make_feed(api, ann, 60)
    assert cursors(await pull(api, ann)) == made[-50:]
    for page in (await pull(api, ann, first=3), await pull(api, ann, last=3)):
        assert cursors(page) == made[-3:]
        assert page["pageInfo"] == {
            "hasNextPage": False,
            "hasPreviousPage": True,
            "startCursor": made[-3],
            "endCursor": made[-1],
        }
    # The end of the newest page is where the live stream goes on.
    task = await api.create_task(ann)
    later = (await pull(api, ann, made[-1]))["nodes"]
    assert [change["taskId"] for change in later] == [task["id"]]


async def test_pages_of_changes_go_back_to_the_first(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    made = await make_feed(api, ann, 7)
    await api.create_task(bob)
    pages = [await pull(api, ann, last=3)]
    while pages[-1]["pageInfo"]["hasPreviousPage"]:
        # Changes in between shift nothing.
        await api.create_task(ann)
        pages.append(await pull(api, ann, last=3, before=pages[-1]["pageInfo"]["startCursor"]))
    assert [cursors(page) for page in pages] == [made[4:], made[1:4], made[:1]]
    assert [page["pageInfo"]["hasNextPage"] for page in pages] == [False, True, True]
    # Each page is also found forward, and between two cursors.
    assert cursors(await pull(api, ann, made[0], first=3)) == made[1:4]
    assert cursors(await pull(api, ann, made[0], before=made[4], last=2)) == made[2:4]
    assert cursors(await pull(api, ann, made[0], before=made[4], first=2)) == made[1:3]
    assert cursors(await pull(api, ann, before=made[4])) == made[:4]
    assert cursors(await pull(api, ann, before=made[4], first=2)) == made[:2]


async def test_a_rare_match_is_found_backward_behind_an_empty_page(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    rare = await api.create_task(ann, title="Rare")
    await make_tasks(database, ann, 1050)
    pages = [await pull(api, ann, last=2, filter={"title": {"eq": "Rare"}})]
    while pages[-1]["pageInfo"]["hasPreviousPage"]:
        before = pages[-1]["pageInfo"]["startCursor"]
        pages.append(await pull(api, ann, last=2, before=before, filter={"title": {"eq": "Rare"}}))
    assert [[node["taskId"] for node in page["nodes"]] for page in pages] == [[], [rare["id"]]]


async def test_changes_before_a_bad_cursor_are_refused(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    made = await make_feed(api, ann, 3)
    async with database.read() as session:
        stream_id, position, _ = await read_stream_state(session)
    for cursor, message in [
        ("rubbish!", "before is not a cursor of the change stream"),
        (encode_cursor("0123456789abcdef", 1), "before is a cursor of another server: read again from a query"),
        (encode_cursor(stream_id, position + 1), "before is a cursor from the future: read again from a query"),
    ]:
        assert await refusal_of_pull(api, ann, {"before": cursor}) == {"message": message, "code": "BAD_USER_INPUT"}
    both = await refusal_of_pull(api, ann, {"first": 1, "last": 1})
    assert both == {"message": "Give first or last, not both", "code": "BAD_USER_INPUT"}
    async with database.write() as session:
        assert await expire_events(session, clock.now() + timedelta(days=1), limit=2) == 2
    # Going back ends where the record ends.
    assert cursors(await pull(api, ann)) == made[2:]
    page = await pull(api, ann, before=made[2])
    assert (page["edges"], page["pageInfo"]["hasPreviousPage"], page["pageInfo"]["startCursor"]) == ([], False, None)
    assert (await refusal_of_pull(api, ann, {"before": made[0]}))["code"] == "CURSOR_EXPIRED"


async def test_one_s_own_change_is_in_the_next_pull_and_history(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    for number in range(1, 30):
        task = await api.create_task(ann)
        assert len((await pull(api, ann, start))["nodes"]) == number
        assert len((await api.data(HISTORY, {"id": task["id"]}, by=ann))["task"]["history"]["nodes"]) == 1


# History


async def test_history_is_the_task_s_own_changes_oldest_first_in_pages(api: Api) -> None:
    ann = await api.register("ann")
    task, other = await api.create_task(ann), await api.create_task(ann)
    for number in range(4):
        await api.update_task(ann, task["id"], title=f"Change {number}")
        await api.update_task(ann, other["id"], title=f"Change {number}")
    nodes, after, sizes = [], None, []
    while True:
        data = await api.data(HISTORY, {"id": task["id"], "first": 2, "after": after}, by=ann)
        page = data["task"]["history"]
        nodes += page["nodes"]
        sizes.append(len(page["nodes"]))
        assert page["pageInfo"]["hasPreviousPage"] is (after is not None)
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert sizes == [2, 2, 1]
    assert [(node["kind"], node["task"]["version"]) for node in nodes] == [
        ("CREATED", 1),
        *(("UPDATED", version) for version in range(2, 6)),
    ]
    assert [node["previous"] and node["previous"]["version"] for node in nodes] == [None, 1, 2, 3, 4]


async def test_history_goes_back_from_the_newest_in_pages(api: Api) -> None:
    ann = await api.register("ann")
    task, other = await api.create_task(ann), await api.create_task(ann)
    for number in range(4):
        await api.update_task(ann, task["id"], title=f"Change {number}")
        await api.update_task(ann, other["id"], title=f"Change {number}")

    async def read(**arguments: Any) -> dict[str, Any]:
        data = await api.data(HISTORY, {"id": task["id"], **arguments}, by=ann)
        page: dict[str, Any] = data["task"]["history"]
        return page

    whole = (await read())["nodes"]
    assert [node["task"]["version"] for node in whole] == [1, 2, 3, 4, 5]
    pages = [await read(last=2)]
    while pages[-1]["pageInfo"]["hasPreviousPage"]:
        before = pages[-1]["pageInfo"]["startCursor"]
        assert before == pages[-1]["nodes"][0]["cursor"]
        pages.append(await read(last=2, before=before))
    assert [page["nodes"] for page in pages] == [whole[3:], whole[1:3], whole[:1]]
    assert [page["pageInfo"]["hasNextPage"] for page in pages] == [False, True, True]
    assert (await read(before=whole[3]["cursor"]))["nodes"] == whole[:3]
    assert (await read(before=whole[3]["cursor"], first=2))["nodes"] == whole[:2]
    assert (await read(after=whole[0]["cursor"], last=9))["nodes"] == whole[1:]
    assert await api.codes(HISTORY, {"id": task["id"], "first": 1, "last": 1}, by=ann) == ["BAD_USER_INPUT"]


async def test_history_shows_what_one_might_see_at_the_time(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = await api.create_task(ann, title="Before Bob")
    await api.update_task(ann, task["id"], assigneeId=bob.id)
    await api.update_task(ann, task["id"], title="With Bob")
    await api.update_task(ann, task["id"], assigneeId=None)
    await api.update_task(ann, task["id"], title="Without Bob")
    await api.update_task(ann, task["id"], assigneeId=bob.id)

    async def history(by: Person) -> list[tuple[str, int | None, int | None]]:
        nodes = (await api.data(HISTORY, {"id": task["id"]}, by=by))["task"]["history"]["nodes"]
        versions = [[node[side] and node[side]["version"] for side in ("previous", "task")] for node in nodes]
        return [(node["kind"], before, after) for node, (before, after) in zip(nodes, versions, strict=True)]

    assert await history(bob) == [("ENTERED", None, 2), ("UPDATED", 2, 3), ("LEFT", 3, None), ("ENTERED", None, 6)]
    assert await history(ann) == [("CREATED", None, 1), *(("UPDATED", version, version + 1) for version in range(1, 6))]
    await api.update_task(ann, task["id"], assigneeId=None)
    assert await api.data(HISTORY, {"id": task["id"]}, by=bob) == {"task": None}


async def test_history_refuses_a_bad_cursor(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann)
    assert await api.codes(HISTORY, {"id": task["id"], "after": "rubbish"}, by=ann) == ["BAD_USER_INPUT"]
    foreign = encode_cursor("0123456789abcdef", 1)
    assert await api.codes(HISTORY, {"id": task["id"], "after": foreign}, by=ann) == ["BAD_USER_INPUT"]


# Server-sent events


class EventStream:
    """The bytes of a streamed answer, read as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._bytes = response.aiter_raw()
        self._read = b""

    async def until(self, end: bytes) -> bytes:
        """Up to and with the end mark."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while end not in self._read:
                self._read += await anext(self._bytes)
        piece, mark, self._read = self._read.partition(end)
        return piece + mark

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return self._read + b"".join([piece async for piece in self._bytes])

    async def event(self) -> dict[str, str]:
        """The next server-sent event, comments left out."""
        while True:
            lines = (await self.until(b"\n\n")).decode().splitlines()
            parts = [line.partition(":") for line in lines if line]
            fields = {name: value.removeprefix(" ") for name, _, value in parts}
            if fields.keys() != {""}:
                return fields


@asynccontextmanager
async def streaming(
    api: Api,
    by: Person | None,
    query: str,
    variables: dict[str, Any] | None = None,
    *,
    accept: str = "text/event-stream",
    last_event_id: str | None = None,
) -> AsyncIterator[EventStream]:
    headers = {"Accept": accept}
    if by is not None:
        headers["Authorization"] = f"Bearer {by.token}"
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    body = {"query": query, "variables": variables}
    async with api.http.stream("POST", "/graphql", json=body, headers=headers) as response:
        yield EventStream(response)


async def test_server_sent_events_are_framed_with_line_feeds_and_carry_the_cursor(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    task = await api.create_task(ann)
    (change,) = (await pull(api, ann, start))["nodes"]
    async with streaming(api, ann, CHANGED, {"after": start}) as stream:
        assert (stream.response.status_code, stream.response.headers["content-type"]) == (200, "text/event-stream")
        assert "no-cache" in stream.response.headers["cache-control"]
        frame = (await stream.until(b"\n\n")).decode()
        assert "\r" not in frame
        id_line, event_line, data_line = frame.rstrip("\n").split("\n")
        assert (id_line, event_line) == (f"id: {change['cursor']}", "event: next")
        assert json.loads(data_line.removeprefix("data: ")) == {"data": {"taskChanged": change}}
        await api.update_task(ann, task["id"], title="Live")
        live = await stream.event()
        assert json.loads(live["data"])["data"]["taskChanged"]["task"]["title"] == "Live"
        assert live["id"] == json.loads(live["data"])["data"]["taskChanged"]["cursor"]


async def test_last_event_id_resumes_and_wins_over_the_after_of_the_first_time(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    task = await api.create_task(ann)
    for number in range(3):
        await api.update_task(ann, task["id"], title=f"Change {number}")
    cursors = [node["cursor"] for node in (await pull(api, ann, start))["nodes"]]
    async with streaming(api, ann, CHANGED, last_event_id=cursors[1]) as stream:
        assert [(await stream.event())["id"] for _ in range(2)] == cursors[2:]
    async with streaming(api, ann, CHANGED, {"after": start}, last_event_id=cursors[2]) as stream:
        assert [(await stream.event())["id"] for _ in range(1)] == cursors[3:]
    async with streaming(api, ann, CHANGED, last_event_id="rubbish") as stream:
        (error,) = json.loads((await stream.event())["data"])["errors"]
        assert error["extensions"]["code"] == "BAD_USER_INPUT"
        assert (await stream.event())["event"] == "complete"


async def test_a_query_is_answered_as_events_when_those_are_asked_for(api: Api) -> None:
    ann = await api.register("ann")
    async with streaming(api, ann, "{ me { username } }") as stream:
        assert json.loads((await stream.until(b"\n\n")).decode().removeprefix("event: next\ndata: ")) == {
            "data": {"me": {"username": "ann"}}
        }
        assert await stream.rest() == b"event: complete\ndata: \n\n"


async def test_events_for_nobody_are_an_error_and_the_end(api: Api) -> None:
    async with streaming(api, None, CHANGED) as stream:
        (error,) = json.loads((await stream.event())["data"])["errors"]
        assert error["extensions"]["code"] == "UNAUTHENTICATED"
        assert await stream.event() == {"event": "complete", "data": ""}
        assert await stream.rest() == b""


def test_a_stream_of_events_is_kept_alive_by_comments() -> None:
    transport = ServerSentEvents()
    assert transport.heartbeat_message(json.dumps) == ": ping\n\n"
    # Proxies cut what is silent for a minute, some for half of one.
    assert transport.heartbeat_interval <= 15


URQL = (
    "application/graphql-response+json, application/graphql+json, application/json, text/event-stream, multipart/mixed"
)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (URQL, "application/graphql-response+json; charset=utf-8"),
        ("application/json, text/event-stream", "application/json; charset=utf-8"),
        ("*/*", "application/json; charset=utf-8"),
        ("multipart/mixed;deferSpec=20220824,application/json", "application/json; charset=utf-8"),
        ("text/event-stream;q=0.5, application/json", "application/json; charset=utf-8"),
    ],
)
async def test_a_stream_is_for_those_who_like_it_best(api: Api, accept: str, content_type: str) -> None:
    ann = await api.register("ann")
    headers = {"Accept": accept, "Authorization": f"Bearer {ann.token}"}
    response = await api.http.post("/graphql", json={"query": "{ me { username } }"}, headers=headers)
    assert (response.headers["content-type"], response.json()) == (content_type, {"data": {"me": {"username": "ann"}}})
    refused = await api.http.post("/graphql", json={"query": CHANGED}, headers=headers)
    assert (refused.status_code, refused.headers["content-type"]) == (400, content_type)
    (error,) = refused.json()["errors"]
    assert "graphql-transport-ws" in error["message"]
    assert "text/event-stream" in error["message"]


# Multipart


async def test_multipart_subscriptions_are_framed_as_apollo_reads_them(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    await api.create_task(ann)
    (change,) = (await pull(api, ann, start))["nodes"]
    accept = "multipart/mixed;boundary=graphql;subscriptionSpec=1.0,application/json"
    async with streaming(api, ann, CHANGED, {"after": start}, accept=accept) as stream:
        content_type = stream.response.headers["content-type"]
        assert content_type.startswith("multipart/mixed;boundary=graphql;subscriptionSpec=1.0")
        bodies = []
        while {"payload": {"data": {"taskChanged": change}}} not in bodies:
            part = await stream.until(b"--graphql")
            _, _, body = part.removesuffix(b"--graphql").partition(b"\r\n\r\n")
            bodies.append(json.loads(body) if body.strip() else None)
        # An empty object is the heartbeat, and the first comes at once.
        assert {} in bodies
        assert [body for body in bodies if body] == [{"payload": {"data": {"taskChanged": change}}}]


# Credentials that end


class Stopwatch:
    def __init__(self) -> None:
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun


async def test_a_deactivated_person_s_streams_end_within_two_seconds(api: Api, database: Database) -> None:
    ann, boss = await api.register("ann"), await api.register("boss")
    await make_admin(database, boss.id)
    start = await end_of_stream(api, ann)
    async with (
        listening(api, ann, start) as of_ann,
        listening(api, boss, start, query=KINDS) as of_boss,
        streaming(api, ann, CHANGED, {"after": start}) as events,
    ):
        await api.create_task(ann)
        await hear(of_ann)
        await events.event()
        await hear(of_boss)
        assert await api.data(DEACTIVATE, {"id": ann.id}, by=boss) == {"deactivateUser": {"errors": []}}
        stopwatch = Stopwatch()
        assert await of_ann.close_code() == 4403
        (error,) = json.loads((await events.event())["data"])["errors"]
        assert stopwatch.seconds < REVOKED_SECONDS
        assert error["extensions"]["code"] == "UNAUTHENTICATED"
        assert (await events.event())["event"] == "complete"
        # Others are not disturbed.
        assert await kinds_until(api, boss, of_boss) == []


async def test_a_changed_password_ends_the_other_sessions_streams_and_nothing_is_missed(api: Api) -> None:
    ann = await api.register("ann")
    phone = replace(ann, token=(await login(api, "ann", ann.password))["accessToken"])
    start = await end_of_stream(api, ann)
    async with listening(api, ann, start, query=KINDS) as here, listening(api, phone, start) as there:
        task = await api.create_task(ann, title="Heard")
        (heard,) = await hear(there)
        await hear(here)
        given = {"currentPassword": ann.password, "newPassword": "another battery"}
        await api.data(CHANGE_PASSWORD, {"input": given}, by=ann)
        stopwatch = Stopwatch()
        assert await there.close_code() == 4403
        assert stopwatch.seconds < REVOKED_SECONDS
        await api.update_task(ann, task["id"], title="Missed")
        assert [change["task"]["title"] for change in await hear(here)] == ["Missed"]
    async with api.socket() as refused:
        await refused.send(type="connection_init", payload={"Authorization": phone.token})
        assert await refused.close_code() == 4403
    phone.token = (await login(api, "ann", "another battery"))["accessToken"]
    async with listening(api, phone, heard["cursor"]) as there:
        assert [change["task"]["title"] for change in await hear(there)] == ["Missed"]


@pytest.mark.slow
async def test_a_stream_ends_with_its_token(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    short = replace(ann, token=forge(ann.token, exp=expires_at))
    async with listening(api, short, start) as socket, listening(api, ann, start, query=KINDS) as other:
        task = await api.create_task(ann)
        (heard,) = await hear(socket)
        assert await socket.close_code() == 4403
        now = datetime.now(UTC)
        assert expires_at <= now < expires_at + timedelta(seconds=REVOKED_SECONDS)
        await api.update_task(ann, task["id"], title="Meanwhile")
        await hear(other, 2)
    async with listening(api, ann, heard["cursor"]) as socket:
        assert [change["task"]["title"] for change in await hear(socket)] == ["Meanwhile"]


@pytest.mark.slow
async def test_a_demoted_admin_soon_hears_no_more_of_others(api: Api, database: Database) -> None:
    ann, boss, root = [await api.register(name) for name in ("ann", "boss", "root")]
    await make_admin(database, boss.id)
    await make_admin(database, root.id)
    start = await end_of_stream(api, boss)
    async with listening(api, boss, start, query=KINDS) as socket:
        task = await api.create_task(ann, title="In time")
        assert [change["task"]["title"] for change in await hear(socket)] == ["In time"]
        assert await api.data(SET_ROLE, {"id": boss.id, "role": "MEMBER"}, by=root) == {"setUserRole": {"errors": []}}
        stopwatch, number = Stopwatch(), 0
        while stopwatch.seconds < REVOKED_SECONDS:
            number += 1
            await api.update_task(ann, task["id"], title=f"Perhaps {number}")
        await api.update_task(ann, task["id"], title="Too late")
        own = await api.create_task(boss, title="Own")
        titles = []
        while (change := (await hear(socket))[0])["taskId"] != own["id"]:
            titles.append(change["task"]["title"])
        assert "Too late" not in titles
        assert titles == [f"Perhaps {n + 1}" for n in range(len(titles))]
    # Also not out of the table, from where an admin of then could have read it.
    async with listening(api, boss, start, query=KINDS) as socket:
        assert [change["taskId"] for change in await hear(socket)] == [own["id"]]


async def test_a_revocation_reaches_another_process_while_redis_is_down(postgresql_settings: Settings) -> None:
    with RedisServer() as redis:
        settings = postgresql_settings.model_copy(update={"redis_url": redis.url()})
        async with serving(settings) as here, serving(settings) as there:
            ann = await here.register("ann")
            phone = replace(ann, token=(await login(here, "ann", ann.password))["accessToken"])
            start = await end_of_stream(there, phone)
            async with listening(there, phone, start) as socket, listening(there, ann, start, query=KINDS) as other:
                await here.create_task(ann)
                await hear(socket)
                await asyncio.to_thread(redis.kill)
                given = {"currentPassword": ann.password, "newPassword": "another battery"}
                await here.data(CHANGE_PASSWORD, {"input": given}, by=ann)
                stopwatch = Stopwatch()
                assert await socket.close_code() == 4403
                assert stopwatch.seconds < REVOKED_SECONDS
                # The others still hear, if a moment later.
                await here.create_task(ann)
                await hear(other, 2)


# Bad manners


async def test_two_operations_of_one_id_close_the_socket(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    async with listening(api, ann, start) as socket, listening(api, ann, start, query=KINDS) as other:
        await socket.subscribe(CHANGED, variables={"after": start})
        assert await socket.close_code() == 4409
        assert await kinds_until(api, ann, other) == []


async def test_an_id_is_free_again_when_its_operation_is_complete(api: Api) -> None:
    ann = await api.register("ann")
    start = await end_of_stream(api, ann)
    async with listening(api, ann, start, query=KINDS) as socket:
        await socket.send(type="complete", id="1")
        await socket.subscribe(KINDS, variables={"after": start})
        assert await kinds_until(api, ann, socket) == []


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([{"type": "subscribe", "id": "1", "payload": {"query": CHANGED}}], 4401),
        ([{"type": "connection_init"}, {"type": "connection_init"}], 4429),
        ([{"type": "connection_init", "payload": "no object"}], 4400),
        ([{"type": "connection_init"}, {"type": "no such type"}], 4400),
        ([{"type": "connection_init", "payload": {"Authorization": "rubbish"}}], 4403),
    ],
)
async def test_each_breach_of_the_protocol_has_its_close_code(
    api: Api, messages: list[dict[str, Any]], code: int
) -> None:
    async with api.socket() as socket:
        with suppress(ConnectionClosed):
            for message in messages:
                await socket.send(**message)
        assert await socket.close_code() == code


async def test_a_message_is_at_most_64_kib(api: Api) -> None:
    async with api.socket() as socket:
        with suppress(ConnectionClosed):
            await socket.connection.send("x" * (64 * 1024 + 1))
        assert await socket.close_code() == 1009


@pytest.mark.slow
async def test_ten_thousand_subscribes_on_one_socket_are_a_hundred_subscriptions(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    start = await end_of_stream(api, ann)
    async with listening(api, bob, start, query=KINDS) as other, api.signed_in_socket(ann) as socket:

        async def subscribe() -> None:
            for number in range(10_000):
                await socket.subscribe(KINDS, id=str(number), variables={"after": start})

        subscribing = asyncio.create_task(subscribe())
        # Others are told in the midst of it.
        assert await kinds_until(api, bob, other) == []
        refused = {(await socket.receive())["id"] for _ in range(9_900)}
        await subscribing
        assert refused == {str(number) for number in range(100, 10_000)}
        await api.create_task(ann)
        told = [await socket.receive() for _ in range(100)]
        assert {message["id"] for message in told} == {str(number) for number in range(100)}
        assert {message["type"] for message in told} == {"next"}


async def test_a_person_has_so_many_subscriptions_over_all_sockets(settings: Settings) -> None:
    async with serving(settings.model_copy(update={"max_subscriptions_per_user": 3})) as api:
        ann, bob = await api.register("ann"), await api.register("bob")
        start = await end_of_stream(api, ann)
        async with AsyncExitStack() as stack:
            held = [await stack.enter_async_context(listening(api, ann, start, query=KINDS)) for _ in range(3)]
            await api.create_task(ann)
            for socket in held:
                await hear(socket)
            refused = await stack.enter_async_context(listening(api, ann, start, query=KINDS))
            message = await refused.receive()
            assert message["type"] == "error"
            (error,) = message["payload"]
            assert error["extensions"]["code"] == "RATE_LIMITED"
            assert error["message"] == "You have 3 subscriptions open, which is the limit: close some first"
            # The limit is hers alone, and one that is closed makes room.
            async with listening(api, bob, start, query=KINDS) as other:
                assert await kinds_until(api, bob, other) == []
            await held[0].connection.close()
            stopwatch = Stopwatch()
            while message["type"] != "next" and stopwatch.seconds < PATIENCE_SECONDS:
                await refused.subscribe(KINDS, id="again", variables={"after": start})
                message = await refused.receive()
            assert message["type"] == "next"


async def test_an_address_has_so_many_sockets_and_streams(settings: Settings) -> None:
    async with serving(settings.model_copy(update={"max_sockets_per_address": 2})) as api:
        ann = await api.register("ann")
        start = await end_of_stream(api, ann)
        async with (
            listening(api, ann, start, query=KINDS) as socket,
            streaming(api, ann, KINDS, {"after": start}) as stream,
        ):
            await api.create_task(ann)
            await hear(socket)
            await stream.event()
            with pytest.raises(InvalidStatus) as refused:
                async with api.socket():
                    pass
            assert refused.value.response.status_code == 429
            async with streaming(api, ann, KINDS) as refused_stream:
                assert refused_stream.response.status_code == 429
                assert b"Too many streams from your address" in await refused_stream.rest()
            # Queries are not counted.
            assert await kinds_until(api, ann, socket) == []
        stopwatch = Stopwatch()
        opened = False
        while not opened and stopwatch.seconds < PATIENCE_SECONDS:
            with suppress(InvalidStatus):
                async with api.socket():
                    opened = True
        assert opened


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
async def test_who_does_not_read_costs_a_bounded_queue_and_misses_nothing(settings: Settings, tmp_path: Path) -> None:
    environment = environment_of(settings) | {"TASKFLOW_SUBSCRIPTION_QUEUE_SIZE": "5"}
    async with serve(tmp_path, **environment) as served:
        api = served.api
        ann = await api.register("ann")
        start = await end_of_stream(api, ann)
        # Each change is told as 200 KB; a hundred of them fit into no buffer on the way.
        big = " ".join(f"d{number}: description" for number in range(20))
        query = f"subscription($after: String) {{ taskChanged(after: $after) {{ task {{ version {big} }} }} }}"
        task = await api.create_task(ann, description="0" * 10_000)
        reluctant = sockets.socket()
        reluctant.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        reluctant.setblocking(False)
        host, port = api.url.removeprefix("http://").split(":")
        await asyncio.get_running_loop().sock_connect(reluctant, (host, int(port)))
        async with (
            listening(api, ann, start, query=KINDS) as other,
            connect(
                api.url.replace("http", "ws") + "/graphql",
                sock=reluctant,
                subprotocols=[Subprotocol("graphql-transport-ws")],
                # One message waits to be received; then the library reads no more from the socket.
                max_queue=1,
                max_size=None,
                ping_interval=None,
            ) as connection,
        ):
            await hear(other)
            socket = Socket(connection)
            await socket.send(type="connection_init", payload={"Authorization": ann.token})
            assert await socket.receive() == {"type": "connection_ack"}
            await socket.subscribe(query, variables={"after": start})
            before = memory_bytes(served.process.pid)
            slowest = 0.0
            for number in range(1, 101):
                stopwatch = Stopwatch()
                await api.update_task(ann, task["id"], description=f"{number % 10}" * 10_000)
                await hear(other)
                slowest = max(slowest, stopwatch.seconds)
            assert slowest < 2
            assert memory_bytes(served.process.pid) - before < 16 * 1024 * 1024
            versions = [(await socket.next())["taskChanged"]["task"]["version"] for _ in range(101)]
            assert versions == list(range(1, 102))


# The server stops


@pytest.mark.slow
async def test_a_server_that_stops_finishes_what_it_has_begun(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    async with serve(tmp_path, **environment_of(settings)) as served:
        api = served.api
        ann = await api.register("ann")
        start = await end_of_stream(api, ann)
        task = await api.create_task(ann)
        async with (
            listening(api, ann, start, query=KINDS) as socket,
            streaming(api, ann, KINDS, {"after": start}) as stream,
        ):
            await hear(socket)
            await stream.event()
            async with database.write() as session:
                # The mutation waits for this lock when the server is told to stop.
                await session.execute(select(Task.id).with_for_update())
                given = {"input": {"id": task["id"], "title": "In flight"}}
                in_flight = asyncio.create_task(api.post(UPDATE_TASK, given, by=ann))
                for _ in range(5):
                    assert (await api.http.get("/health")).status_code == 200
                stopping = asyncio.create_task(served.stop())
                assert (await stream.event())["event"] == "complete"
                assert await stream.rest() == b""
                # Without `complete`, after which clients would not come back.
                assert await socket.close_code() == 1012
                assert not in_flight.done()
            payload = (await in_flight)["data"]["updateTask"]
            assert (payload["task"]["title"], payload["errors"]) == ("In flight", [])
            assert await stopping == 0
        assert "Traceback" not in served.log.read_text()
