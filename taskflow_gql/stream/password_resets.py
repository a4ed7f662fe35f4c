"""Answers requests for links to set a new password."""

from __future__ import annotations

from collections.abc import Set

from taskflow_gql.database.observers import DatabaseObserver
from taskflow_gql.database.units import Database
from taskflow_gql.services.password_resets import RESET_REQUESTED, answer_requests
from taskflow_gql.stream.background import Background

_BATCH = 10
# How often to look for requests whose process died before it answered them.
_INTERVAL_SECONDS = 30.0


class PasswordResets(DatabaseObserver):
    """Works after each commit of its own process that stored a request, and on a timer. Every process runs one."""

    def __init__(self, database: Database, *, links_base: str) -> None:
        self._database = database
        self._links_base = links_base
        self._background = Background(
            "password-resets",
            self._run,
            failure="Cannot answer requests for new passwords",
            interval_seconds=_INTERVAL_SECONDS,
        )

    def on_committed(self, announcements: Set[str]) -> None:
        if RESET_REQUESTED in announcements:
            self._background.wake()

    def start(self) -> None:
        self._background.start()
        self._background.wake()

    async def close(self) -> None:
        await self._background.close()

    async def _run(self, _was_woken: bool) -> None:
        answered = _BATCH
        while answered == _BATCH:
            async with self._database.write() as session:
                answered = await answer_requests(session, links_base=self._links_base, limit=_BATCH)
