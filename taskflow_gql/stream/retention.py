"""Deletes what is past its retention, a small batch at a time."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from taskflow_gql import clock
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.stream.background import Background

log = logging.getLogger(__name__)

_BATCH = 500
_INTERVAL_SECONDS = 600.0
# A pause between two batches lets other writers in.
_PAUSE_SECONDS = 0.05


class Expire(Protocol):
    async def __call__(self, session: DatabaseSession, older_than: datetime, *, limit: int) -> int:
        """Delete at most `limit` rows older than this, and return how many."""


class Kept(NamedTuple):
    """Rows that are kept for some days."""

    name: str
    days: int
    expire: Expire


class Retention:
    """Every process runs one. Batches of two processes exclude each other or touch no row of the other."""

    def __init__(self, database: Database, *kept: Kept) -> None:
        self._database = database
        self._kept = kept
        self._background = Background(
            "retention", self._run, failure="Cannot delete old rows", interval_seconds=_INTERVAL_SECONDS
        )

    def start(self) -> None:
        self._background.start()
        self._background.wake()

    async def close(self) -> None:
        await self._background.close()

    async def _run(self, _was_woken: bool) -> None:
        await self.expire()

    async def expire(self) -> int:
        """Delete expired rows, and return how many."""
        return sum([await self._expire(kept) for kept in self._kept])

    async def _expire(self, kept: Kept) -> int:
        deleted, batch = 0, _BATCH
        while batch == _BATCH:
            async with self._database.write() as session:
                batch = await kept.expire(session, clock.now() - timedelta(days=kept.days), limit=_BATCH)
            deleted += batch
            await asyncio.sleep(_PAUSE_SECONDS)
        if deleted:
            log.info("Deleted %d %s older than %d days", deleted, kept.name, kept.days)
        return deleted
