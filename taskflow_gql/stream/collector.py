"""Schedules garbage collection, so that no request can trigger a long pause.

A full collection traverses all live objects, most of which belong to cached documents and plans, and pauses the process
for up to 0.4 s. By default it runs when enough objects have become old, which a client can provoke. Requests leave
almost no garbage that only a full collection finds, so here it runs rarely, on a timer.
"""

from __future__ import annotations

import gc
from itertools import count

from taskflow_gql.stream.background import Background

# The young generation is collected after this many new objects and the middle one every tenth time, which both take a
# few milliseconds. The old one is never collected automatically.
_THRESHOLDS = (5_000, 10, 1_000_000_000)
_SECONDS_BETWEEN_ROUNDS = 600
# Each round traverses only objects that became old since the last one. Every third round traverses all objects, so
# frozen objects that have become unreachable, such as evicted cache entries, are freed within half an hour.
_ROUNDS_UNTIL_FULL = 3


class Collector:
    """Runs the full collections of a process that only serves."""

    def __init__(self) -> None:
        self._rounds = count(1)
        self._background = Background(
            "collector", self._run, failure="Cannot collect garbage", interval_seconds=_SECONDS_BETWEEN_ROUNDS
        )

    def start(self) -> None:
        collect_old()
        gc.set_threshold(*_THRESHOLDS)
        self._background.start()

    async def close(self) -> None:
        await self._background.close()

    async def _run(self, _was_woken: bool) -> None:
        if next(self._rounds) % _ROUNDS_UNTIL_FULL == 0:
            gc.unfreeze()
        collect_old()


def collect_old() -> None:
    """Collect garbage, and freeze the remaining objects: collections skip them until they are unfrozen."""
    gc.collect()
    gc.freeze()
