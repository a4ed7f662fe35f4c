"""Undocumented parts of uvicorn, websockets, Strawberry and Starlette that the transport uses.

The classes in `protocols`, `websocket`, `streaming` and `middleware` also override methods of these libraries and use
attributes of their objects. `tests/transport/test_private.py` lists those too, checks each part, and names what a new
version has changed.
"""

from __future__ import annotations

import socket

import uvicorn
from strawberry.asgi import ASGIWebSocketAdapter
from strawberry.http.exceptions import WebSocketDisconnected
from strawberry.http.streaming import (
    HTTPStreamTransport,
    MultipartSubscriptionTransport,
    SSETransport,
    merge_stream_with_heartbeat,
)
from strawberry.http.websocket_origin import is_same_origin, normalize_origin
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import (
    BaseGraphQLTransportWSHandler,
    _OperationStreamClosed,
)
from strawberry.subscriptions.protocols.graphql_transport_ws.types import ConnectionInitMessage
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from uvicorn.supervisors import Multiprocess
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS
from websockets.protocol import OPEN

__all__ = [
    "MAX_LINE_LENGTH",
    "MAX_NUM_HEADERS",
    "OPEN",
    "STATUS_LINE",
    "ASGIWebSocketAdapter",
    "BaseGraphQLTransportWSHandler",
    "ClientDisconnected",
    "ConnectionInitMessage",
    "FlowControl",
    "HTTPStreamTransport",
    "HttpToolsProtocol",
    "MultipartSubscriptionTransport",
    "OperationStreamClosed",
    "SSETransport",
    "ServerState",
    "WebSocketDisconnected",
    "WebSocketsSansIOProtocol",
    "is_same_origin",
    "merge_stream_with_heartbeat",
    "normalize_origin",
    "run_server",
]

OperationStreamClosed = _OperationStreamClosed


def run_server(config: uvicorn.Config, listener: socket.socket) -> bool:
    """Accept connections on the listener until a signal, in as many processes as configured.

    Returns False if a single process did not start. Several are started again and again.
    """
    if config.workers > 1:
        Multiprocess(config, sockets=[listener]).run()
        return True
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    return server.started
