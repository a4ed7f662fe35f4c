"""Authenticates each request. Concurrent requests share one statement."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from taskflow_gql.config import Settings, TrustedIssuer
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.models import UserRow
from taskflow_gql.security.issuers import ClaimNames, FixedKeys, ForeignToken, Issuer, Issuers, RemoteKeys
from taskflow_gql.security.tokens import AccessToken, TokenSigner
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.accounts import SignIns, read_sign_ins, require_viewer
from taskflow_gql.services.identities import (
    Identities,
    UnknownPerson,
    make_person,
    read_identities,
    require_known_person,
)

# Tokens in one statement, so that no request waits for a statement that reads thousands.
_MAX_TOKENS = 100
# A look-up usually takes a millisecond. One that takes this long has a dead connection or waits for a free one, so
# later requests stop waiting for it and start another.
_SLOW_SECONDS = 0.1


Token = TypeVar("Token")
Found = TypeVar("Found")


class BatchedLoader(ABC, Generic[Token, Found]):
    """Batches look-ups: requests that arrive while a statement runs wait, and share the next one.

    So each request uses a statement that started after the request arrived. A revocation takes effect at once, as if
    each request had its own statement.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[Token, asyncio.Future[Found]]] = []
        # The look-up in flight; queued requests start when it finishes.
        self._in_flight: asyncio.Task[None] | None = None

    @abstractmethod
    async def _read(self, session: DatabaseSession, tokens: Sequence[Token]) -> Found:
        """Read what `_require` needs to check these tokens, in one statement."""

    @abstractmethod
    def _require(self, found: Found, token: Token) -> tuple[Viewer, UserRow]: ...

    async def load(self, token: Token) -> tuple[Viewer, UserRow]:
        """The person of a token whose signature was verified. Raises Unauthenticated with the reason."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((token, answer))
        if self._in_flight is None:
            self._look_up_next()
        return self._require(await answer, token)

    def _look_up_next(self) -> None:
        # A separate task, so that cancelling one request does not cancel the look-up for the others.
        self._in_flight = asyncio.create_task(self._look_up(), name="viewers") if self._waiting else None

    async def _look_up(self) -> None:
        batch, self._waiting = self._waiting[:_MAX_TOKENS], self._waiting[_MAX_TOKENS:]
        slow_timer = asyncio.get_running_loop().call_later(_SLOW_SECONDS, self._look_up_next)
        try:
            async with self._database.read() as session:
                found = await self._read(session, [token for token, _ in batch])
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


class ViewerLoader(BatchedLoader[AccessToken, SignIns]):
    """For tokens of this server."""

    async def _read(self, session: DatabaseSession, tokens: Sequence[AccessToken]) -> SignIns:
        return await read_sign_ins(session, tokens)

    def _require(self, found: SignIns, token: AccessToken) -> tuple[Viewer, UserRow]:
        return require_viewer(found, token)


class ForeignViewerLoader(BatchedLoader[ForeignToken, Identities]):
    """For tokens of trusted issuers."""

    async def _read(self, session: DatabaseSession, tokens: Sequence[ForeignToken]) -> Identities:
        return await read_identities(session, tokens)

    def _require(self, found: Identities, token: ForeignToken) -> tuple[Viewer, UserRow]:
        return require_known_person(found, token)


class Authenticator:
    """From a token as sent to its person."""

    def __init__(self, database: Database, tokens: TokenSigner, issuers: Issuers) -> None:
        self._database = database
        self._tokens = tokens
        self._issuers = issuers
        self._own = ViewerLoader(database)
        self._foreign = ForeignViewerLoader(database)

    async def authenticate(self, token: str) -> tuple[Viewer, UserRow]:
        """Raises Unauthenticated with the reason."""
        issuer = self._issuers.issuer_of(token)
        if issuer is None:
            return await self._own.load(self._tokens.read(token))
        return await self._load_foreign(await issuer.read(token))

    async def _load_foreign(self, token: ForeignToken) -> tuple[Viewer, UserRow]:
        try:
            return await self._foreign.load(token)
        except UnknownPerson:
            async with self._database.write() as session:
                await make_person(session, token)
            return await self._foreign.load(token)


def issuers_of(settings: Settings) -> Issuers:
    return Issuers(map(_issuer_of, settings.trusted_issuers))


def _issuer_of(trusted: TrustedIssuer) -> Issuer:
    keys: FixedKeys | RemoteKeys
    if trusted.secret is not None:
        keys = FixedKeys(trusted.secret.get_secret_value())
    else:
        assert trusted.jwks_url is not None
        keys = RemoteKeys(trusted.jwks_url, trusted.algorithms)
    return Issuer(trusted.issuer, trusted.audience, keys, ClaimNames(**trusted.claims.model_dump()))
