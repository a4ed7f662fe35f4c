"""The configuration of the HTTP server."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Any, cast

from starlette.types import ASGIApp

from taskflow_gql.config import Settings
from taskflow_gql.transport.connections import Limits, Network, ServerConfig
from taskflow_gql.transport.descriptors import connections_by_descriptors
from taskflow_gql.transport.protocols import HttpProtocol, SocketProtocol

_SECURITY_HEADERS = [
    # Browsers must not guess from the content that a response is a script.
    ("X-Content-Type-Options", "nosniff"),
    # A GET request has the query and its variables in the URL.
    ("Referrer-Policy", "no-referrer"),
]


def uvicorn_config(app: ASGIApp | str, settings: Settings, *, is_factory: bool = False) -> ServerConfig:
    """The configuration of the HTTP server. `taskflow serve` and the tests use the same one."""
    config = ServerConfig(
        cast(Any, app),
        factory=is_factory,
        workers=settings.workers,
        http=HttpProtocol,
        ws=SocketProtocol,
        ws_max_size=settings.max_websocket_message_bytes,
        # Compression would keep 64 KiB for each socket, and messages are small.
        ws_per_message_deflate=False,
        log_config=None,
        log_level=settings.log_level.lower(),
        access_log=False,
        server_header=False,
        headers=_SECURITY_HEADERS,
        # Passed even when empty: uvicorn would read FORWARDED_ALLOW_IPS instead, and trust loopback by default.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=[str(network) for network in _with_mapped(settings.trusted_proxies)],
        timeout_graceful_shutdown=settings.shutdown_timeout_seconds,
    )
    config.limits = Limits(
        connections=min(settings.max_connections, connections_by_descriptors(settings)),
        connections_per_address=settings.max_connections_per_address,
        request_seconds=settings.request_timeout_seconds,
        send_seconds=settings.stream_send_timeout_seconds,
        # The same limit as for all sockets of one person.
        unsent_bytes_per_address=2 * settings.max_unsent_bytes,
        trusted_proxies=tuple(settings.trusted_proxies),
    )
    return config


def _with_mapped(networks: Iterable[Network]) -> list[Network]:
    """The networks, and each IPv4 network also in the IPv6 form that a socket listening on `::` reports."""
    mapped = [
        IPv6Network(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
        for network in networks
        if isinstance(network, IPv4Network)
    ]
    return [*networks, *mapped]
