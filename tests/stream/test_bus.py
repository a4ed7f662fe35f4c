"""News between processes, over a real Redis that is stopped and restarted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from taskflow_gql.stream.bus import Bus, MemoryBus, RedisBus, make_bus
from tests.support.client import PATIENCE_SECONDS
from tests.support.servers import RedisServer

pytestmark = pytest.mark.slow


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    with RedisServer() as server:
        yield server


class Ear:
    """A listener that counts."""

    def __init__(self, bus: Bus) -> None:
        self.count = 0
        self._told = asyncio.Event()
        bus.listen(self._listen)

    def _listen(self) -> None:
        self.count += 1
        self._told.set()

    async def hear(self) -> None:
        """Waits until the listener was called since the last wait."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._told.wait()
        self._told.clear()


@asynccontextmanager
async def started(url: str) -> AsyncIterator[tuple[RedisBus, Ear]]:
    """A started bus with a listener."""
    bus = RedisBus(url)
    ear = Ear(bus)
    await bus.start()
    try:
        # The first subscription calls the listener too, because earlier news may have been missed.
        await ear.hear()
        yield bus, ear
    finally:
        await bus.close()


async def until_listeners_are(count: int, url: str) -> None:
    """The number of subscribers, as counted by Redis."""
    async with Redis.from_url(url) as redis, asyncio.timeout(PATIENCE_SECONDS):
        while (await redis.pubsub_numsub("taskflow:placed"))[0][1] != count:
            pass


async def test_the_url_decides_the_kind_of_bus() -> None:
    assert isinstance(make_bus(None), MemoryBus)
    bus = make_bus("redis://127.0.0.1:1/0")
    assert isinstance(bus, RedisBus)
    await bus.close()


async def test_the_memory_bus_calls_every_listener_immediately() -> None:
    bus = MemoryBus()
    ears = [Ear(bus), Ear(bus)]
    await bus.start()
    bus.announce()
    bus.announce()
    assert [ear.count for ear in ears] == [2, 2]
    await bus.ping()
    await bus.close()


async def test_an_announcement_reaches_every_other_process(redis_url: str) -> None:
    async with started(redis_url) as (one, own), started(redis_url) as (_, first), started(redis_url) as (_, second):
        for _ in range(3):
            told = own.count
            one.announce()
            # The announcing process does not wait for Redis.
            assert own.count == told + 1
            await first.hear()
            await second.hear()
        await one.ping()


async def test_a_bus_ignores_its_own_messages(redis_url: str) -> None:
    async with started(redis_url) as (one, own), started(redis_url) as (other, ear):
        told = own.count
        one.announce()
        await ear.hear()
        # Redis delivers in order: its own messages, if they counted, would have arrived before these.
        other.announce()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while own.count < told + 2:
                await own.hear()
        assert own.count == told + 2


async def test_a_thousand_announcements_at_once_arrive_as_news(redis_url: str) -> None:
    async with started(redis_url) as (one, _), started(redis_url) as (_, ear):
        for _ in range(1000):
            one.announce()
        await ear.hear()


async def test_after_an_outage_of_redis_listeners_read_again_and_news_arrives(redis_server: RedisServer) -> None:
    url = redis_server.url()
    async with started(url) as (one, own), started(url) as (other, ear):
        redis_server.kill()
        for bus in (one, other):
            with pytest.raises((RedisError, OSError, TimeoutError)):
                await bus.ping()
        # It neither blocks nor fails, and calls the listeners of its own process.
        told = own.count
        one.announce()
        assert own.count == told + 1

        redis_server.start()
        await until_listeners_are(2, url)
        # Announcements during the outage are lost, so every listener is called to read the table.
        await ear.hear()
        await own.hear()
        await one.ping()
        async with Redis.from_url(url) as redis, redis.pubsub() as outside:
            await outside.subscribe("taskflow:placed")
            await until_listeners_are(3, url)
            other.announce()
            await own.hear()


async def test_a_cut_subscription_is_renewed_and_counts_as_news(redis_url: str) -> None:
    async with started(redis_url) as (one, _), started(redis_url) as (_, ear):
        async with Redis.from_url(redis_url) as redis:
            await redis.client_kill_filter(_type="pubsub")
        # redis-py reconnects silently. Messages sent meanwhile are lost, so a reconnection counts as news.
        await ear.hear()
        await until_listeners_are(2, redis_url)
        one.announce()
        await ear.hear()


async def test_a_connection_that_died_in_the_pool_is_replaced_without_an_error(redis_server: RedisServer) -> None:
    bus = RedisBus(redis_server.url())
    for _ in range(3):
        # Several at once, so that the pool holds several connections, which all break with the server.
        await asyncio.gather(*(bus.ping() for _ in range(5)))
        redis_server.restart()
    for _ in range(5):
        await bus.ping()
    await bus.close()


async def test_a_hanging_redis_does_not_block_the_bus(redis_server: RedisServer) -> None:
    async with started(redis_server.url()) as (one, own), started(redis_server.url()) as (_, ear):
        redis_server.pause()
        try:
            told = own.count
            one.announce()
            assert own.count == told + 1
            with pytest.raises((RedisError, TimeoutError)):
                await one.ping()
        finally:
            redis_server.resume()
        await ear.hear()
        await one.ping()


async def test_a_bus_closes_while_redis_is_unreachable(redis_server: RedisServer) -> None:
    async with started(redis_server.url()) as (one, _):
        redis_server.kill()
        one.announce()
    bus = RedisBus(redis_server.url())
    await bus.start()
    await bus.close()
