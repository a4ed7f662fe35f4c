"""GraphQL over HTTP: https://graphql.github.io/graphql-over-http/draft/ (tested with the audits of graphql-http)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from json import JSONDecodeError
from pathlib import Path
from typing import Any, NamedTuple

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from strawberry.exceptions import MissingQueryError
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types import ExecutionResult
from strawberry.types.execution import PreExecutionError
from strawberry.types.graphql import OperationType

from taskflow_gql.config import Settings
from taskflow_gql.errors import RETRY_AFTER_SECONDS, ServerStops
from taskflow_gql.operations.context import MakeContext, OperationContext
from taskflow_gql.operations.errors import (
    BAD_USER_INPUT,
    PERSISTED_QUERY_NOT_SUPPORTED,
    PERSISTED_QUERY_NOT_SUPPORTED_MESSAGE,
    RATE_LIMITED,
    is_persisted_query,
    shortened,
)
from taskflow_gql.operations.schema import Schema
from taskflow_gql.short_keys import cached_for_short_keys
from taskflow_gql.transport.cookies import HttpCookies
from taskflow_gql.transport.encoding import decode_json, encode_json
from taskflow_gql.transport.origins import AllowedOrigins
from taskflow_gql.transport.private import HTTPStreamTransport, merge_stream_with_heartbeat
from taskflow_gql.transport.streaming import (
    EVENT_STREAM,
    GRAPHQL_RESPONSE,
    JSON,
    MULTIPART,
    Connections,
    EndlessResponse,
    MultipartSubscription,
    ServerSentEvents,
    best_media_type,
)
from taskflow_gql.transport.websocket import SocketView, end_of_stream

_GRAPHIQL_PAGE = Path(__file__).parent.parent / "static" / "graphiql" / "index.html"
# The page holds a token, so it loads nothing from other origins and cannot be framed. GraphiQL's components need inline
# styles.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; font-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_GRAPHIQL_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    # The same URL serves API clients too, and a page cached before an upgrade would not match the new scripts.
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


class RequestError(Exception):
    """The request cannot be executed. The response has this status and one error."""

    def __init__(self, status: int, message: str, *, code: str = BAD_USER_INPUT, allow: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.allow = allow


# Media types of streamed responses. All others are answered with a single JSON object.
_TRANSPORTS: dict[str, HTTPStreamTransport] = {
    EVENT_STREAM: ServerSentEvents(),
    MULTIPART: MultipartSubscription(),
}
_HOW_TO_SUBSCRIBE = (
    "Subscriptions need a WebSocket (graphql-transport-ws), or a request with `Accept: text/event-stream` or "
    "`Accept: multipart/mixed;subscriptionSpec=1.0`"
)
# The operations that each method may execute. GET must not change anything.
_OPERATIONS = {
    "GET": {OperationType.QUERY},
    "POST": {OperationType.QUERY, OperationType.MUTATION},
}


_PARTS_OF_REQUEST: tuple[tuple[str, type, str], ...] = (
    ("query", str, "a string"),
    ("operationName", str, "a string"),
    ("variables", dict, "an object"),
    ("extensions", dict, "an object"),
)


class GraphQLRequest(NamedTuple):
    query: str
    variables: dict[str, Any] | None
    operation_name: str | None


class GraphQLView:
    """The ASGI application at /graphql."""

    def __init__(self, schema: Schema, settings: Settings, make_context: MakeContext) -> None:
        self._schema = schema
        self._settings = settings
        self._make_context = make_context
        self._connections = Connections(settings.max_sockets_per_address)
        self._sockets = SocketView(schema, settings, make_context)
        self._origins = AllowedOrigins(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
            return
        # Reversed, so that the first header of a name wins, as in Starlette's Headers. Those cost more to build.
        headers = dict(reversed(scope["headers"]))
        accept = headers.get(b"accept", b"").decode("latin-1")
        media_type = best_media_type(accept)
        try:
            if scope["method"] not in ("GET", "POST"):
                raise RequestError(405, "GraphQL takes GET and POST", allow="GET, POST")
            if self._wants_graphiql(scope, accept):
                page = FileResponse(_GRAPHIQL_PAGE, media_type="text/html", headers=_GRAPHIQL_HEADERS)
                await page(scope, receive, send)
                return
            if scope["method"] == "GET":
                asked = _request_in_url(scope["query_string"])
            else:
                asked = await self._read(headers.get(b"content-type", b"").decode("latin-1"), receive)
            if transport := _TRANSPORTS.get(media_type):
                response = await self._stream(Request(scope, receive), asked, transport)
                await response(scope, receive, send)
                return
            cookies = HttpCookies(scope, self._origins)
            context = self._make_context(HTTPConnection(scope), cookies=cookies)
            result = await self._execute(scope, asked, context)
        except RequestError as error:
            extensions: dict[str, object] = {"code": error.code}
            more_headers = []
            if error.allow:
                more_headers.append((b"allow", error.allow.encode()))
            if error.status == 429:
                extensions = {"code": RATE_LIMITED, "retryAfter": RETRY_AFTER_SECONDS}
                more_headers.append((b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
            body = {"errors": [{"message": error.message, "extensions": extensions}]}
            await _send_json(send, error.status, media_type, body, more_headers)
        except ClientDisconnect:
            pass
        else:
            response_body = _body_of(result)
            more_headers = [*cookies.headers, *context.rate_headers]
            # With `application/json` a request error has status 200, because older clients treat any other status as a
            # failed server. The newer media type uses 400.
            status = 400 if media_type == GRAPHQL_RESPONSE and "data" not in response_body else 200
            if seconds := _seconds_to_wait(result):
                status = 429
                more_headers.append((b"retry-after", b"%d" % seconds))
            await _send_json(send, status, media_type, response_body, more_headers)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._connections.counted(scope) as has_room:
            if not has_room:
                await _refuse_socket(scope, receive, send, _too_many_connections())
            elif not self._origins.allow(scope):
                await _refuse_socket(scope, receive, send, _foreign_page())
            else:
                await self._sockets(scope, receive, send)

    def _wants_graphiql(self, scope: Scope, accept: str) -> bool:
        # Only browsers accept text/html.
        return (
            scope["method"] == "GET"
            and "text/html" in accept
            and self._settings.shows_graphiql
            and "query" not in QueryParams(scope["query_string"])
        )

    async def _read(self, content_type: str, receive: Receive) -> GraphQLRequest:
        if problem := _problem_of_content_type(content_type):
            raise RequestError(415, problem)
        body = await _read_body(receive, self._settings.max_body_bytes)
        return _request_of(_parsed(body))

    async def _execute(self, scope: Scope, asked: GraphQLRequest, context: OperationContext) -> ExecutionResult:
        try:
            return await self._schema.execute(
                asked.query,
                asked.variables,
                context_value=context,
                operation_name=asked.operation_name,
                allowed_operation_types=_OPERATIONS[scope["method"]],
            )
        except InvalidOperationTypeError as error:
            if error.operation_type is OperationType.SUBSCRIPTION:
                raise RequestError(400, _HOW_TO_SUBSCRIBE) from error
            raise RequestError(405, "Mutations need POST", allow="POST") from error
        except CannotGetOperationTypeError as error:
            raise RequestError(400, shortened(error.as_http_error_reason())) from error
        except MissingQueryError as error:
            raise RequestError(400, "The request has no query") from error

    async def _stream(self, request: Request, asked: GraphQLRequest, transport: HTTPStreamTransport) -> Response:
        with self._connections.counted(request.scope) as has_room:
            if not has_room:
                raise RequestError(429, "Too many streams from your address")
        results = await self._schema.stream(
            asked.query,
            asked.variables,
            context_value=self._make_context(request),
            operation_name=asked.operation_name,
            allowed_operation_types=transport.allowed_operation_types(
                _OPERATIONS[request.method] | {OperationType.SUBSCRIPTION}
            ),
        )

        async def chunks() -> AsyncGenerator[str, None]:
            async with aclosing(results):
                async for result in results:
                    if isinstance(end_of_stream(result), ServerStops):
                        break
                    chunk = transport.encode_next(_body_of(result), _encode)  # type: ignore[arg-type]
                    cursor = getattr(request.state, "event_cursor", None)
                    # Clients send it back as Last-Event-ID when they reconnect.
                    yield f"id: {cursor}\n{chunk}" if cursor and transport.protocol == "sse" else chunk
            yield transport.encode_complete()

        kept_alive = merge_stream_with_heartbeat(
            chunks,
            lambda: transport.heartbeat_message(_encode),
            interval=transport.heartbeat_interval,
            send_initial_heartbeat=transport.send_initial_heartbeat,
        )
        return EndlessResponse(
            kept_alive(),
            headers=dict(transport.headers),
            connections=self._connections,
        )


async def _refuse_socket(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    """Send the response in place of the handshake. Servers without the extension for that send a bare 403."""
    socket = WebSocket(scope, receive, send)
    if "websocket.http.response" in scope.get("extensions", {}):
        await socket.send_denial_response(response)
    else:
        await socket.close()


def _too_many_connections() -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return Response("Too many connections from your address\n", 429, headers, media_type="text/plain")


def _foreign_page() -> Response:
    words = "Pages of this origin may not connect. TASKFLOW_CORS_ORIGINS names the origins that may.\n"
    return Response(words, 403, media_type="text/plain")


def _encode(value: object) -> str:
    return encode_json(value).decode()


# Clients of the same kind send the same header, so a small cache is enough.
@cached_for_short_keys(maxsize=64, max_length=256)
def _problem_of_content_type(content_type: str) -> str | None:
    media_type, _, parameters = content_type.partition(";")
    if media_type.strip().lower() != JSON:
        return f"Send the request as {JSON}"
    if "charset" in parameters.lower() and "utf-8" not in parameters.lower():
        return "Send the request in UTF-8"
    return None


async def _read_body(receive: Receive, limit: int) -> bytes:
    """Read the body. Raises RequestError if it is too long, and ClientDisconnect if the client is gone.

    Starlette's `max_body_size` would respond without JSON and CORS headers, so pages could not read the error.
    """
    chunks, size, goes_on = [], 0, True
    while goes_on:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise RequestError(413, f"A request may have at most {limit} bytes")
        chunks.append(chunk)
        goes_on = message.get("more_body", False)
    return b"".join(chunks)


def _request_in_url(query_string: bytes) -> GraphQLRequest:
    data: dict[str, Any] = dict(QueryParams(query_string))
    for name in ("variables", "extensions"):
        if data.get(name):
            data[name] = _parsed(data[name])
    return _request_of(data)


def _parsed(data: str | bytes) -> object:
    try:
        return decode_json(data)
    except JSONDecodeError as error:
        raise RequestError(400, "Unable to parse request body as JSON") from error


def _request_of(data: object) -> GraphQLRequest:
    if isinstance(data, list):
        raise RequestError(400, "Batches are not taken: send one operation a request")
    if not isinstance(data, dict):
        raise RequestError(400, "The request must be a JSON object with a query")
    for name, kind, what in _PARTS_OF_REQUEST:
        value = data.get(name)
        if value is not None and not isinstance(value, kind):
            raise RequestError(400, f"{name} must be {what}")
    if not data.get("query"):
        if is_persisted_query(data.get("extensions")):
            # Status 200, as Apollo Server sends: Apollo Client's link ignores the body of other responses.
            raise RequestError(200, PERSISTED_QUERY_NOT_SUPPORTED_MESSAGE, code=PERSISTED_QUERY_NOT_SUPPORTED)
        raise RequestError(400, "The request has no query")
    return GraphQLRequest(data["query"], data.get("variables"), data.get("operationName") or None)


def _body_of(result: ExecutionResult) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if result.errors:
        body["errors"] = [error.formatted for error in result.errors]
    # A request error (raised before execution) has no `data` key.
    if result.data is not None or not _is_request_error(result):
        body["data"] = result.data
    return body


def _is_request_error(result: ExecutionResult) -> bool:
    return isinstance(result, PreExecutionError) or not any(error.path for error in result.errors or ())


def _seconds_to_wait(result: ExecutionResult) -> int:
    """How long to wait before the request is repeated, if rate limits have refused all of it; else 0."""
    if result.data is not None or not result.errors:
        return 0
    extensions = [error.extensions or {} for error in result.errors]
    is_limited = all(each.get("code") == RATE_LIMITED for each in extensions)
    return max(each["retryAfter"] for each in extensions) if is_limited else 0


_CONTENT_TYPES = {
    media_type: (b"content-type", f"{media_type}; charset=utf-8".encode()) for media_type in (JSON, GRAPHQL_RESPONSE)
}


async def _send_json(
    send: Send, status: int, media_type: str, body: object, more_headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    encoded = encode_json(body)
    headers = [
        _CONTENT_TYPES.get(media_type, _CONTENT_TYPES[JSON]),
        (b"content-length", b"%d" % len(encoded)),
        *more_headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": encoded})
