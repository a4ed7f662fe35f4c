"""Subscriptions over plain HTTP, as server-sent events and as multipart responses; and how many may be open.

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
from strawberry.http.streaming import MultipartSubscriptionTransport, SSETransport

from taskflow_gql.short_keys import cached_for_short_keys

JSON = "application/json"
GRAPHQL_RESPONSE = "application/graphql-response+json"
EVENT_STREAM = "text/event-stream"
MULTIPART = "multipart/mixed"


class ServerSentEvents(SSETransport):
    """Strawberry's, with lines that end in LF alone: urql cannot read the others."""

    def encode_event(self, event: str, data: str | None = None) -> str:
        return super().encode_event(event, data).replace("\r\n", "\n")

    def encode_comment(self, comment: str) -> str:
        return super().encode_comment(comment).replace("\r\n", "\n")


class MultipartSubscription(MultipartSubscriptionTransport):
    """Strawberry's. Named here so that both stand together."""


# What an entry of Accept means to us. A multipart answer is meant only by one with Apollo's parameter.
_KNOWN = {name: name for name in (JSON, GRAPHQL_RESPONSE, EVENT_STREAM, MULTIPART)}
_KNOWN |= {"application/*": JSON, "*/*": JSON}
# Browsers and libraries send at most 200 characters.
_MAX_ACCEPT_LENGTH = 1024


# Clients of one kind send one header.
@cached_for_short_keys(maxsize=256, max_length=_MAX_ACCEPT_LENGTH)
def best_media_type(accept: str) -> str:
    """What the client likes best of what we can answer with: the higher q, then the earlier; JSON for no word.

    Some clients list `text/event-stream` with every request. That is no wish for a stream while JSON comes first.
    Of a header that is longer than any client's, the first thousand characters count.
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
        """Whether there is room for one more, which is counted as long as the block runs."""
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
    """A stream that is counted while it is open. The HTTP server cuts off a client that takes nothing any more."""

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
            # Starlette cancels this when the client is gone, and again at each `await`.
            with CancelScope(shield=True):
                await self._content.aclose()
