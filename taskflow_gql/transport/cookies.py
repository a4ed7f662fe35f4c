"""Cookies of an HTTP request and its answer."""

from __future__ import annotations

from functools import cached_property

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from taskflow_gql.transport.origins import AllowedOrigins


class HttpCookies:
    """Reads the cookies of a request, and collects the headers that set those of its answer."""

    def __init__(self, scope: Scope, origins: AllowedOrigins) -> None:
        self._scope, self._origins = scope, origins
        self.headers: list[tuple[bytes, bytes]] = []

    @cached_property
    def are_trusted(self) -> bool:
        return self._origins.trust(Headers(scope=self._scope))

    def get(self, name: str) -> str | None:
        return cookie_parser(Headers(scope=self._scope).get("cookie", "")).get(name)

    def set(self, name: str, value: str, *, max_age: int) -> None:
        cookie = f"{name}={value}; Max-Age={max_age}; Path=/; Secure; HttpOnly; SameSite=Strict"
        self.headers.append((b"set-cookie", cookie.encode("ascii")))
