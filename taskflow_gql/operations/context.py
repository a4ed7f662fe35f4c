"""The context of an operation, as the transports and the schema see it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, Self
from uuid import UUID

from starlette.requests import HTTPConnection

from taskflow_gql.operations.documents import Document


class OperationContext(Protocol):
    """The context of one operation. A WebSocket also has one, and each of its operations gets a fresh copy of it."""

    # Held from the start of a query or mutation until its answer is sent. Limits those of one WebSocket.
    turns: AbstractAsyncContextManager[object]
    # The person who opened the WebSocket; None until identified.
    person: UUID | None

    @property
    def connection(self) -> HTTPConnection: ...

    @property
    def rate_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Headers of an answer over HTTP: the rate limits that counted this operation."""

    def begin(self, document: Document) -> Self:
        """Return this context for the first operation, and a fresh one for each further operation."""

    def for_operation(self, document: Document | None = None) -> Self:
        """Return a fresh context, without the viewer and the data that were loaded for another operation."""

    def count(self, group: str, times: int = 1) -> None:
        """Count for a rate limit, without waiting. Raises a TaskflowError if too many were counted."""

    async def identify(self) -> UUID | None:
        """Return the id of the person who opens a WebSocket; None without a token. A bad token raises
        Unauthenticated.
        """

    async def renew(self, authorization: str) -> None:
        """Go on with this token on the WebSocket. Raises Unauthenticated if it is bad or of another session."""


class Cookies(Protocol):
    """The cookies of a request, and those of its answer."""

    @property
    def are_trusted(self) -> bool:
        """Whether no page of a foreign origin has sent the request."""

    def get(self, name: str) -> str | None: ...

    def set(self, name: str, value: str, *, max_age: int) -> None:
        """Give a page a cookie that its scripts cannot read; `max_age` is in seconds, and 0 deletes it."""


class MakeContext(Protocol):
    def __call__(
        self,
        connection: HTTPConnection,
        *,
        turns: AbstractAsyncContextManager[object] = ...,
        cookies: Cookies | None = ...,
    ) -> OperationContext: ...
