from __future__ import annotations

import tracemalloc

from taskflow_gql.short_keys import cached_for_short_keys
from taskflow_gql.transport.http import _problem_of_content_type
from taskflow_gql.transport.middleware import Cors
from taskflow_gql.transport.streaming import EVENT_STREAM, JSON, best_media_type


def test_short_keys_are_cached_and_long_ones_are_not() -> None:
    computed = []

    def measure(key: str) -> int:
        computed.append(key)
        return len(key)

    look_up = cached_for_short_keys(2, max_length=3)(measure)
    assert [look_up(key) for key in ("abc", "abc", "abcd", "abcd", "a", "b", "abc")] == [3, 3, 4, 4, 1, 1, 3]
    assert computed == ["abc", "abcd", "abcd", "a", "b", "abc"]


async def nothing(*_: object) -> None:
    """An application that is never called."""


def test_no_cache_keeps_long_client_headers() -> None:
    cors = Cors(nothing, allow_origins=["http://a.example"])

    def send(number: int) -> None:
        # As long as the head of a request may be.
        filler = f"{number}" + "!" * 30_000
        best_media_type(f"application/{filler}")
        _problem_of_content_type(f"application/json; x={filler}")
        cors._added(f"http://{filler}".encode())

    send(0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1, 60):
            send(number)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # If all of them were kept, it would be 5 MB.
    assert after - before < 200_000


def test_only_the_first_thousand_characters_of_an_accept_header_count() -> None:
    assert best_media_type("text/html," * 50 + EVENT_STREAM) == EVENT_STREAM
    assert best_media_type("text/html," * 5000 + EVENT_STREAM) == JSON
    # A truncated entry does not count: here it would mean more than the whole entry.
    assert best_media_type("x," * 500 + f"{EVENT_STREAM};q=0.5," + f"{JSON};q=0.{'0' * 900}") == EVENT_STREAM
