"""Loops beside the requests."""

from __future__ import annotations

import asyncio

import pytest

from taskflow_gql.stream.background import Background
from tests.support.client import PATIENCE_SECONDS


def background(runs: asyncio.Queue[bool], *, interval_seconds: float = 60, failures: int = 0) -> Background:
    left = failures

    async def work(was_woken: bool) -> None:
        nonlocal left
        runs.put_nowait(was_woken)
        if left:
            left -= 1
            raise OSError("unreachable")

    return Background("test", work, failure="Cannot work", interval_seconds=interval_seconds, retry_seconds=0.01)


async def next_run(runs: asyncio.Queue[bool]) -> bool:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await runs.get()


async def test_the_work_runs_when_it_is_woken_and_after_each_interval() -> None:
    runs: asyncio.Queue[bool] = asyncio.Queue()
    loop = background(runs)
    loop.start()
    loop.wake()
    loop.wake()
    assert await next_run(runs) is True
    await loop.close()
    assert runs.empty()
    loop = background(runs, interval_seconds=0.01)
    loop.start()
    assert [await next_run(runs), await next_run(runs)] == [False, False]
    await loop.close()


async def test_the_work_is_tried_again_while_something_is_unreachable(caplog: pytest.LogCaptureFixture) -> None:
    runs: asyncio.Queue[bool] = asyncio.Queue()
    loop = background(runs, failures=2)
    loop.start()
    loop.wake()
    assert [await next_run(runs) for _ in range(3)] == [True, True, True]
    await loop.close()
    assert [record.getMessage() for record in caplog.records] == ["Cannot work now (OSError); trying again"] * 2


async def test_closing_cancels_a_run_and_needs_no_start() -> None:
    async def forever(_was_woken: bool) -> None:
        await asyncio.Event().wait()

    loop = Background("test", forever, failure="Cannot work", interval_seconds=0.001)
    await loop.close()
    loop.start()
    await asyncio.sleep(0.01)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await loop.close()


async def test_an_error_of_the_work_itself_is_raised_by_close() -> None:
    async def broken(_was_woken: bool) -> None:
        raise LookupError("a mistake")

    loop = Background("test", broken, failure="Cannot work", interval_seconds=0.001)
    loop.start()
    await asyncio.sleep(0.05)
    with pytest.raises(LookupError, match="a mistake"):
        await loop.close()
