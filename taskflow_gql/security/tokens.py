"""Access tokens: short-lived JWTs that contain the id of a session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import jwt

from taskflow_gql import clock
from taskflow_gql.errors import Unauthenticated
from taskflow_gql.security.keys import Key, key_of_secret, read_kid, verify
from taskflow_gql.short_keys import cached_for_short_keys

_ISSUER = "taskflow"
_AUDIENCE = "taskflow"
_TYPE = "access"
# How many verified signatures to remember, and the maximum length of their tokens. The server's own tokens have 430
# characters, and 1,100 with an RSA key of 4096 bits.
_MAX_TOKENS = 4096
_MAX_TOKEN_LENGTH = 1280


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The claims of a token whose signature has been verified."""

    user_id: UUID
    session_id: UUID
    expires_at: datetime


class TokenSigner:
    """Makes and checks access tokens. It does not check whether their sessions still exist."""

    def __init__(
        self, secret: str, lifetime: timedelta, keys: Sequence[Key] = (), *, other_secrets: Sequence[str] = ()
    ) -> None:
        """The first private key signs, or else the secret. All keys and secrets verify."""
        self.keys = [*keys, *map(key_of_secret, (secret, *other_secrets))]
        self.lifetime = lifetime
        self._signing = next(key for key in self.keys if key.signing is not None)
        self._by_kid = {key.kid: key for key in self.keys}
        # The key of tokens of release 0.2, which name none.
        self._unnamed = key_of_secret(secret)
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
        key = self._signing
        assert key.signing is not None
        return jwt.encode(claims, key.signing, algorithm=key.algorithm, headers={"kid": key.kid})

    def read(self, token: str) -> AccessToken:
        """Raises Unauthenticated for a token that is expired, foreign, malformed or without a subject."""
        read = self._read(token)
        if is_expired(read.expires_at):
            raise could_not_validate()
        return read

    def _check(self, token: str) -> AccessToken:
        try:
            kid = read_kid(token)
            key = self._unnamed if kid is None else self._by_kid[kid]
            claims = verify(token, key, issuer=_ISSUER, audience=_AUDIENCE, require=("sub", "sid", "iat"))
            if claims.get("typ") != _TYPE:
                raise could_not_validate()
            return AccessToken(
                user_id=UUID(claims["sub"]),
                session_id=UUID(claims["sid"]),
                expires_at=datetime.fromtimestamp(claims["exp"], UTC),
            )
        # KeyError is an unknown key. The other errors come from a claim that is not a UUID or not a string, and from an
        # infinite date.
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise could_not_validate() from error


def could_not_validate() -> Unauthenticated:
    return Unauthenticated("Could not validate credentials")


def is_expired(expires_at: datetime) -> bool:
    return expires_at <= clock.now()
