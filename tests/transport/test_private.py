"""uvicorn, websockets, Strawberry and Starlette have the undocumented parts that the transport uses.

A failing test names the part that a new version has changed. What our classes do with the parts is tested in
test_connections.py, test_http.py and test_websocket.py.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from datetime import timedelta
from hashlib import sha256
from importlib.metadata import version
from itertools import takewhile
from textwrap import dedent
from typing import Any, NamedTuple

import pytest
import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import StreamingResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from strawberry.asgi import GraphQL
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import Operation
from uvicorn.supervisors import Multiprocess
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from taskflow_gql.transport import private
from taskflow_gql.transport.connections import ServerConfig
from taskflow_gql.transport.middleware import Cors, RevalidatedFiles
from taskflow_gql.transport.protocols import HttpProtocol, SocketProtocol, _Flow
from taskflow_gql.transport.streaming import EndlessResponse, MultipartSubscription, ServerSentEvents
from taskflow_gql.transport.websocket import SocketView, TransportWSHandler, WebSocketAdapter
from tests.support.serving import _Server


def changed(module: str, part: str, user: object) -> str:
    """Say which library has changed which part, and what uses it."""
    library = module.partition(".")[0].replace("strawberry", "strawberry-graphql")
    return f"{library} {version(library)} has changed {part}; adapt {getattr(user, '__qualname__', user)}"


def parameters_of(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


# Objects of the libraries


class Wire(asyncio.Transport):
    """A connection without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


async def wait_for_disconnect(scope: Scope, receive: Receive, send: Send) -> None:
    while not (await receive())["type"].endswith(".disconnect"):
        pass


POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
# An argument that is not used.
NOTHING: Any = None
MADE: list[Any] = []


@pytest.fixture(autouse=True)
async def closed_connections() -> AsyncIterator[None]:
    """The event loop of the test, in which its connections end."""
    yield
    for protocol in MADE:
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.tasks)
    MADE.clear()


def config(app: Any = wait_for_disconnect) -> uvicorn.Config:
    return uvicorn.Config(app, log_config=None, ws_per_message_deflate=False)


def stock(protocol: type[Any], data: bytes, app: Any = wait_for_disconnect) -> Any:
    """uvicorn's own protocol, which has received this."""
    made = protocol(config(app), private.ServerState(), {})
    made.connection_made(Wire())
    made.data_received(data)
    MADE.append(made)
    return made


def stock_http() -> Any:
    return stock(private.HttpToolsProtocol, POST)


def stock_socket() -> Any:
    return stock(private.WebSocketsSansIOProtocol, HANDSHAKE)


def stock_handler() -> Any:
    return private.BaseGraphQLTransportWSHandler(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, timedelta(1))


# Subclasses


class Subclass(NamedTuple):
    """A class of ours, an object of its base class, and what it overrides there: methods with their parameters."""

    ours: type[Any]
    make_base: Callable[[], Any]
    overridden: dict[str, str]

    @property
    def classes(self) -> list[type[Any]]:
        """The classes of ours that come before the base class."""
        base = type(self.make_base())
        return [*takewhile(lambda one: one is not base, self.ours.__mro__)]


ASGI = "scope receive send"
PROTOCOL = "config server_state app_state _loop"
SUBCLASSES = [
    Subclass(_Flow, lambda: private.FlowControl(Wire()), {"__init__": "transport", "resume_reading": ""}),
    Subclass(
        HttpProtocol,
        stock_http,
        {
            "__init__": PROTOCOL,
            "connection_made": "transport",
            "connection_lost": "exc",
            "data_received": "data",
            "eof_received": "",
            "handle_websocket_upgrade": "",
            "on_message_begin": "",
            "on_headers_complete": "",
            "on_body": "body",
            "on_message_complete": "",
            "on_response_complete": "",
        },
    ),
    Subclass(
        SocketProtocol,
        stock_socket,
        {
            "__init__": PROTOCOL,
            "connection_made": "transport",
            "connection_lost": "exc",
            "data_received": "data",
            "resume_writing": "",
            "receive": "",
            "send": "message",
            "send_receive_event_to_app": "",
            "handle_ping": "",
            "send_keepalive_ping": "",
            "keepalive_timeout": "",
        },
    ),
    Subclass(ServerConfig, config, {}),
    Subclass(_Server, lambda: uvicorn.Server(config()), {"__init__": "config", "main_loop": "", "capture_signals": ""}),
    Subclass(
        TransportWSHandler,
        stock_handler,
        {
            "__init__": (
                "view websocket context root_value schema connection_init_wait_timeout max_subscriptions_per_connection"
            ),
            "send_message": "message",
            "shutdown": "",
            "handle_message": "message",
            "handle_connection_init": "message",
            "handle_task_exception": "error",
            "_send_result_stream": "operation result_source",
        },
    ),
    Subclass(
        WebSocketAdapter,
        lambda: private.ASGIWebSocketAdapter(NOTHING, NOTHING, NOTHING),
        {"close": "code reason"},
    ),
    Subclass(
        SocketView,
        lambda: GraphQL[Any, Any](NOTHING),
        {
            "__init__": "schema ...",
            "get_context": "request response",
            "on_ws_connect": "context",
            "encode_json": "data",
            "decode_json": "data",
            "graphql_transport_ws_handler_class": "...",
            "websocket_adapter_class": "view request response",
        },
    ),
    Subclass(ServerSentEvents, private.SSETransport, {"encode_event": "event data", "encode_comment": "comment"}),
    Subclass(MultipartSubscription, private.MultipartSubscriptionTransport, {}),
    Subclass(
        EndlessResponse,
        lambda: StreamingResponse([]),
        {"__init__": "content ...", "__call__": ASGI, "stream_response": "send"},
    ),
    Subclass(Cors, lambda: CORSMiddleware(wait_for_disconnect), {"__init__": "app ...", "__call__": ASGI}),
    Subclass(RevalidatedFiles, StaticFiles, {"file_response": "full_path stat_result scope ..."}),
]
with_subclasses = pytest.mark.parametrize("subclass", SUBCLASSES, ids=[one.ours.__name__ for one in SUBCLASSES])


def attributes_of_self(source: str, context: type[ast.expr_context] = ast.expr_context) -> Iterator[str]:
    for node in ast.walk(ast.parse(dedent(source))):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=found) if isinstance(found, context):
                yield name


def own_names(classes: list[type[Any]]) -> set[str]:
    """The names that the classes define and those that their `__init__` sets."""
    names = {name for one in classes for name in vars(one) if not name.startswith("__")} - {"_abc_impl"}
    names |= {name for one in classes for name in ("__init__", "__call__") if name in vars(one)}
    for one in classes:
        if "__init__" in vars(one):
            names.update(attributes_of_self(inspect.getsource(one.__init__), ast.Store))
    return names


@with_subclasses
async def test_our_classes_override_only_what_they_mean_to(subclass: Subclass) -> None:
    base = subclass.make_base()
    module, name = type(base).__module__, type(base).__name__
    found, listed = own_names(subclass.classes).intersection(dir(base)), {*subclass.overridden}
    assert found <= listed, changed(module, f"{name}, which now has {found - listed} too", subclass.ours)
    assert listed <= found, changed(module, f"{name}, which no longer has {listed - found}", subclass.ours)


@with_subclasses
async def test_overridden_methods_have_the_same_parameters(subclass: Subclass) -> None:
    base = type(subclass.make_base())
    for name, parameters in subclass.overridden.items():
        expected, found = parameters.split(), parameters_of(getattr(base, name))
        if parameters.endswith("..."):
            expected, found = expected[:-1], found[: len(expected) - 1]
        part = f"the parameters of {base.__qualname__}.{name}"
        assert found == expected, changed(base.__module__, part, f"{subclass.ours.__name__}.{name}")


@with_subclasses
async def test_our_classes_use_attributes_that_their_bases_have(subclass: Subclass) -> None:
    base, classes = subclass.make_base(), subclass.classes
    used = {name for one in classes for name in attributes_of_self(inspect.getsource(one))}
    declared = {name for one in classes for name in one.__annotations__}
    missing = used - declared - own_names(classes) - {*dir(base)}
    assert missing == set(), changed(type(base).__module__, f"{type(base).__name__}.{missing}", subclass.ours)


async def test_declared_attributes_are_ours_or_theirs() -> None:
    http, socket, handler = stock_http(), stock_socket(), stock_handler()
    for base, names in ((http, ["transport"]), (socket, ["transport"]), (handler, ["view", "websocket"])):
        for name in names:
            assert hasattr(base, name), changed(type(base).__module__, f"{type(base).__name__}.{name}", "its subclass")
    assert not hasattr(config(), "limits"), changed("uvicorn", "Config, which now has limits too", ServerConfig)


# Attributes of other objects

PARTS: dict[str, tuple[Callable[[], Any], str]] = {
    "HttpToolsProtocol.cycle": (
        lambda: stock_http().cycle,
        "response_complete response_started disconnected keep_alive chunked_encoding message_event",
    ),
    "HttpToolsProtocol.flow": (lambda: stock_http().flow, "read_paused resume_reading"),
    "ServerState": (private.ServerState, "default_headers total_requests"),
    "WebSocketsSansIOProtocol.conn": (lambda: stock_socket().conn, "state send_close data_to_send"),
    "WebSocketsSansIOProtocol.request.headers": (lambda: stock_socket().request.headers, "clear"),
    "WebSocketsSansIOProtocol.response.headers": (lambda: stock_socket().response.headers, "clear"),
    "Server": (lambda: uvicorn.Server(config()), "started should_exit"),
    "Config": (config, "workers"),
    "Operation": (lambda: Operation(*[NOTHING] * 5), "id completed task"),
    "SSETransport": (
        private.SSETransport,
        "protocol headers heartbeat_interval send_initial_heartbeat allowed_operation_types encode_next "
        "encode_complete heartbeat_message",
    ),
}


@pytest.mark.parametrize("part", PARTS)
async def test_objects_have_the_attributes_that_we_use(part: str) -> None:
    make, names = PARTS[part]
    found = make()
    for name in names.split():
        assert hasattr(found, name), changed(type(found).__module__, f"{part}.{name}", "taskflow_gql/transport")


METHODS: list[tuple[type[Any], str, str]] = [
    (private.HttpToolsProtocol, "_should_upgrade", ""),
    (private.HttpToolsProtocol, "_start_asgi_task", "cycle app"),
    (private.WebSocketsSansIOProtocol, "handle_parser_exception", ""),
    (private.WebSocketsSansIOProtocol, "schedule_ping", ""),
    (private.BaseGraphQLTransportWSHandler, "_handle_pre_execution_error", "operation result"),
    (private.BaseGraphQLTransportWSHandler, "handle_invalid_message", "error_message"),
    (CORSMiddleware, "is_allowed_origin", "origin"),
    (CORSMiddleware, "allow_explicit_origin", "headers origin"),
    (CORSMiddleware, "send", "message send request_headers"),
    (uvicorn.Server, "run", "sockets"),
    (uvicorn.Server, "serve", "sockets"),
    (Multiprocess, "__init__", "config sockets"),
    (Multiprocess, "run", ""),
]


@pytest.mark.parametrize(("owner", "name", "parameters"), METHODS)
def test_methods_have_the_parameters_that_we_give(owner: type[Any], name: str, parameters: str) -> None:
    part = f"{owner.__name__}.{name}"
    assert hasattr(owner, name), changed(owner.__module__, part, "taskflow_gql/transport")
    found = parameters_of(getattr(owner, name))
    assert found == parameters.split(), changed(owner.__module__, f"the parameters of {part}", "taskflow_gql/transport")


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (private.merge_stream_with_heartbeat, "stream heartbeat_message interval send_initial_heartbeat"),
        (private.normalize_origin, "origin"),
        (private.is_same_origin, "origin host"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_functions_have_the_parameters_that_we_give(function: Callable[..., Any], parameters: str) -> None:
    part = f"the parameters of {function.__name__}"
    assert parameters_of(function) == parameters.split(), changed(function.__module__, part, "taskflow_gql/transport")


# Methods that ours replace without calling them. Ours must follow any change of these.

REPLACED: list[tuple[type[Any], str, Any, str]] = [
    (private.FlowControl, "resume_reading", _Flow.resume_reading, "73272cfeeda7"),
    (private.HttpToolsProtocol, "data_received", HttpProtocol.parse, "8583b7d501b5"),
    (private.HttpToolsProtocol, "eof_received", HttpProtocol.eof_received, "463e2d67aaf5"),
    (private.HttpToolsProtocol, "on_response_complete", HttpProtocol.on_response_complete, "3b835da51ff0"),
    (private.WebSocketsSansIOProtocol, "receive", SocketProtocol.receive, "5cbbc370ced6"),
    (
        private.BaseGraphQLTransportWSHandler,
        "_send_result_stream",
        TransportWSHandler._send_result_stream,
        "1c85cfedb3ce",
    ),
    (private.BaseGraphQLTransportWSHandler, "send_message", TransportWSHandler.send_message, "859cb9dc6c54"),
]


@pytest.mark.parametrize(("owner", "name", "ours", "digest"), REPLACED)
def test_replaced_methods_are_as_when_ours_were_written(owner: type[Any], name: str, ours: Any, digest: str) -> None:
    # Without comments and layout.
    code = ast.unparse(ast.parse(dedent(inspect.getsource(getattr(owner, name)))))
    found = sha256(code.encode()).hexdigest()[:12]
    part = f"the code of {owner.__name__}.{name} (its digest is now {found})"
    assert found == digest, changed(owner.__module__, part, ours)


# Effects


def test_status_lines_are_complete() -> None:
    found = private.STATUS_LINE[431]
    assert found == b"HTTP/1.1 431 Request Header Fields Too Large\r\n", changed("uvicorn", "STATUS_LINE", HttpProtocol)


@pytest.mark.parametrize(
    ("headers", "is_read"),
    [
        (b"A: b\r\n" * private.MAX_NUM_HEADERS, True),
        (b"A: b\r\n" * (private.MAX_NUM_HEADERS + 1), False),
        (b"A: " + b"b" * (private.MAX_LINE_LENGTH - 5) + b"\r\n", True),
        (b"A: " + b"b" * (private.MAX_LINE_LENGTH - 4) + b"\r\n", False),
    ],
    ids=["most headers", "too many headers", "longest line", "too long a line"],
)
def test_the_limits_of_the_websocket_library_are_its_own(headers: bytes, is_read: bool) -> None:
    connection = ServerProtocol()
    connection.receive_data(b"GET / HTTP/1.1\r\n" + headers + b"\r\n")
    found = any(isinstance(event, Request) for event in connection.events_received())
    assert found == is_read, changed("websockets", "MAX_NUM_HEADERS or MAX_LINE_LENGTH", HttpProtocol)


async def test_a_connection_is_open_after_the_handshake() -> None:
    assert private.OPEN is State.OPEN, changed("websockets", "websockets.protocol.OPEN", SocketProtocol)
    protocol = stock_socket()
    await protocol.send({"type": "websocket.accept"})
    assert protocol.conn.state is private.OPEN, changed("websockets", "Protocol.state", SocketProtocol)


async def test_client_disconnected_ends_the_application_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def leave(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        raise private.ClientDisconnected

    with caplog.at_level(logging.ERROR):
        protocol = stock(private.WebSocketsSansIOProtocol, HANDSHAKE, leave)
        await asyncio.gather(*protocol.tasks)
    assert caplog.messages == [], changed("uvicorn", "ClientDisconnected", SocketProtocol)


async def test_operation_stream_closed_ends_an_operation_without_a_message() -> None:
    sent: list[Any] = []

    class Handler(private.BaseGraphQLTransportWSHandler[Any, Any]):
        async def _send_result_stream(self, operation: Any, result_source: Any) -> None:
            raise private.OperationStreamClosed

        async def send_message(self, message: Any) -> None:
            sent.append(message)

    class Schema:
        async def stream(self, *arguments: Any, **options: Any) -> AsyncGenerator[Any]:
            async def nothing() -> AsyncGenerator[Any]:
                yield None

            return nothing()

    schema: Any = Schema()
    handler = Handler(NOTHING, NOTHING, NOTHING, NOTHING, schema, timedelta(1))
    await handler.run_operation(Operation(handler, "1", "{ a }", None, None))
    assert sent == [], changed("strawberry", "_OperationStreamClosed", TransportWSHandler)
