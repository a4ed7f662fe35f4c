"""What an operation's context is to the transports and to the schema."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, Self
from uuid import UUID

from starlette.requests import HTTPConnection

from taskflow_gql.operations.documents import Document


class OperationContext(Protocol):
    """The context of one operation. A WebSocket has one, of which each of its operations gets a fresh copy."""

    # Held while an operation runs and until its answer is sent, where many operations share a connection.
    turns: AbstractAsyncContextManager[object]
    # Whose connection it is, on a WebSocket, once that is known.
    person: UUID | None

    @property
    def connection(self) -> HTTPConnection: ...

    def begin(self, document: Document) -> Self:
        """This context for the first operation, a fresh one for each further operation."""

    def for_operation(self, document: Document | None = None) -> Self:
        """A fresh context. It keeps nothing that was loaded or found out for another operation."""

    async def identify(self) -> UUID | None:
        """The id of the person behind the token, None without a token. A bad token raises Unauthenticated."""


class MakeContext(Protocol):
    def __call__(
        self, connection: HTTPConnection, *, turns: AbstractAsyncContextManager[object] = ...
    ) -> OperationContext: ...
