"""The stream of changes under load: number of subscriptions, delay, memory, and number of writers.

    python -m bench.stream [--subscriptions 5000 2500 1000] [--seconds 120] [--only idle light writers many]

Starts a durable PostgreSQL, a Redis and two `taskflow serve`, and ends them again, whatever happens. Changes are
made through the API. The load generator is part of the load: one process holds the subscriptions, another writes.

Every two users share a task, which one created and which is assigned to the other. Each user has `--windows` windows
open, spread over both servers. A window is a WebSocket with one subscription. So a change reaches twice as many
windows, and a task that changes once a second gives each of them one event a second.

A change carries the time at which it was sent, so its age at delivery includes the whole mutation. Lost and repeated
changes are found by the tasks' versions: each window must receive each version up to the one in the database.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import re
import resource
import signal
import statistics
import sys
import time
import traceback
from array import array
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import asyncpg
import uvloop
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from taskflow_gql import clock
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import migrate
from taskflow_gql.models import Session, Task, TaskCategory, TaskPriority, TaskStatus, User, UserRole
from taskflow_gql.security.tokens import TokenSigner
from taskflow_gql.services.ids import make_id
from taskflow_gql.services.search_words import name_words, text_keys
from tests.support.cluster import TaskflowServer
from tests.support.servers import PostgresServer, RedisServer, Server, living_tree

SECRET = "only for this bench, and long enough for HS256"
WRITERS = 50
IDLE_SUBSCRIPTIONS = 2000
# Concurrent handshakes.
OPENING = 64
# How long events may still take to arrive after the writers have ended.
PATIENCE_SECONDS = 60
# The bench ends after this time, whatever it is doing.
MOST_SECONDS = 30 * 60

SUBSCRIPTION = """
subscription Watch($after: String) {
  taskChanged(after: $after) { cursor kind taskId task { id title status priority dueDate version } }
}
"""
RENAME = """
mutation Rename($id: ID!, $title: String!) {
  updateTask(input: {id: $id, title: $title}) { task { version } errors { code message } }
}
"""

out = Console()
err = Console(stderr=True)


# Servers and data


@dataclass(frozen=True)
class Site:
    """Addresses and ids for the load generator. Task k is created by user 2k and assigned to user 2k + 1."""

    database_url: str
    ports: tuple[int, ...]
    tokens: list[str]
    admin_token: str
    tasks: list[str]


@dataclass(frozen=True)
class Processes:
    """The processes whose CPU time is counted, by name."""

    pids: dict[str, int]

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds of each process, and as "others" those of the rest of the machine."""
        ours = {name: sum(map(cpu_seconds_of, living_tree(pid))) for name, pid in self.pids.items()}
        # Everything except idle and iowait.
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
        all_seconds = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
        return ours | {"others": all_seconds - sum(ours.values())}


def cpu_seconds_of(pid: int) -> float:
    """CPU seconds of a process and of its ended children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # utime, stime, and those of ended children, because PostgreSQL's connections come and go.
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def rss_kib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


@contextmanager
def started(people: int) -> Iterator[tuple[Site, Processes]]:
    with ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer(durable=True))
        redis = stack.enter_context(RedisServer())
        postgres.create_database("bench")
        url = postgres.url("bench")
        tokens, admin_token, tasks = asyncio.run(_seed(url, people))
        environment = {
            "TASKFLOW_DATABASE_URL": url,
            "TASKFLOW_REDIS_URL": redis.url(),
            "SECRET_KEY": SECRET,
            "TASKFLOW_LOG_LEVEL": "WARNING",
            "TASKFLOW_MAX_SOCKETS_PER_ADDRESS": "1000000",
            "TASKFLOW_MAX_CONNECTIONS": "1000000",
            "TASKFLOW_TRUSTED_PROXIES": "127.0.0.1",
            "TASKFLOW_MAX_SUBSCRIPTIONS_PER_USER": "1000000",
        }
        servers = [stack.enter_context(TaskflowServer(environment)) for _ in range(2)]
        named: dict[str, Server] = {f"server {number}": server for number, server in enumerate(servers, 1)}
        named |= {"postgres": postgres, "redis": redis}
        pids = {name: server._require_process().pid for name, server in named.items()}
        site = Site(url, tuple(server.port for server in servers), tokens, admin_token, tasks)
        try:
            yield site, Processes(pids)
        finally:
            for number, server in enumerate(servers, 1):
                if said := server.log.read_text(errors="replace").partition("Stop with Ctrl+C.")[2].strip():
                    err.print(f"server {number} said:\n{said[-2000:]}", markup=False)


async def _seed(url: str, people: int) -> tuple[list[str], str, list[str]]:
    """Returns the users' tokens, an admin's token and the tasks' ids. No user has a password: hashing would take
    long.
    """
    engine = create_engine(Settings(_env_file=None, database_url=url))  # type: ignore[call-arg]
    try:
        await migrate(engine)
        *tokens, admin_token = await _seed_people(engine, people)
        return tokens, admin_token, await _seed_tasks(engine)
    finally:
        await engine.dispose()


async def _seed_people(engine: AsyncEngine, people: int) -> list[str]:
    """Create this many users and an admin, who comes last in the list of tokens."""
    now, signer = clock.now(), TokenSigner(SECRET, timedelta(days=1))
    users, sessions, tokens = [], [], []
    for number in range(people + 1):
        name, user_id, session_id = f"user{number}", make_id(), make_id()
        users.append(
            {
                "id": user_id,
                "email": f"{name}@example.com",
                "email_key": f"{name}@example.com",
                "username": name,
                "username_key": name,
                "full_name": name,
                "name_words": name_words(name),
                "password_hash": "none",
                "role": UserRole.ADMIN if number == people else UserRole.MEMBER,
                "is_active": True,
                "created_at": now,
                "updated_at": now,
            }
        )
        expires_at = now + signer.lifetime
        sessions.append({"id": session_id, "user_id": user_id, "created_at": now, "expires_at": expires_at})
        tokens.append(signer.sign(user_id=user_id, session_id=session_id, issued_at=now))
    async with engine.begin() as connection:
        await connection.execute(insert(User), users)
        await connection.execute(insert(Session), sessions)
    return tokens


async def _seed_tasks(engine: AsyncEngine) -> list[str]:
    """Create one task for every two users."""
    now = clock.now()
    async with engine.begin() as connection:
        statement = User.__table__.select().with_only_columns(User.id).where(User.role == UserRole.MEMBER)
        people: Sequence[UUID] = (await connection.execute(statement.order_by(User.id))).scalars().all()
        tasks = [
            {
                "id": make_id(),
                "title": "0",
                "description": None,
                "status": TaskStatus.PENDING,
                "priority": TaskPriority.MEDIUM,
                "category": TaskCategory.WORK,
                "due_date": now,
                "completed_at": None,
                "creator_id": creator_id,
                "assignee_id": assignee_id,
                "version": 1,
                "created_at": now,
                "updated_at": now,
                **text_keys("0", None),
            }
            for creator_id, assignee_id in zip(people[::2], people[1::2], strict=True)
        ]
        await connection.execute(insert(Task), tasks)
    return [str(task["id"]) for task in tasks]


# Processes of the load generator


class Helper:
    """A child process that runs one coroutine function, connected by a pipe."""

    def __init__(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # A daemon process ends with its parent.
        self.process: BaseProcess = context.Process(target=_run_helper, args=(work, theirs, arguments), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def tell(self, what: object) -> None:
        self._pipe.send(what)

    def hear(self) -> Any:
        """The helper's next message. Raises the error that the helper failed with."""
        said = self._pipe.recv()
        if isinstance(said, Failure):
            raise RuntimeError(f"The load generator failed:\n{said.trace}")
        return said

    def close(self) -> None:
        self._pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Failure:
    trace: str


def _run_helper(work: Callable[..., Coroutine[Any, Any, None]], pipe: Connection, arguments: Sequence[object]) -> None:
    # Ctrl+C is for the parent, which ends this process by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        uvloop.run(work(pipe, *arguments))
    except (EOFError, BrokenPipeError):
        return
    except Exception:
        pipe.send(Failure(traceback.format_exc()))


async def _heard(pipe: Connection) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


# Subscriptions


@dataclass
class Deliveries:
    """Received events: when their change was sent and when they arrived, in nanoseconds of the same clock."""

    sent: array[int] = field(default_factory=lambda: array("q"))
    arrived: array[int] = field(default_factory=lambda: array("q"))
    lost: int = 0
    repeated: int = 0

    def add(self, other: Deliveries) -> None:
        self.sent.extend(other.sent)
        self.arrived.extend(other.arrived)
        self.lost += other.lost
        self.repeated += other.repeated


class Window(asyncio.Protocol):
    """A WebSocket with one subscription. Implements as little of both protocols as the server accepts."""

    def __init__(self, token: str, after: str, versions: dict[str, int], told: Deliveries) -> None:
        self.is_open = asyncio.get_running_loop().create_future()
        self.versions = versions
        self._token, self._after, self._told = token, after, told
        self._received = b""
        self._is_upgraded = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not isinstance: uvloop's transports do not derive from asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(
            b"GET /graphql HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
            b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
        )

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        if not self._is_upgraded:
            head, end, received = received.partition(b"\r\n\r\n")
            if not end:
                self._received = head
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._fail(f"no WebSocket: {head[:200]!r}")
                return
            self._is_upgraded = True
            self._send_json({"type": "connection_init", "payload": {"Authorization": f"Bearer {self._token}"}})
        at = 0
        while (payload_at := _payload_at(received, at)) is not None:
            start, end_at = payload_at
            self._take_frame(received[at] & 0x0F, received[start:end_at])
            at = end_at
        self._received = received[at:]

    def connection_lost(self, error: Exception | None) -> None:
        self._fail("connection lost")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _take_frame(self, opcode: int, payload: bytes) -> None:
        match opcode:
            case 0x1:
                self._take_message(json.loads(payload))
            case 0x9:
                self._send_frame(0xA, payload)
            case 0x8:
                self._fail(f"closed with {int.from_bytes(payload[:2], 'big')} {payload[2:]!r}")

    def _take_message(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "next" if "errors" not in message["payload"]:
                self._take_change(message["payload"]["data"]["taskChanged"])
            case "connection_ack":
                variables = {"after": self._after}
                self._send_json(
                    {"type": "subscribe", "id": "1", "payload": {"query": SUBSCRIPTION, "variables": variables}}
                )
                if not self.is_open.done():
                    self.is_open.set_result(None)
            case _:
                self._fail(f"told {message}")

    def _take_change(self, change: dict[str, Any]) -> None:
        now, task = time.monotonic_ns(), change["task"]
        last, version = self.versions[task["id"]], task["version"]
        if version <= last:
            self._told.repeated += 1
            return
        self._told.lost += version - last - 1
        self.versions[task["id"]] = version
        self._told.sent.append(int(task["title"]))
        self._told.arrived.append(now)

    def _send_json(self, message: dict[str, Any]) -> None:
        self._send_frame(0x1, json.dumps(message).encode())

    def _send_frame(self, opcode: int, payload: bytes) -> None:
        """Mask with zeros: the protocol allows it, and the payload stays unchanged."""
        assert self._transport is not None
        length = len(payload)
        head = bytes([0x80 | opcode, 0x80 | length]) if length < 126 else bytes([0x80 | opcode, 0xFE])
        wide = b"" if length < 126 else length.to_bytes(2, "big")
        self._transport.write(head + wide + bytes(4) + payload)

    def _fail(self, why: str) -> None:
        if not self.is_open.done():
            self.is_open.set_exception(ConnectionError(why))


def _payload_at(data: bytes, at: int) -> tuple[int, int] | None:
    """Start and end of the payload of the frame at `at`, or None if the frame is incomplete."""
    if len(data) < at + 2:
        return None
    start, length = at + 2, data[at + 1] & 0x7F
    if length >= 126:
        start, width = (at + 4, 2) if length == 126 else (at + 10, 8)
        length = int.from_bytes(data[start - width : start], "big")
    return (start, start + length) if len(data) >= start + length and start <= len(data) else None


@dataclass(frozen=True)
class Subscribing:
    """One subscription to open: the server, the user's token, the cursor, and the visible tasks with their versions."""

    port: int
    token: str
    after: str
    versions: dict[str, int]


async def hold_subscriptions(pipe: Connection, wanted: list[Subscribing]) -> None:
    """Open the subscriptions and report it. When told the final versions, wait for them and send the deliveries."""
    deliveries = {subscribing.port: Deliveries() for subscribing in wanted}
    windows: list[tuple[int, Window]] = []
    room = asyncio.Semaphore(OPENING)

    async def open_window(subscribing: Subscribing) -> None:
        def window() -> Window:
            told = deliveries[subscribing.port]
            return Window(subscribing.token, subscribing.after, dict(subscribing.versions), told)

        loop = asyncio.get_running_loop()
        async with room:
            _, opened = await loop.create_connection(window, "127.0.0.1", subscribing.port)
            windows.append((subscribing.port, opened))
            await opened.is_open

    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*map(open_window, wanted))
    pipe.send("open")

    versions: dict[str, int] = await _heard(pipe)
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if all(window.versions[task] >= versions[task] for _, window in windows for task in window.versions):
            break
        await asyncio.sleep(0.5)
    for port, window in windows:
        deliveries[port].lost += sum(versions[task] - version for task, version in window.versions.items())
        window.close()
    pipe.send(deliveries)


# Writing


@dataclass(frozen=True)
class Writing:
    """`per_second` changes of each task. If None, each writer sends its next as soon as the last is acknowledged."""

    ports: tuple[int, ...]
    # Each task with the token of its creator.
    tasks: list[tuple[str, str]]
    writers: int
    seconds: float
    per_second: float | None


@dataclass(frozen=True)
class Written:
    """When each change was acknowledged, by when it was sent, both in nanoseconds."""

    acknowledged: dict[int, int]
    # The answers to failed mutations.
    failures: list[str]
    seconds: float

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def per_second(self) -> float:
        return len(self.acknowledged) / self.seconds


async def write(pipe: Connection, writing: Writing) -> None:
    begin = time.monotonic() + 0.5
    acknowledged: dict[int, int] = {}
    failures: list[str] = []

    async def writer(number: int) -> None:
        reader, stream = await asyncio.open_connection("127.0.0.1", writing.ports[number % len(writing.ports)])
        for moment, (task, token) in _schedule(writing, number):
            await asyncio.sleep(max(0.0, begin + moment - time.monotonic()))
            if time.monotonic() > begin + writing.seconds:
                break
            sent = time.monotonic_ns()
            while sent in acknowledged:
                sent += 1
            acknowledged[sent] = 0
            stream.write(_request(token, {"query": RENAME, "variables": {"id": task, "title": str(sent)}}))
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1]))  # type: ignore[index]
            acknowledged[sent] = time.monotonic_ns()
            if b'"version"' not in body:
                failures.append(body.decode())
                del acknowledged[sent]
        stream.close()

    await asyncio.gather(*map(writer, range(writing.writers)))
    pipe.send(Written(acknowledged, failures, time.monotonic() - begin))


def _schedule(writing: Writing, number: int) -> Iterator[tuple[float, tuple[str, str]]]:
    """The changes of one writer: the second at which each is due, and its task. All writers' tasks are spread
    evenly.
    """
    places = range(number, len(writing.tasks), writing.writers)
    round_ = 0
    while True:
        for place in places:
            moment = 0.0
            if writing.per_second is not None:
                moment = (round_ + place / len(writing.tasks)) / writing.per_second
            yield moment, writing.tasks[place]
        round_ += 1


def _request(token: str, payload: dict[str, Any]) -> bytes:
    body = json.dumps(payload).encode()
    head = (
        f"POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


# Measuring


@dataclass(frozen=True)
class Run:
    """The result of writing with some subscriptions open."""

    opening_seconds: float
    by_port: dict[int, Deliveries]
    written: Written
    # CPU use of each process, as a share of one core.
    cpu: dict[str, float]

    @property
    def all(self) -> Deliveries:
        together = Deliveries()
        for deliveries in self.by_port.values():
            together.add(deliveries)
        return together

    def since_sent(self, deliveries: Deliveries) -> list[float]:
        """Milliseconds since each change was sent, sorted."""
        return sorted((arrived - sent) / 1e6 for sent, arrived in zip(deliveries.sent, deliveries.arrived, strict=True))

    def since_acknowledged(self, deliveries: Deliveries) -> list[float]:
        """Milliseconds since each change was acknowledged, sorted. 0 if it arrived before its mutation was answered."""
        acknowledged = self.written.acknowledged
        pairs = zip(deliveries.sent, deliveries.arrived, strict=True)
        return sorted(max(0.0, (arrived - acknowledged[sent]) / 1e6) for sent, arrived in pairs if sent in acknowledged)

    @property
    def shown_cpu(self) -> str:
        return ", ".join(f"{name} {share:.0%}" for name, share in self.cpu.items())


def run(site: Site, processes: Processes, wanted: list[Subscribing], writing: Writing) -> Run:
    with Helper(hold_subscriptions, wanted) as holder:
        begun = time.perf_counter()
        holder.hear()
        opening_seconds = time.perf_counter() - begun
        # Time for the last subscription to finish reading the table and go live.
        time.sleep(2 + len(wanted) / 1000)
        with Helper(write, writing) as writer:
            everyone = Processes(processes.pids | {"subscribers": holder.pid, "writers": writer.pid})
            before, begun = everyone.cpu_seconds(), time.perf_counter()
            written: Written = writer.hear()
            after, seconds = everyone.cpu_seconds(), time.perf_counter() - begun
        cpu = {name: (after[name] - before[name]) / seconds for name in after}
        for answer in written.failures[:3]:
            err.print(f"a mutation failed: {answer}", markup=False)
        holder.tell(asyncio.run(_versions(site)))
        return Run(opening_seconds, holder.hear(), written, cpu)


async def _versions(site: Site) -> dict[str, int]:
    connection = await asyncpg.connect(site.database_url)
    rows = await connection.fetch("SELECT id, version FROM tasks")
    await connection.close()
    return {str(row["id"]): row["version"] for row in rows}


def changes_cursor(site: Site) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", site.ports[0])
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {site.admin_token}"}
    query = json.dumps({"query": "{ tasks(first: 1) { changesCursor } }"})
    connection.request("POST", "/graphql", query, headers)
    cursor: str = json.loads(connection.getresponse().read())["data"]["tasks"]["changesCursor"]
    connection.close()
    return cursor


def windows_of_people(site: Site, number: int, windows: int) -> list[Subscribing]:
    """This many subscriptions, `windows` for each user. Each user's windows alternate between the servers."""
    versions, after = asyncio.run(_versions(site)), changes_cursor(site)
    wanted = []
    for place in range(number):
        person, window = divmod(place, windows)
        task = site.tasks[person // 2]
        port = site.ports[(person + window) % len(site.ports)]
        wanted.append(Subscribing(port, site.tokens[person], after, {task: versions[task]}))
    return wanted


def tasks_of(site: Site, number: int) -> list[tuple[str, str]]:
    return [(task, site.tokens[2 * place]) for place, task in enumerate(site.tasks[:number])]


def percentile(values: Sequence[float], share: float) -> float:
    """A percentile of sorted values."""
    return values[min(len(values) - 1, int(len(values) * share))]


def figures(values: Sequence[float]) -> list[str]:
    """Mean, median, 99th percentile and maximum of sorted values."""
    chosen = [statistics.fmean(values), percentile(values, 0.5), percentile(values, 0.99), values[-1]]
    return [f"{value:,.1f}" for value in chosen]


class Report:
    """One table with all results, printed at the end or at Ctrl+C."""

    def __init__(self) -> None:
        self.table = Table("measured", "result", "bar", title="The stream, two server processes")

    def row(self, measured: str, result: str, bar: str = "") -> None:
        self.table.add_row(measured, result, bar)
        err.print(f"{measured}: {result}", markup=False, soft_wrap=True)


def measure_idle(site: Site, processes: Processes, report: Report) -> None:
    """Memory of one server for each idle subscription."""
    pid, port = processes.pids["server 1"], site.ports[0]

    def hold(number: int) -> int:
        wanted = [Subscribing(port, one.token, one.after, {}) for one in windows_of_people(site, number, 4)]
        with Helper(hold_subscriptions, wanted) as holder:
            holder.hear()
            time.sleep(5)
            return rss_kib(pid)

    # The first connections load modules, compile statements and fill the pool, so warm up before measuring.
    hold(200)
    time.sleep(5)
    before = rss_kib(pid)
    after = hold(IDLE_SUBSCRIPTIONS)
    report.row(
        f"memory of an idle subscription ({IDLE_SUBSCRIPTIONS:,} WebSockets, one process)",
        f"{(after - before) / IDLE_SUBSCRIPTIONS:.1f} KiB (RSS {before / 1024:.0f} -> {after / 1024:.0f} MiB)",
        "< 40 KB",
    )


def measure_light(site: Site, processes: Processes, report: Report) -> None:
    """One writer with 10 changes a second, and 10 subscriptions, half of them in the writer's server process."""
    wanted = windows_of_people(site, 10, 5)
    writing = Writing(site.ports[:1], tasks_of(site, 1), writers=1, seconds=30, per_second=10)
    found = run(site, processes, wanted, writing)
    mutation = statistics.median((end - begun) / 1e6 for begun, end in found.written.acknowledged.items())
    for port, where in zip(site.ports, ("the writer's process", "the other process"), strict=True):
        deliveries = found.by_port[port]
        since_sent, since_acknowledged = found.since_sent(deliveries), found.since_acknowledged(deliveries)
        report.row(
            f"light load, delivered by {where}",
            f"sent -> delivered {percentile(since_sent, 0.5):.1f} ms median, {percentile(since_sent, 0.99):.1f} p99; "
            f"acknowledged -> delivered {percentile(since_acknowledged, 0.5):.1f} ms median "
            f"(the mutation itself {mutation:.1f} ms); lost {deliveries.lost}, repeated {deliveries.repeated}",
            "median < 10 ms",
        )


def measure_writers(site: Site, processes: Processes, report: Report, seconds: float) -> None:
    """As many changes as the writers can make. If deliveries lag behind, repeat with fewer."""
    share, per_second = 1.0, None
    while True:
        versions, after = asyncio.run(_versions(site)), changes_cursor(site)
        wanted = [Subscribing(port, site.admin_token, after, versions) for port in site.ports]
        writing = Writing(site.ports, tasks_of(site, WRITERS), WRITERS, seconds, per_second)
        found = run(site, processes, wanted, writing)
        most = per_second or found.written.per_second / WRITERS
        lag = found.since_acknowledged(found.all)
        mean, median, p99, greatest = figures(lag)
        mutation = sorted((end - begun) / 1e6 for begun, end in found.written.acknowledged.items())
        report.row(
            f"{WRITERS} writers, " + ("as fast as they can" if per_second is None else f"at {share:.0%} of that"),
            f"{found.written.per_second:,.0f} mutations/s for {seconds:.0f} s, {found.written.failed} failed; lag "
            f"(acknowledged -> delivered by both processes) mean {mean}, p50 {median}, p99 {p99}, max {greatest} ms; "
            f"mutation p50 {percentile(mutation, 0.5):.0f}, p99 {percentile(mutation, 0.99):.0f} ms; "
            f"lost {found.all.lost}, repeated {found.all.repeated}; {found.shown_cpu}",
            "500/s, lag < 1 s",
        )
        if lag[-1] < 1000 or share <= 0.25:
            return
        share -= 0.25
        per_second = most * share / (share + 0.25)


def measure_many(site: Site, processes: Processes, report: Report, number: int, windows: int, seconds: float) -> bool:
    """Whether this many subscriptions with an event a second each received everything, in less than a second on
    average.
    """
    wanted = windows_of_people(site, number, windows)
    tasks = tasks_of(site, -(-number // (2 * windows)))
    writing = Writing(site.ports, tasks, min(WRITERS, len(tasks)), seconds, per_second=1)
    found = run(site, processes, wanted, writing)
    told, since_sent = found.all, found.since_sent(found.all)
    mean, median, p99, greatest = figures(since_sent)
    planned = round(len(tasks) * seconds)
    report.row(
        f"{number:,} subscriptions, {len(tasks) * 2:,} people, one event a second each, {seconds:.0f} s",
        f"delivered {len(told.sent):,} of {len(told.sent) + told.lost:,}, lost {told.lost:,}, "
        f"repeated {told.repeated:,}; sent -> delivered mean {mean}, p50 {median}, p99 {p99}, max {greatest} ms; "
        f"mutations {len(found.written.acknowledged):,} of {planned:,} planned "
        f"({found.written.per_second:,.0f}/s, each to {2 * windows} subscriptions), {found.written.failed} failed; "
        f"opened in {found.opening_seconds:.0f} s; {found.shown_cpu}",
        "lost 0, mean < 1 s",
    )
    kept_up = len(found.written.acknowledged) > planned * 0.99
    return told.lost == 0 and told.repeated == 0 and kept_up and statistics.fmean(since_sent) < 1000


def main(arguments: argparse.Namespace) -> bool:
    people = max(2 * WRITERS, IDLE_SUBSCRIPTIONS // 4, -(-max(arguments.subscriptions) // arguments.windows))
    report = Report()
    is_well = True
    try:
        with started(people + people % 2) as (site, processes):
            if "idle" in arguments.only:
                measure_idle(site, processes, report)
            if "light" in arguments.only:
                measure_light(site, processes, report)
            if "writers" in arguments.only:
                measure_writers(site, processes, report, min(30.0, arguments.seconds))
            if "many" in arguments.only:
                # From the highest number down to the first that passes.
                is_well = any(
                    measure_many(site, processes, report, number, arguments.windows, arguments.seconds)
                    for number in sorted(arguments.subscriptions, reverse=True)
                )
    finally:
        out.print(report.table)
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        out.print(f"{os.cpu_count()} cores, load average at the end {load}; the load generator is two processes of it")
    return is_well


def _give_up(number: int, _frame: object) -> None:
    what = "took too long" if number == signal.SIGALRM else "was told to stop"
    raise SystemExit(f"bench.stream {what}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscriptions", type=int, nargs="+", default=[5000, 2500, 1000])
    parser.add_argument("--windows", type=int, default=10, help="open windows of each person")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--only", nargs="+", default=["idle", "light", "writers", "many"])
    # Each subscription is an open file here and in its server.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    signal.signal(signal.SIGTERM, _give_up)
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(MOST_SECONDS)
    try:
        passed = main(parser.parse_args())
    except KeyboardInterrupt:
        passed = False
    sys.exit(0 if passed else 1)
