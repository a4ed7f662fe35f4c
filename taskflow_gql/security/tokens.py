"""Access tokens: short-lived JWTs that contain the id of a session."""

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
# The end of the year 9999, in seconds since 1970. datetime has no later time.
_END_OF_TIME = 253_402_300_800
# How far the clocks of two servers may differ.
_MAX_CLOCK_SKEW = timedelta(minutes=3)
# How many verified signatures to remember, and the maximum length of their tokens. The server's own tokens have about
# 400 characters.
_MAX_TOKENS = 4096
_MAX_TOKEN_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The claims of a token whose signature has been verified."""

    user_id: UUID
    session_id: UUID
    expires_at: datetime


class TokenSigner:
    """Makes and checks access tokens. It does not check whether their sessions still exist."""

    def __init__(self, key: str, lifetime: timedelta) -> None:
        self._key = key
        self.lifetime = lifetime
        # A valid signature stays valid, so it is cached. Expiry is checked on each read.
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
                # A fixed list: the token's own header must not choose the algorithm.
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                issuer=_ISSUER,
                # PyJWT would refuse a token that a server with a faster clock has just issued.
                options={"require": ["sub", "sid", "exp", "iat"], "verify_iat": False},
            )
            # PyJWT also accepts booleans, and numbers beyond the range of datetime.
            dates = (claims["exp"], claims["iat"], claims.get("nbf", 0))
            if claims.get("typ") != _TYPE or not all(map(_is_date, dates)):
                raise could_not_validate()
            if claims["iat"] > (clock.now() + _MAX_CLOCK_SKEW).timestamp():
                raise could_not_validate()
            return AccessToken(
                user_id=UUID(claims["sub"]),
                session_id=UUID(claims["sid"]),
                expires_at=datetime.fromtimestamp(claims["exp"], UTC),
            )
        # The other errors come from a claim that is not a UUID or not a string, and from an infinite date.
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise could_not_validate() from error


def _is_date(claim: object) -> bool:
    return type(claim) is int and 0 <= claim < _END_OF_TIME


def could_not_validate() -> Unauthenticated:
    return Unauthenticated("Could not validate credentials")


def is_expired(expires_at: datetime) -> bool:
    return expires_at <= clock.now()
