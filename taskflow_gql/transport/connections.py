"""The open connections of one process: who is admitted, whose input is parsed next, and who is cut off.

`OpenConnections` checks every connection once a second, because a timer for each request would cost more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from time import perf_counter
from typing import ClassVar, Protocol

import uvicorn

log = logging.getLogger(__name__)

# The event loop reads up to 256 KB at once, which can hold 40,000 WebSocket frames. Parsing them in pieces of this
# size lets other connections run in between.
PIECE_BYTES = 2048
# How long all connections together parse pieces in one iteration of the event loop.
_PARSING_SECONDS = 0.002
_SECONDS_BETWEEN_WARNINGS = 60
_ADVICE_ON_CONNECTIONS = (
    "Idle ones are closed first. See TASKFLOW_MAX_CONNECTIONS, TASKFLOW_MAX_CONNECTIONS_PER_ADDRESS"
)


Network = IPv4Network | IPv6Network


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


class Connection(Protocol):
    """What `OpenConnections` needs of a connection."""

    address: Address | None
    client: tuple[str, int] | None
    # WebSockets have a limit of their own on unread bytes.
    is_http: ClassVar[bool]
    # When it began to wait for its client, by `OpenConnections.now`.
    since: int

    @property
    def transport(self) -> asyncio.Transport: ...

    @property
    def is_waiting(self) -> bool:
        """Whether the server waits for a request of the client, so that the connection may be closed to make room."""

    def look_at(self, now: int) -> None:
        """Cut off the client if it is too slow. Called once a second."""

    def drop(self) -> None:
        """Close the connection now."""


@dataclass(eq=False)
class Address:
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
        self._addresses: dict[str, Address] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._all_busy_at = -1
        self._warned_at: int | None = None
        self._group_of = lru_cache(maxsize=1024)(self._find_group)
        # Connections with input that has been read but not parsed.
        self._unparsed: deque[InPieces] = deque()
        self._is_parsing = False

    def parse_later(self, connection: InPieces) -> None:
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

    def _bound_unsent(self, address: Address) -> None:
        """Close the HTTP connections with the most unread bytes until the rest is within the limit.

        The last connection is never closed: a single response may be larger than the limit.
        """
        unsent = {
            connection: connection.transport.get_write_buffer_size()
            for connection in address.connections
            if connection.is_http
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

    def _address_of(self, connection: Connection) -> Address:
        name, is_trusted = self._group_of(connection.client[0] if connection.client else "")
        return self._addresses.get(name) or Address(name, is_trusted)

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


def _make_room(addresses: Iterable[Address]) -> bool:
    """Close the connections that have waited longest for their clients, starting with the busiest address.

    Closes one in twenty at a time, so that opening connections in a loop does not cause a search for each of them.
    Returns False if none is waiting.
    """
    waiting = [connection for address in addresses for connection in address.connections if connection.is_waiting]
    waiting.sort(key=_order_of_closing)
    for connection in waiting[: max(1, len(waiting) // 20)]:
        connection.drop()
    return bool(waiting)


def _order_of_closing(connection: Connection) -> tuple[int, int]:
    address = connection.address
    assert address is not None
    return (0 if address.is_trusted else -len(address.connections), connection.since)


class InPieces(asyncio.Protocol):
    """Parses long input in pieces and lets other connections run between them.

    While unparsed input remains, reading from the socket is paused.
    """

    transport: asyncio.Transport
    open_connections: OpenConnections
    _unparsed: memoryview | None = None
    # Whether `OpenConnections` will call `parse_piece`.
    _has_turn = False

    def data_received(self, data: bytes) -> None:
        if self._unparsed is None and len(data) <= PIECE_BYTES:
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
        piece = unparsed[:PIECE_BYTES]
        self._unparsed = unparsed[PIECE_BYTES:] if len(unparsed) > PIECE_BYTES else None
        self.parse(bytes(piece))
        self.go_on_parsing()

    @property
    def is_held(self) -> bool:
        """Whether parsing and reading must wait until the application has consumed earlier input."""
        raise NotImplementedError

    def parse(self, data: bytes) -> None:
        raise NotImplementedError
