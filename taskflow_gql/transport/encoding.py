"""Encoding and decoding of JSON."""

from __future__ import annotations

import json
from datetime import datetime
from json import JSONDecodeError

import orjson


def encode_json(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        # orjson refuses a lone surrogate, which an error may quote from the request. The standard library escapes it.
        return json.dumps(value, default=_encode_datetime).encode()


def _encode_datetime(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{value!r} has no place in JSON")


def decode_json(data: str | bytes) -> object:
    """Raises only JSONDecodeError, for every kind of bad input."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # orjson is stricter than the standard library. What only the latter accepts is refused later, with a better
        # message.
        return _decode_leniently(data)


def _decode_leniently(data: str | bytes) -> object:
    try:
        return json.loads(data)
    except JSONDecodeError:
        raise
    except RecursionError as error:
        raise JSONDecodeError("nested too deeply", "", 0) from error
    except UnicodeDecodeError as error:
        raise JSONDecodeError("not UTF-8", "", 0) from error
    except ValueError as error:
        raise JSONDecodeError("a number of too many digits", "", 0) from error
