"""The graphql-transport-ws protocol, with clients that follow it and clients that break it."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from taskflow_gql.config import Settings
from taskflow_gql.database.units import Database
from taskflow_gql.transport import origins, websocket
from tests.support.client import CREATE_TASK, Api, Person, Socket
from tests.support.serving import make_admin, make_settings, serving

pytestmark = pytest.mark.usefixtures("no_errors_are_logged")

QUERY = "{ serverInfo { name } }"
NAME = {"serverInfo": {"name": "TaskFlow GQL"}}
ME = "{ me { username fullName } }"
SUBSCRIPTION = "subscription { taskChanged { kind } }"


@pytest.fixture(scope="module")
async def web(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """One server for all tests that leave nothing behind in the database."""
    path = tmp_path_factory.mktemp("websocket") / "taskflow.sqlite3"
    shutil.copy(migrated_sqlite, path)
    async with serving(make_settings(data_dir=path.parent, database_url=f"sqlite:///{path}")) as api:
        yield api


@asynccontextmanager
async def anonymous_socket(api: Api) -> AsyncIterator[Socket]:
    async with api.socket() as socket:
        await socket.send(type="connection_init")
        assert await socket.receive() == {"type": "connection_ack"}
        yield socket


async def ask(socket: Socket, query: str, id: str = "1", **variables: Any) -> dict[str, Any]:
    """Run one operation that has a single result, and return that result."""
    await socket.send(type="subscribe", id=id, payload={"query": query, "variables": variables})
    message = await socket.receive()
    assert (message["type"], message["id"]) == ("next", id), message
    assert await socket.receive() == {"type": "complete", "id": id}
    answer: dict[str, Any] = message["payload"]
    return answer


async def closed(socket: Socket) -> tuple[int | None, str | None]:
    """Close code and reason. Fails if a message comes before the close."""
    with pytest.raises(ConnectionClosed):
        raise AssertionError(await socket.receive())
    return socket.connection.close_code, socket.connection.close_reason


# ---------------------------------------------------------------- authentication


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {} ", "{}"])
@pytest.mark.parametrize("key", ["Authorization", "authorization", "AUTHORIZATION"])
async def test_connection_init_accepts_the_token_in_any_spelling(web: Api, key: str, form: str) -> None:
    ann = await registered(web)
    async with web.socket() as socket:
        await socket.send(type="connection_init", payload={"other": 1, key: form.format(ann.token)})
        assert await socket.receive() == {"type": "connection_ack"}
        assert await ask(socket, "{ me { username } }") == {"data": {"me": {"username": ann.username}}}


async def registered(api: Api) -> Person:
    """Register a new person on the shared server."""
    return await api.register(f"person{next(_numbers)}")


_numbers = itertools.count()


async def test_a_token_in_the_handshake_counts_unless_connection_init_has_one(web: Api) -> None:
    ann, bob = await registered(web), await registered(web)
    for payload, person in (({}, ann), ({"authorization": f"Bearer {bob.token}"}, bob)):
        async with web.socket(headers={"Authorization": f"Bearer {ann.token}"}) as socket:
            await socket.send(type="connection_init", payload=payload)
            assert await socket.receive() == {"type": "connection_ack"}
            assert await ask(socket, "{ me { username } }") == {"data": {"me": {"username": person.username}}}


@pytest.mark.parametrize("payload", [None, {}, {"Authorization": ""}, {"Authorization": "Bearer "}, {"Other": "x"}])
async def test_a_socket_without_a_token_is_anonymous(web: Api, payload: dict[str, str] | None) -> None:
    async with web.socket() as socket:
        await socket.send(type="connection_init", payload=payload)
        assert await socket.receive() == {"type": "connection_ack"}
        assert await ask(socket, "{ me { username } }") == {"data": {"me": None}}
        answer = await ask(socket, "{ tasks { totalCount } }")
        assert answer["data"] is None
        assert [error["extensions"] for error in answer["errors"]] == [{"code": "UNAUTHENTICATED"}]


async def test_a_bad_token_closes_with_4403(web: Api) -> None:
    ann = await registered(web)
    bad = ["rubbish", f"{ann.token}x", ann.token[:-5], "a.b.c"]
    for token in bad:
        async with web.socket() as socket:
            await socket.send(type="connection_init", payload={"Authorization": f"Bearer {token}"})
            assert await closed(socket) == (4403, "Forbidden")
    async with web.socket(headers={"Authorization": "Bearer rubbish"}) as socket:
        await socket.send(type="connection_init")
        assert await closed(socket) == (4403, "Forbidden")


async def test_a_deactivated_users_token_closes_with_4403(api: Api, database: Database) -> None:
    ann, boss = await api.register("ann"), await api.register("boss")
    await make_admin(database, boss.id)
    deactivate = "mutation($id: ID!) { deactivateUser(input: {userId: $id}) { errors { code } } }"
    assert (await api.data(deactivate, {"id": ann.id}, by=boss))["deactivateUser"]["errors"] == []
    async with api.socket() as socket:
        await socket.send(type="connection_init", payload={"Authorization": ann.token})
        assert await closed(socket) == (4403, "Forbidden")


# ---------------------------------------------------------------- operations


async def test_queries_and_mutations_work_over_a_websocket(api: Api) -> None:
    ann = await api.register("ann")
    async with api.signed_in_socket(ann) as socket:
        created = await ask(socket, CREATE_TASK, input={"title": "By socket"})
        task = created["data"]["createTask"]["task"]
        assert created == {"data": {"createTask": {"task": task, "errors": []}}}
        found = await ask(socket, "query($task: ID!) { task(id: $task) { id title version } }", task=task["id"])
        assert found == {"data": {"task": task}}
        listed = await ask(socket, "{ tasks { nodes { id title version } } }")
        assert listed == {"data": {"tasks": {"nodes": [task]}}}
    assert await api.data("{ tasks { nodes { id title version } } }", by=ann) == listed["data"]


async def test_each_operation_reads_users_and_roles_afresh(api: Api, database: Database) -> None:
    ann, boss = await api.register("ann"), await api.register("boss")
    await make_admin(database, boss.id)
    rename = "mutation($name: String!) { updateProfile(input: {fullName: $name}) { user { fullName } } }"
    async with api.signed_in_socket(ann) as socket, api.signed_in_socket(ann) as other:
        for name in ("Ann", "Anne", "Anna"):
            assert (await ask(other, rename, name=name))["data"] == {"updateProfile": {"user": {"fullName": name}}}
            assert await ask(socket, ME) == {"data": {"me": {"username": "ann", "fullName": name}}}
            # The list of users shows the new name too.
            assert (await ask(socket, "{ users { nodes { fullName } } }"))["data"]["users"]["nodes"][0] == {
                "fullName": name
            }
        task = await api.create_task(boss)
        visible = f'{{ task(id: "{task["id"]}") {{ title }} }}'
        role = "mutation($input: SetUserRoleInput!) { setUserRole(input: $input) { errors { code } } }"
        for given, expected in (("ADMIN", {"title": "A task"}), ("MEMBER", None)):
            await api.data(role, {"input": {"userId": ann.id, "role": given}}, by=boss)
            assert await ask(socket, visible) == {"data": {"task": expected}}


async def test_a_user_deactivated_between_two_operations_is_refused_the_second(api: Api, database: Database) -> None:
    ann, boss = await api.register("ann"), await api.register("boss")
    await make_admin(database, boss.id)
    deactivate = "mutation($id: ID!) { deactivateUser(input: {userId: $id}) { errors { code } } }"
    async with api.signed_in_socket(ann) as socket:
        assert (await ask(socket, "{ me { username } }"))["data"] == {"me": {"username": "ann"}}
        await api.data(deactivate, {"id": ann.id}, by=boss)
        for query in ("{ me { username } }", "{ tasks { totalCount } }"):
            (error,) = (await ask(socket, query))["errors"]
            assert error["message"] == "Could not validate credentials: the user is deactivated"
            assert error["extensions"] == {"code": "UNAUTHENTICATED"}
        refused = await ask(socket, CREATE_TASK, input={"title": "Too late"})
        assert [error["extensions"]["code"] for error in refused["errors"]] == ["UNAUTHENTICATED"]
    assert (await api.data("{ tasks { totalCount } }", by=boss))["tasks"] == {"totalCount": 0}


async def test_pipelined_operations_are_all_answered(web: Api) -> None:
    async with anonymous_socket(web) as socket:
        ids = [f"operation {n}" for n in range(50)]
        for id in ids:
            await socket.send(type="subscribe", id=id, payload={"query": QUERY})
        messages = [await socket.receive() for _ in range(100)]
        for id in ids:
            assert [message for message in messages if message["id"] == id] == [
                {"type": "next", "id": id, "payload": {"data": NAME}},
                {"type": "complete", "id": id},
            ]


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"query": "{"}, "GRAPHQL_PARSE_FAILED"),
        ({"query": ""}, "BAD_USER_INPUT"),
        ({"query": "{ nope }"}, "GRAPHQL_VALIDATION_FAILED"),
        ({"query": "subscription { nope }"}, "GRAPHQL_VALIDATION_FAILED"),
        ({"query": QUERY, "operationName": "Other"}, "BAD_USER_INPUT"),
        ({"query": "query($id: ID!) { node(id: $id) { id } }", "variables": {"id": "\x00"}}, "BAD_USER_INPUT"),
        ({"query": "fragment F on Query { me { id } }"}, "BAD_USER_INPUT"),
        ({"query": "{" + "a: me { id } " * 200 + "}"}, "QUERY_TOO_COMPLEX"),
        ({"query": "{ me { id } } " * 1000}, "GRAPHQL_PARSE_FAILED"),
    ],
    ids=lambda value: ascii(value)[:50],
)
async def test_an_operation_that_cannot_run_gets_an_error_and_the_socket_stays_open(
    web: Api, payload: dict[str, Any], code: str
) -> None:
    async with anonymous_socket(web) as socket:
        await socket.send(type="subscribe", id="bad", payload=payload)
        message = await socket.receive()
        assert (message["type"], message["id"]) == ("error", "bad")
        assert [error["extensions"]["code"] for error in message["payload"]] == [code]
        assert await ask(socket, QUERY, id="bad") == {"data": NAME}


async def test_an_operation_with_invalid_variables_answers_with_errors_only(web: Api) -> None:
    async with anonymous_socket(web) as socket:
        answer = await ask(socket, "query($id: ID!) { node(id: $id) { id } }")
        assert answer.get("data") is None
        assert [error["extensions"]["code"] for error in answer["errors"]] == ["BAD_USER_INPUT"]


async def test_a_socket_takes_100_subscriptions_and_refuses_the_next(web: Api) -> None:
    async with web.signed_in_socket(await registered(web)) as socket:
        for n in range(100):
            await socket.subscribe(SUBSCRIPTION, id=str(n))
        for _ in range(2):
            await socket.subscribe(SUBSCRIPTION, id="one too many")
            message = await socket.receive()
            assert (message["type"], message["id"]) == ("error", "one too many")
            assert [error["extensions"] for error in message["payload"]] == [{"code": "RATE_LIMITED", "retryAfter": 10}]
        await socket.send(type="complete", id="7")
        assert await ask(socket, QUERY, id="7") == {"data": NAME}


async def test_pings_are_answered_and_pongs_ignored(web: Api) -> None:
    async with web.socket() as socket:
        await socket.send(type="ping")
        assert (await socket.receive())["type"] == "pong"
        await socket.send(type="connection_init")
        assert await socket.receive() == {"type": "connection_ack"}
        await socket.send(type="pong", payload={"nobody": "asked"})
        await socket.send(type="ping", payload={"sent": 1})
        assert (await socket.receive())["type"] == "pong"
        assert await ask(socket, QUERY) == {"data": NAME}


async def test_completing_an_unknown_operation_changes_nothing(web: Api) -> None:
    async with anonymous_socket(web) as socket:
        await socket.send(type="complete", id="never begun")
        assert await ask(socket, QUERY) == {"data": NAME}
        await socket.send(type="complete", id="1")
        assert await ask(socket, QUERY) == {"data": NAME}


# ---------------------------------------------------------------- close codes


async def test_an_operation_before_connection_init_closes_with_4401(web: Api) -> None:
    async with web.socket() as socket:
        await socket.subscribe(QUERY)
        assert await closed(socket) == (4401, "Unauthorized")


async def test_a_second_connection_init_closes_with_4429(web: Api) -> None:
    async with anonymous_socket(web) as socket:
        await socket.send(type="connection_init")
        assert await closed(socket) == (4429, "Too many initialisation requests")


async def test_an_operation_id_in_use_closes_with_4409(web: Api) -> None:
    async with web.signed_in_socket(await registered(web)) as socket:
        await socket.subscribe(SUBSCRIPTION, id="twice")
        await socket.subscribe(SUBSCRIPTION, id="twice")
        assert await closed(socket) == (4409, "Subscriber for twice already exists")
    async with web.signed_in_socket(await registered(web)) as socket:
        long = "é" * 1000
        await socket.subscribe(SUBSCRIPTION, id=long)
        await socket.subscribe(SUBSCRIPTION, id=long)
        code, reason = await closed(socket)
        # The reason in a close frame may have 123 bytes.
        assert (code, reason) == (4409, f"Subscriber for {'é' * 54}")


NOT_JSON = "WebSocket message must be valid JSON"
NO_MESSAGE = "A message must be an object with a type"
NO_ID = "The id of an operation must be a string that is not empty"
NO_PAYLOAD = "The payload of subscribe must be an object with a query"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", NOT_JSON),
        ("{", NOT_JSON),
        ("nonsense", NOT_JSON),
        ("[" * 60_000, NOT_JSON),
        ("9" * 5000, NOT_JSON),
        ("[]", NO_MESSAGE),
        ("null", NO_MESSAGE),
        ("1", NO_MESSAGE),
        ('"ping"', NO_MESSAGE),
        ("{}", NO_MESSAGE),
        ({"type": None}, NO_MESSAGE),
        ({"type": ["ping"]}, NO_MESSAGE),
        ({"type": "hello"}, "Unknown message type: hello"),
        ({"type": "start", "id": "1", "payload": {"query": QUERY}}, "Unknown message type: start"),
        ({"type": "next", "id": "1", "payload": {}}, "Unknown message type: next"),
        ({"type": "x" * 1000}, f"Unknown message type: {'x' * 101}"),
        ({"type": "\ud800"}, "Unknown message type: ?"),
        ({"type": "subscribe", "payload": {"query": QUERY}}, NO_ID),
        ({"type": "subscribe", "id": "", "payload": {"query": QUERY}}, NO_ID),
        ({"type": "subscribe", "id": 1, "payload": {"query": QUERY}}, NO_ID),
        ({"type": "subscribe", "id": ["1"], "payload": {"query": QUERY}}, NO_ID),
        ({"type": "complete"}, NO_ID),
        ({"type": "complete", "id": {}}, NO_ID),
        ({"type": "subscribe", "id": "1"}, NO_PAYLOAD),
        ({"type": "subscribe", "id": "1", "payload": QUERY}, NO_PAYLOAD),
        ({"type": "subscribe", "id": "1", "payload": [QUERY]}, NO_PAYLOAD),
        ({"type": "subscribe", "id": "1", "payload": {}}, NO_PAYLOAD),
        ({"type": "subscribe", "id": "1", "payload": {"query": None}}, NO_PAYLOAD),
        ({"type": "subscribe", "id": "1", "payload": {"query": {"a": 1}}}, NO_PAYLOAD),
        ({"type": "subscribe", "id": "1", "payload": {"query": QUERY, "variables": []}}, "variables must be an object"),
        (
            {"type": "subscribe", "id": "1", "payload": {"query": QUERY, "variables": "{}"}},
            "variables must be an object",
        ),
        (
            {"type": "subscribe", "id": "1", "payload": {"query": QUERY, "operationName": 1}},
            "operationName must be a string",
        ),
    ],
    ids=lambda value: ascii(value)[:60],
)
async def test_an_invalid_message_closes_with_4400(web: Api, message: str | dict[str, Any], reason: str) -> None:
    async with anonymous_socket(web) as socket:
        await socket.connection.send(message if isinstance(message, str) else json.dumps(message))
        assert await closed(socket) == (4400, reason)


@pytest.mark.parametrize("payload", [[], "Bearer x", 1, False])
async def test_a_connection_init_with_a_bad_payload_closes_with_4400(web: Api, payload: object) -> None:
    async with web.socket() as socket:
        await socket.send(type="connection_init", payload=payload)
        assert await closed(socket) == (4400, "Invalid connection init payload")


async def test_a_binary_message_closes_with_4400(web: Api) -> None:
    async with anonymous_socket(web) as socket:
        await socket.connection.send(b'{"type": "ping"}')
        assert await closed(socket) == (4400, "WebSocket message type must be text")


async def test_a_message_of_more_than_64_kib_closes_with_1009(web: Api) -> None:
    async with anonymous_socket(web) as socket:
        head, tail = '{"type": "ping", "payload": {"a": "', '"}}'
        await socket.connection.send(head + "x" * (64 * 1024 - len(head + tail)) + tail)
        assert (await socket.receive())["type"] == "pong"
        await socket.connection.send(head + "x" * (64 * 1024 - len(head + tail) + 1) + tail)
        assert (await closed(socket))[0] == 1009


@pytest.mark.parametrize("subprotocols", [None, ["graphql-ws"], ["soap"]])
async def test_a_socket_without_a_supported_subprotocol_closes_with_4406(
    web: Api, subprotocols: list[Subprotocol] | None
) -> None:
    async with connect(address(web), subprotocols=subprotocols) as connection:
        assert await closed(Socket(connection)) == (4406, "Subprotocol not acceptable")


def address(api: Api) -> str:
    return api.url.replace("http://", "ws://") + "/graphql"


async def test_our_subprotocol_is_chosen_among_several(web: Api) -> None:
    offered = [Subprotocol("graphql-ws"), Subprotocol("graphql-transport-ws")]
    async with connect(address(web), subprotocols=offered) as connection:
        assert connection.subprotocol == "graphql-transport-ws"


async def test_websockets_are_accepted_from_listed_origins_and_our_own_only(
    web: Api, caplog: pytest.LogCaptureFixture
) -> None:
    protocols = [Subprotocol("graphql-transport-ws")]
    for origin in ("http://localhost:5173", "http://localhost:3000", "HTTP://LOCALHOST:3000", web.url):
        async with connect(address(web), subprotocols=protocols, origin=Origin(origin)) as connection:
            socket = Socket(connection)
            await socket.send(type="connection_init")
            assert await socket.receive() == {"type": "connection_ack"}
    for origin in ("http://evil.example", "http://localhost:5174", "http://localhost:5173.evil.example", "null", "x"):
        with pytest.raises(InvalidStatus) as caught:
            await connect(address(web), subprotocols=protocols, origin=Origin(origin))
        response = caught.value.response
        assert (response.status_code, response.headers["X-Content-Type-Options"]) == (403, "nosniff")
        assert b"TASKFLOW_CORS_ORIGINS" in response.body
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == (
        "Refused a WebSocket from a page of 'http://evil.example': TASKFLOW_CORS_ORIGINS does not name it"
    )


async def test_refused_origins_are_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(origins, "monotonic", lambda: now)
    scope = {"type": "websocket", "headers": [(b"host", b"x"), (b"origin", b"https://foreign.example")]}
    allowed = origins.AllowedOrigins(["https://app.example"])
    for _ in range(3):
        assert not allowed.allow(scope)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    now += 61
    assert not allowed.allow(scope)
    assert len(caplog.records) == 2


async def test_sec_fetch_site_same_origin_is_accepted_when_a_proxy_hides_the_host(web: Api) -> None:
    headers = {"Sec-Fetch-Site": "same-origin"}
    protocols = [Subprotocol("graphql-transport-ws")]
    origin = Origin("https://public.example")
    async with connect(address(web), subprotocols=protocols, origin=origin, additional_headers=headers) as connection:
        assert connection.subprotocol == "graphql-transport-ws"


async def test_in_production_unlisted_origins_cannot_connect(postgresql_settings: Settings) -> None:
    protocols = [Subprotocol("graphql-transport-ws")]
    async with serving(postgresql_settings.model_copy(update={"env": "production"})) as api:
        for origin in ("http://localhost:5173", "http://localhost:3000"):
            with pytest.raises(InvalidStatus):
                await connect(address(api), subprotocols=protocols, origin=Origin(origin))
            response = await api.http.post("/graphql", json={"query": QUERY}, headers={"Origin": origin})
            assert "access-control-allow-origin" not in response.headers


async def test_a_socket_over_the_limit_is_refused_without_an_error_in_the_log(sqlite_settings: Settings) -> None:
    async with serving(sqlite_settings.model_copy(update={"max_sockets_per_address": 1})) as api, api.socket():
        with pytest.raises(InvalidStatus) as caught:
            await connect(address(api), subprotocols=[Subprotocol("graphql-transport-ws")])
        assert caught.value.response.status_code == 429


async def test_clients_that_vanish_at_any_moment_do_not_affect_others(web: Api) -> None:
    ann = await registered(web)
    async with web.signed_in_socket(ann) as witness:
        for said in range(4):
            async with web.socket() as socket:
                if said >= 1:
                    await socket.send(type="connection_init", payload={"Authorization": ann.token})
                if said >= 2:
                    await socket.subscribe(SUBSCRIPTION)
                if said >= 3:
                    await socket.send(type="subscribe", id="2", payload={"query": ME})
                socket.connection.transport.abort()
        assert await ask(witness, QUERY) == {"data": NAME}
        # Also while answers are being sent.
        websocket = await asyncio.gather(*(leave_early(web, ann) for _ in range(10)))
        assert websocket == [None] * 10
        assert await ask(witness, QUERY) == {"data": NAME}


async def leave_early(api: Api, by: Person) -> None:
    async with api.signed_in_socket(by) as socket:
        for n in range(20):
            await socket.send(type="subscribe", id=str(n), payload={"query": "{ users { nodes { id } } }"})
        await socket.receive()
        socket.connection.transport.abort()


async def test_a_client_that_sends_no_connection_init_is_closed_with_4408(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_CONNECTION_INIT_TIMEOUT", timedelta(seconds=0.3))
    async with serving(sqlite_settings) as api, api.socket() as silent, anonymous_socket(api) as polite:
        assert await silent.close_code() == 4408
        assert (await ask(polite, "{ serverInfo { name } }"))["data"]


@pytest.mark.parametrize("is_early", [True, False])
async def test_a_persisted_query_hash_does_not_excuse_protocol_violations(api: Api, is_early: bool) -> None:
    payload = {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}}
    async with api.socket() if is_early else api.signed_in_socket(await api.register("ann")) as socket:
        if not is_early:
            await socket.subscribe(SUBSCRIPTION)
        await socket.send(type="subscribe", id="1", payload=payload)
        assert await socket.close_code() == 4400


async def test_a_hash_without_a_document_is_an_error_of_its_operation(api: Api) -> None:
    ann = await api.register("ann")
    async with api.signed_in_socket(ann) as socket:
        extensions = {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}
        await socket.send(type="subscribe", id="1", payload={"extensions": extensions})
        error = {"message": "PersistedQueryNotSupported", "extensions": {"code": "PERSISTED_QUERY_NOT_SUPPORTED"}}
        assert await socket.receive() == {"type": "error", "id": "1", "payload": [error]}
        await socket.subscribe("{ me { username } }")
        assert await socket.next() == {"me": {"username": "ann"}}


# ---------------------------------------------------------------- clients that do not read


LARGE = "{ tasks(first: 100) { nodes { a: description b: description } } }"


@asynccontextmanager
async def unread_socket(api: Api, by: Person) -> AsyncIterator[Socket]:
    """A socket whose client takes only a few kilobytes until `receive` is called."""
    host, port = api.url.removeprefix("http://").split(":")
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, (host, int(port)))
    url = f"ws://{host}:{port}/graphql"
    protocols = [Subprotocol("graphql-transport-ws")]
    async with connect(url, sock=plain, subprotocols=protocols, max_queue=1, max_size=None) as connection:
        client = Socket(connection)
        await client.send(type="connection_init", payload={"Authorization": f"Bearer {by.token}"})
        assert await client.receive() == {"type": "connection_ack"}
        yield client


async def read_to_the_end(client: Socket) -> None:
    while True:
        await client.receive()


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """Collects every SQL statement executed during the test."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.slow
async def test_operations_wait_while_earlier_answers_are_unread(
    sqlite_settings: Settings, statements: list[str]
) -> None:
    async with serving(sqlite_settings) as api:
        ann = await api.register("ann")
        for _ in range(40):
            await api.create_task(ann, description="x" * 10_000)
        async with unread_socket(api, ann) as client:
            # 800 KB each.
            for number in range(60):
                await client.send(type="subscribe", id=str(number), payload={"query": LARGE})
            # The other requests give the server time to run all the operations that it is going to run.
            for _ in range(200):
                assert await api.data(ME, by=ann) == {"me": {"username": "ann", "fullName": "Ann"}}
            lists = [statement for statement in statements if "description" in statement and "INSERT" not in statement]
            assert 4 <= len(lists) < 30
            answered = [message["id"] for message in [await client.receive() for _ in range(120)]]
            assert sorted(answered, key=int) == [str(number) for number in range(60) for _ in "ab"]


async def test_a_socket_with_too_many_unread_answers_is_closed(sqlite_settings: Settings) -> None:
    async with serving(sqlite_settings.model_copy(update={"max_unsent_bytes": 500_000})) as api:
        ann = await api.register("ann")
        task = await api.create_task(ann, description="x" * 10_000)
        async with unread_socket(api, ann) as client:
            for number in range(100):
                query = "subscription { taskChanged { task { a: description b: description c: description } } }"
                await client.send(type="subscribe", id=str(number), payload={"query": query})
            await client.send(type="subscribe", id="last", payload={"query": ME})
            while (await client.receive())["id"] != "last":
                pass
            # 3 MB each. The client's system buffers take some of it.
            for number in range(20):
                await api.update_task(ann, task["id"], title=f"Title {number}")
            with pytest.raises(ConnectionClosed) as closed:
                await read_to_the_end(client)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1013, "Answers are not read")
        # The user may open another socket.
        async with api.signed_in_socket(ann) as client:
            assert (await ask(client, ME))["data"]["me"]["username"] == "ann"


@pytest.mark.slow
async def test_queries_whose_answers_pile_up_unread_are_dropped_without_an_error(
    sqlite_settings: Settings,
) -> None:
    async with serving(sqlite_settings.model_copy(update={"max_unsent_bytes": 1_000_000})) as api:
        ann = await api.register("ann")
        for _ in range(40):
            await api.create_task(ann, description="x" * 10_000)
        async with unread_socket(api, ann) as client:
            for number in range(60):
                await client.send(type="subscribe", id=str(number), payload={"query": LARGE})
            # The other requests give the answers time to pile up.
            for _ in range(200):
                await api.data(ME, by=ann)
            with pytest.raises(ConnectionClosed) as closed:
                await read_to_the_end(client)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013


async def test_a_single_answer_may_exceed_the_bound(sqlite_settings: Settings) -> None:
    async with serving(sqlite_settings.model_copy(update={"max_unsent_bytes": 1024})) as api:
        ann = await api.register("ann")
        await api.create_task(ann, description="x" * 10_000)
        async with api.signed_in_socket(ann) as client:
            answer = await ask(client, LARGE)
            assert len(answer["data"]["tasks"]["nodes"][0]["a"]) == 10_000
