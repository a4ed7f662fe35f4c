"""uvicorn's protocols with limits on what a client may send, hold open and leave unread.

uvicorn limits neither the head of a request nor the time that a client takes to send it, and it accepts connections
until the process runs out of file descriptors. The protocol classes here add these limits. `OpenConnections` checks
every connection once a second, because a timer for each request would cost more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from collections import deque
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from time import perf_counter
from typing import Any, cast

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CloseCode
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS
from websockets.protocol import OPEN

from taskflow_gql.config import Settings

if sys.platform != "win32":
    import resource

log = logging.getLogger(__name__)

# The request line and the headers together. Chunk sizes, chunk extensions and trailers count too.
MAX_HEAD_BYTES = 32 * 1024
# The limit of the WebSocket library, used for HTTP too. Browsers send about 20 headers.
MAX_HEADERS = MAX_NUM_HEADERS
# Overhead that each piece of a body may have before it counts as head: a chunk's size and its line ends.
_CHUNK_FRAME_BYTES = 16
# The event loop reads up to 256 KB at once, which can hold 40,000 WebSocket frames. Parsing them in pieces of this
# size lets other connections run in between.
_PIECE_BYTES = 2048
# How long all connections together parse pieces in one iteration of the event loop.
_PARSING_SECONDS = 0.002
# Pipelined requests that wait for an earlier response. The parser cannot stop inside one read, and a read of 250 KB can
# hold 10,000 requests.
_MAX_PIPELINED = 32
# nginx and the load balancers of the large clouds keep an idle connection for 60 s. A server that closes first would
# lose requests that are already on their way.
_KEEP_ALIVE_SECONDS = 75
# Clients that read or send more slowly are cut off. Reading is averaged over the time-out; a body may take the time-out
# in addition.
_MIN_BYTES_PER_SECOND = 1024
# How long input of a refused client is read and discarded. Closing a socket with unread input resets the connection,
# and the client may then lose the response.
_LINGER_SECONDS = 2
# Descriptors reserved for everything but connections: log, event loop, listener, SQLite, Redis, static files.
_OTHER_DESCRIPTORS = 64
# The fraction of descriptors to keep free: the event loop accepts a whole burst before `admit` sees its first one.
_SPARE_DESCRIPTORS = 0.1
_MAX_DESCRIPTORS = 1024 * 1024
_SECONDS_BETWEEN_WARNINGS = 60
_ADVICE_ON_CONNECTIONS = (
    "Idle ones are closed first. See TASKFLOW_MAX_CONNECTIONS, TASKFLOW_MAX_CONNECTIONS_PER_ADDRESS"
)
# Linux's `struct tcp_info`: the offset of `tcpi_bytes_acked`, the offset of its end, and the state TCP_CLOSE.
_BYTES_ACKED_AT = 120
_TCP_INFO_BYTES = 128
_TCP_CLOSE = 7

_SECURITY_HEADERS = [
    # Browsers must not guess from the content that a response is a script.
    ("X-Content-Type-Options", "nosniff"),
    # A GET request has the query and its variables in the URL.
    ("Referrer-Policy", "no-referrer"),
]

Network = IPv4Network | IPv6Network

# The part of its current request that the client is sending.
_IDLE, _HEAD, _BODY, _REFUSED = range(4)


@dataclass(frozen=True)
class Limits:
    """Limits for the connections of one process: all of them, those of one address, and each."""

    connections: int
    connections_per_address: int
    # Time for the head of a request, and the same again for its body.
    request_seconds: int
    # How long a client may read nothing of a response before it is cut off.
    send_seconds: int
    # Bytes of HTTP responses that the clients of one address have not read.
    unsent_bytes_per_address: int
    trusted_proxies: tuple[Network, ...]


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration. It also carries what the connections of one process share."""

    limits: Limits

    # Made on first use, in the worker process: the configuration is pickled when a worker is spawned.
    @cached_property
    def open_connections(self) -> OpenConnections:
        return OpenConnections(self.limits)


def uvicorn_config(app: ASGIApp | str, settings: Settings, *, is_factory: bool = False) -> ServerConfig:
    """The configuration of the HTTP server. `taskflow serve` and the tests use the same one."""
    config = ServerConfig(
        cast(Any, app),
        factory=is_factory,
        workers=settings.workers,
        http=HttpProtocol,
        ws=SocketProtocol,
        ws_max_size=settings.max_websocket_message_bytes,
        # Compression would keep 64 KiB for each socket, and messages are small.
        ws_per_message_deflate=False,
        log_config=None,
        log_level=settings.log_level.lower(),
        access_log=False,
        server_header=False,
        headers=_SECURITY_HEADERS,
        # Passed even when empty: uvicorn would read FORWARDED_ALLOW_IPS instead, and trust loopback by default.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=[str(network) for network in _with_mapped(settings.trusted_proxies)],
        timeout_graceful_shutdown=settings.shutdown_timeout_seconds,
    )
    config.limits = Limits(
        connections=min(settings.max_connections, connections_by_descriptors(settings)),
        connections_per_address=settings.max_connections_per_address,
        request_seconds=settings.request_timeout_seconds,
        send_seconds=settings.stream_send_timeout_seconds,
        # The same limit as for all sockets of one person.
        unsent_bytes_per_address=2 * settings.max_unsent_bytes,
        trusted_proxies=tuple(settings.trusted_proxies),
    )
    return config


def _with_mapped(networks: Iterable[Network]) -> list[Network]:
    """The networks, and each IPv4 network also in the IPv6 form that a socket listening on `::` reports."""
    mapped = [
        IPv6Network(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
        for network in networks
        if isinstance(network, IPv4Network)
    ]
    return [*networks, *mapped]


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard limit: the soft limit is often 1,024."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError) as error:
            log.debug("The limit of open files stays at %d: %s", soft, error)


def descriptor_limit() -> int:
    if sys.platform == "win32":
        return _MAX_DESCRIPTORS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, _MAX_DESCRIPTORS)


def connections_by_descriptors(settings: Settings) -> int:
    """How many connections a process can hold and still have descriptors for its database and other files."""
    others = _OTHER_DESCRIPTORS + settings.database_pool_size + settings.database_max_overflow
    return max(16, int(descriptor_limit() * (1 - _SPARE_DESCRIPTORS)) - others)


def problem_of_descriptors(settings: Settings) -> str | None:
    """What the operator should do if there are too few descriptors for TASKFLOW_MAX_CONNECTIONS; otherwise None."""
    room = connections_by_descriptors(settings)
    if room >= settings.max_connections:
        return None
    return (
        f"The limit of {descriptor_limit()} open files leaves room for {room} connections, and "
        f"TASKFLOW_MAX_CONNECTIONS is {settings.max_connections}. Raise the limit (`ulimit -n 65536`, systemd: "
        "LimitNOFILE=65536, Docker: --ulimit nofile=65536:65536), or lower the setting"
    )


@dataclass(eq=False)
class _Address:
    """The connections of one network address."""

    name: str
    is_trusted: bool
    # A dictionary as an ordered set: oldest connection first.
    connections: dict[Connection, None] = field(default_factory=dict)
    # When `_make_room` last found nothing to close here. It is not called again within the same second.
    all_busy_at: int = -1


class OpenConnections:
    """All connections of this process. Admits new ones and closes those whose clients are too slow."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        # Seconds, counted by a timer. While the event loop is blocked it stands still, so no client times out for that.
        self.now = 0
        self._count = 0
        self._addresses: dict[str, _Address] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._all_busy_at = -1
        self._warned_at: int | None = None
        self._group_of = lru_cache(maxsize=1024)(self._find_group)
        # Connections with input that has been read but not parsed.
        self._unparsed: deque[_InPieces] = deque()
        self._is_parsing = False

    def parse_later(self, connection: _InPieces) -> None:
        """Parse this connection's input later. Connections take turns, one piece each."""
        self._unparsed.append(connection)
        if not self._is_parsing:
            self._is_parsing = True
            asyncio.get_running_loop().call_soon(self._parse_for_a_while)

    def _parse_for_a_while(self) -> None:
        self._is_parsing = False
        end = perf_counter() + _PARSING_SECONDS
        while self._unparsed and perf_counter() < end:
            connection = self._unparsed.popleft()
            connection.parse_piece()
        if self._unparsed and not self._is_parsing:
            self._is_parsing = True
            asyncio.get_running_loop().call_soon(self._parse_for_a_while)

    def admit(self, connection: Connection) -> int:
        """Count the connection and return 0, or return the HTTP status of the refusal.

        At a limit, the connections that have waited longest for their clients are closed to make room. WebSockets,
        streams and connections with a request in progress are kept.
        """
        address = self._address_of(connection)
        if not address.is_trusted and len(address.connections) >= self._max_per_address:
            self._warn(f"{address.name} has {len(address.connections)} connections open, the limit for an address")
            if address.all_busy_at == self.now or not _make_room([address]):
                address.all_busy_at = self.now
                return 429
        if self._count >= self.limits.connections:
            self._warn(f"{self._count} connections are open, which is the limit of this process")
            if self._all_busy_at == self.now or not _make_room(self._addresses.values()):
                self._all_busy_at = self.now
                return 503
        self.add(connection)
        return 0

    def add(self, connection: Connection) -> None:
        address = self._address_of(connection)
        self._addresses[address.name] = address
        address.connections[connection] = None
        connection.address = address
        self._count += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(1, self._look_at_all)

    def remove(self, connection: Connection) -> None:
        """Stop counting the connection. Does nothing if it was not counted."""
        address = connection.address
        if address is None:
            return
        connection.address = None
        self._count -= 1
        del address.connections[connection]
        if not address.connections:
            self._addresses.pop(address.name, None)

    @property
    def _max_per_address(self) -> int:
        # If there are few descriptors, one address could otherwise hold them all.
        return min(self.limits.connections_per_address, max(1, self.limits.connections // 2))

    def _look_at_all(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(1, self._look_at_all) if self._addresses else None
        self.now += 1
        for address in list(self._addresses.values()):
            for connection in list(address.connections):
                connection.look_at(self.now)
            if not address.is_trusted:
                self._bound_unsent(address)

    def _bound_unsent(self, address: _Address) -> None:
        """Close the HTTP connections with the most unread bytes until the rest is within the limit.

        The last connection is never closed: a single response may be larger than the limit.
        """
        unsent = {
            connection: connection.transport.get_write_buffer_size()
            for connection in address.connections
            if isinstance(connection, HttpProtocol)
        }
        total = sum(unsent.values())
        if total <= self.limits.unsent_bytes_per_address:
            return
        self._warn(f"{address.name} has not read {total} bytes of responses", "See TASKFLOW_MAX_UNSENT_BYTES")
        for connection in sorted(unsent, key=unsent.__getitem__, reverse=True):
            if total <= self.limits.unsent_bytes_per_address or unsent[connection] == total:
                break
            total -= unsent[connection]
            connection.drop()

    def _address_of(self, connection: Connection) -> _Address:
        name, is_trusted = self._group_of(connection.client[0] if connection.client else "")
        return self._addresses.get(name) or _Address(name, is_trusted)

    def _find_group(self, host: str) -> tuple[str, bool]:
        """The name under which the host is counted, and whether it is a trusted proxy."""
        if not host:
            # A Unix socket has no address. Only a proxy connects to it.
            return host, True
        address = ip_address(host)
        if isinstance(address, IPv6Address):
            # An IPv4 client on a socket that listens on `::` has a mapped address.
            address = address.ipv4_mapped or address
        is_trusted = any(address in network for network in self.limits.trusted_proxies)
        if isinstance(address, IPv6Address):
            # Providers give each customer at least a /64, so count that as one address.
            return str(IPv6Network((address, 64), strict=False)), is_trusted
        return str(address), is_trusted

    def _warn(self, message: str, advice: str = _ADVICE_ON_CONNECTIONS) -> None:
        if self._warned_at is None or self.now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = self.now
            log.warning(
                "%s. %s and, behind a proxy, TASKFLOW_TRUSTED_PROXIES",
                message,
                advice,
            )


def _make_room(addresses: Iterable[_Address]) -> bool:
    """Close the connections that have waited longest for their clients, starting with the busiest address.

    Closes one in twenty at a time, so that opening connections in a loop does not cause a search for each of them.
    Returns False if none is waiting.
    """
    waiting = [
        connection
        for address in addresses
        for connection in address.connections
        if isinstance(connection, HttpProtocol) and connection.is_waiting
    ]
    waiting.sort(key=_order_of_closing)
    for connection in waiting[: max(1, len(waiting) // 20)]:
        connection.drop()
    return bool(waiting)


def _order_of_closing(connection: HttpProtocol) -> tuple[int, int]:
    address = connection.address
    assert address is not None
    return (0 if address.is_trusted else -len(address.connections), connection.since)


class _InPieces(asyncio.Protocol):
    """Parses long input in pieces and lets other connections run between them.

    While unparsed input remains, reading from the socket is paused.
    """

    transport: asyncio.Transport
    open_connections: OpenConnections
    _unparsed: memoryview | None = None
    # Whether `OpenConnections` will call `parse_piece`.
    _has_turn = False

    def data_received(self, data: bytes) -> None:
        if self._unparsed is None and len(data) <= _PIECE_BYTES:
            self.parse(data)
            return
        # Earlier input may be unparsed: the transport can have read once more after the application resumed it.
        self._unparsed = memoryview(data if self._unparsed is None else bytes(self._unparsed) + data)
        self.transport.pause_reading()
        self.go_on_parsing()

    def go_on_parsing(self) -> None:
        """Schedule parsing if there is unparsed input, otherwise resume reading."""
        if self._unparsed is None:
            if not self.is_held and not self.transport.is_closing():
                self.transport.resume_reading()
        elif not self._has_turn and not self.is_held:
            self._has_turn = True
            self.open_connections.parse_later(self)

    def parse_piece(self) -> None:
        self._has_turn = False
        unparsed = self._unparsed
        if unparsed is None:
            return
        if self.transport.is_closing():
            self._unparsed = None
            return
        piece = unparsed[:_PIECE_BYTES]
        self._unparsed = unparsed[_PIECE_BYTES:] if len(unparsed) > _PIECE_BYTES else None
        self.parse(bytes(piece))
        self.go_on_parsing()

    @property
    def is_held(self) -> bool:
        """Whether parsing and reading must wait until the application has consumed earlier input."""
        raise NotImplementedError

    def parse(self, data: bytes) -> None:
        raise NotImplementedError


class _Flow(FlowControl):
    """uvicorn's flow control. Its `resume_reading` parses the remaining input before it reads more."""

    def __init__(self, transport: asyncio.Transport, connection: _InPieces) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._connection.go_on_parsing()


class HttpProtocol(_InPieces, HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits. `OpenConnections` calls `look_at` once a second."""

    def __init__(
        self,
        config: ServerConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.open_connections = config.open_connections
        self.address: _Address | None = None
        self.stage = _IDLE
        # When the stage began or the last response ended, by `OpenConnections.now`.
        self.since = self.open_connections.now
        # Bytes of this request outside its body.
        self.head_bytes = 0
        self.body_bytes = 0
        self.unsent = _Unsent()
        # The client has sent EOF. It either waits for a response or is gone.
        self.is_half_closed = False

    # Once for each connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self)
        status = self.open_connections.admit(self)
        if status:
            # Not `refuse`, which keeps the connection open for a while: this connection is not counted.
            self.stage = _REFUSED
            message = "Too many connections" if status == 503 else "Too many connections from your address"
            transport.write(self._answer(status, message))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.remove(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether to keep the connection open: some clients send EOF after the request (`nc -N`)."""
        # A stream does not end by itself, so EOF from its client ends it.
        if self.transport.is_closing() or not self.is_answering or self.cycle.chunked_encoding:
            return False
        self.is_half_closed = True
        self.stage = _REFUSED
        self.cycle.keep_alive = False
        return True

    def handle_websocket_upgrade(self) -> None:
        lines = [self.url, *(name + value for name, value in self.headers)]
        # The WebSocket library does not respond to longer lines. 32 bytes are for `GET`, `HTTP/1.1` and separators.
        if max(map(len, lines)) > MAX_LINE_LENGTH - 32:
            self.refuse(431, f"A line of a WebSocket's request may have at most {MAX_LINE_LENGTH} bytes")
            return
        self.open_connections.remove(self)
        # Clients must wait for the response to the handshake. Anything sent before it is discarded.
        self._unparsed = None
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        assert isinstance(protocol, SocketProtocol)
        if not protocol.handshake_initiated:
            # Not a valid handshake: a request with a body, for example.
            self.transport.write(self._answer(400, "Invalid WebSocket request"))
            self.transport.close()

    # For each request

    @property
    def is_held(self) -> bool:
        return self.flow.read_paused

    def parse(self, data: bytes) -> None:
        if self.stage == _REFUSED:
            return
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            # The parser wraps exceptions of its callbacks.
            refused = error.__context__
            if isinstance(refused, _Refused):
                self.refuse(refused.status, str(refused))
            else:
                self.refuse(400, "Invalid HTTP request received.")
        except _Refused as refused:
            self.refuse(refused.status, str(refused))

    def _feed(self, data: bytes) -> None:
        """Feed the parser pieces no longer than what the head may still have. `on_body` subtracts what was body."""
        view = memoryview(data)
        while view:
            room = MAX_HEAD_BYTES - self.head_bytes
            if room <= 0:
                raise _Refused(431, f"The head of a request may have at most {MAX_HEAD_BYTES} bytes")
            piece, view = view[:room], view[room:]
            self.head_bytes += len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                    return
                rest = bytes(piece[upgrade.args[0] :])
                self.head_bytes -= len(rest)
                view = memoryview(rest + bytes(view))
                self._ignore_upgrade()

    def _ignore_upgrade(self) -> None:
        """Parse the head again without `Upgrade`, which a server may ignore (RFC 9110, 7.8).

        Otherwise the parser treats the body as data of the other protocol, and it has no option to change that.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise _Refused(405, "This server is no proxy")
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join(lines) + b"\r\n\r\n")

    @property
    def _is_upgrade_ignored(self) -> bool:
        """Whether `_ignore_upgrade` will parse this request again, so that the callbacks must do nothing yet."""
        return self.parser.should_upgrade() and not self._should_upgrade()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.stage = _HEAD
        self.since = self.open_connections.now

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            raise _Refused(431, f"A request may have at most {MAX_HEADERS} headers")
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise _Refused(429, "Too many requests before the answer to the first")
        if self._is_upgrade_ignored:
            return
        super().on_headers_complete()
        # The parser appends trailers to this list. They must not become headers of the request.
        self.headers = self.headers.copy()
        self.stage = _BODY
        self.since = self.open_connections.now
        self.body_bytes = 0

    def on_body(self, body: bytes) -> None:
        self.head_bytes = max(0, self.head_bytes - len(body) - _CHUNK_FRAME_BYTES)
        self.body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_upgrade_ignored:
            return
        self.stage = _IDLE
        self.since = self.open_connections.now
        self.head_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, without the timer that it sets for each idle connection."""
        self.server_state.total_requests += 1
        self.since = self.open_connections.now
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    # Once a second

    @property
    def is_answering(self) -> bool:
        cycle = self.cycle
        return cycle is not None and not (cycle.response_complete or cycle.disconnected) and self.stage != _BODY

    @property
    def is_waiting(self) -> bool:
        """Whether the server waits for the client to begin or continue a request, with all responses read."""
        is_serving = self.is_answering or self.flow.read_paused or self._unparsed is not None
        return not is_serving and not self.transport.get_write_buffer_size()

    def look_at(self, now: int) -> None:
        if self._takes_nothing(now) or (self.is_half_closed and _is_reset(self.transport)):
            self.transport.abort()
        elif self.is_waiting and now - self.since > self._seconds_allowed():
            if self.stage == _HEAD or (self.stage == _BODY and not self.cycle.response_started):
                self.refuse(408, "The request took too long to arrive")
            else:
                self.transport.close()

    def _takes_nothing(self, now: int) -> bool:
        limit = self.open_connections.limits.send_seconds
        # A response in progress is paused by back-pressure, so little of it is buffered. Any progress is enough.
        return self.unsent.is_stuck(self.transport, now, limit, 1 if self.is_answering else _MIN_BYTES_PER_SECOND)

    def _seconds_allowed(self) -> int:
        limit = self.open_connections.limits.request_seconds
        if self.stage == _REFUSED:
            return _LINGER_SECONDS
        if self.stage == _IDLE and self.cycle is not None:
            return _KEEP_ALIVE_SECONDS
        if self.stage == _BODY and not self.cycle.response_complete:
            return limit + self.body_bytes // _MIN_BYTES_PER_SECOND
        # The response was sent before the body ended: a fast body gets no extra time.
        return limit

    def drop(self) -> None:
        """Abort the connection. Stop counting it now, because the event loop closes it only later."""
        self.open_connections.remove(self)
        self.transport.abort()

    def refuse(self, status: int, message: str) -> None:
        """Respond to the request being received with an error, discard further input, and close."""
        if self.transport.is_closing():
            return
        if self.is_answering:
            # A response to an earlier request is in progress. Close the connection after it.
            self.cycle.keep_alive = False
            self.stage = _REFUSED
            return
        is_owed = self.stage != _BODY or not (self.cycle.response_started or self.pipeline)
        if self.cycle is not None and not self.cycle.response_complete:
            # The application's response is no longer wanted, and the rest of the body will not arrive.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.stage = _REFUSED
        self.since = self.open_connections.now
        if not is_owed:
            self.transport.close()
            return
        self.transport.write(self._answer(status, message))
        self.transport.write_eof()
        self.flow.resume_reading()

    def _answer(self, status: int, message: str) -> bytes:
        body = f"{message}\n".encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        return STATUS_LINE[status] + head + b"\r\n" + body


class SocketProtocol(_InPieces, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with limits, counted with the HTTP connections. Pings detect lost clients."""

    def __init__(
        self,
        config: ServerConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.open_connections = config.open_connections
        self.address: _Address | None = None
        self.unsent = _Unsent()
        self._late_pong = b""
        self._taken_at_ping: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.open_connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.remove(self)
        super().connection_lost(exc)

    @property
    def is_held(self) -> bool:
        return self.read_paused

    def parse(self, data: bytes) -> None:
        WebSocketsSansIOProtocol.data_received(self, data)

    async def receive(self) -> Any:
        """As uvicorn's, but returns each queued message in a separate iteration of the event loop."""
        if not self.queue.empty():
            await asyncio.sleep(0)
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self.go_on_parsing()
        return message

    def send_receive_event_to_app(self) -> None:
        """As uvicorn's, but does not log a stack trace when a text message is not UTF-8."""
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_utf_8(b"".join(self.frames)):
            self.frames = []
            # A close frame of the client in the same piece may already have been answered.
            if self.conn.state is OPEN:
                self.conn.send_close(CloseCode.INVALID_DATA)
            self.handle_parser_exception()
            return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        if self.writable.is_set() or self.conn.state is not OPEN:
            super().handle_ping()
            return
        # The client does not read, so pongs would pile up. Only the latest ping needs a pong (RFC 6455, 5.5.3).
        if output := self.conn.data_to_send():
            self._late_pong = output[-1]

    def resume_writing(self) -> None:
        super().resume_writing()
        pong, self._late_pong = self._late_pong, b""
        if pong and not self.close_sent and not self.transport.is_closing():
            self.transport.write(pong)

    def send(self, message: Any) -> Awaitable[None]:  # type: ignore[override]
        if message["type"] == "websocket.http.response.start":
            # uvicorn adds the default headers to all other responses.
            message = message | {"headers": [*self.default_headers, *message.get("headers", [])]}
        if message["type"] == "websocket.http.response.body":
            return self._send_refusal(message)
        if message["type"] == "websocket.send":
            return self._send_and_wait(message)
        if message["type"] == "websocket.close":
            return self._send_close(message)
        return super().send(message)

    async def _send_close(self, message: Any) -> None:
        await super().send(message)
        # The client's close frame may be queued behind messages that the application no longer receives.
        if not self.transport.is_closing():
            self.go_on_parsing()

    async def _send_and_wait(self, message: Any) -> None:
        """Return when the message has been written to the socket. uvicorn waits before writing, not after."""
        if self.close_sent:
            raise ClientDisconnected
        await super().send(message)
        await self.writable.wait()

    def send_keepalive_ping(self) -> None:
        super().send_keepalive_ping()
        self._taken_at_ping = bytes_acknowledged(self.transport)

    def keepalive_timeout(self) -> None:
        # The ping may be queued behind a long message that the client is still reading, here or in the kernel's buffer.
        # `look_at` cuts off a client that reads nothing.
        if self.transport.get_write_buffer_size() or self._has_taken_more_than_the_ping:
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
        else:
            super().keepalive_timeout()

    @property
    def _has_taken_more_than_the_ping(self) -> bool:
        before, now = self._taken_at_ping, bytes_acknowledged(self.transport)
        return before is not None and now is not None and now - before > _PIECE_BYTES

    async def _send_refusal(self, message: Any) -> None:
        await super().send(message)
        # uvicorn does not set this, and then logs an error for each refused handshake.
        self.handshake_complete = self.handshake_complete or not message.get("more_body", False)

    def look_at(self, now: int) -> None:
        limit = self.open_connections.limits.send_seconds
        if self.unsent.is_stuck(self.transport, now, limit):
            self.transport.abort()


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


Connection = HttpProtocol | SocketProtocol


class _Unsent:
    """Detects a client that reads more slowly than a minimum rate."""

    __slots__ = ("_since", "_taken")

    def __init__(self) -> None:
        self._taken: int | None = None
        self._since = 0

    def is_stuck(self, transport: asyncio.Transport, now: int, seconds: int, rate: int = _MIN_BYTES_PER_SECOND) -> bool:
        unsent = transport.get_write_buffer_size()
        if not unsent:
            self._taken = None
            return False
        taken = bytes_acknowledged(transport)
        if taken is None:
            taken = -unsent
        # The client reads fast enough, or there was nothing to read before.
        if self._taken is None or taken < self._taken or taken - self._taken >= max(1, seconds * rate):
            self._taken, self._since = taken, now
        return now - self._since > seconds


def bytes_acknowledged(transport: asyncio.Transport) -> int | None:
    """How many bytes the client's kernel has acknowledged so far; None if unknown.

    The size of the write buffer does not show a slow client: the kernel takes more bytes only when a third of its own
    buffer is free, which is a megabyte.
    """
    info = _tcp_info(transport)
    return int(struct.unpack_from("=Q", info, _BYTES_ACKED_AT)[0]) if info else None


def _is_reset(transport: asyncio.Transport) -> bool:
    """Whether the connection was reset. The event loop does not notice that while it neither reads nor writes."""
    info = _tcp_info(transport)
    return bool(info) and info[0] == _TCP_CLOSE


def _tcp_info(transport: asyncio.Transport) -> bytes:
    """The first bytes of Linux's `struct tcp_info`; empty if unavailable."""
    if sys.platform != "linux":
        return b""
    try:
        info: bytes = transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES
        )
    except (OSError, ValueError):
        # A Unix socket, or one that has been closed.
        return b""
    return info if len(info) == _TCP_INFO_BYTES else b""


class _Refused(Exception):
    """Raised by the parser's callbacks: refuse the request with this status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
