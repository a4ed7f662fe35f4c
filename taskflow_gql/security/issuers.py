"""Tokens of other servers, which the settings trust: their keys, and what they say about a person."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import jwt

from taskflow_gql.errors import Unauthenticated
from taskflow_gql.security.keys import Key, key_of_secret, keys_of_jwks, read_kid, verify
from taskflow_gql.security.tokens import could_not_validate, is_expired
from taskflow_gql.short_keys import cached_for_short_keys

log = logging.getLogger(__name__)

# How many verified tokens of an issuer to remember, and the maximum length of those. Longer ones are verified each
# time, and those above the limit refused.
_MAX_TOKENS = 2048
_MAX_CACHED_LENGTH = 2048
_MAX_TOKEN_LENGTH = 8192
# Longer values of a claim are refused. The columns of issuer and subject are that long.
_MAX_CLAIM_LENGTH = 255
# The least time from one fetch of an issuer's keys to the next, whatever tokens arrive.
_COOL_DOWN_SECONDS = 30
# Older keys are fetched again, so that a key that the issuer has withdrawn ends.
_MAX_AGE_SECONDS = 600
# For each step of a fetch, such as a read; for the whole body; and for a request that waits for it.
_STEP_SECONDS = 5
_BODY_SECONDS = 10
_WAIT_SECONDS = 10
_MAX_JWKS_BYTES = 256 * 1024


class UnknownKey(Exception):
    """The token names a key that is not among the known ones."""


@dataclass(frozen=True, slots=True)
class ForeignToken:
    """The claims of another server's token whose signature has been verified."""

    issuer: str
    subject: str
    expires_at: datetime
    # Not checked: what the issuer says of the person. None if it says nothing.
    email: str | None
    name: str | None
    username: str | None


class FixedKeys:
    """A secret that is shared with the issuer."""

    def __init__(self, secret: str) -> None:
        self._key = key_of_secret(secret)
        self.by_kid: Mapping[str, Key] = {self._key.kid: self._key}

    def find(self, _kid: str | None) -> Key:
        return self._key

    def refresh(self) -> None:
        return

    async def fetch_unknown(self) -> None:
        return


class RemoteKeys:
    """The public keys at an issuer's JWKS address.

    They are fetched for the first token, for a token with an unknown key, and when they are old; in a thread, one fetch
    at a time, and never twice within the cool-down. When a fetch fails, the known keys stay.
    """

    def __init__(self, url: str, algorithms: Sequence[str]) -> None:
        self.by_kid: Mapping[str, Key] = {}
        self._url = url
        self._algorithms = algorithms
        self._fetching: asyncio.Task[None] | None = None
        # When the last fetch began, and when the last good one did.
        self._begun_at = self._good_at = -float("inf")

    def find(self, kid: str | None) -> Key:
        """The key with this id, or the only key if a token names none. Raises UnknownKey."""
        keys = self.by_kid
        if kid is None and len(keys) == 1:
            return next(iter(keys.values()))
        if kid is None or kid not in keys:
            raise UnknownKey
        return keys[kid]

    def refresh(self) -> None:
        """Begin a fetch if the keys are old. Requests do not wait for it."""
        if self.by_kid and monotonic() - self._good_at > _MAX_AGE_SECONDS:
            self._begin()

    async def fetch_unknown(self) -> None:
        """Wait for the fetch in flight, or for a new one unless it is too early for that."""
        self._begin()
        if self._fetching is not None:
            # `wait` does not cancel the fetch when a request is cancelled or has waited too long.
            await asyncio.wait({self._fetching}, timeout=_WAIT_SECONDS)

    def _begin(self) -> None:
        now = monotonic()
        if self._fetching is None and now - self._begun_at >= _COOL_DOWN_SECONDS:
            self._begun_at = now
            self._fetching = asyncio.create_task(self._fetch(), name="fetch-keys")

    async def _fetch(self) -> None:
        begun_at = self._begun_at
        try:
            keys = keys_of_jwks(json.loads(await asyncio.to_thread(_read, self._url)), self._algorithms)
            if not keys:
                raise ValueError(f"it has no key for {', '.join(self._algorithms)}")
            # Kept if they are the same, because verified tokens are cached with them.
            if keys != self.by_kid:
                self.by_kid = keys
            self._good_at = begun_at
        # An OSError is a refused connection, a time-out or a bad status. JSON nested too deeply is a RecursionError.
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            stay = "the known ones stay in use" if self.by_kid else "its tokens are refused"
            log.warning("Cannot fetch the keys at %s, and %s: %s", self._url, stay, error)
        finally:
            self._fetching = None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error. The settings name the address whose keys are trusted."""

    def redirect_request(self, *_: object) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


def _read(url: str) -> bytes:
    """The body of the answer. Raises OSError, HTTPException or ValueError."""
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310  (http or https)
    body = b""
    try:
        response = _opener.open(request, timeout=_STEP_SECONDS)
    except urllib.error.HTTPError as error:
        # It holds the connection.
        error.close()
        raise
    with response:
        deadline = monotonic() + _BODY_SECONDS
        while part := response.read1(_MAX_JWKS_BYTES):
            body += part
            if len(body) > _MAX_JWKS_BYTES:
                raise ValueError(f"it has more than {_MAX_JWKS_BYTES} bytes")
            if monotonic() > deadline:
                raise TimeoutError(f"it took more than {_BODY_SECONDS} seconds")
    return body


@dataclass(frozen=True, slots=True)
class ClaimNames:
    """The names of the claims that hold a person's id, address, full name and username. None: there is none."""

    id: str = "sub"
    email: str = "email"
    name: str = "name"
    username: str | None = None


class Issuer:
    """Another server whose tokens are accepted."""

    def __init__(self, name: str, audience: str, keys: FixedKeys | RemoteKeys, claims: ClaimNames) -> None:
        self.name = name
        self._audience = audience
        self._keys = keys
        self._claims = claims
        self._cached_for: Mapping[str, Key] | None = None
        self._check_cached: Callable[[str], ForeignToken] = self._check

    async def read(self, token: str) -> ForeignToken:
        """Raises Unauthenticated. Fetches the issuer's keys if the token names an unknown one."""
        self._keys.refresh()
        try:
            try:
                read = self._verified(token)
            except UnknownKey:
                await self._keys.fetch_unknown()
                read = self._verified(token)
        except UnknownKey as error:
            raise Unauthenticated(
                f"Could not validate credentials: the token's key is not among the known keys of {self.name}"
            ) from error
        if is_expired(read.expires_at):
            raise could_not_validate()
        return read

    def _verified(self, token: str) -> ForeignToken:
        keys = self._keys.by_kid
        if keys is not self._cached_for:
            # Other keys: what was verified with a withdrawn one is forgotten.
            self._cached_for = keys
            self._check_cached = cached_for_short_keys(_MAX_TOKENS, max_length=_MAX_CACHED_LENGTH)(self._check)
        return self._check_cached(token)

    def _check(self, token: str) -> ForeignToken:
        names = self._claims
        try:
            key = self._keys.find(read_kid(token))
            claims = verify(token, key, issuer=self.name, audience=self._audience, require=(names.id,))
            subject = _text(claims, names.id)
            if subject is None:
                raise could_not_validate()
            return ForeignToken(
                issuer=self.name,
                subject=subject,
                expires_at=datetime.fromtimestamp(claims["exp"], UTC),
                email=_text(claims, names.email),
                name=_text(claims, names.name),
                username=_text(claims, names.username),
            )
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise could_not_validate() from error


def _text(claims: Mapping[str, Any], name: str | None) -> str | None:
    """The claim, if it is a short text that can be shown and stored."""
    value = claims.get(name) if name is not None else None
    is_text = isinstance(value, str) and 0 < len(value) <= _MAX_CLAIM_LENGTH and value.isprintable()
    return value if is_text else None


class Issuers:
    """The other servers whose tokens are accepted."""

    def __init__(self, issuers: Iterable[Issuer] = ()) -> None:
        self._by_name = {issuer.name: issuer for issuer in issuers}
        self._look_up = cached_for_short_keys(_MAX_TOKENS, max_length=_MAX_CACHED_LENGTH)(self._read_issuer)

    def issuer_of(self, token: str) -> Issuer | None:
        """The issuer that the token names, without a check of anything else; None if it is not trusted."""
        return self._look_up(token) if self._by_name else None

    def _read_issuer(self, token: str) -> Issuer | None:
        if len(token) > _MAX_TOKEN_LENGTH:
            return None
        try:
            name = jwt.decode(token, options={"verify_signature": False}).get("iss")
        # ValueError: not every character of the payload of `connection_init` has a UTF-8 form.
        except (jwt.PyJWTError, ValueError):
            return None
        return self._by_name.get(name) if isinstance(name, str) else None
