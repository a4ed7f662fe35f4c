"""Assigns positions to committed events. Readers go by position and miss nothing."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from taskflow_gql.database.units import Database
from taskflow_gql.services.positions import has_unplaced_events, place_events
from taskflow_gql.stream.bus import Bus

log = logging.getLogger(__name__)

_BATCH = 1000
# How often to look for events whose process died after the commit and before its relay ran.
_SWEEP_SECONDS = 1.0


class Relay:
    """Places events after each commit of its own process, and on a timer those that another process left behind.

    Every process runs one; none is the leader (docs/decisions/0002-relay.md).
    """

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database = database
        self._bus = bus
        self._doorbell = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Wakes the relay after the commit of an event."""
        self._doorbell.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="relay")

    async def close(self) -> None:
        """Places what this process has committed, and stops."""
        if self._task is None:
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        with suppress(SQLAlchemyError, OSError, TimeoutError):
            await self._place_all()

    async def catch_up(self) -> None:
        """Returns when all events committed so far have positions. A client that reads the record after its own
        mutation then finds its event there.
        """
        if await self._is_anything_left_behind():
            await self._place_all()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._doorbell.wait()
                rang = True
            except TimeoutError:
                rang = False
            self._doorbell.clear()
            try:
                if rang or await self._is_anything_left_behind():
                    await self._place_all()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                # The database is unreachable. Its events wait there until the next attempt.
                log.warning("Cannot place events now (%s); trying again", type(error).__name__)
                await asyncio.sleep(_SWEEP_SECONDS / 4)
                self._doorbell.set()

    async def _is_anything_left_behind(self) -> bool:
        async with self._database.read() as session:
            return await has_unplaced_events(session)

    async def _place_all(self) -> None:
        may_be_more = True
        while may_be_more:
            async with self._database.write_single_statement() as session:
                placed, may_be_more = await place_events(session, limit=_BATCH)
            if placed:
                self._bus.announce()
