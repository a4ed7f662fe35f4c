"""GraphQL over WebSockets.

Protocol: https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Scope
from starlette.websockets import WebSocket
from strawberry.asgi import ASGIWebSocketAdapter, GraphQL
from strawberry.exceptions import ConnectionRejectionError
from strawberry.http.websocket_origin import is_same_origin, normalize_origin
from strawberry.schema import BaseSchema
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import (
    BaseGraphQLTransportWSHandler,
    _OperationStreamClosed,
)
from strawberry.subscriptions.protocols.graphql_transport_ws.types import ConnectionInitMessage
from strawberry.types.execution import PreExecutionError
from strawberry.types.unset import UnsetType

from taskflow_gql.api.context import Context, Parts
from taskflow_gql.api.encoding import decode_json, encode_json
from taskflow_gql.api.errors import RATE_LIMITED
from taskflow_gql.errors import RETRY_AFTER_SECONDS, ServerStops, Unauthenticated

log = logging.getLogger(__name__)

_CONNECTION_INIT_TIMEOUT = timedelta(seconds=10)


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
            error = {"message": words, "extensions": {"code": RATE_LIMITED, "retryAfter": RETRY_AFTER_SECONDS}}
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
            match end_of_stream(result):
                case Unauthenticated():
                    await self.websocket.close(code=4403, reason="Forbidden")
                    raise _OperationStreamClosed
                case ServerStops():
                    await self.websocket.close(code=1012, reason="The server restarts")
                    raise _OperationStreamClosed
            yield result


def end_of_stream(result: Any) -> BaseException | None:
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


def is_allowed_origin(scope: Scope, allowed: list[str]) -> bool:
    """Whether a page of this origin may open a WebSocket. Browsers do not apply CORS there; programs send no Origin."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin is None or "*" in allowed:
        return True
    if headers.get("sec-fetch-site") == "same-origin" or is_same_origin(origin, headers.get("host")):
        return True
    if normalize_origin(origin) in {normalize_origin(one) for one in allowed}:
        return True
    log.warning("Refused a WebSocket from a page of %.200r: TASKFLOW_CORS_ORIGINS does not name it", origin)
    return False


class SocketView(GraphQL[Context, None]):
    """Strawberry's view, of which only the WebSockets are used."""

    graphql_transport_ws_handler_class = TransportWSHandler
    websocket_adapter_class = WebSocketAdapter

    def __init__(self, schema: BaseSchema, parts: Parts) -> None:
        super().__init__(
            schema,
            # Named explicitly: the legacy `graphql-ws` protocol is on by default.
            subscription_protocols=[GRAPHQL_TRANSPORT_WS_PROTOCOL],
            connection_init_wait_timeout=_CONNECTION_INIT_TIMEOUT,
            max_subscriptions_per_connection=parts.settings.max_subscriptions_per_connection,
            # `is_allowed_origin` has been asked before.
            allowed_origins=["*"],
        )
        self._parts = parts

    async def get_context(self, request: HTTPConnection, response: Response | WebSocket) -> Context:
        return Context(parts=self._parts, connection=request)

    async def on_ws_connect(self, context: Context) -> UnsetType | dict[str, object] | None:
        """No token is anonymous; a bad one closes with 4403, on which clients fetch a new one and come back."""
        try:
            await context.for_operation().viewer()
        except Unauthenticated as error:
            raise ConnectionRejectionError from error
        return UnsetType()

    def encode_json(self, data: object) -> str:
        return encode_json(data).decode()

    def decode_json(self, data: str | bytes) -> object:
        return decode_json(data)
