"""GraphQL over WebSockets.

Protocol: https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette import websockets
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.exceptions import ConnectionRejectionError
from strawberry.schema import BaseSchema
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.types.execution import ExecutionResult, PreExecutionError
from strawberry.types.unset import UnsetType

from taskflow_gql.config import Settings
from taskflow_gql.errors import RETRY_AFTER_SECONDS, RateLimited, ServerStops, Unauthenticated
from taskflow_gql.operations.context import MakeContext, OperationContext
from taskflow_gql.operations.errors import (
    PERSISTED_QUERY_NOT_SUPPORTED,
    PERSISTED_QUERY_NOT_SUPPORTED_MESSAGE,
    RATE_LIMITED,
    is_persisted_query,
)
from taskflow_gql.transport.encoding import decode_json, encode_json
from taskflow_gql.transport.private import (
    ASGIWebSocketAdapter,
    BaseGraphQLTransportWSHandler,
    ConnectionInitMessage,
    OperationStreamClosed,
    WebSocketDisconnected,
)

log = logging.getLogger(__name__)

_CONNECTION_INIT_TIMEOUT = timedelta(seconds=10)

# Queries and mutations of one socket that execute or send at the same time. The next one waits until an answer is sent,
# so a client that does not read cannot start more.
_MAX_TURNS = 4


# Raised by Starlette when the client has disconnected or the socket is closed.
_GONE = (websockets.WebSocketDisconnect, websockets.WebSocketDisconnected)


class WebSocketAdapter(ASGIWebSocketAdapter):
    async def send_text(self, text: str) -> None:
        try:
            await self.ws.send_text(text)
        except _GONE as error:
            raise WebSocketDisconnected from error

    async def close(self, code: int, reason: str) -> None:
        # Strawberry's reasons quote the client's message, and a close frame has room for 123 bytes of UTF-8.
        await super().close(code, reason.encode(errors="replace")[:123].decode(errors="ignore"))


class TransportWSHandler(BaseGraphQLTransportWSHandler[OperationContext, None]):
    """Strawberry's handler. It also checks the shape of messages and limits answers that the client does not read."""

    view: SocketView
    websocket: WebSocketAdapter

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._sending = asyncio.Lock()
        self._unsent = 0
        # Closes the socket of a client that does not read; None before that.
        self._closing: asyncio.Task[None] | None = None

    async def send_message(self, message: Any) -> None:
        await self._send_text(self.view.encode_json(message))

    async def _send_text(self, text: str) -> None:
        # `isascii` reads a flag of the string, so most texts need not be encoded to learn their size.
        size = len(text) if text.isascii() else len(text.encode())
        unsent, person = self.view.unsent, self._person
        limit = self.view.max_unsent_bytes
        # If no other answer is unsent, an answer of any length is sent.
        if self._unsent and (self._unsent + size > limit or unsent[person] + size > 2 * limit):
            self._give_up()
            return
        self._unsent += size
        unsent[person] += size
        try:
            # In order: each text waits until the connection has accepted the previous one.
            async with self._sending:
                if self._closing is None:
                    await self.websocket.send_text(text)
        finally:
            self._unsent -= size
            unsent[person] -= size
            if not unsent[person]:
                del unsent[person]

    @property
    def _person(self) -> object:
        """The id of the person who opened the socket; without a token, the client's address."""
        client = self.context.connection.client
        return self.context.person or (client.host if client else "")

    def _give_up(self) -> None:
        """Drop all unsent answers, cancel all operations and close the socket."""
        if self._closing is None:
            for operation in self.operations.values():
                # The caller may be one of these operations, and is cancelled only at its next `await`. Until then it
                # must not send `complete`, for which Strawberry would look up its id.
                operation.completed = True
                if operation.task is not None:
                    operation.task.cancel()
            self.operations.clear()
            # A separate task: the caller may have been cancelled above, and sending a close frame waits for the client.
            self._closing = asyncio.create_task(self._close_unread())

    async def _close_unread(self) -> None:
        with suppress(*_GONE):
            await self.websocket.close(code=1013, reason="Answers are not read")

    async def shutdown(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
        await super().shutdown()

    async def handle_message(self, message: Any) -> None:
        if self._closing is not None:
            return
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            await self.handle_invalid_message("A message must be an object with a type")
        elif message["type"] in ("subscribe", "complete") and not _is_id(message.get("id")):
            await self.handle_invalid_message("The id of an operation must be a string that is not empty")
        elif message["type"] == "subscribe" and self._has_only_hash(message):
            await self._refuse(message["id"], PERSISTED_QUERY_NOT_SUPPORTED_MESSAGE, code=PERSISTED_QUERY_NOT_SUPPORTED)
        elif message["type"] == "subscribe" and (problem := _problem_of_payload(message.get("payload"))):
            await self.handle_invalid_message(problem)
        elif message["type"] == "subscribe" and self._is_full and message["id"] not in self.operations:
            words = f"This connection has {self.max_subscriptions_per_connection} operations open: complete some first"
            await self._refuse(message["id"], words, code=RATE_LIMITED, retryAfter=RETRY_AFTER_SECONDS)
        elif message["type"] == "connection_init" and message.get("payload") is None:
            # The protocol allows null, which Strawberry does not accept.
            await super().handle_message({"type": "connection_init"})
        elif message["type"] == "ping" and (token := _authorization_of(message.get("payload"))):
            await self._renew(token)
        else:
            await super().handle_message(message)  # type: ignore[arg-type]

    async def _renew(self, authorization: str) -> None:
        """A ping with a new token extends the socket and its streams. A bad token closes it, as in connection_init."""
        try:
            await self.context.renew(authorization)
        except Unauthenticated:
            await self.websocket.close(code=4403, reason="Forbidden")
        except RateLimited:
            await self.websocket.close(code=1013, reason="Too many tokens")
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("Cannot renew a WebSocket: %s", type(error).__name__)
            await self.websocket.close(code=1013, reason="The database is away")
        else:
            await super().handle_message({"type": "ping"})

    def _has_only_hash(self, message: dict[str, Any]) -> bool:
        """Whether the operation may begin and names its document only by a hash."""
        may_begin = self.connection_acknowledged and message["id"] not in self.operations
        return may_begin and _is_only_hash(message.get("payload"))

    async def _refuse(self, operation_id: str, message: str, **extensions: object) -> None:
        error = {"message": message, "extensions": extensions}
        await self.send_message({"type": "error", "id": operation_id, "payload": [error]})

    async def handle_connection_init(self, message: ConnectionInitMessage) -> None:
        try:
            await super().handle_connection_init(message)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("Cannot authenticate a new WebSocket: %s", type(error).__name__)
            # 1013 means "try again later", and clients do.
            await self.websocket.close(code=1013, reason="The database is away")

    async def handle_task_exception(self, error: Exception) -> None:
        # A client that disconnects while an answer is sent is not an error of the server.
        if not isinstance(error, WebSocketDisconnected):
            await super().handle_task_exception(error)

    @property
    def _is_full(self) -> bool:
        limit = self.max_subscriptions_per_connection
        return self.connection_acknowledged and limit is not None and len(self.operations) >= limit

    async def _send_result_stream(self, operation: Any, result_source: Any) -> None:
        is_first = True
        async for result in result_source:
            await self._close_at_end(result)
            if is_first and isinstance(result, PreExecutionError):
                await self._handle_pre_execution_error(operation, result)
                return
            is_first = False
            text = self.view.encode_json({"id": operation.id, "type": "next", "payload": payload_of(result)})
            # While the text waits to be sent, do not hold the result too: it takes several times the memory.
            del result
            if not operation.completed:
                await self._send_text(text)

    async def _close_at_end(self, result: Any) -> None:
        """If the server ended the stream, close the socket with a code that makes clients reconnect.

        4403 makes them get a new token first; 1012 does not. After `complete` or `error` they would not reconnect.
        """
        match end_of_stream(result):
            case Unauthenticated():
                await self.websocket.close(code=4403, reason="Forbidden")
                raise OperationStreamClosed
            case ServerStops():
                await self.websocket.close(code=1012, reason="The server restarts")
                raise OperationStreamClosed


def payload_of(result: ExecutionResult) -> dict[str, Any]:
    payload: dict[str, Any] = {"data": result.data}
    if result.errors:
        payload["errors"] = [error.formatted for error in result.errors]
    return payload


def end_of_stream(result: Any) -> BaseException | None:
    """The exception that ended the stream; None for errors of single fields, which have a path."""
    if isinstance(result, PreExecutionError) or not result.errors or result.errors[0].path is not None:
        return None
    error: BaseException | None = result.errors[0].original_error
    return error


def _is_id(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _authorization_of(payload: object) -> str | None:
    if isinstance(payload, dict):
        for name, value in payload.items():
            if name.lower() == "authorization" and isinstance(value, str):
                return value
    return None


def _is_only_hash(payload: object) -> bool:
    return isinstance(payload, dict) and not payload.get("query") and is_persisted_query(payload.get("extensions"))


def _problem_of_payload(payload: object) -> str | None:
    if not isinstance(payload, dict) or not isinstance(payload.get("query"), str):
        return "The payload of subscribe must be an object with a query"
    if not isinstance(payload.get("variables"), dict | None):
        return "variables must be an object"
    if not isinstance(payload.get("operationName"), str | None):
        return "operationName must be a string"
    return None


class SocketView(GraphQL[OperationContext, None]):
    """Strawberry's view. Only its WebSocket part is used."""

    graphql_transport_ws_handler_class = TransportWSHandler
    websocket_adapter_class = WebSocketAdapter

    def __init__(self, schema: BaseSchema, settings: Settings, make_context: MakeContext) -> None:
        super().__init__(
            schema,
            # Named explicitly: the legacy `graphql-ws` protocol is on by default.
            subscription_protocols=[GRAPHQL_TRANSPORT_WS_PROTOCOL],
            connection_init_wait_timeout=_CONNECTION_INIT_TIMEOUT,
            max_subscriptions_per_connection=settings.max_subscriptions_per_connection,
            # GraphQLView has already checked the origin with `AllowedOrigins`.
            allowed_origins=["*"],
        )
        self._make_context = make_context
        self.max_unsent_bytes = settings.max_unsent_bytes
        # Bytes of unsent answers, by person or address.
        self.unsent: Counter[object] = Counter()

    async def get_context(self, request: HTTPConnection, response: Response | WebSocket) -> OperationContext:
        return self._make_context(request, turns=asyncio.Semaphore(_MAX_TURNS))

    async def on_ws_connect(self, context: OperationContext) -> UnsetType | dict[str, object] | None:
        """Identify the person. A connection without a token is anonymous.

        A bad token closes the socket with 4403; clients then get a new token and reconnect.
        """
        try:
            context.person = await context.identify()
        except Unauthenticated as error:
            raise ConnectionRejectionError from error
        return UnsetType()

    def encode_json(self, data: object) -> str:
        return encode_json(data).decode()

    def decode_json(self, data: str | bytes) -> object:
        return decode_json(data)
