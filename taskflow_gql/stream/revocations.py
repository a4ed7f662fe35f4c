"""Ends the streams of people who were signed out or deactivated, and applies changes of role."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from taskflow_gql.database.units import Database
from taskflow_gql.security.tokens import could_not_validate, is_expired
from taskflow_gql.services.accounts import roles_by_session
from taskflow_gql.stream.fanout import Fanout

log = logging.getLogger(__name__)

# A revocation takes effect everywhere within two seconds, without Redis: one second of waiting, one for the query.
_INTERVAL_SECONDS = 1.0


class SessionWatch:
    """Runs one statement a second for all open streams of the process, and none while there are no streams."""

    def __init__(self, database: Database, fanout: Fanout) -> None:
        self._database = database
        self._fanout = fanout
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="session-watch")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            try:
                await self.look()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                # Events are read from the same database, so no stream delivers anything meanwhile.
                log.warning("Cannot check sessions now (%s); trying again", type(error).__name__)

    async def look(self) -> None:
        subscribers = self._fanout.subscribers()
        if not subscribers:
            return
        async with self._database.read() as session:
            roles = await roles_by_session(session, {subscriber.viewer.session_id for subscriber in subscribers})
        for subscriber in subscribers:
            viewer = subscriber.viewer
            role = roles.get(viewer.session_id)
            if role is None or is_expired(viewer.expires_at):
                subscriber.end(could_not_validate())
            elif role is not viewer.role:
                self._fanout.set_viewer(subscriber, replace(viewer, role=role))
