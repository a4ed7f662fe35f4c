"""The garbage collector of a server process. Each test runs in a process of its own: the settings are global."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = """
import asyncio, gc, weakref
from taskflow_gql.stream.collector import Collector, collect_old

class Knot:
    def __init__(self):
        self.itself = self

async def main():
    collector = Collector()
    collector.start()
    CHECKS
    await collector.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "checks",
    [
        # No number of new objects leads to a full collection.
        "full = gc.get_stats()[2]['collections']; kept = [[n] for n in range(600_000)];"
        "assert gc.get_stats()[1]['collections'] > 0; assert gc.get_stats()[2]['collections'] == full",
        # What lives when the process starts is looked at by none.
        "assert gc.get_freeze_count() > 10_000",
        # What became unreachable while it was frozen is found by the next full one.
        "knots = [Knot()]; known = weakref.ref(knots[0]); collect_old(); knots.clear(); collect_old();"
        "assert known() is not None; gc.unfreeze(); collect_old(); assert known() is None",
    ],
)
def test_a_server_process_collects_its_old_objects_at_times_of_its_own(checks: str) -> None:
    subprocess.run([sys.executable, "-c", START.replace("CHECKS", checks)], check=True, timeout=60)
