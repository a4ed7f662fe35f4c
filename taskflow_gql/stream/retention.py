"""Deletes events past their retention, a small batch at a time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from taskflow_gql import clock
from taskflow_gql.database.units import Database
from taskflow_gql.services.positions import expire_events

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
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="retention")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                await self.expire()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("Cannot delete old events now (%s); trying again", type(error).__name__)
            await asyncio.sleep(_INTERVAL_SECONDS)

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
