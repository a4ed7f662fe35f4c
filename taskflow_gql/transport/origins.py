"""The origins whose pages may open WebSockets and use cookies. CORS does not apply to the first."""

from __future__ import annotations

import logging
from time import monotonic

from starlette.datastructures import Headers
from starlette.types import Scope

from taskflow_gql.transport.private import is_same_origin, normalize_origin

log = logging.getLogger(__name__)

# Limits the log: a client can open many sockets a second.
_SECONDS_BETWEEN_WARNINGS = 60


class AllowedOrigins:
    """The origins of TASKFLOW_CORS_ORIGINS, and the server's own."""

    def __init__(self, origins: list[str]) -> None:
        self._is_everybody = "*" in origins
        self._origins = {normalize_origin(origin) for origin in origins}
        self._warned_at: float | None = None

    def allow(self, scope: Scope) -> bool:
        """Whether the page may open a WebSocket. Clients outside a browser send no Origin and are allowed."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or self._is_everybody or self._is_named(origin, headers):
            return True
        self._warn(origin)
        return False

    def trust(self, headers: Headers) -> bool:
        """Whether the request may use cookies: no page of an origin that is not named has sent it.

        `*` names no origin. Browsers send one of the two headers with every POST.
        """
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") in (None, "same-origin")
        return self._is_named(origin, headers)

    def _is_named(self, origin: str, headers: Headers) -> bool:
        if headers.get("sec-fetch-site") == "same-origin" or is_same_origin(origin, headers.get("host")):
            return True
        return normalize_origin(origin) in self._origins

    def _warn(self, origin: str) -> None:
        now = monotonic()
        if self._warned_at is None or now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = now
            log.warning("Refused a WebSocket from a page of %.200r: TASKFLOW_CORS_ORIGINS does not name it", origin)
