"""Passwords and tokens."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt
from passlib.context import CryptContext

from taskflow_gql import clock
from taskflow_gql.errors import Unauthenticated
from taskflow_gql.short_keys import cached_for_short_keys

_ISSUER = "taskflow"
_AUDIENCE = "taskflow"
_ALGORITHM = "HS256"
_TYPE = "access"
# passlib raises an error for more, and no stored password is as long: services/checks.py allows 128.
_MAX_PASSWORD_CHARACTERS = 4096
# The end of the year 9999: datetime knows no later time.
_END_OF_TIME = 253_402_300_800
# How many verified tokens to remember, and the longest: ours have about 400 characters.
_MOST_TOKENS = 4096
_MAX_TOKEN_LENGTH = 1024


class PasswordHasher:
    """argon2id with the parameters that OWASP names (19 MiB, 2 passes, 1 lane), away from the event loop.

    The pool is small on purpose: each hash takes 19 MiB and a core, and a flood of logins must leave both to others.
    """

    def __init__(self, threads: int = 2) -> None:
        self._context = CryptContext(
            schemes=["argon2"],
            argon2__type="ID",
            argon2__memory_cost=19456,
            argon2__time_cost=2,
            argon2__parallelism=1,
        )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        # Verified against when the user is unknown, so that the answer takes as long as for one who exists.
        self._dummy = self._context.hash("no such person")

    async def hash(self, password: str) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._context.hash, password)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """False for a None hash and for a password that is too long to be right, after the same work."""
        if len(password) > _MAX_PASSWORD_CHARACTERS:
            password, password_hash = "", None
        matches = await asyncio.get_running_loop().run_in_executor(
            self._pool, self._context.verify, password, password_hash or self._dummy
        )
        return bool(matches) and password_hash is not None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a token says once its signature and its dates have been checked."""

    user_id: UUID
    session_id: UUID
    expires_at: datetime


class TokenSigner:
    """Makes and checks access tokens: short-lived JWTs that name a session."""

    def __init__(self, key: str, lifetime: timedelta) -> None:
        self._key = key
        self.lifetime = lifetime
        # A token's signature is good for ever; that it has not expired is looked at each time.
        self._read = cached_for_short_keys(_MOST_TOKENS, max_length=_MAX_TOKEN_LENGTH)(self._check)

    def sign(self, *, user_id: UUID, session_id: UUID, issued_at: datetime) -> str:
        claims = {
            "sub": str(user_id),
            "sid": str(session_id),
            "jti": uuid4().hex,
            "iat": issued_at,
            "exp": issued_at + self.lifetime,
            "iss": _ISSUER,
            "aud": _AUDIENCE,
            "typ": _TYPE,
        }
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)

    def read(self, token: str) -> AccessToken:
        """Raises Unauthenticated for a token that is expired, foreign, malformed or without a subject."""
        read = self._read(token)
        if is_expired(read.expires_at):
            raise could_not_validate()
        return read

    def _check(self, token: str) -> AccessToken:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key,
                # A fixed list: the token's own header must never choose how it is checked.
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                issuer=_ISSUER,
                options={"require": ["sub", "sid", "exp", "iat"]},
            )
            # PyJWT takes booleans and numbers far outside of time too.
            dates = (claims["exp"], claims["iat"], claims.get("nbf", 0))
            if claims.get("typ") != _TYPE or not all(map(_is_date, dates)):
                raise could_not_validate()
            return AccessToken(
                user_id=UUID(claims["sub"]),
                session_id=UUID(claims["sid"]),
                expires_at=datetime.fromtimestamp(claims["exp"], UTC),
            )
        # Besides PyJWT's own errors: a claim that is no UUID or no string, and an infinite date.
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise could_not_validate() from error


def _is_date(claim: object) -> bool:
    return type(claim) is int and 0 <= claim < _END_OF_TIME


def could_not_validate() -> Unauthenticated:
    return Unauthenticated("Could not validate credentials")


def is_expired(expires_at: datetime) -> bool:
    return expires_at <= clock.now()
