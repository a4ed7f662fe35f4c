"""When the garbage collector runs: nothing that a client sends makes it stop the server for long.

A full collection goes through every object that lives, the cached documents and plans above all, and stops everybody
for as long: 0.4 s with full caches. Left to itself it comes when enough objects have become old, and a client can bring
that about. Requests leave next to nothing that only a full collection finds, so it is rare here, and by the clock.
"""

from __future__ import annotations

import gc
from itertools import count

from taskflow_gql.stream.background import Background

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
    """Collect what is unreachable, and put what is left where no collection looks until it is unfrozen."""
    gc.collect()
    gc.freeze()
