"""Measures how long one client waits while another is hostile."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_BODY = json.dumps({"query": "{ serverInfo { name } }"})


@dataclass
class Waits:
    """In seconds. Every request is small and uses the same connection."""

    longest: float = 0.0
    count: int = 0


@contextmanager
def second_client(port: int) -> Iterator[Waits]:
    """Send requests from a thread until the block ends. A bad answer makes the block raise at its end."""
    waits, stop = Waits(), threading.Event()
    failures: list[Exception] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            while not stop.wait(0.002):
                began = time.perf_counter()
                connection.request("POST", "/graphql", _BODY, {"Content-Type": "application/json"})
                answer = json.load(connection.getresponse())
                assert answer["data"]["serverInfo"]["name"], answer
                waits.longest = max(waits.longest, time.perf_counter() - began)
                waits.count += 1
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
