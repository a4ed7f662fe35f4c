"""A cache for keys that clients choose."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

Key = TypeVar("Key", str, bytes)
Value = TypeVar("Value")


def cached_for_short_keys(
    maxsize: int, *, max_length: int
) -> Callable[[Callable[[Key], Value]], Callable[[Key], Value]]:
    """`lru_cache` that does not cache longer keys. Limiting only the number of entries would not limit their memory."""

    def decorate(function: Callable[[Key], Value]) -> Callable[[Key], Value]:
        cached = lru_cache(maxsize)(function)

        def look_up(key: Key) -> Value:
            return cached(key) if len(key) <= max_length else function(key)

        return look_up

    return decorate
