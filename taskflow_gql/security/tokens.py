"""Access tokens: short-lived JWTs that name a session."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt

from taskflow_gql import clock
from taskflow_gql.errors import Unauthenticated
from taskflow_gql.short_keys import cached_for_short_keys

_ISSUER = "taskflow"
_AUDIENCE = "taskflow"
_ALGORITHM = "HS256"
_TYPE = "access"
# The end of the year 9999: datetime knows no later time.
_END_OF_TIME = 253_402_300_800
# How many verified signatures to remember, and the longest token among them; ours have about 400 characters.
_MAX_TOKENS = 4096
_MAX_TOKEN_LENGTH = 1024


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
        self._read = cached_for_short_keys(_MAX_TOKENS, max_length=_MAX_TOKEN_LENGTH)(self._check)

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
