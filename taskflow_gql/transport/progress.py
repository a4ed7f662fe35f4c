"""Whether a client reads, by what its kernel has acknowledged."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

# Clients that read or send more slowly are cut off. Reading is averaged over the time-out; a body may take the time-out
# in addition.
MIN_BYTES_PER_SECOND = 1024
# Linux's `struct tcp_info`: the offset of `tcpi_bytes_acked`, the offset of its end, and the state TCP_CLOSE.
_BYTES_ACKED_AT = 120
_TCP_INFO_BYTES = 128
_TCP_CLOSE = 7


class Unsent:
    """Detects a client that reads more slowly than a minimum rate."""

    __slots__ = ("_since", "_taken")

    def __init__(self) -> None:
        self._taken: int | None = None
        self._since = 0

    def is_stuck(self, transport: asyncio.Transport, now: int, seconds: int, rate: int = MIN_BYTES_PER_SECOND) -> bool:
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


def is_reset(transport: asyncio.Transport) -> bool:
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
