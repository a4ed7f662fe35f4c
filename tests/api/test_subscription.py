"""taskChanged, as clients see it over graphql-transport-ws."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskflow_gql.database.units import Database
from taskflow_gql.stream.fanout import Subscriber
from tests.support.client import PATIENCE_SECONDS, Api, Person, Socket
from tests.support.servers import RedisServer
from tests.support.serving import make_admin, make_settings, serving

CHANGED = """
subscription {
  taskChanged {
    cursor kind taskId changedFields occurredAt actor { username fullName }
    task { id title description status priority category dueDate completed version creator { username }
           assignee { username } viewerCanUpdate }
    previous { title description status priority category dueDate assigneeId version }
  }
}
"""


class Stream:
    """One subscription on a socket."""

    def __init__(self, socket: Socket, id: str = "1") -> None:
        self.socket = socket
        self.id = id

    async def next(self) -> dict[str, Any]:
        change: dict[str, Any] = (await self.socket.next(self.id))["taskChanged"]
        return change

    async def begin(self, api: Api, by: Person) -> None:
        """Subscribe, and return when the server listens: knock until it answers, and take in all the knocks."""
        await self.socket.subscribe(CHANGED, id=self.id)
        knock = await api.create_task(by, "Knock")
        first = asyncio.ensure_future(self.next())
        count = 0
        while not first.done():
            count += 1
            await api.update_task(by, knock["id"], description=str(count))
            await asyncio.wait([first], timeout=0.02)
        change = await first
        while change["taskId"] != knock["id"] or change["task"]["description"] != str(count):
            change = await self.next()


@asynccontextmanager
async def watching(api: Api, by: Person) -> AsyncIterator[Stream]:
    async with api.signed_in_socket(by) as socket:
        stream = Stream(socket)
        await stream.begin(api, by)
        yield stream


async def mutate(api: Api, by: Person, name: str, **given: Any) -> None:
    input_type = f"{name[0].upper()}{name[1:]}Input"
    document = f"mutation($input: {input_type}!) {{ {name}(input: $input) {{ errors {{ code }} }} }}"
    assert await api.data(document, {"input": given}, by=by) == {name: {"errors": []}}


def essence(change: dict[str, Any]) -> tuple[str, str | None, list[str]]:
    """Kind, title after the change, and what changed."""
    return change["kind"], change["task"] and change["task"]["title"], change["changedFields"]


async def test_create_update_and_delete_arrive_whole_and_in_order(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    async with watching(api, ann) as stream:
        before = datetime.now(UTC)
        task = await api.create_task(ann, "Write", priority="HIGH", assigneeId=bob.id)
        whole = {
            "id": task["id"],
            "title": "Write",
            "description": None,
            "status": "PENDING",
            "priority": "HIGH",
            "category": "OTHER",
            "dueDate": None,
            "completed": False,
            "version": 1,
            "creator": {"username": "ann"},
            "assignee": {"username": "bob"},
            "viewerCanUpdate": True,
        }
        created = await stream.next()
        assert created == {
            "cursor": created["cursor"],
            "kind": "CREATED",
            "taskId": task["id"],
            "changedFields": [],
            "occurredAt": created["occurredAt"],
            "actor": {"username": "ann", "fullName": "Ann"},
            "task": whole,
            "previous": None,
        }
        assert before <= datetime.fromisoformat(created["occurredAt"]) <= datetime.now(UTC)

        await mutate(
            api, ann, "updateTask", id=task["id"], title="Rewrite", dueDate="2035-01-01T00:00:00Z", priority="LOW"
        )
        snapshot = {
            "title": "Write",
            "description": None,
            "status": "PENDING",
            "priority": "HIGH",
            "category": "OTHER",
            "dueDate": None,
            "assigneeId": bob.id,
            "version": 1,
        }
        rewritten = whole | {"title": "Rewrite", "dueDate": "2035-01-01T00:00:00+00:00", "priority": "LOW"}
        updated = await stream.next()
        assert updated == created | {
            "cursor": updated["cursor"],
            "kind": "UPDATED",
            "changedFields": ["TITLE", "PRIORITY", "DUE_DATE"],
            "occurredAt": updated["occurredAt"],
            "task": rewritten | {"version": 2},
            "previous": snapshot,
        }

        await mutate(api, bob, "toggleTaskCompletion", id=task["id"])
        completed = await stream.next()
        assert completed == updated | {
            "cursor": completed["cursor"],
            "changedFields": ["STATUS"],
            "occurredAt": completed["occurredAt"],
            "actor": {"username": "bob", "fullName": "Bob"},
            "task": rewritten | {"version": 3, "status": "COMPLETED", "completed": True},
            "previous": {
                **snapshot,
                "title": "Rewrite",
                "dueDate": "2035-01-01T00:00:00+00:00",
                "priority": "LOW",
                "version": 2,
            },
        }

        await mutate(api, ann, "deleteTask", id=task["id"])
        deleted = await stream.next()
        assert deleted == completed | {
            "cursor": deleted["cursor"],
            "kind": "DELETED",
            "changedFields": [],
            "occurredAt": deleted["occurredAt"],
            "actor": {"username": "ann", "fullName": "Ann"},
            "task": None,
            "previous": completed["previous"] | {"status": "COMPLETED", "version": 3},
        }
        cursors = [change["cursor"] for change in (created, updated, completed, deleted)]
        assert len(set(cursors)) == 4
        moments = [change["occurredAt"] for change in (created, updated, completed, deleted)]
        assert moments == sorted(moments)


async def test_assigning_enters_and_unassigning_leaves_the_view_of_the_assignee(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = await api.create_task(ann, "Secret", description="Never told")
    async with watching(api, ann) as anns, watching(api, bob) as bobs:
        await mutate(api, ann, "updateTask", id=task["id"], assigneeId=bob.id)
        entered = await bobs.next()
        assert essence(entered) == ("ENTERED", "Secret", ["ASSIGNEE"])
        assert (entered["previous"], entered["task"]["viewerCanUpdate"]) == (None, False)

        await mutate(api, ann, "updateTask", id=task["id"], description="Told")
        assert essence(await bobs.next()) == ("UPDATED", "Secret", ["DESCRIPTION"])

        await mutate(api, ann, "updateTask", id=task["id"], title="Secret again", assigneeId=None)
        left = await bobs.next()
        # Neither the new title nor anything else of how it stands now.
        assert essence(left) == ("LEFT", None, ["TITLE", "ASSIGNEE"])
        assert left["taskId"] == task["id"]
        assert (left["previous"]["title"], left["previous"]["assigneeId"]) == ("Secret", bob.id)

        await mutate(api, ann, "updateTask", id=task["id"], title="Not for bob")
        await mutate(api, ann, "deleteTask", id=task["id"])
        # To the creator these were updates; and nothing came in between for the assignee.
        kinds = [essence(await anns.next()) for _ in range(5)]
        assert kinds == [
            ("UPDATED", "Secret", ["ASSIGNEE"]),
            ("UPDATED", "Secret", ["DESCRIPTION"]),
            ("UPDATED", "Secret again", ["TITLE", "ASSIGNEE"]),
            ("UPDATED", "Not for bob", ["TITLE"]),
            ("DELETED", None, []),
        ]
        await api.create_task(ann, "For bob", assigneeId=bob.id)
        assert essence(await bobs.next()) == ("CREATED", "For bob", [])


async def test_strangers_see_nothing_and_admins_everything(api: Api, database: Database) -> None:
    ann, eve, boss = await api.register("ann"), await api.register("eve"), await api.register("boss")
    await make_admin(database, boss.id)
    async with watching(api, eve) as eves, watching(api, boss) as bosses:
        task = await api.create_task(ann, "Private")
        await mutate(api, ann, "updateTask", id=task["id"], title="Still private")
        await mutate(api, ann, "deleteTask", id=task["id"])
        await api.create_task(eve, "Mine")
        assert essence(await eves.next()) == ("CREATED", "Mine", [])
        assert [essence(await bosses.next()) for _ in range(4)] == [
            ("CREATED", "Private", []),
            ("UPDATED", "Still private", ["TITLE"]),
            ("DELETED", None, []),
            ("CREATED", "Mine", []),
        ]


async def test_what_was_refused_or_changed_nothing_is_no_event(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    async with watching(api, ann) as stream:
        task = await api.create_task(ann, "Steady", assigneeId=bob.id)
        assert (await stream.next())["kind"] == "CREATED"
        refused: list[tuple[Person, dict[str, Any], str]] = [
            (ann, {"title": "x"}, "BAD_USER_INPUT"),
            (ann, {"expectedVersion": 7, "title": "Conflict"}, "VERSION_CONFLICT"),
            (ann, {"title": "Nobody's", "assigneeId": task["id"]}, "ASSIGNEE_NOT_FOUND"),
            (bob, {"title": "Bob's"}, "FORBIDDEN"),
        ]
        for person, given, code in refused:
            payload = await api.update_task(person, task["id"], **given)
            assert [error["code"] for error in payload["errors"]] == [code]
        assert (await api.update_task(ann, task["id"], title="Steady"))["errors"] == []
        await mutate(api, ann, "deleteTask", id=task["id"])
        deleted = await stream.next()
        assert (deleted["kind"], deleted["previous"]["version"]) == ("DELETED", 1)


async def test_a_subscriber_hears_nothing_of_what_was_before(api: Api) -> None:
    ann = await api.register("ann")
    async with api.signed_in_socket(ann) as socket:
        for n in range(5):
            # Committed a moment ago, perhaps not even placed.
            before = await asyncio.gather(*(api.create_task(ann, f"Before {n}") for _ in range(5)))
            stream = Stream(socket, str(n))
            await socket.subscribe(CHANGED, id=stream.id)
            first = asyncio.ensure_future(stream.next())
            while not first.done():
                await api.create_task(ann, f"After {n}")
                await asyncio.wait([first], timeout=0.02)
            assert (await first)["task"]["title"] == f"After {n}"
            assert (await first)["taskId"] not in [task["id"] for task in before]
            await socket.send(type="complete", id=stream.id)
            await drain(socket)


async def drain(socket: Socket) -> None:
    """Read on until all that was sent before this moment has come."""
    await socket.send(type="subscribe", id="drain", payload={"query": "{ serverInfo { name } }"})
    while await socket.receive() != {"type": "complete", "id": "drain"}:
        pass


async def test_changes_of_one_task_arrive_in_order_though_they_are_made_at_once(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    async with watching(api, bob) as stream:
        tasks = [await api.create_task(ann, f"Task {n}", assigneeId=bob.id) for n in range(3)]
        await asyncio.gather(
            *(api.update_task(ann, task["id"], description=f"{task['id']} {n}") for n in range(12) for task in tasks)
        )
        changes = [await stream.next() for _ in range(39)]
        for task in tasks:
            own = [change for change in changes if change["taskId"] == task["id"]]
            assert [change["task"]["version"] for change in own] == list(range(1, 14))
            # Each begins where the one before it ended.
            descriptions = [change["task"]["description"] for change in own]
            assert [change["previous"]["description"] for change in own[1:]] == descriptions[:-1]
        assert len({change["cursor"] for change in changes}) == 39


async def test_every_subscription_on_every_socket_is_told_once(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    heard: dict[tuple[int, str], list[str]] = {(n, id): [] for n in range(3) for id in ("first", "second")}
    all_listen = asyncio.Event()

    async def listen(n: int, socket: Socket) -> None:
        while not all(titles[-1:] == ["The end"] for (m, _), titles in heard.items() if m == n):
            message = await socket.receive()
            heard[n, message["id"]].append(message["payload"]["data"]["taskChanged"]["task"]["title"])
            if all(heard.values()):
                all_listen.set()

    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(api.signed_in_socket(person)) for person in (ann, ann, bob)]
        for socket in sockets:
            await socket.subscribe(CHANGED, id="first")
            await socket.subscribe(CHANGED, id="second")
        listeners = asyncio.gather(*(listen(n, socket) for n, socket in enumerate(sockets)))
        while not all_listen.is_set():
            await api.create_task(ann, "Knock", assigneeId=bob.id)
        titles = ["Common", "Also common", "The end"]
        for title in titles:
            await api.create_task(ann, title, assigneeId=bob.id)
        await listeners
    for told in heard.values():
        assert [title for title in told if title != "Knock"] == titles


async def test_each_event_is_read_with_fresh_eyes(api: Api) -> None:
    ann = await api.register("ann")
    rename = "mutation($name: String!) { updateProfile(input: {fullName: $name}) { errors { code } } }"
    async with watching(api, ann) as stream:
        for name in ("Ann", "Ann Onym", "Anne"):
            await api.data(rename, {"name": name}, by=ann)
            await api.create_task(ann)
            assert (await stream.next())["actor"] == {"username": "ann", "fullName": name}


async def test_an_anonymous_subscriber_is_unauthenticated(api: Api) -> None:
    async with api.socket() as socket:
        await socket.send(type="connection_init")
        assert await socket.receive() == {"type": "connection_ack"}
        await socket.subscribe(CHANGED)
        message = await socket.receive()
        errors = message["payload"] if message["type"] == "error" else message["payload"]["errors"]
        assert [error["message"] for error in errors] == ["Not authenticated"]
        assert [error["extensions"] for error in errors] == [{"code": "UNAUTHENTICATED"}]
        if message["type"] == "next":
            assert message["payload"]["data"] is None
            assert await socket.receive() == {"type": "complete", "id": "1"}
        # The socket lives on.
        await socket.send(type="subscribe", id="2", payload={"query": "{ serverInfo { name } }"})
        assert await socket.next("2") == {"serverInfo": {"name": "TaskFlow GQL"}}


@pytest.mark.slow
async def test_complete_stops_a_subscription_and_its_id_can_be_used_again(api: Api) -> None:
    ann = await api.register("ann")
    async with watching(api, ann) as stream:
        socket = stream.socket
        await socket.send(type="complete", id=stream.id)
        await until_subscribers_are(0, socket)
        await api.create_task(ann, "Unheard")
        await stream.begin(api, ann)
        await api.create_task(ann, "Heard")
        assert essence(await stream.next()) == ("CREATED", "Heard", [])


async def until_subscribers_are(count: int, socket: Socket) -> None:
    """The server runs in this very process: nothing of a subscription that has ended may stay behind."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            gc.collect()
            if sum(isinstance(thing, Subscriber) for thing in gc.get_objects()) == count:
                return
            await drain(socket)


async def test_a_socket_that_is_gone_disturbs_nobody(api: Api) -> None:
    ann = await api.register("ann")
    async with watching(api, ann) as stream:
        async with watching(api, ann) as other:
            other.socket.connection.transport.abort()
        task = await api.create_task(ann, "Heard")
        while (change := await stream.next())["taskId"] != task["id"]:
            assert change["task"]["title"] == "Knock"
        assert essence(change) == ("CREATED", "Heard", [])
        await until_subscribers_are(1, stream.socket)


async def test_two_fields_in_one_subscription_and_one_over_http_are_refused(api: Api) -> None:
    ann = await api.register("ann")
    async with api.signed_in_socket(ann) as socket:
        await socket.subscribe("subscription { a: taskChanged { cursor } b: taskChanged { cursor } }")
        message = await socket.receive()
        assert (message["type"], message["id"]) == ("error", "1")
        assert [error["extensions"]["code"] for error in message["payload"]] == ["GRAPHQL_VALIDATION_FAILED"]
    assert await api.codes(CHANGED, by=ann) == ["BAD_USER_INPUT"]


async def test_a_change_on_one_server_reaches_a_subscriber_of_another(empty_postgres: str, tmp_path: Path) -> None:
    with RedisServer() as redis:
        settings = make_settings(data_dir=tmp_path, database_url=empty_postgres, redis_url=redis.url())
        async with serving(settings) as here, serving(settings) as there:
            ann = await here.register("ann")
            async with watching(there, ann) as stream:
                for n in range(3):
                    await here.create_task(ann, f"With Redis {n}")
                    assert essence(await stream.next()) == ("CREATED", f"With Redis {n}", [])
                # Redis only carries news. Without it the table is read a moment later.
                redis.kill()
                for n in range(2):
                    await here.create_task(ann, f"Without Redis {n}")
                    assert essence(await stream.next()) == ("CREATED", f"Without Redis {n}", [])
                redis.start()
                await here.create_task(ann, "With Redis again")
                assert essence(await stream.next()) == ("CREATED", "With Redis again", [])
