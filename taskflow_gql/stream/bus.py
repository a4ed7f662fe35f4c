"""News between processes: new positions can be read.

The bus carries no data; the table is the record. A lost message costs a moment, because every listener also reads the
table on a timer and after every new subscription to Redis.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol
from uuid import uuid4

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

_CHANNEL = "taskflow:placed"
_RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0)


class Bus(Protocol):
    """Tells every process, including this one, that new positions can be read."""

    def listen(self, on_placed: Callable[[], None]) -> None:
        """`on_placed` is called in the event loop and must return immediately."""

    def announce(self) -> None:
        """Announce that new positions are committed. Never blocks and never fails."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def ping(self) -> None:
        """Raises OSError or RedisError if the bus cannot carry news."""


class MemoryBus:
    """For a single process."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []

    def listen(self, on_placed: Callable[[], None]) -> None:
        self._listeners.append(on_placed)

    def announce(self) -> None:
        for listener in self._listeners:
            listener()

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return

    async def ping(self) -> None:
        return


class RedisBus:
    """For any number of processes, over one pub/sub channel."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(
            url,
            # Without these a connection that died silently is detected only by a lost message.
            health_check_interval=5,
            socket_connect_timeout=2,
            socket_keepalive=True,
        )
        self._listeners: list[Callable[[], None]] = []
        # Redis sends our own messages back. Our listeners have been called already, so these are ignored.
        self._sender = uuid4().bytes
        self._to_announce = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def listen(self, on_placed: Callable[[], None]) -> None:
        self._listeners.append(on_placed)

    def announce(self) -> None:
        # Our own process learns at once, even while Redis is unreachable. The event coalesces: ten announcements that
        # wait for a slow Redis become one message.
        self._tell_listeners()
        self._to_announce.set()

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._publish_forever(), name="bus-publish"),
            asyncio.create_task(self._listen_forever(), name="bus-listen"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        await self._redis.aclose()

    async def ping(self) -> None:
        async with asyncio.timeout(2):
            try:
                await self._redis.ping()
            except RedisConnectionError:
                # A pooled connection from before a restart of Redis. The next one is new.
                await self._redis.ping()

    async def _publish_forever(self) -> None:
        while not _is_cancelled():
            await self._to_announce.wait()
            self._to_announce.clear()
            try:
                async with asyncio.timeout(2):
                    await self._redis.publish(_CHANNEL, self._sender)
            except (RedisError, OSError, TimeoutError) as error:
                # Until Redis is back, the other processes read the table on their timers.
                log.warning("Redis took no news (%s); other processes learn of changes a second later", error)
                self._to_announce.set()
                await asyncio.sleep(_RETRY_SECONDS[-1])

    async def _listen_forever(self) -> None:
        failures = 0
        while not _is_cancelled():
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(_CHANNEL)
                    async for message in _messages(pubsub):
                        failures = 0
                        if message["data"] != self._sender:
                            self._tell_listeners()
            except (RedisError, OSError, TimeoutError) as error:
                # redis-py has stopped reconnecting. Subscribe again, and read the table for missed news.
                log.warning("Lost the subscription to Redis (%s); trying again", error)
            self._tell_listeners()
            await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
            failures += 1

    def _tell_listeners(self) -> None:
        for listener in self._listeners:
            listener()


async def _messages(pubsub: PubSub):  # type: ignore[no-untyped-def]
    """Yields news, and every confirmation of a subscription: redis-py reconnects silently, and messages sent in
    between are lost.
    """
    while not _is_cancelled():
        message = await pubsub.get_message(timeout=5)
        if message is not None and message["type"] in ("message", "subscribe"):
            yield message


def _is_cancelled() -> bool:
    """Whether this task was cancelled. redis-py swallows a cancellation while it connects, so the loop would never end
    and neither would the process that waits for it.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def make_bus(redis_url: str | None) -> Bus:
    return MemoryBus() if redis_url is None else RedisBus(redis_url)
