"""Assigns positions to committed events. Readers go by position and miss nothing."""

from __future__ import annotations

from contextlib import suppress

from taskflow_gql.database.observers import DatabaseObserver
from taskflow_gql.database.units import Database
from taskflow_gql.services.positions import has_unplaced_events, place_events
from taskflow_gql.stream.background import UNREACHABLE, Background
from taskflow_gql.stream.bus import Bus

_BATCH = 1000
# How often to look for events whose process died after the commit and before its relay ran.
_SWEEP_SECONDS = 1.0


class Relay(DatabaseObserver):
    """Places events after each commit of its own process, and on a timer those that another process left behind.

    Every process runs one; none is the leader (docs/decisions/0002-relay.md).
    """

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database = database
        self._bus = bus
        self._background = Background(
            "relay",
            self._run,
            failure="Cannot place events",
            interval_seconds=_SWEEP_SECONDS,
            retry_seconds=_SWEEP_SECONDS / 4,
        )

    def on_event_committed(self) -> None:
        self._background.wake()

    def start(self) -> None:
        self._background.start()

    async def close(self) -> None:
        """Places what this process has committed, and stops."""
        if not self._background.was_started:
            return
        await self._background.close()
        with suppress(*UNREACHABLE):
            await self._place_all()

    async def catch_up(self) -> None:
        """Returns when all events committed so far have positions. A client that reads the record after its own
        mutation then finds its event there.
        """
        if await self._is_anything_left_behind():
            await self._place_all()

    async def _run(self, was_woken: bool) -> None:
        if was_woken or await self._is_anything_left_behind():
            await self._place_all()

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
