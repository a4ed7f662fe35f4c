"""The HTTP server against clients that send too much or too slowly or read nothing, over real sockets."""

from __future__ import annotations

import asyncio
import logging
import resource
import shutil
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from taskflow_gql.transport import protocols
from taskflow_gql.transport.descriptors import problem_of_descriptors
from taskflow_gql.transport.protocols import MAX_HEAD_BYTES, MAX_HEADERS
from taskflow_gql.transport.server import uvicorn_config
from taskflow_gql.transport.streaming import Connections, EndlessResponse
from tests.support.client import PATIENCE_SECONDS, Api
from tests.support.serving import listening, make_settings, serving

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_errors_are_logged")]

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"query": "{ serverInfo { name } }"}'
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = (
    b"GET /graphql HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
# How long another client may wait while one misbehaves. Generous, because test machines are busy.
MAX_WAIT_SECONDS = 5


@pytest.fixture(scope="module")
async def web(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    path = tmp_path_factory.mktemp("server") / "taskflow.sqlite3"
    shutil.copy(migrated_sqlite, path)
    async with serving(make_settings(data_dir=path.parent, database_url=f"sqlite:///{path}")) as api:
        yield api


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        # The server may have closed already. What it sent before that can still be read.
        with suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next response. The response must have a content-length."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(first.split()[1]), headers, body

    async def status(self) -> int:
        return (await self.answer())[0]

    async def rest(self) -> bytes:
        """Everything the server sends until it closes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def said_to(url: str, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send these bytes, require that the server closes after its response, and return the response."""
    async with client_of(url) as client:
        await client.send(data)
        answer = await client.answer()
        assert await client.rest() == b""
        return answer


# ---------------------------------------------------------------- request size


TOO_LONG = f"The head of a request may have at most {MAX_HEAD_BYTES} bytes\n".encode()
TOO_MANY = f"A request may have at most {MAX_HEADERS} headers\n".encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET /" + b"x" * 40_000, TOO_LONG),
        (b"GET /graphql?query=" + b"%0A" * 20_000 + b" HTTP/1.1\r\n\r\n", TOO_LONG),
        (GET + b"Accept: " + b"," * 1_000_000 + b"\r\n\r\n", TOO_LONG),
        (GET + b"Accept: " + b"," * 40_000, TOO_LONG),
        (GET + b"".join(b"A%d: b\r\n" % n for n in range(5000)) + b"\r\n", TOO_LONG),
        (GET + b"A" * 40_000, TOO_LONG),
        (GET + b"".join(b"A%d: b\r\n" % n for n in range(MAX_HEADERS)) + b"\r\n", TOO_MANY),
        (b"\r\n" * 20_000, TOO_LONG),
        (CHUNKED + b"1;" + b"x" * 40_000, TOO_LONG),
        (CHUNKED + (b"1;" + b"x" * 1000 + b"\r\n{\r\n") * 100, TOO_LONG),
        (CHUNKED + b"1\r\n{\r\n0\r\nTrailer: " + b"x" * 40_000, TOO_LONG),
        (CHUNKED + b"1\r\n{\r\n0\r\n" + b"A: b\r\n" * 10_000, TOO_LONG),
    ],
    ids=[
        "url",
        "query",
        "accept",
        "endless",
        "headers",
        "name",
        "count",
        "lines",
        "chunk",
        "chunks",
        "trailer",
        "trailers",
    ],
)
async def test_a_request_whose_head_is_too_large_is_refused_with_431(web: Api, data: bytes, message: bytes) -> None:
    status, headers, body = await said_to(web.url, data)
    assert (status, body, headers["connection"]) == (431, message, "close")
    assert headers["content-type"] == "text/plain; charset=utf-8"
    # The server still works.
    assert (await web.http.get("/health")).status_code == 200


async def test_a_head_that_never_ends_delays_no_other_client(web: Api) -> None:
    async with client_of(web.url) as endless:
        await endless.send(GET + b"A: ")
        for _ in range(50):
            await endless.send(b"x" * 1_000_000)
            if endless.writer.is_closing():
                break
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                assert (await web.http.get("/health")).status_code == 200


async def test_a_head_within_the_limits_is_read_however_it_is_split(web: Api) -> None:
    many = b"".join(b"A%d: b\r\n" % n for n in range(MAX_HEADERS - 1))
    for head in (
        GET + b"A: " + b"x" * (MAX_HEAD_BYTES - len(GET) - 7) + b"\r\n\r\n",
        GET.replace(b"\r\nHost", b"\r\n" + many + b"Host") + b"\r\n",
    ):
        for size in (len(head), 1000, 77):
            async with client_of(web.url) as client:
                for start in range(0, len(head), size):
                    await client.send(head[start : start + size])
                assert await client.status() == 200
                # The limits count from zero again for the next request.
                await client.send(head)
                assert await client.status() == 200


async def test_body_bytes_do_not_count_as_head_bytes_however_they_are_split(web: Api) -> None:
    body = BODY[:-1] + b" " * 500_000 + b"}"
    by_bytes = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY + b" " * 20_000)
    by_kibibytes = b"".join(b"400\r\n%s\r\n" % (b" " * 1024) for _ in range(500))
    async with client_of(web.url) as client:
        for request in (
            POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
            CHUNKED + by_bytes + b"0\r\n\r\n",
            CHUNKED + by_kibibytes + b"%x\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (len(BODY), BODY),
            # Pipelined: the client does not wait for the first response.
            (POST + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)) * 2,
        ):
            await client.send(request)
            assert await client.status() == 200
        assert await client.status() == 200


async def test_trailers_are_not_added_to_the_request_headers(web: Api) -> None:
    me = b'{"query": "{ me { id } }"}'
    async with client_of(web.url) as client:
        await client.send(CHUNKED + b"%x\r\n%s\r\n0\r\nAuthorization: Bearer x\r\n\r\n" % (len(me), me))
        _, _, body = await client.answer()
    # The request is anonymous. An Authorization header with this token would be refused.
    assert body == b'{"data":{"me":null}}'


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GET / HTTP/9.9\r\n\r\n", GET + b"A\x00: b\r\n\r\n"]
)
async def test_bytes_that_are_not_http_get_status_400(web: Api, data: bytes) -> None:
    status, headers, body = await said_to(web.url, data)
    assert (status, body) == (400, b"Invalid HTTP request received.\n")
    assert headers["x-content-type-options"] == "nosniff"


FOREIGN = POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
DELETE = b"DELETE /graphql HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("size", [1, 100, 10_000], ids=["bytes", "pieces", "one packet"])
async def test_an_upgrade_to_another_protocol_is_ignored(web: Api, size: int) -> None:
    """Java's HTTP client asks for HTTP/2 in this way with each of its requests."""
    with_length = FOREIGN + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    in_chunks = FOREIGN + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    data = (with_length + in_chunks) * 2
    async with client_of(web.url) as client:
        for start in range(0, len(data), size):
            await client.send(data[start : start + size])
        for _ in range(4):
            assert (await client.answer())[::2] == (200, b'{"data":{"serverInfo":{"name":"TaskFlow GQL"}}}')
        await client.send(GET + b"\r\n")
        assert await client.status() == 200


@pytest.mark.parametrize("is_late", [True, False], ids=["later", "together"])
async def test_a_request_inside_the_body_of_another_is_not_run(is_late: bool) -> None:
    async with bare_server(read_all) as url, client_of(url) as client:
        await client.send(FOREIGN + b"Content-Length: %d\r\n\r\n" % len(DELETE) + DELETE * (not is_late))
        if is_late:
            # Time for the server to read the head first.
            await asyncio.sleep(0.1)
            await client.send(DELETE)
        assert (await client.answer())[2] == b"%d" % len(DELETE)
        client.writer.write_eof()
        assert await client.rest() == b""


async def test_connect_requests_are_refused(web: Api) -> None:
    assert (await said_to(web.url, b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\nGET / HTTP/1.1\r\n\r\n"))[0] == 405


async def test_a_response_is_completed_before_a_refused_next_request_closes_the_connection() -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await go_on.wait()
        await answer_with(b"done", send)

    async with bare_server(app) as url, client_of(url) as client, client_of(url) as other:
        await client.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + GET + b"A: " + b"x" * 80_000)
        # Once this request is answered, the server has read the bytes above too.
        await other.send(GET + b"\r\n")
        assert await other.status() == 200
        go_on.set()
        status, headers, body = await client.answer()
        assert (status, body, headers["connection"]) == (200, b"done", "close")
        assert await client.rest() == b""


async def test_of_too_many_pipelined_requests_the_first_are_answered() -> None:
    async with bare_server(read_all) as url, client_of(url) as client:
        await client.send((GET + b"\r\n") * 10_000)
        answers = await client.rest()
    # The running request and the queued ones are answered. Nothing follows `connection: close`.
    assert answers.count(b"HTTP/1.1 200 OK") == 33
    assert answers.count(b"connection: close") == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Cookie: " + b"x" * 9000 + b"\r\n", 431),
        (b"Content-Length: 5\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n", 400),
    ],
)
async def test_a_handshake_that_the_websocket_library_cannot_read_is_answered(
    web: Api, headers: bytes, status: int
) -> None:
    assert (await said_to(web.url, UPGRADE + headers + b"\r\n"))[0] == status


# ---------------------------------------------------------------- time limits


async def answer_with(body: bytes, send: Send) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def bare_server(app: ASGIApp, **given: Any) -> AsyncIterator[str]:
    """Run the real HTTP server in front of the test's own application, and yield its URL."""

    async def with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})

    async with listening(uvicorn_config(with_lifespan, make_settings(**given))) as url:
        yield url


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    """Wait for the whole body and answer with its length. A GET is answered at once."""
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length += len(message["body"])
        if not message["more_body"]:
            break
    await answer_with(b"%d" % length, send)


async def seconds_pass(url: str) -> None:
    """Wait for more than two of the server's one-second time-outs: the server closes two silent clients in turn."""
    for _ in range(2):
        async with client_of(url) as silent:
            assert await silent.rest() == b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", None),
        (b"\r\n", None),
        (b"POST /graphql HT", 408),
        (POST, 408),
        (POST + b"Content-Length: 100\r\n\r\n{", 408),
        (CHUNKED + b"5\r\n{", 408),
        (CHUNKED + b"1\r\n{\r\n0\r\nTrailer: ", 408),
        (UPGRADE, 408),
    ],
    ids=["silent", "empty line", "half line", "half head", "half body", "half chunk", "half trailer", "half handshake"],
)
async def test_a_request_that_does_not_arrive_times_out(data: bytes, status: int | None) -> None:
    async with bare_server(read_all, request_timeout_seconds=1) as url, client_of(url) as client:
        await client.send(data)
        if status is not None:
            assert (await client.answer())[0] == status
        assert await client.rest() == b""


@pytest.mark.parametrize("start", [GET + b"A: ", POST + b"Content-Length: 100000\r\n\r\n"], ids=["head", "body"])
async def test_a_request_that_trickles_in_times_out(start: bytes) -> None:
    async with bare_server(read_all, request_timeout_seconds=1) as url, client_of(url) as client:

        async def trickle() -> None:
            await client.send(start)
            while not client.reader.at_eof():
                await client.send(b"x")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        try:
            assert (await client.answer())[0] == 408
        finally:
            trickling.cancel()
            await asyncio.gather(trickling, return_exceptions=True)


async def test_a_slow_body_that_keeps_arriving_is_read_to_its_end() -> None:
    async with bare_server(read_all, request_timeout_seconds=1) as url, client_of(url) as slow:
        await slow.send(POST + b"Content-Length: 60001\r\n\r\n" + b"x" * 60_000)
        await seconds_pass(url)
        await slow.send(b"x")
        assert (await slow.answer())[2] == b"60001"


async def test_a_body_is_not_read_forever_after_the_response() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_with(b"early", send)

    async with bare_server(app, request_timeout_seconds=1) as url, client_of(url) as client:

        async def pour() -> None:
            await client.send(POST + b"Content-Length: 1000000000000\r\n\r\n")
            while not client.writer.is_closing():
                await client.send(b"x" * 10_000)
                await asyncio.sleep(0.01)

        pouring = asyncio.create_task(pour())
        try:
            assert (await client.answer())[2] == b"early"
            assert await client.rest() == b""
        finally:
            pouring.cancel()
            await asyncio.gather(pouring, return_exceptions=True)


async def test_idle_connections_are_closed_and_busy_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "_KEEP_ALIVE_SECONDS", 1)
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await go_on.wait()
        await answer_with(b"done", send)

    async with (
        bare_server(app, request_timeout_seconds=1) as url,
        client_of(url) as busy,
        client_of(url) as idle,
    ):
        await busy.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(2):
            await idle.send(GET + b"\r\n")
            assert (await idle.answer())[2] == b"done"
        assert await idle.rest() == b""
        await seconds_pass(url)
        go_on.set()
        assert (await busy.answer())[2] == b"done"


async def test_a_refused_handshake_has_the_security_headers(web: Api) -> None:
    async with client_of(web.url) as client:
        await client.send(UPGRADE + b"Origin: https://foreign.example\r\n\r\n")
        answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 403 ")
    head = answer.lower().partition(b"\r\n\r\n")[0]
    assert head.count(b"x-content-type-options: nosniff") == 1
    assert head.count(b"referrer-policy: no-referrer") == 1


@pytest.mark.parametrize("pieces", [1, 400], ids=["one piece", "a stream"])
async def test_a_response_that_the_client_does_not_read_is_given_up(pieces: int) -> None:
    size = 40_000_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        for number in range(pieces):
            body = b"x" * (size // pieces)
            await send({"type": "http.response.body", "body": body, "more_body": number < pieces - 1})

    given = {"request_timeout_seconds": 1, "stream_send_timeout_seconds": 1}
    async with bare_server(app, **given) as url, client_of(url) as good, client_of(url) as bad:
        for client in (good, bad):
            await client.send(GET + b"\r\n")
        assert len((await good.answer())[2]) == size
        await seconds_pass(url)
        assert len(await bad.rest()) < size


async def test_a_client_that_half_closes_after_its_request_is_answered() -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        length = 0
        while (message := await receive()).get("more_body"):
            length += len(message["body"])
        await go_on.wait()
        await answer_with(b"%d" % (length + len(message["body"])), send)

    async with bare_server(app) as url, client_of(url) as client, client_of(url) as large:
        await client.send((GET + b"\r\n") * 2)
        client.writer.write_eof()
        await large.send(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000)
        large.writer.write_eof()
        # Time for the server to see the end of input before it answers.
        await asyncio.sleep(0.1)
        go_on.set()
        assert [(await client.answer())[2] for _ in range(2)] == [b"0", b"0"]
        assert await client.rest() == b""
        assert (await large.answer())[2] == b"100000"
        assert await large.rest() == b""


@pytest.mark.parametrize("data", [b"", GET, GET + b"\r\n", POST + b"Content-Length: 5\r\n\r\n{"])
async def test_a_half_closed_client_with_no_pending_response_is_closed_at_once(data: bytes) -> None:
    async with bare_server(read_all) as url, client_of(url) as client:
        await client.send(data)
        if data.endswith(b"\r\n\r\n"):
            assert await client.status() == 200
        client.writer.write_eof()
        async with asyncio.timeout(5):
            assert await client.reader.read() == b""


@pytest.mark.parametrize("has_begun", [True, False], ids=["begun", "not begun"])
async def test_a_stream_ends_when_its_client_disconnects(has_begun: bool) -> None:
    ended, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def silent() -> AsyncGenerator[str, None]:
            try:
                yield "x"
                await asyncio.Event().wait()
            finally:
                ended.set()

        await go_on.wait()
        await EndlessResponse(silent(), connections=Connections(10))(scope, receive, send)

    async with bare_server(app) as url:
        async with client_of(url) as client:
            await client.send(GET + b"\r\n")
            if has_begun:
                go_on.set()
                await client.reader.readuntil(b"\r\n\r\n1\r\nx\r\n")
        # Time for the server to see the end of input before it answers.
        await asyncio.sleep(0.1)
        go_on.set()
        async with asyncio.timeout(5):
            await ended.wait()


@asynccontextmanager
async def slow_client_of(url: str, data: bytes) -> AsyncIterator[socket.socket]:
    """Send `data` from a client with a small receive buffer."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", int(url.rpartition(":")[2])))
        await loop.sock_sendall(client, data)
        yield client


async def read_slowly(client: socket.socket, seconds: float) -> int:
    """Read for this many seconds at no more than 40 KB/s, and return the number of bytes."""
    loop = asyncio.get_running_loop()
    read, end = 0, loop.time() + seconds
    while loop.time() < end:
        async with asyncio.timeout(PATIENCE_SECONDS):
            read += len(await loop.sock_recv(client, 4096))
        await asyncio.sleep(0.1)
    return read


async def read_all_of(client: socket.socket, size: int) -> int:
    """Read until `size` bytes have arrived or the server closes, and return the number of bytes."""
    read = 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while read < size and (data := await asyncio.get_running_loop().sock_recv(client, 1 << 20)):
            read += len(data)
    return read


@pytest.mark.parametrize("pieces", [1, 40], ids=["one piece", "a stream"])
async def test_a_slow_reader_gets_the_whole_response(pieces: int) -> None:
    size = 8_000_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        for number in range(pieces):
            body = b"x" * (size // pieces)
            await send({"type": "http.response.body", "body": body, "more_body": number < pieces - 1})

    async with bare_server(app, stream_send_timeout_seconds=1) as url, slow_client_of(url, GET + b"\r\n") as client:
        read = await read_slowly(client, 5)
        read += await read_all_of(client, size - read)
    assert size <= read < size + 1000


@pytest.mark.parametrize("is_read", [True, False], ids=["slowly", "not at all"])
async def test_a_stream_lasts_as_long_as_its_client_reads(is_read: bool) -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncGenerator[str, None]:
        try:
            while True:
                yield "x" * 8_000_000
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await EndlessResponse(endless(), connections=Connections(10))(scope, receive, send)

    async with (
        bare_server(app, stream_send_timeout_seconds=1) as url,
        slow_client_of(url, GET + b"\r\n") as client,
    ):
        if is_read:
            assert await read_slowly(client, 5) > 0
            assert not ended.is_set()
        # From here the client reads nothing.
        await asyncio.wait_for(ended.wait(), PATIENCE_SECONDS)


async def test_unread_responses_are_bounded_per_address(caplog: pytest.LogCaptureFixture) -> None:
    size = 10_000_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_with(b"x" * size, send)

    async with bare_server(app, max_unsent_bytes=8_000_000) as url, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(slow_client_of(url, GET + b"\r\n")) for _ in range(6)]
        # The server checks once a second.
        await asyncio.sleep(2.5)
        read = []
        for client in clients:
            with suppress(ConnectionError):
                read.append(await read_all_of(client, size))
    assert 1 <= len([one for one in read if one >= size]) <= 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "has not read" in warning
    assert "TASKFLOW_MAX_UNSENT_BYTES" in warning


async def test_a_single_unread_response_may_exceed_the_bound() -> None:
    size = 10_000_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_with(b"x" * size, send)

    async with (
        bare_server(app, max_unsent_bytes=100_000) as url,
        slow_client_of(url, GET + b"\r\n") as client,
    ):
        await asyncio.sleep(2.5)
        assert await read_all_of(client, size) >= size


async def test_a_websocket_that_reads_nothing_is_closed() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answer_with(b"", send)
            return
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "x" * 40_000_000})
        ended.set()

    given = {"request_timeout_seconds": 1, "stream_send_timeout_seconds": 1, "max_connections_per_address": 2}
    async with bare_server(app, **given) as url, client_of(url) as bad:
        await bad.send(UPGRADE + b"\r\n")
        # `send` returns when the message was taken, or the client is gone.
        await asyncio.wait_for(ended.wait(), PATIENCE_SECONDS)
        assert len(await bad.rest()) < 40_000_000


@pytest.mark.parametrize("size", [8_000_000, 1_000_000], ids=["in the server", "in the system"])
async def test_pings_do_not_cut_off_a_websocket_that_reads_a_large_message_slowly(size: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "x" * size})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    config = uvicorn_config(app, make_settings())
    config.lifespan = "off"
    config.ws_ping_interval = config.ws_ping_timeout = 1
    async with listening(config) as url, slow_client_of(url, UPGRADE + b"\r\n") as client:
        read, end = await read_slowly(client, 5), b""
        # Read until nothing more comes. A close frame would come after the large message.
        with suppress(TimeoutError):
            data = b"x"
            while data:
                async with asyncio.timeout(0.5):
                    data = await asyncio.get_running_loop().sock_recv(client, 1 << 20)
                read, end = read + len(data), (end + data)[-100:]
    assert read >= size
    assert b"keepalive ping timeout" not in end


async def test_a_websocket_that_answers_no_pings_is_closed() -> None:
    config = uvicorn_config(wait_for_input, make_settings())
    config.lifespan = "off"
    config.ws_ping_interval = config.ws_ping_timeout = 0.3
    async with listening(config) as url, client_of(url) as client:
        await client.send(UPGRADE + b"\r\n")
        assert await client.status() == 101
        assert b"keepalive ping timeout" in await client.rest()


# Client frames with a mask of zeros: text that is not UTF-8, in one frame and in two, and a close frame.
BAD_TEXT = b"\x81\x82\0\0\0\0\xc3\x28"
BAD_TEXTS = b"\x01\x81\0\0\0\0\xc3\x80\x81\0\0\0\0\x28"
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"


@pytest.mark.parametrize("data", [BAD_TEXT, BAD_TEXTS, BAD_TEXT * 1000], ids=["one frame", "two frames", "many"])
async def test_a_message_that_is_not_utf_8_closes_with_1007(data: bytes) -> None:
    async with bare_server(wait_for_input) as url, client_of(url) as client:
        await client.send(UPGRADE + b"\r\n")
        assert await client.status() == 101
        await client.send(data)
        # A close frame with only the two bytes of the code 1007.
        assert await client.rest() == b"\x88\x02\x03\xef"


async def test_a_message_that_is_not_utf_8_before_a_close_frame_logs_no_error() -> None:
    async with bare_server(wait_for_input) as url, client_of(url) as client:
        await client.send(UPGRADE + b"\r\n")
        assert await client.status() == 101
        await client.send(BAD_TEXT + CLOSE)
        assert (await client.rest())[:2] == b"\x88\x02"


# ---------------------------------------------------------------- number of connections


async def wait_for_input(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept WebSockets and hold them open. Answer HTTP requests at once."""
    if scope["type"] == "http":
        await answer_with(b"done", send)
        return
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


@asynccontextmanager
async def clients_of(url: str, number: int, data: bytes) -> AsyncIterator[list[Client]]:
    """Connect this many clients, one after the other, each of which has sent `data`."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(number):
            client = await stack.enter_async_context(client_of(url))
            await client.send(data)
            clients.append(client)
        yield clients


@pytest.mark.parametrize("data", [b"", GET, POST + b"Content-Length: 10\r\n\r\n{"], ids=["silent", "heads", "bodies"])
@pytest.mark.parametrize(
    "given",
    [{"max_connections_per_address": 20}, {"max_connections": 20, "trusted_proxies": "127.0.0.0/8"}],
    ids=["address", "process"],
)
async def test_at_the_limit_idle_and_unfinished_connections_are_closed_for_new_ones(
    data: bytes, given: dict[str, Any]
) -> None:
    async with bare_server(read_all, **given) as url, clients_of(url, 60, data) as clients:
        async with client_of(url) as late:
            await late.send(GET + b"\r\n")
            assert await late.status() == 200
        # The oldest are closed: the server has waited longest for them.
        assert [await client.rest() for client in clients[:40]] == [b""] * 40
        if data:
            await clients[-1].send(b"\r\n" if data == GET else b"x" * 9)
            assert await clients[-1].status() == 200


@pytest.mark.parametrize(
    ("given", "status"),
    [({"max_connections_per_address": 3}, 429), ({"max_connections": 3, "trusted_proxies": "127.0.0.1"}, 503)],
)
async def test_at_the_limit_websockets_stay_open_and_new_connections_are_refused(
    given: dict[str, Any], status: int
) -> None:
    async with bare_server(wait_for_input, **given) as url, clients_of(url, 3, UPGRADE + b"\r\n") as sockets:
        for socket in sockets:
            assert await socket.status() == 101
        for _ in range(3):
            async with client_of(url) as late:
                assert await late.status() == status
                assert await late.rest() == b""
        sockets[0].writer.close()
        assert await sockets[0].rest() == b""
        async with client_of(url) as late:
            await late.send(GET + b"\r\n")
            assert await late.status() == 200


async def test_one_address_cannot_take_all_connections(caplog: pytest.LogCaptureFixture) -> None:
    async with bare_server(wait_for_input, max_connections=10) as url, clients_of(url, 5, UPGRADE + b"\r\n") as sockets:
        for socket in sockets:
            assert await socket.status() == 101
        async with client_of(url) as late:
            assert await late.status() == 429
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("127.0.0.1 has 5 connections open, the limit for an address.")
    assert "TASKFLOW_TRUSTED_PROXIES" in warning


# ---------------------------------------------------------------- client addresses


@pytest.mark.parametrize(
    ("trusted", "headers", "client"),
    [
        ("", b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n", ("http", "127.0.0.1")),
        ("10.0.0.0/8", b"X-Forwarded-For: 203.0.113.7\r\n", ("http", "127.0.0.1")),
        ("127.0.0.1", b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n", ("https", "203.0.113.7")),
        ("127.0.0.0/8", b"X-Forwarded-For: 2001:db8::1\r\n", ("http", "2001:db8::1")),
        ("127.0.0.1", b"", ("http", "127.0.0.1")),
        # Proxies append. The entries before theirs come from the client and may be false.
        ("127.0.0.1", b"X-Forwarded-For: 198.51.100.1, 203.0.113.7\r\n", ("http", "203.0.113.7")),
        ("127.0.0.1", b"X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 203.0.113.7\r\n", ("http", "203.0.113.7")),
        # A load balancer in front of the proxy.
        ("127.0.0.1, 10.0.0.0/8", b"X-Forwarded-For: 1.2.3.4, 203.0.113.7, 10.1.2.3\r\n", ("http", "203.0.113.7")),
    ],
)
async def test_only_a_trusted_proxy_names_the_client_address(
    monkeypatch: pytest.MonkeyPatch, trusted: str, headers: bytes, client: tuple[str, str]
) -> None:
    # uvicorn's own variable. This server does not use it.
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_with(f"{scope['scheme']} {scope['client'][0]}".encode(), send)

    async with bare_server(app, trusted_proxies=trusted) as url, client_of(url) as asking:
        await asking.send(GET + headers + b"\r\n")
        assert (await asking.answer())[2].decode() == " ".join(client)


# ---------------------------------------------------------------- file descriptors


def test_a_descriptor_limit_that_is_too_low_is_reported_with_a_remedy() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        problem = problem_of_descriptors(make_settings())
        assert problem is not None
        assert problem.startswith("The limit of 1024 open files leaves room for 827 connections, and")
        assert "LimitNOFILE=65536" in problem
        assert problem_of_descriptors(make_settings(max_connections=827)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
