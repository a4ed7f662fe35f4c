"""Opaque tokens in the manner of GitHub's: a prefix, random base62, and check digits.

The prefix says to people and secret scanners what the token is. The check digits refuse a mistyped or invented token
without a look-up. The database stores only the hash of a token.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
import zlib

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_BYTES = 32
# The digits that 32 bytes and a CRC32 need in base62.
_SECRET_LENGTH, _CHECK_LENGTH = 43, 6


class OpaqueTokens:
    """Makes and checks the tokens of one kind."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._length = len(prefix) + _SECRET_LENGTH + _CHECK_LENGTH

    def make(self) -> str:
        return self._of(secrets.token_bytes(_SECRET_BYTES))

    def derive(self, key: bytes, message: bytes) -> str:
        """The same token for the same key and message. Nobody finds it without the key."""
        return self._of(hmac.digest(key, self._prefix.encode() + message, "sha256"))

    def is_whole(self, token: str) -> bool:
        """Whether the text has the form of such a token and its check digits are right."""
        if len(token) != self._length or not token.startswith(self._prefix) or not token.isascii():
            return False
        digits = token[len(self._prefix) :]
        return digits[_SECRET_LENGTH:] == _check_digits(digits[:_SECRET_LENGTH])

    def _of(self, secret: bytes) -> str:
        digits = _base62(int.from_bytes(secret), _SECRET_LENGTH)
        return f"{self._prefix}{digits}{_check_digits(digits)}"


def hash_of_token(token: str) -> bytes:
    """The hash to store. It needs no salt, because the token is random."""
    return hashlib.sha256(token.encode()).digest()


def _check_digits(digits: str) -> str:
    return _base62(zlib.crc32(digits.encode()), _CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
