"""Work that runs beside the requests, in a loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

log = logging.getLogger(__name__)

# What the work may raise while a server that it needs is unreachable.
UNREACHABLE = (SQLAlchemyError, OSError, TimeoutError)

_CANCEL_SECONDS = 1.0


class Background:
    """Runs `work(was_woken)` when it is woken, and after each interval.

    While the database is unreachable the work fails; each failure is a warning `failure`, and the work is tried again
    after `retry_seconds`. Any other error ends the loop and is raised by `close`.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[bool], Awaitable[object]],
        *,
        failure: str,
        interval_seconds: float,
        retry_seconds: float | None = None,
    ) -> None:
        self._name = name
        self._work = work
        self._failure = failure
        self._interval_seconds = interval_seconds
        self._retry_seconds = interval_seconds if retry_seconds is None else retry_seconds
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    def wake(self) -> None:
        """Run the work now, or once more after the run under way."""
        self._woken.set()

    async def close(self) -> None:
        """Cancels the run under way. Does nothing if the loop was not started."""
        if self._task is not None:
            # Again and again, because `asyncio.wait_for` loses a cancellation that meets a result (before Python 3.12).
            while not self._task.done():
                self._task.cancel()
                await asyncio.wait({self._task}, timeout=_CANCEL_SECONDS)
            with suppress(asyncio.CancelledError):
                await self._task

    @property
    def was_started(self) -> bool:
        return self._task is not None

    async def _run(self) -> None:
        while True:
            was_woken = await self._wait()
            try:
                await self._work(was_woken)
            except UNREACHABLE as error:
                log.warning("%s now (%s); trying again", self._failure, type(error).__name__)
                await asyncio.sleep(self._retry_seconds)
                self._woken.set()

    async def _wait(self) -> bool:
        """Whether the loop was woken before the interval was over."""
        try:
            async with asyncio.timeout(self._interval_seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True
