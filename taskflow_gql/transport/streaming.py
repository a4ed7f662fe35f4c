"""Subscriptions over plain HTTP: server-sent events, multipart responses, and the limit of open streams.

Server-sent events: https://github.com/enisdenjo/graphql-sse/blob/master/PROTOCOL.md (distinct connections).
Multipart: Apollo's subscription protocol over HTTP, version 1.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from anyio import CancelScope
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from taskflow_gql.short_keys import cached_for_short_keys
from taskflow_gql.transport.private import MultipartSubscriptionTransport, SSETransport

JSON = "application/json"
GRAPHQL_RESPONSE = "application/graphql-response+json"
EVENT_STREAM = "text/event-stream"
MULTIPART = "multipart/mixed"


class ServerSentEvents(SSETransport):
    """Strawberry's transport with LF instead of CRLF, which urql cannot parse."""

    def encode_event(self, event: str, data: str | None = None) -> str:
        return super().encode_event(event, data).replace("\r\n", "\n")

    def encode_comment(self, comment: str) -> str:
        return super().encode_comment(comment).replace("\r\n", "\n")


class MultipartSubscription(MultipartSubscriptionTransport):
    """Strawberry's transport, named here beside the other one."""


# The media type to respond with, by entry of the Accept header. Multipart counts only with Apollo's parameter.
_KNOWN = {name: name for name in (JSON, GRAPHQL_RESPONSE, EVENT_STREAM, MULTIPART)}
_KNOWN |= {"application/*": JSON, "*/*": JSON}
# Browsers and client libraries send at most 200 characters.
_MAX_ACCEPT_LENGTH = 1024


# Clients of the same kind send the same header, so a small cache is enough.
@cached_for_short_keys(maxsize=256, max_length=_MAX_ACCEPT_LENGTH)
def best_media_type(accept: str) -> str:
    """The supported media type that the client prefers: highest q first, then the earliest; JSON by default.

    Some clients list `text/event-stream` with every request. They get a stream only if JSON does not come first.
    Only the first thousand characters of the header are read; no known client sends more.
    """
    if len(accept) > _MAX_ACCEPT_LENGTH:
        accept = accept[:_MAX_ACCEPT_LENGTH].rpartition(",")[0]
    best, best_quality = JSON, 0.0
    for part in accept.split(","):
        given, _, rest = part.partition(";")
        name = _KNOWN.get(given.strip().lower())
        if name is None:
            continue
        parameters = [piece.strip().lower() for piece in rest.split(";")]
        quality = next((_quality(piece) for piece in parameters if piece.startswith("q=")), 1.0)
        is_subscription = any(piece.startswith("subscriptionspec=") for piece in parameters)
        if quality > best_quality and (name != MULTIPART or is_subscription):
            best, best_quality = name, quality
    return best


def _quality(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0


class Connections:
    """Counts the open sockets and streams of each network address."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: Counter[str] = Counter()

    @contextmanager
    def counted(self, scope: Scope) -> Iterator[bool]:
        """Count one more while the block runs. Yields False if the address is now above the limit."""
        client = scope.get("client")
        address = client[0] if client else ""
        self._open[address] += 1
        try:
            yield self._open[address] <= self.limit
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


class EndlessResponse(StreamingResponse):
    """A stream that is counted while it is open. The HTTP server cuts off a client that stops reading."""

    def __init__(self, content: AsyncGenerator[str, None], *, connections: Connections, **options: Any) -> None:
        super().__init__(content, **options)
        self._content = content
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._connections.counted(scope):
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        finally:
            # When the client disconnects, Starlette cancels this scope, which would also cancel every `await` here.
            with CancelScope(shield=True):
                await self._content.aclose()
