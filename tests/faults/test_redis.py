"""The Redis bus closes when told to, whatever it is doing."""

from __future__ import annotations

import asyncio
import time

import pytest

from taskflow_gql.stream.bus import RedisBus
from tests.support.servers import RedisServer


@pytest.mark.parametrize("milliseconds", [0, 0.5, 1, 1.5, 2, 3, 4, 8, 50])
async def test_a_bus_that_is_connecting_closes_at_once(redis_url: str, milliseconds: float) -> None:
    """redis-py swallows cancellations while it connects. A server that failed to start therefore never ended."""
    bus = RedisBus(redis_url)
    await bus.start()
    bus.announce()
    await asyncio.sleep(milliseconds / 1000)
    begun = time.monotonic()
    await bus.close()
    assert time.monotonic() - begun < 1


async def test_a_bus_without_redis_notifies_its_own_process_and_the_others_after_it_is_back() -> None:
    with RedisServer() as redis:
        here, there = RedisBus(redis.url()), RedisBus(redis.url())
        heard_here, heard_there = asyncio.Event(), asyncio.Event()
        here.listen(heard_here.set)
        there.listen(heard_there.set)
        await asyncio.to_thread(redis.kill)
        for bus in (here, there):
            await bus.start()
        here.announce()
        assert heard_here.is_set()
        # Clear it before Redis starts: the bus may be notified while we wait for Redis to be ready.
        heard_there.clear()
        await asyncio.to_thread(redis.start)
        async with asyncio.timeout(15):
            # Set by the pending notification, or because the bus has just subscribed and may have missed some.
            await heard_there.wait()
            heard_there.clear()
            while not heard_there.is_set():
                here.announce()
                await asyncio.sleep(0.05)
        for bus in (here, there):
            await bus.close()
