"""Finds out who asks: with every request, and for requests that come at the same time with one statement."""

from __future__ import annotations

import asyncio

from taskflow_gql.database.units import Database
from taskflow_gql.models import UserRow
from taskflow_gql.security.tokens import AccessToken
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.accounts import SignIns, read_sign_ins, require_viewer

# So that no statement keeps everybody waiting while it reads for thousands.
_MOST_TOKENS = 100
# A statement that takes so much longer than the usual millisecond has a connection that nobody answers on, or waits
# for a free one: who came after it need not share its fate.
_PATIENCE_SECONDS = 0.1


class ViewerLoader:
    """While one statement is under way, whoever comes waits for the next one, and they share it. So each request is
    judged by a statement that began after it came: a revocation holds at once, as if each had asked alone.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[AccessToken, asyncio.Future[SignIns]]] = []
        # Whose end the waiting wait for.
        self._newest: asyncio.Task[None] | None = None

    async def load(self, token: AccessToken) -> tuple[Viewer, UserRow]:
        """The person behind a token whose signature is good. Raises Unauthenticated with the reason."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((token, answer))
        if self._newest is None:
            self._look_up_next()
        return require_viewer(await answer, token)

    def _look_up_next(self) -> None:
        # A task of its own, so that nobody who is cancelled takes the others' answers along.
        self._newest = asyncio.create_task(self._look_up(), name="viewers") if self._waiting else None

    async def _look_up(self) -> None:
        batch, self._waiting = self._waiting[:_MOST_TOKENS], self._waiting[_MOST_TOKENS:]
        impatience = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._look_up_next)
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
            impatience.cancel()
            if self._newest is asyncio.current_task():
                self._look_up_next()
