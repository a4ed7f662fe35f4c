"""GraphQL over HTTP and over WebSocket, as the specifications of both want it.

HTTP: https://graphql.github.io/graphql-over-http/draft/ (checked by the audits of the graphql-http package).
WebSocket: https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from cross_web import AsyncHTTPRequestAdapter, HTTPException
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket
from strawberry.asgi import ASGIWebSocketAdapter, GraphQL
from strawberry.exceptions import ConnectionRejectionError, MissingQueryError
from strawberry.http import GraphQLHTTPResponse, GraphQLRequestData
from strawberry.http.streaming import AsyncTextStream, HTTPStreamTransport, merge_stream_with_heartbeat
from strawberry.schema import BaseSchema
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.subscriptions import (
    GRAPHQL_SSE_PROTOCOL,
    GRAPHQL_TRANSPORT_WS_PROTOCOL,
    MULTIPART_SUBSCRIPTION_PROTOCOL,
)
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import (
    BaseGraphQLTransportWSHandler,
    _OperationStreamClosed,
)
from strawberry.subscriptions.protocols.graphql_transport_ws.types import ConnectionInitMessage
from strawberry.types import ExecutionResult
from strawberry.types.execution import PreExecutionError
from strawberry.types.graphql import OperationType
from strawberry.types.unset import UnsetType

from taskflow_gql.api.context import Context, Parts
from taskflow_gql.api.errors import BAD_USER_INPUT, render_error
from taskflow_gql.api.streaming import (
    GRAPHQL_RESPONSE,
    JSON,
    Connections,
    EndlessResponse,
    MultipartSubscription,
    ServerSentEvents,
    best_media_type,
)
from taskflow_gql.errors import ServerStops, Unauthenticated

log = logging.getLogger(__name__)

_CONNECTION_INIT_TIMEOUT = timedelta(seconds=10)
_GRAPHIQL_PAGE = Path(__file__).parent.parent / "static" / "graphiql" / "index.html"
_GRAPHIQL_HEADERS = {
    # Nothing from elsewhere, and nobody's frame: a token is in the page. Its components write style elements.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; font-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    # The same address answers programs too, and a page kept from before an upgrade would not fit its scripts.
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


class RequestError(Exception):
    """A request that cannot be executed at all."""

    def __init__(self, status: int, message: str, *, allow: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.allow = allow


class WebSocketAdapter(ASGIWebSocketAdapter):
    async def close(self, code: int, reason: str) -> None:
        # Strawberry's reasons quote what the client sent, and a close frame has room for 123 bytes of UTF-8.
        await super().close(code, reason.encode(errors="replace")[:123].decode(errors="ignore"))


class TransportWSHandler(BaseGraphQLTransportWSHandler[Context, None]):
    """Strawberry's, holding out against messages that are JSON but not of the protocol."""

    async def handle_message(self, message: Any) -> None:
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            await self.handle_invalid_message("A message must be an object with a type")
        elif message["type"] in ("subscribe", "complete") and not _is_id(message.get("id")):
            await self.handle_invalid_message("The id of an operation must be a string that is not empty")
        elif message["type"] == "subscribe" and (problem := _problem_of_payload(message.get("payload"))):
            await self.handle_invalid_message(problem)
        elif message["type"] == "subscribe" and self._is_full and message["id"] not in self.operations:
            words = f"This connection has {self.max_subscriptions_per_connection} operations open: complete some first"
            error = {"message": words, "extensions": {"code": "RATE_LIMITED"}}
            await self.websocket.send_json({"type": "error", "id": message["id"], "payload": [error]})
        elif message["type"] == "connection_init" and message.get("payload") is None:
            # The protocol takes null for none.
            await super().handle_message({"type": "connection_init"})
        else:
            await super().handle_message(message)  # type: ignore[arg-type]

    async def handle_connection_init(self, message: ConnectionInitMessage) -> None:
        try:
            await super().handle_connection_init(message)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("Cannot check who connects now: %s", type(error).__name__)
            # Try again later, says the code, and clients do.
            await self.websocket.close(code=1013, reason="The database is away")

    @property
    def _is_full(self) -> bool:
        limit = self.max_subscriptions_per_connection
        return self.connection_acknowledged and limit is not None and len(self.operations) >= limit

    async def _send_result_stream(self, operation: Any, result_source: Any) -> None:
        await super()._send_result_stream(operation, self._until_we_close(result_source))

    async def _until_we_close(self, results: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """Whatever ends a stream of ours closes the socket, with a code on which clients come back: 4403 with a new
        token, 1012 as they are. After `complete`, or an error, they would take it for finished.
        """
        async for result in results:
            match _end_of_stream(result):
                case Unauthenticated():
                    await self.websocket.close(code=4403, reason="Forbidden")
                    raise _OperationStreamClosed
                case ServerStops():
                    await self.websocket.close(code=1012, reason="The server restarts")
                    raise _OperationStreamClosed
            yield result


def _end_of_stream(result: Any) -> BaseException | None:
    """What the stream itself ended with; errors of single fields have a path."""
    if isinstance(result, PreExecutionError) or not result.errors or result.errors[0].path is not None:
        return None
    error: BaseException | None = result.errors[0].original_error
    return error


def _is_id(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _problem_of_payload(payload: object) -> str | None:
    if not isinstance(payload, dict) or not isinstance(payload.get("query"), str):
        return "The payload of subscribe must be an object with a query"
    if not isinstance(payload.get("variables"), dict | None):
        return "variables must be an object"
    if not isinstance(payload.get("operationName"), str | None):
        return "operationName must be a string"
    return None


# What the media types above cannot carry.
_HOW_TO_SUBSCRIBE = (
    "Subscriptions need a WebSocket (graphql-transport-ws), or a request with `Accept: text/event-stream` or "
    "`Accept: multipart/mixed;subscriptionSpec=1.0`"
)


class GraphQLView(GraphQL[Context, None]):
    stream_transport_classes_by_protocol: Mapping[str, type[HTTPStreamTransport]] = {
        GRAPHQL_SSE_PROTOCOL: ServerSentEvents,
        MULTIPART_SUBSCRIPTION_PROTOCOL: MultipartSubscription,
    }
    graphql_transport_ws_handler_class = TransportWSHandler
    websocket_adapter_class = WebSocketAdapter

    def __init__(self, schema: BaseSchema, parts: Parts) -> None:
        settings = parts.settings
        super().__init__(
            schema,
            graphql_ide="graphiql" if settings.shows_graphiql else None,
            # Named explicitly: the legacy `graphql-ws` protocol is on by default.
            subscription_protocols=[
                GRAPHQL_TRANSPORT_WS_PROTOCOL,
                GRAPHQL_SSE_PROTOCOL,
                MULTIPART_SUBSCRIPTION_PROTOCOL,
            ],
            connection_init_wait_timeout=_CONNECTION_INIT_TIMEOUT,
            max_subscriptions_per_connection=settings.max_subscriptions_per_connection,
            # The browser's Origin is checked for sockets, where CORS does not apply.
            allowed_origins=settings.cors_origins,
        )
        self._parts = parts
        self._connections = Connections(settings.max_sockets_per_address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
            return
        request = Request(scope, _limited(receive, self._parts.settings.max_body_bytes))
        try:
            response: Response = await self.run(request)
        except RequestError as error:
            response = _error_response(request, error.status, error.message)
            if error.allow:
                response.headers["Allow"] = error.allow
        except HTTPException as error:
            response = _error_response(request, error.status_code, error.reason)
        await response(scope, receive, send)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._connections.counted(scope) as has_room:
            if has_room:
                await super().__call__(scope, receive, send)
            else:
                # 429 instead of the handshake; without the extension for that, servers make it 403.
                socket = WebSocket(scope, receive, send)
                if "websocket.http.response" in scope.get("extensions", {}):
                    await socket.send_denial_response(Response("Too many connections from your address\n", 429))
                else:
                    await socket.close()

    async def get_context(self, request: HTTPConnection, response: Response | WebSocket) -> Context:
        return Context(parts=self._parts, connection=request)

    async def on_ws_connect(self, context: Context) -> UnsetType | dict[str, object] | None:
        """No token is anonymous; a bad one closes with 4403, on which clients fetch a new one and come back."""
        try:
            await context.for_operation().viewer()
        except Unauthenticated as error:
            raise ConnectionRejectionError from error
        return UnsetType()

    # -- HTTP requests

    def should_render_graphql_ide(self, request: Any) -> bool:
        # A browser says text/html. The base class also takes */*, which is what a client without manners sends.
        accepts_html = "text/html" in request.headers.get("accept", "")
        return bool(
            self.graphql_ide and request.method == "GET" and "query" not in request.query_params and accepts_html
        )

    async def render_graphql_ide(self, request: Request) -> Response:
        return FileResponse(_GRAPHIQL_PAGE, media_type="text/html", headers=_GRAPHIQL_HEADERS)

    def is_request_allowed(self, request: Any) -> bool:
        if request.method not in ("GET", "POST"):
            raise RequestError(405, "GraphQL takes GET and POST", allow="GET, POST")
        return True

    def decode_json(self, data: str | bytes) -> object:
        try:
            return json.loads(data)
        except json.JSONDecodeError:
            raise
        except RecursionError as error:
            raise json.JSONDecodeError("nested too deeply", "", 0) from error
        except UnicodeDecodeError as error:
            raise json.JSONDecodeError("not UTF-8", "", 0) from error
        except ValueError as error:
            raise json.JSONDecodeError("a number of too many digits", "", 0) from error

    async def parse_http_body(self, request: AsyncHTTPRequestAdapter) -> GraphQLRequestData | list[GraphQLRequestData]:
        if request.method == "GET":
            data = self.parse_query_params(request.query_params)
        else:
            media_type, _, parameters = (request.content_type or "").partition(";")
            if media_type.strip().lower() != JSON:
                raise RequestError(415, f"Send the request as {JSON}")
            if "charset" in parameters.lower() and "utf-8" not in parameters.lower():
                raise RequestError(415, "Send the request in UTF-8")
            data = self.parse_json(await request.get_body())
        if isinstance(data, list):
            raise RequestError(400, "Batches are not taken: send one operation a request")
        request_data = _request_data(data)
        match best_media_type(request.headers).partition("/")[0]:
            case "text":
                request_data.protocol = "sse"
            case "multipart":
                request_data.protocol = "multipart-subscription"
        return request_data

    async def execute_single(
        self,
        request: Request,
        request_adapter: AsyncHTTPRequestAdapter,
        sub_response: Response,
        context: Context,
        root_value: None,
        request_data: GraphQLRequestData,
    ) -> ExecutionResult:
        allowed = {OperationType.QUERY}
        if request_adapter.method == "POST":
            allowed.add(OperationType.MUTATION)
        try:
            return await self.schema.execute(
                request_data.query,
                variable_values=request_data.variables,
                context_value=context,
                operation_name=request_data.operation_name,
                allowed_operation_types=allowed,
                operation_extensions=request_data.extensions,
            )
        except InvalidOperationTypeError as error:
            if error.operation_type is OperationType.SUBSCRIPTION:
                raise RequestError(400, _HOW_TO_SUBSCRIBE) from error
            raise RequestError(405, "Mutations need POST", allow="POST") from error
        except CannotGetOperationTypeError as error:
            raise RequestError(400, error.as_http_error_reason()) from error
        except MissingQueryError as error:
            raise RequestError(400, "The request has no query") from error

    async def execute_operation(self, request: Request, *arguments: Any, **options: Any) -> Any:
        with self._connections.counted(request.scope) as has_room:
            if not has_room and best_media_type(request.headers) not in (JSON, GRAPHQL_RESPONSE):
                raise RequestError(429, "Too many streams from your address")
        return await super().execute_operation(request, *arguments, **options)

    # -- streams over HTTP

    def _stream_result(self, request: Request, result: Any, transport: HTTPStreamTransport) -> AsyncTextStream:
        async def stream() -> AsyncGenerator[str, None]:
            async for value in result:
                if isinstance(_end_of_stream(value), ServerStops):
                    break
                response = await self.process_result(request, value)
                chunk = transport.encode_next(response, self.encode_json_string)
                cursor = getattr(request.state, "event_cursor", None)
                # Browsers send it back as Last-Event-ID when they reconnect.
                yield f"id: {cursor}\n{chunk}" if cursor and transport.protocol == "sse" else chunk
            yield transport.encode_complete()

        return merge_stream_with_heartbeat(
            stream,
            lambda: transport.heartbeat_message(self.encode_json_string),
            interval=transport.heartbeat_interval,
            send_initial_heartbeat=transport.send_initial_heartbeat,
        )

    async def create_streaming_response(
        self,
        request: Request | WebSocket,
        stream: Callable[[], AsyncIterator[str]],
        sub_response: Response,
        headers: Mapping[str, str],
    ) -> Response:
        return EndlessResponse(
            stream(),
            headers=dict(headers),
            send_timeout_seconds=self._parts.settings.stream_send_timeout_seconds,
            connections=self._connections,
        )

    # -- HTTP responses

    async def process_result(self, request: Request, result: ExecutionResult) -> GraphQLHTTPResponse:
        response: dict[str, Any] = {}
        if result.errors:
            # Rendered already unless an extension itself failed; rendering twice changes nothing.
            response["errors"] = [render_error(error).formatted for error in result.errors]
        # Of a request error, one that came before any field was run, `data` is no part.
        if result.data is not None or not _is_request_error(result):
            response["data"] = result.data
        if result.extensions:
            response["extensions"] = result.extensions
        return response  # type: ignore[return-value]

    async def get_sub_response(self, request: Request | WebSocket) -> Response:
        response = await super().get_sub_response(request)
        response.headers["content-type"] = f"{_media_type(request)}; charset=utf-8"
        return response

    def create_response(
        self, response_data: GraphQLHTTPResponse | list[GraphQLHTTPResponse], sub_response: Response
    ) -> Response:
        # Under `application/json` a request error is 200, because clients of old took anything else for a broken
        # server. The newer media type says 400.
        is_new_media_type = sub_response.headers["content-type"].startswith(GRAPHQL_RESPONSE)
        status = 400 if is_new_media_type and "data" not in response_data else 200
        return Response(self.encode_json(response_data), status, headers=dict(sub_response.headers))


def _limited(receive: Receive, limit: int) -> Receive:
    """Not Starlette's `max_body_size`: its answer is no JSON, and has no CORS headers, so that no page can read it."""
    size = 0

    async def receive_in_limit() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise RequestError(413, f"A request may have at most {limit} bytes")
        return message

    return receive_in_limit


def _is_request_error(result: ExecutionResult) -> bool:
    return isinstance(result, PreExecutionError) or not any(error.path for error in result.errors or ())


def _request_data(data: object) -> GraphQLRequestData:
    if not isinstance(data, Mapping):
        raise RequestError(400, "The request must be a JSON object with a query")
    for name, kind, what in (
        ("query", str, "a string"),
        ("operationName", str, "a string"),
        ("variables", Mapping, "an object"),
        ("extensions", Mapping, "an object"),
    ):
        if not isinstance(data.get(name), kind | None):
            raise RequestError(400, f"{name} must be {what}")
    if not data.get("query"):
        raise RequestError(400, "The request has no query")
    return GraphQLRequestData(
        query=data["query"],
        variables=data.get("variables"),
        operation_name=data.get("operationName") or None,
        extensions=data.get("extensions"),
    )


def _media_type(request: HTTPConnection) -> str:
    """Of our two media types for one answer, the one to use."""
    return GRAPHQL_RESPONSE if best_media_type(request.headers) == GRAPHQL_RESPONSE else JSON


def _error_response(request: Request, status: int, message: str) -> Response:
    body = {"errors": [{"message": message, "extensions": {"code": BAD_USER_INPUT}}]}
    return Response(json.dumps(body), status, media_type=f"{_media_type(request)}; charset=utf-8")
