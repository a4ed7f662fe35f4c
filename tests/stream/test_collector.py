"""The garbage collector of a server process. Each test runs in its own process, because the settings are global."""

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
        # New objects, however many, do not trigger a full collection.
        "full = gc.get_stats()[2]['collections']; kept = [[n] for n in range(600_000)];"
        "assert gc.get_stats()[1]['collections'] > 0; assert gc.get_stats()[2]['collections'] == full",
        # Objects that exist when the process starts are frozen: no collection looks at them.
        "assert gc.get_freeze_count() > 10_000",
        # An object that became unreachable while frozen is found by the next full collection after unfreezing.
        "knots = [Knot()]; known = weakref.ref(knots[0]); collect_old(); knots.clear(); collect_old();"
        "assert known() is not None; gc.unfreeze(); collect_old(); assert known() is None",
    ],
)
def test_a_server_process_schedules_its_full_collections_itself(checks: str) -> None:
    subprocess.run([sys.executable, "-c", START.replace("CHECKS", checks)], check=True, timeout=60)
