"""Ends the streams of people who were signed out or deactivated, and applies changes of role."""

from __future__ import annotations

from dataclasses import replace

from taskflow_gql.database.units import Database
from taskflow_gql.security.tokens import could_not_validate, is_expired
from taskflow_gql.services.sessions import roles_by_session
from taskflow_gql.stream.background import Background
from taskflow_gql.stream.fanout import Fanout

# A revocation takes effect everywhere within two seconds, without Redis: one second of waiting, one for the query.
_INTERVAL_SECONDS = 1.0


class SessionWatch:
    """Runs one statement a second for all open streams of the process, and none while there are no streams."""

    def __init__(self, database: Database, fanout: Fanout) -> None:
        self._database = database
        self._fanout = fanout
        # Without the database nobody is told anything either: events are read from it.
        self._background = Background(
            "session-watch", self._run, failure="Cannot check sessions", interval_seconds=_INTERVAL_SECONDS
        )

    def start(self) -> None:
        self._background.start()

    async def close(self) -> None:
        await self._background.close()

    async def _run(self, _was_woken: bool) -> None:
        await self.look()

    async def look(self) -> None:
        subscribers = self._fanout.subscribers()
        if not subscribers:
            return
        async with self._database.read() as session:
            roles = await roles_by_session(session, {subscriber.viewer.session_id for subscriber in subscribers})
        for subscriber in subscribers:
            viewer = subscriber.viewer
            role = roles.get(viewer.session_id)
            if role is None or is_expired(viewer.ends_at):
                subscriber.end(could_not_validate())
            elif role is not viewer.role:
                self._fanout.set_viewer(subscriber, replace(viewer, role=role))
