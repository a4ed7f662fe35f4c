"""uvicorn's protocols with limits on what a client may send, hold open and leave unread.

uvicorn limits neither the head of a request nor the time that a client takes to send it, and it accepts connections
until the process runs out of file descriptors. The classes here add these limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, ClassVar

import httptools
from websockets.frames import CloseCode

from taskflow_gql.transport.connections import PIECE_BYTES, Address, InPieces, ServerConfig
from taskflow_gql.transport.private import (
    MAX_LINE_LENGTH,
    MAX_NUM_HEADERS,
    OPEN,
    STATUS_LINE,
    ClientDisconnected,
    FlowControl,
    HttpToolsProtocol,
    ServerState,
    WebSocketsSansIOProtocol,
)
from taskflow_gql.transport.progress import MIN_BYTES_PER_SECOND, Unsent, bytes_acknowledged, is_reset

# The request line and the headers together. Chunk sizes, chunk extensions and trailers count too.
MAX_HEAD_BYTES = 32 * 1024
# The limit of the WebSocket library, used for HTTP too. Browsers send about 20 headers.
MAX_HEADERS = MAX_NUM_HEADERS
# Overhead that each piece of a body may have before it counts as head: a chunk's size and its line ends.
_CHUNK_FRAME_BYTES = 16
# Pipelined requests that wait for an earlier response. The parser cannot stop inside one read, and a read of 250 KB can
# hold 10,000 requests.
_MAX_PIPELINED = 32
# nginx and the load balancers of the large clouds keep an idle connection for 60 s. A server that closes first would
# lose requests that are already on their way.
_KEEP_ALIVE_SECONDS = 75
# How long input of a refused client is read and discarded. Closing a socket with unread input resets the connection,
# and the client may then lose the response.
_LINGER_SECONDS = 2
# The part of its current request that the client is sending.
_IDLE, _HEAD, _BODY, _REFUSED = range(4)


class _Flow(FlowControl):
    """uvicorn's flow control. Its `resume_reading` parses the remaining input before it reads more."""

    def __init__(self, transport: asyncio.Transport, connection: InPieces) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._connection.go_on_parsing()


class HttpProtocol(InPieces, HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits. `OpenConnections` calls `look_at` once a second."""

    is_http: ClassVar[bool] = True

    def __init__(
        self,
        config: ServerConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.open_connections = config.open_connections
        self.address: Address | None = None
        self.stage = _IDLE
        # When the stage began or the last response ended, by `OpenConnections.now`.
        self.since = self.open_connections.now
        # Bytes of this request outside its body.
        self.head_bytes = 0
        self.body_bytes = 0
        self.unsent = Unsent()
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
        if self._takes_nothing(now) or (self.is_half_closed and is_reset(self.transport)):
            self.transport.abort()
        elif self.is_waiting and now - self.since > self._seconds_allowed():
            if self.stage == _HEAD or (self.stage == _BODY and not self.cycle.response_started):
                self.refuse(408, "The request took too long to arrive")
            else:
                self.transport.close()

    def _takes_nothing(self, now: int) -> bool:
        limit = self.open_connections.limits.send_seconds
        # A response in progress is paused by back-pressure, so little of it is buffered. Any progress is enough.
        return self.unsent.is_stuck(self.transport, now, limit, 1 if self.is_answering else MIN_BYTES_PER_SECOND)

    def _seconds_allowed(self) -> int:
        limit = self.open_connections.limits.request_seconds
        if self.stage == _REFUSED:
            return _LINGER_SECONDS
        if self.stage == _IDLE and self.cycle is not None:
            return _KEEP_ALIVE_SECONDS
        if self.stage == _BODY and not self.cycle.response_complete:
            return limit + self.body_bytes // MIN_BYTES_PER_SECOND
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


class SocketProtocol(InPieces, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with limits, counted with the HTTP connections. Pings detect lost clients."""

    is_http: ClassVar[bool] = False
    since = 0

    @property
    def is_waiting(self) -> bool:
        # A WebSocket is never closed to make room.
        return False

    def drop(self) -> None:
        self.transport.abort()

    def __init__(
        self,
        config: ServerConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.open_connections = config.open_connections
        self.address: Address | None = None
        self.unsent = Unsent()
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
        if message["type"] == "websocket.accept":
            return self._accept(message)
        return super().send(message)

    async def _accept(self, message: Any) -> None:
        await super().send(message)
        # uvicorn and websockets would keep the headers of the handshake as long as the connection: three kilobytes.
        self.request.headers.clear()
        self.response.headers.clear()

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
        return before is not None and now is not None and now - before > PIECE_BYTES

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


class _Refused(Exception):
    """Raised by the parser's callbacks: refuse the request with this status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
