"""ASGI middleware in front of the routes: CORS, a shortcut for /graphql, and static files."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskflow_gql.short_keys import cached_for_short_keys
from taskflow_gql.transport.http import CONTENT_SECURITY_POLICY

# The request headers that pages of allowed origins may send. TASKFLOW_CORS_HEADERS adds others.
CLIENT_HEADERS = [
    "Authorization",
    "Content-Type",
    "Accept",
    "X-Request-Id",
    "Idempotency-Key",
    # Apollo and urql, and their CSRF prevention.
    "Apollo-Require-Preflight",
    "X-Apollo-Operation-Name",
    "Apollographql-Client-Name",
    "Apollographql-Client-Version",
    "GraphQL-Preflight",
    # graphql-sse and EventSource, when they reconnect.
    "Last-Event-ID",
    # Tracing: OpenTelemetry, Sentry.
    "Traceparent",
    "Tracestate",
    "Baggage",
    "Sentry-Trace",
    # Fetch wrappers such as axios.
    "X-Requested-With",
    "X-CSRF-Token",
]
# The headers of answers that these pages may read.
SERVER_HEADERS = ["RateLimit", "RateLimit-Policy", "Retry-After"]


class Cors(CORSMiddleware):
    """Starlette's CORS middleware with a cache: the headers that it adds depend on the origin alone."""

    def __init__(self, app: ASGIApp, /, **options: Any) -> None:
        super().__init__(app, **options)
        # The cache is bounded: clients can invent any number of origins.
        self._added = cached_for_short_keys(maxsize=64, max_length=256)(self._headers_for)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "OPTIONS":
            await super().__call__(scope, receive, send)
            return
        added = self._added(next((value for name, value in scope["headers"] if name == b"origin"), b""))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if any(name == b"vary" for name, _ in message["headers"]):
                    await self.send(message, send, Headers(scope=scope))
                    return
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _headers_for(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        headers = MutableHeaders()
        name = origin.decode("latin-1")
        if name:
            headers.update(self.simple_headers)
        if name and self.is_allowed_origin(name):
            self.allow_explicit_origin(headers, name)
        else:
            headers["Vary"] = "Origin"
        return headers.raw


class Shortcut:
    """Passes requests for one path directly to its application, without the router and the middleware below."""

    def __init__(self, app: ASGIApp, *, path: str, to: ASGIApp) -> None:
        self._app, self._path, self._to = app, path, to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_meant = scope["type"] != "lifespan" and scope["path"] == self._path
        await (self._to if is_meant else self._app)(scope, receive, send)


class RevalidatedFiles(StaticFiles):
    """GraphiQL's files. An upgrade changes them without renaming them, so browsers must revalidate them at each load.

    The page itself is one of them, so every file is sent with the page's security policy.
    """

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return response
