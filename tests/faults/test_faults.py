"""The stream's promises under every fault, checked by clients that log what they see.

`make faults` runs this for ten minutes and prints the verdict: `TASKFLOW_FAULT_SECONDS=600 pytest tests/faults -s`.
`TASKFLOW_FAULT_SEED` repeats the choices of an earlier run.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from rich.table import Table

from tests.faults.checker import FILTERS, Event, Listener, Verdict, check
from tests.faults.clients import (
    KINDS,
    EventSourceFollower,
    Follower,
    Log,
    Person,
    Puller,
    SignedOut,
    SocketFollower,
    Writer,
)
from tests.faults.faults import Faults
from tests.support.client import Api
from tests.support.cluster import Cluster
from tests.support.serving import SECRET, make_admin

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("TASKFLOW_FAULT_SECONDS", "24"))
SEED = int(os.environ.get("TASKFLOW_FAULT_SEED", "20261121"))
# For the last changes to arrive everywhere, after all faults have ended.
SETTLE_SECONDS = 30


async def test_no_change_is_missed_repeated_or_leaked_whatever_fails(tmp_path: Path) -> None:
    # Tokens live for a minute, so that in a long run everybody signs in again during faults.
    settings = {"TASKFLOW_SECRET_KEY": SECRET, "TASKFLOW_ACCESS_TOKEN_EXPIRE_MINUTES": "1"}
    log = Log()
    async with Cluster(settings) as cluster:
        people = await sign_up(cluster)
        faults = Faults(cluster, log, SEED)
        followers = make_followers(people, cluster.urls, log)
        writers = [Writer(person, people, cluster.urls, log, SEED + i) for i, person in enumerate(people)]
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            writing = [group.create_task(writer.run(stop, pause_seconds=0.03)) for writer in writers]
            assert await comes_true(lambda: len(log.creators) >= 20)
            following = [group.create_task(follower.run()) for follower in followers[::2]]
            raging = group.create_task(faults.run(SECONDS, pause_seconds=min(2, SECONDS / 24)))
            # The other half start when faults are already happening.
            await asyncio.sleep(min(5, SECONDS / 4))
            following += [group.create_task(follower.run()) for follower in followers[1::2]]
            await raging
            stop.set()
            await asyncio.gather(*writing)
            await cluster.heal()
            record = await cluster.record()
            settled = await comes_true(lambda: all(has_heard_all(each.listener, record) for each in followers))
            for task in following:
                task.cancel()
        for follower in followers:
            await read_fresh(follower, cluster.urls[0], log)
        verdict = check(record, await cluster.tasks(), log.acknowledged, log.listeners, log.answers, log.batches)
        report(faults, log, verdict, len(record))
        assert settled
        assert len(log.listeners) == len(followers)
        assert verdict.complaints()[:20] == []
        assert log.complaints == []
        for kind in KINDS.values():
            assert log.sometimes[f"repeat of {kind}"] > 0
        (tmp_path / "servers.log").write_text(cluster.logs())
        for sign in ("never retrieved", "Exception in callback", "never awaited", "Unclosed"):
            assert sign not in cluster.logs()


async def sign_up(cluster: Cluster) -> list[Person]:
    """Register four members and an admin."""
    people = []
    async with Api(cluster.urls[0]) as api:
        for name in ("ann", "bob", "cia", "dan", "root"):
            person = await api.register(name)
            people.append(Person(person.id, name, person.password, person.token, is_admin=name == "root"))
    await make_admin(cluster.database, people[-1].id)
    return people


Maker = Callable[[Person, str, Sequence[str], Log, int], Follower]


def make_followers(people: Sequence[Person], urls: Sequence[str], log: Log) -> list[Follower]:
    """One follower for each user and transport. Every filter is used on every transport."""
    followers: list[Follower] = []
    for i, person in enumerate(people):
        makers: list[Maker] = [SocketFollower, EventSourceFollower, Puller]
        for j, make in enumerate(makers):
            filter_ = list(FILTERS)[(i + j) % len(FILTERS)]
            followers.append(make(person, filter_, urls, log, SEED + 100 * i + j))
    return followers


def has_heard_all(listener: Listener, record: Sequence[Event]) -> bool:
    """Whether the last change for this listener has arrived. The checker looks at all the others."""
    last = next((event for event in reversed(record) if listener.kind_of(event)), None)
    heard = max((told.position for told in listener.told), default=listener.since)
    return last is None or heard >= (last.position or 0)


async def read_fresh(follower: Follower, url: str, log: Log) -> None:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
        for _ in range(3):
            token = follower.person.token
            try:
                _, follower.listener.fresh = await follower.read_list(http, url)
                return
            except SignedOut:
                await follower.person.renew(http, [url], token, log)
    raise AssertionError(f"No fresh answer for {follower.listener.name}")


async def comes_true(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SETTLE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


def report(faults: Faults, log: Log, verdict: Verdict, events: int) -> None:
    table = Table("what", "how many", title=f"Faults for {SECONDS:.0f} s, seed {SEED}")
    for name, count in [*sorted(faults.done.items()), ("faults in all", sum(faults.done.values()))]:
        table.add_row(name, str(count))
    table.add_section()
    for outcome, count in log.outcomes.items():
        table.add_row(f"mutations {outcome}", str(count))
    table.add_row("changes committed", str(events))
    table.add_row("subscribers and pullers", str(len(log.listeners)))
    table.add_row("deliveries", str(sum(len(listener.told) for listener in log.listeners)))
    table.add_section()
    for path, count in sorted(log.sometimes.items()):
        table.add_row(f"sometimes: {path}", str(count))
    table.add_section()
    for reason, count in log.interruptions.most_common(40):
        table.add_row(f"interrupted: {reason}", str(count))
    table.add_section()
    for promise, count in verdict.counts().items():
        table.add_row(promise.replace("_", " "), str(count))
    Console(width=120).print(table)
