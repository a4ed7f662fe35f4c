"""The context of resolvers: the parts of the server, the viewer and the loaders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from time import monotonic
from typing import Any, Self
from uuid import UUID

import strawberry
from starlette.requests import HTTPConnection

from taskflow_gql import clock
from taskflow_gql.api.authentication import Authenticator
from taskflow_gql.api.loaders import Loaders
from taskflow_gql.api.needs import Needs
from taskflow_gql.config import Settings
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import BoundedReads, Database
from taskflow_gql.errors import RateLimited, Unauthenticated
from taskflow_gql.models import UserRow
from taskflow_gql.operations.context import Cookies
from taskflow_gql.operations.documents import Document
from taskflow_gql.security.issuers import Issuers
from taskflow_gql.security.passwords import PasswordHasher
from taskflow_gql.security.rates import Attempt, RateLimits, Usage, network_of
from taskflow_gql.security.tokens import TokenSigner, could_not_validate
from taskflow_gql.services.access import Lease, Viewer
from taskflow_gql.services.sessions import Client
from taskflow_gql.stream.fanout import Fanout
from taskflow_gql.stream.relay import Relay

# How many read sessions one operation may have open at once. This leaves connections for other requests.
MAX_READS = 3
_NO_TURNS = nullcontext()


@dataclass(frozen=True)
class Parts:
    """The parts of the server, which live as long as the process."""

    settings: Settings
    database: Database
    relay: Relay
    fanout: Fanout
    passwords: PasswordHasher
    tokens: TokenSigner
    rates: RateLimits
    issuers: Issuers = field(default_factory=Issuers)

    @cached_property
    def receipt_key(self) -> bytes:
        """For hashes of passwords and addresses, which anybody with the database could guess without a key."""
        return self.settings.key_for(b"receipts")

    @cached_property
    def refresh_key(self) -> bytes:
        """For the first refresh token of each session."""
        return self.settings.key_for(b"refresh tokens")

    @cached_property
    def authenticator(self) -> Authenticator:
        return Authenticator(self.database, self.tokens, self.issuers)


@dataclass
class Socket:
    """A WebSocket's session. A refresh gives it a new token."""

    session_id: UUID
    token: str
    lease: Lease


@dataclass
class Context:
    """The context of one operation. A WebSocket also has one, from which each of its operations makes its own."""

    parts: Parts
    connection: HTTPConnection
    # The payload of connection_init; Strawberry puts it here before `on_ws_connect`.
    connection_params: dict[str, Any] | None = None
    document: Document | None = None
    turns: AbstractAsyncContextManager[object] = _NO_TURNS
    # None where an answer cannot set cookies: on a WebSocket, and in a streamed response.
    cookies: Cookies | None = None
    # The session of the WebSocket, if its person is signed in.
    socket: Socket | None = None
    # The person who opened the WebSocket; None until identified.
    person: UUID | None = field(default=None, init=False)
    begun_at: datetime = field(default_factory=clock.now, init=False)
    reads: BoundedReads = field(init=False)
    # The rate limits that this operation has used, by group.
    _usages: dict[str, Usage] = field(default_factory=dict, init=False)
    _viewer: Viewer | None = field(default=None, init=False)
    _authenticating: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _signed_in: set[UUID] = field(default_factory=set, init=False)
    _loaders: Loaders | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.reads = BoundedReads(self.parts.database, MAX_READS)

    def begin(self, document: Document) -> Self:
        """Return this context for the first operation, and a fresh one for each further operation."""
        if self.document is not None:
            return self.for_operation(document)
        self.document = document
        return self

    def for_operation(self, document: Document | None = None) -> Self:
        """Return a fresh context. Operations share neither loaded data nor the viewer."""
        return replace(self, document=document)

    @property
    def loaders(self) -> Loaders:
        if self._loaders is None:
            self._loaders = Loaders(self.reads)
        return self._loaders

    def begin_event(self, viewer: Viewer, cursor: str) -> None:
        """Prepare for the next event of a subscription: drop what was loaded for the previous one."""
        self._loaders = None
        self._viewer = viewer
        # For the `id:` of server-sent events.
        self.connection.state.event_cursor = cursor

    @property
    def read(self) -> Callable[[], AbstractAsyncContextManager[DatabaseSession]]:
        return self.reads.read

    @asynccontextmanager
    async def write(self, mutation_id: str | None = None, *, locks: bool = True) -> AsyncIterator[DatabaseSession]:
        async with self.parts.database.write(mutation_id, locks=locks) as session:
            yield session
        # The write may have changed what was loaded for an earlier field of this mutation.
        self._loaders = None

    @property
    def address(self) -> str:
        """The client's network address; empty if the server does not know it."""
        client = self.connection.client
        return client.host if client else ""

    @property
    def client(self) -> Client:
        return Client(self.address or None, self.connection.headers.get("user-agent"))

    @property
    def counted_as(self) -> UUID | str:
        """The subject of rate limits: the person of the token, or the client's network without a good token.

        Whether the session still exists is not looked up: an old token can only use up its own person's limits.
        """
        token = self.token
        if token is not None:
            try:
                return self.parts.tokens.read(token).user_id
            except Unauthenticated:
                pass
        return network_of(self.address)

    def count(self, group: str, times: int = 1) -> None:
        """Count in this process: `mutations`, `queries` or `subscriptions`. Raises RateLimited."""
        buckets = self.parts.rates.buckets.get(group)
        if buckets is not None:
            usage = buckets.take(self.counted_as, times, monotonic())
            if usage.remaining <= buckets.shown_from:
                self._note_usage(usage)

    async def attempt(self, group: str, subject: UUID | None = None) -> None:
        """Count in all processes: `auth` or `refresh`. Raises RateLimited.

        Without a subject it counts the address, because one client may have any number of accounts.
        """
        counted = network_of(self.address) if subject is None else subject
        self._note_usage((await self.parts.rates.attempt(group, counted)).usage)

    @asynccontextmanager
    async def guess(self, group: str, account: str) -> AsyncIterator[Attempt]:
        """As `RateLimits.guess`, for the client's address. Raises RateLimited."""
        async with self.parts.rates.guess(group, network_of(self.address), account) as attempt:
            self._note_usage(attempt.usage)
            yield attempt
            self._note_usage(attempt.usage)

    def _note_usage(self, usage: Usage | None) -> None:
        if usage is not None:
            self._usages[usage.group] = usage
            if usage.is_refused:
                raise RateLimited(usage.group, usage.seconds)

    @property
    def rate_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that tell a client over HTTP how much of its limits is left."""
        return self.parts.rates.headers(self._usages.values()) if self._usages else []

    @cached_property
    def idempotency_key(self) -> str | None:
        """The header `Idempotency-Key` of an HTTP request, with or without the quotes that its draft asks for.

        The headers of a WebSocket belong to all its operations, so they name none.
        """
        if self.connection.scope["type"] != "http":
            return None
        for name, value in self.connection.scope["headers"]:
            if name == b"idempotency-key":
                key: str = value.decode("latin-1").strip()
                is_quoted = len(key) > 1 and key[0] == key[-1] == '"'
                return key[1:-1] if is_quoted else key
        return None

    @property
    def last_event_id(self) -> str | None:
        """The cursor that an SSE client sends when it reconnects."""
        return self.connection.headers.get("last-event-id") or None

    @cached_property
    def token(self) -> str | None:
        """The token as sent, or None if there is none. `connection_init` has precedence over the header."""
        if self.socket is not None:
            return self.socket.token
        for key, value in (self.connection_params or {}).items():
            if key.lower() == "authorization" and isinstance(value, str):
                if token := _token_of(value):
                    return token
                break
        # Starlette's Headers would decode all headers.
        for name, header in self.connection.scope["headers"]:
            if name == b"authorization":
                return _token_of(header.decode("latin-1"))
        return None

    async def viewer(self) -> Viewer | None:
        """The signed-in person, or None without a token. A bad token raises Unauthenticated."""
        token = self.token
        if token is None:
            return None
        # Sibling fields run concurrently. The first one does the look-up, and the others wait for its result.
        async with self._authenticating:
            if self._viewer is None:
                viewer, user = await self.parts.authenticator.authenticate(token)
                self._viewer = replace(viewer, lease=self.socket.lease) if self.socket else viewer
                self.loaders.people[user.id] = user
        return self._viewer

    @property
    def known_viewer(self) -> Viewer | None:
        """The viewer, if an earlier resolver of this operation has authenticated them.

        For fields that run once for each row, of rows that only a signed-in person can have read.
        """
        return self._viewer

    def is_viewer(self, user_id: UUID) -> bool:
        """Whether this is the person of the token, or a person who has just signed in by this operation."""
        return user_id in self._signed_in or (self._viewer is not None and self._viewer.id == user_id)

    def note_sign_in(self, user: UserRow) -> None:
        """Let the answer show this person their own private fields. Later fields still need a token."""
        self._signed_in.add(user.id)

    @property
    def needs(self) -> Needs | None:
        """The columns and relations that the document selects; None means all."""
        needs: Needs | None = self.document.needs if self.document else None
        return needs

    async def identify(self) -> UUID | None:
        operation = self.for_operation()
        viewer = await operation.viewer()
        if viewer is None or operation.token is None:
            return None
        self.socket = Socket(viewer.session_id, operation.token, Lease(viewer.expires_at))
        return viewer.id

    async def renew(self, authorization: str) -> None:
        token = _token_of(authorization)
        if self.socket is not None and token == self.socket.token:
            return
        self.count("queries")
        if token is None:
            raise could_not_validate()
        viewer, _ = await self.parts.authenticator.authenticate(token)
        if not self.renews(viewer.session_id, token, viewer.expires_at):
            raise could_not_validate()

    def renews(self, session_id: UUID, token: str, expires_at: datetime) -> bool:
        """Whether the WebSocket has this session, and so goes on with the new token."""
        if self.socket is None or self.socket.session_id != session_id:
            return False
        if expires_at > self.socket.lease.expires_at:
            self.socket.token = token
            self.socket.lease.expires_at = expires_at
        return True

    async def require_viewer(self) -> Viewer:
        viewer = await self.viewer()
        if viewer is None:
            raise Unauthenticated("Not authenticated")
        return viewer


def _token_of(authorization: str) -> str | None:
    """The token of an Authorization header, with or without `Bearer`."""
    scheme, _, rest = authorization.strip().partition(" ")
    token = rest.strip() if scheme.lower() == "bearer" else authorization.strip()
    return token or None


Info = strawberry.Info[Context, None]
