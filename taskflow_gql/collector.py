"""When the garbage collector runs: nothing that a client sends makes it stop the server for long.

A full collection goes through every object that lives, the cached documents and plans above all, and stops everybody
for as long: 0.4 s with full caches. Left to itself it comes when enough objects have become old, and a client can bring
that about. Requests leave next to nothing that only a full collection finds, so it is rare here, and by the clock.
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from itertools import count

# Of the young objects after so many new ones, of the middle-aged every tenth time; both take some milliseconds. Of the
# old never by itself.
_THRESHOLDS = (5_000, 10, 1_000_000_000)
_SECONDS_BETWEEN_ROUNDS = 600
# Each round goes through what has become old since the last one, every third through everything: what was frozen in a
# cache or a connection, and has become unreachable since, waits for half an hour.
_ROUNDS_UNTIL_FULL = 3


class Collector:
    """Takes over the full collections of this process, which does nothing else than serve."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        collect_old()
        gc.set_threshold(*_THRESHOLDS)
        self._task = asyncio.create_task(self._run(), name="collector")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        for number in count(1):
            await asyncio.sleep(_SECONDS_BETWEEN_ROUNDS)
            if number % _ROUNDS_UNTIL_FULL == 0:
                gc.unfreeze()
            collect_old()


def collect_old() -> None:
    """Collect what is unreachable, and put what is left where no collection looks until it is unfrozen."""
    gc.collect()
    gc.freeze()
