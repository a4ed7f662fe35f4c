"""Connections that try to stop the server for everybody else, against a real `taskflow serve`.

The bounds are generous, because test machines are busy. With `-s` pytest prints the measured values.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.cluster import TaskflowServer
from tests.support.second_client import second_client

pytestmark = pytest.mark.slow

# How long a second client may wait. On an idle machine it waits less than a tenth of a second.
BOUND_SECONDS = 0.7
# How much memory a probe may leave behind.
BOUND_MEBIBYTES = 100
# How long a flood lasts.
FLOOD_SECONDS = 4.0

UPGRADE = (
    b"GET /graphql HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
)
CHUNKED = b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskflowServer]:
    settings = {"TASKFLOW_DATA_DIR": str(tmp_path_factory.mktemp("connections"))}
    with TaskflowServer(settings) as server:
        yield server


def frame(opcode: int, data: bytes = b"") -> bytes:
    """A frame as a client sends it, with a mask of zeros."""
    length = struct.pack("!B", 0x80 | len(data)) if len(data) < 126 else struct.pack("!BH", 0x80 | 126, len(data))
    return bytes([0x80 | opcode]) + length + bytes(4) + data


TEXT, PING, PONG = 1, 9, 10


@contextmanager
def connected(port: int, start: bytes, *, is_read: bool) -> Iterator[socket.socket]:
    """A socket that has sent `start`. With `is_read`, a thread reads and drops everything that comes after a
    handshake.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(start)
        if start.startswith(UPGRADE):
            assert client.recv(4096).startswith(b"HTTP/1.1 101")

        def read() -> None:
            with suppress(OSError):
                while client.recv(1 << 20):
                    pass

        reading = threading.Thread(target=read)
        if is_read:
            client.settimeout(None)
            reading.start()
        try:
            yield client
        finally:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            if is_read:
                reading.join()


def flood(client: socket.socket, data: bytes) -> int:
    """Send `data` repeatedly for FLOOD_SECONDS, or until the server closes or stops reading. Returns the bytes sent."""
    sent, end = 0, time.monotonic() + FLOOD_SECONDS
    client.settimeout(1)
    with suppress(OSError):
        while time.monotonic() < end:
            sent += client.send(data)
    return sent


def many(frame: bytes) -> bytes:
    return frame * ((1 << 20) // len(frame))


FLOODS: dict[str, tuple[bytes, bytes]] = {
    "pings": (UPGRADE, many(frame(PING))),
    "large pings": (UPGRADE, many(frame(PING, b"x" * 125))),
    "pongs": (UPGRADE, many(frame(PONG))),
    "pings as messages": (UPGRADE, many(frame(TEXT, b'{"type":"ping"}'))),
    "pongs as messages": (UPGRADE, many(frame(TEXT, b'{"type":"pong"}'))),
    "chunks of one byte": (CHUNKED, many(b"1\r\n \r\n")),
}


def mebibytes(server: TaskflowServer) -> float:
    process = server._require_process()
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.parametrize("is_read", [True, False], ids=["read", "unread"])
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_tiny_pieces_does_not_delay_others(server: TaskflowServer, name: str, is_read: bool) -> None:
    start, data = FLOODS[name]
    before = mebibytes(server)
    with second_client(server.port) as waits, connected(server.port, start, is_read=is_read) as client:
        sent = flood(client, data)
        kept = mebibytes(server) - before
    print(f"\n| {name} | {waits.longest * 1000:.0f} ms | {kept:+.0f} MiB | {sent / 1e6:.1f} MB sent |")
    assert waits.count > 0
    assert waits.longest < BOUND_SECONDS
    assert kept < BOUND_MEBIBYTES


def test_a_client_that_half_closes_is_answered(server: TaskflowServer) -> None:
    body = b'{"query": "{ serverInfo { name } }"}'
    head = b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(head % len(body) + body)
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.endswith(b'{"data":{"serverInfo":{"name":"TaskFlow GQL"}}}')
