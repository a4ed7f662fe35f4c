"""Authenticates each request. Concurrent requests share one statement."""

from __future__ import annotations

import asyncio

from taskflow_gql.database.units import Database
from taskflow_gql.models import UserRow
from taskflow_gql.security.tokens import AccessToken
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.accounts import SignIns, read_sign_ins, require_viewer

# Tokens in one statement, so that no request waits for a statement that reads thousands.
_MAX_TOKENS = 100
# A look-up usually takes a millisecond. One that takes this long has a dead connection or waits for a free one, so
# later requests stop waiting for it and start another.
_SLOW_SECONDS = 0.1


class ViewerLoader:
    """Batches look-ups: requests that arrive while a statement runs wait, and share the next one.

    So each request uses a statement that started after the request arrived. A revocation takes effect at once, as if
    each request had its own statement.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[AccessToken, asyncio.Future[SignIns]]] = []
        # The look-up in flight; queued requests start when it finishes.
        self._in_flight: asyncio.Task[None] | None = None

    async def load(self, token: AccessToken) -> tuple[Viewer, UserRow]:
        """The person of a token whose signature was verified. Raises Unauthenticated with the reason."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((token, answer))
        if self._in_flight is None:
            self._look_up_next()
        return require_viewer(await answer, token)

    def _look_up_next(self) -> None:
        # A separate task, so that cancelling one request does not cancel the look-up for the others.
        self._in_flight = asyncio.create_task(self._look_up(), name="viewers") if self._waiting else None

    async def _look_up(self) -> None:
        batch, self._waiting = self._waiting[:_MAX_TOKENS], self._waiting[_MAX_TOKENS:]
        slow_timer = asyncio.get_running_loop().call_later(_SLOW_SECONDS, self._look_up_next)
        try:
            async with self._database.read() as session:
                found = await read_sign_ins(session, [token for token, _ in batch])
        except BaseException as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            for _, answer in batch:
                if not answer.done():
                    answer.set_result(found)
        finally:
            slow_timer.cancel()
            if self._in_flight is asyncio.current_task():
                self._look_up_next()
