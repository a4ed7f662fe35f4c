"""Deletes events past their retention, a small batch at a time."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from taskflow_gql import clock
from taskflow_gql.database.units import Database
from taskflow_gql.services.positions import expire_events
from taskflow_gql.stream.background import Background

log = logging.getLogger(__name__)

_BATCH = 500
_INTERVAL_SECONDS = 600.0
# A pause between two batches lets other writers in.
_PAUSE_SECONDS = 0.05


class Retention:
    """Every process runs one. A batch is deleted under a row lock, so two processes never delete the same batch."""

    def __init__(self, database: Database, keep_days: int) -> None:
        self._database = database
        self._keep = timedelta(days=keep_days)
        self._background = Background(
            "retention", self._run, failure="Cannot delete old events", interval_seconds=_INTERVAL_SECONDS
        )

    def start(self) -> None:
        self._background.start()
        self._background.wake()

    async def close(self) -> None:
        await self._background.close()

    async def _run(self, _was_woken: bool) -> None:
        await self.expire()

    async def expire(self) -> int:
        """Delete expired events, and return how many."""
        deleted, batch = 0, _BATCH
        while batch == _BATCH:
            async with self._database.write() as session:
                batch = await expire_events(session, clock.now() - self._keep, limit=_BATCH)
            deleted += batch
            await asyncio.sleep(_PAUSE_SECONDS)
        if deleted:
            log.info("Deleted %d events older than %d days", deleted, self._keep.days)
        return deleted
