"""taskflow beside its peers: the same operations on the same data, with one process each.

    make bench [ARGS='--rounds 5 --seconds 3 --only taskflow floor --operations Page Task']

Starts a durable PostgreSQL and a Redis, fills them with `taskflow seed`, starts every server, and ends them again,
whatever happens. Before anything is measured, every server must give the same answer to every operation.

- The servers: `taskflow serve` in production, and the servers in `bench/peers`: the ordinary Strawberry stack,
  PostGraphile, Mercurius, Go, and the floor, which is SQL and JSON by hand. Each checks a token and looks up its
  session. PostGraphile and Mercurius are there twice: `+event` writes an event and notifies, and takes only writes.
- All servers run side by side, idle, and are measured in turn with every operation, in several rounds. The result is
  the median of the rounds. The load is wrk's: one thread and several connections, each of which sends its next
  request when the last is answered. Requests rotate through users, ids and cursors.
- The server under load has the first core for itself. PostgreSQL, Redis and wrk use the others.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
from graphql import OperationDefinitionNode, parse, print_ast
from rich.console import Console
from rich.table import Table

from bench.stream import Processes
from taskflow_gql import clock
from taskflow_gql.cli.seeding import Seeding, seed_database
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import migrate
from taskflow_gql.security.tokens import TokenSigner
from taskflow_gql.services.ids import make_id
from tests.support.servers import Account, PostgresServer, RedisServer, Server, ServerFailed, living_tree

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "bench" / "peers"
WRK = ROOT / ".bench" / "wrk"
# Missing where `bench/peers/install` cannot build it.
GO_PEER = ROOT / ".bench" / "golang"
# Node from npm, or the one on the PATH for platforms that npm has none for.
NODE = next(PEERS.glob("node_modules/node-linux-*/bin/node"), Path("node"))

SECRET = "only for this bench, and long enough for HS256"
PEOPLE, TASKS, ADMINS = 1_000, 100_000, 50
# Different requests of each operation, sent repeatedly, and the number of tasks that SetStatus changes.
REQUESTS, WRITES = 300, 3_000
# Pages that are read by their cursors.
PAGES = 10
# How many requests of each operation are compared between the servers.
COMPARED = 20
WARM_UP_SECONDS = 2
# The bench ends after this time, whatever it is doing.
MOST_SECONDS = 45 * 60

READS = ("Page", "Task", "Me", "People", "Filtered")
TITLES = {
    "Page": "50 tasks, creators, assignees",
    "Task": "one task by id, both people",
    "Me": "me, 20 assigned, creators",
    "People": "20 people, 5 tasks each",
    "Filtered": "filtered, ordered, totalCount",
    "SetStatus": "setTaskStatus",
    "Mix": "the five reads in turn",
}

# A file or a pipe has no width of its own, and 80 columns are too few.
out = Console(width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True)


# Requests


@dataclass(frozen=True)
class Site:
    """The seeded data, as far as requests need it."""

    database_url: str
    redis_url: str
    # Tokens of ADMINs, who see every task.
    tokens: list[str]
    # Correctly signed, but its session does not exist.
    revoked_token: str
    people: list[str]
    tasks: list[str]


@dataclass(frozen=True)
class Request:
    token: str
    body: str


def documents(*names: str) -> dict[str, str]:
    """The operations of files by name, each as a document of its own. Later files replace those of earlier ones."""
    definitions = [one for name in names for one in parse((PEERS / name).read_text()).definitions]
    operations = [one for one in definitions if isinstance(one, OperationDefinitionNode)]
    return {one.name.value: print_ast(one) for one in operations if one.name is not None}


def variables_of(operation: str, site: Site, cursors: dict[str, list[str | None]]) -> list[dict[str, Any]]:
    match operation:
        case "Page" | "People":
            return [{"after": cursor} for cursor in cursors[operation]]
        case "Task":
            return [{"id": task} for task in site.tasks[:REQUESTS]]
        case "Filtered":
            statuses = ("PENDING", "IN_PROGRESS", "COMPLETED")
            return [{"assignee": person, "status": status} for person in site.people[:100] for status in statuses]
        case "SetStatus":
            # There and back, so that every request changes something however often the list is repeated.
            return [{"id": task, "status": status} for status in ("IN_PROGRESS", "PENDING") for task in written(site)]
    return [{}]


def written(site: Site) -> list[str]:
    """The tasks that are changed. They start PENDING, so they have no completion time."""
    return site.tasks[-WRITES:]


# Servers and data


class Contender(Server):
    """One of the servers, by the command that starts it. `{port}` stands for the port.

    `dialects` are the files of its operations.
    """

    stop_signals = (signal.SIGTERM,)

    def __init__(
        self, name: str, program: Sequence[str | Path], settings: dict[str, str], site: Site, *dialects: str
    ) -> None:
        self.name = name
        # The operations that are measured.
        self.operations = ["SetStatus"] if name.endswith("+event") else list(TITLES)
        # By operation. `prepare` makes them.
        self.requests: dict[str, list[Request]] = {}
        self._program, self._settings, self._site = program, settings, site
        self._documents = documents(*dialects)
        self._first = self._request("Me", site.tokens[0], {})
        super().__init__(Account())

    def command(self, port: int) -> list[str | Path]:
        settings = [f"{name}={value}" for name, value in self._settings.items()]
        return [str(part).format(port=port) for part in ["/usr/bin/env", *settings, *self._program]]

    def is_ready(self, pid: int, port: int) -> bool:
        try:
            return "data" in post(port, self._first)
        except (OSError, http.client.HTTPException, ServerFailed):
            return False

    @property
    def pid(self) -> int:
        return self._require_process().pid

    def __exit__(self, *failure: object) -> None:
        if isinstance(failure[1], Exception) and self.log.exists():
            err.print(f"{self.name} wrote: {self.log.read_text(errors='replace').strip()[-1000:]}", markup=False)
        super().__exit__(*failure)

    def prepare(self) -> None:
        """Make the requests. The server must be running, because each server has its own cursors."""
        cursors = {operation: self._cursors(operation) for operation in FIELDS}
        for operation in (*READS, "SetStatus"):
            variables = variables_of(operation, self._site, cursors)
            number = max(REQUESTS, len(variables))
            pairs = zip(itertools.cycle(self._site.tokens), itertools.cycle(variables), strict=False)
            self.requests[operation] = [self._request(operation, *pair) for pair in itertools.islice(pairs, number)]
        in_turn = zip(*(self.requests[operation] for operation in READS), strict=True)
        self.requests["Mix"] = list(itertools.chain.from_iterable(in_turn))

    def _cursors(self, operation: str) -> list[str | None]:
        cursors: list[str | None] = [None]
        while len(cursors) < PAGES:
            request = self._request(f"{operation}Cursor", self._site.tokens[0], {"after": cursors[-1]})
            cursors.append(post(self.port, request)["data"][FIELDS[operation]]["pageInfo"]["endCursor"])
        return cursors

    def _request(self, operation: str, token: str, variables: dict[str, Any]) -> Request:
        body = {"operationName": operation, "query": self._documents[operation], "variables": variables}
        return Request(token, json.dumps(body))


# The fields whose pages are read by cursor.
FIELDS = {"Page": "tasks", "People": "users"}


def contenders(site: Site, connections: int) -> list[Contender]:
    common = {"DATABASE_URL": site.database_url, "SECRET_KEY": SECRET, "POOL_SIZE": str(connections)}
    uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT), "--port", "{port}", "--loop", "uvloop"]
    uvicorn += ["--http", "httptools", "--no-access-log", "--log-level", "warning"]
    own_settings = taskflow_settings(site, connections)
    node = common | {"PORT": "{port}", "NODE_ENV": "production", "GRAPHILE_ENV": "production"}
    go = common | {"PORT": "{port}", "GOMAXPROCS": "1"}
    postgraphile, mercurius = [NODE, PEERS / "postgraphile.js"], [NODE, PEERS / "mercurius.js"]
    own, foreign, foreign_event = "taskflow.graphql", "postgraphile.graphql", "postgraphile+event.graphql"
    return [
        Contender("taskflow", [*TASKFLOW, "--port", "{port}"], own_settings, site, own),
        Contender("floor", [*uvicorn, "bench.peers.floor:app"], common, site, own),
        Contender("PostGraphile", postgraphile, node, site, foreign),
        Contender("Mercurius", mercurius, node, site, own),
        Contender("Go", [GO_PEER], go, site, own),
        Contender("ordinary", [*uvicorn, "bench.peers.ordinary:app"], common, site, own),
        Contender("PostGraphile+event", [*postgraphile, "--with-event"], node, site, foreign, foreign_event),
        Contender("Mercurius+event", [*mercurius, "--with-event"], node, site, own),
    ]


TASKFLOW = (str(Path(sys.executable).with_name("taskflow")), "serve")


def taskflow_settings(site: Site, connections: int) -> dict[str, str]:
    return {
        "TASKFLOW_ENV": "production",
        "TASKFLOW_DATABASE_URL": site.database_url,
        "TASKFLOW_DATABASE_POOL_SIZE": str(connections),
        "TASKFLOW_REDIS_URL": site.redis_url,
        "TASKFLOW_LOG_FORMAT": "json",
        "SECRET_KEY": SECRET,
    }


@contextmanager
def on_cores(cores: Collection[int]) -> Iterator[None]:
    """Everything started in the block runs on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cores_of_servers_and_of_others() -> tuple[set[int], set[int]]:
    first, *others = sorted(os.sched_getaffinity(0))
    return {first}, set(others) or {first}


async def fill(database_url: str, redis_url: str) -> Site:
    engine = create_engine(Settings(_env_file=None, database_url=database_url))  # type: ignore[call-arg]
    await migrate(engine)
    await seed_database(engine, Seeding(users=PEOPLE, tasks=TASKS, random_seed=1), err)
    await engine.dispose()

    connection = await asyncpg.connect(database_url)
    people = [row["id"] for row in await connection.fetch("SELECT id FROM users")]
    tasks = [row["id"] for row in await connection.fetch("SELECT id FROM tasks")]
    rng = random.Random(1)
    rng.shuffle(people)
    rng.shuffle(tasks)
    admins = people[:ADMINS]
    await connection.execute("UPDATE users SET role = 'ADMIN' WHERE id = ANY($1)", admins)
    now, signer = clock.now(), TokenSigner(SECRET, timedelta(days=1))
    sessions = [(make_id(), admin, now, now + signer.lifetime) for admin in admins]
    await connection.executemany(
        "INSERT INTO sessions (id, user_id, created_at, last_seen_at, expires_at) VALUES ($1, $2, $3, $3, $4)", sessions
    )
    tokens = [signer.sign(user_id=admin, session_id=id_, issued_at=now) for id_, admin, *_ in sessions]
    revoked_token = signer.sign(user_id=admins[0], session_id=make_id(), issued_at=now)
    await connection.execute((PEERS / "events.sql").read_text())
    # No autovacuum: it would slow down whichever server is being measured. `begin_anew` vacuums instead.
    for table in ("tasks", "events", "peer_events"):
        await connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    await connection.execute("VACUUM ANALYZE")
    await connection.close()
    return Site(database_url, redis_url, tokens, revoked_token, list(map(str, people)), list(map(str, tasks)))


async def begin_anew(site: Site) -> None:
    """Reset the tasks that SetStatus changes, so that each of its requests changes something."""
    connection = await asyncpg.connect(site.database_url)
    await connection.execute(
        "UPDATE tasks SET status = 'PENDING', completed_at = NULL WHERE id = ANY($1)", written(site)
    )
    await connection.execute("VACUUM tasks, events, peer_events")
    await connection.close()


async def end_relaying(site: Site) -> None:
    """Return when every event has its position, so that taskflow's relay does not use CPU while another server is
    measured.
    """
    connection = await asyncpg.connect(site.database_url)
    async with asyncio.timeout(60):
        while await connection.fetchval("SELECT EXISTS (SELECT FROM events WHERE position IS NULL)"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await connection.close()


# Comparing the answers


def post(port: int, request: Request) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {request.token}"}
        connection.request("POST", "/graphql", request.body, headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise ServerFailed(f"{response.status}: {body.decode(errors='replace')[:2000]}")
        return json.loads(body)
    finally:
        connection.close()


def plain(value: Any, key: str = "") -> Any:
    """Normalise an answer: equal instants become equal values in any spelling, and an empty `errors` is dropped."""
    if isinstance(value, dict):
        return {name: plain(one, name) for name, one in value.items() if (name, one) != ("errors", [])}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return datetime.fromisoformat(value) if key in INSTANTS and value else value


INSTANTS = ("createdAt", "updatedAt", "dueDate")


def compare(site: Site, servers: Sequence[Contender], operations: Collection[str]) -> None:
    """Raises RuntimeError if two servers give different answers, or if one accepts an invalid token."""
    for server in servers:
        for token in ("", site.revoked_token):
            if not refuses(server, token):
                raise RuntimeError(f"{server.name} takes the token {token!r}")
    for operation in operations:
        expected: list[Any] = []
        for server in servers:
            if operation not in server.operations:
                continue
            if operation == "SetStatus":
                asyncio.run(begin_anew(site))
            answers = [plain(post(server.port, request)) for request in server.requests[operation][:COMPARED]]
            for number, (answer, right) in enumerate(zip(answers, expected or answers, strict=True)):
                if answer != right or "errors" in answer:
                    raise RuntimeError(
                        f"{operation} {number}: {server.name} answers {json.dumps(answer, default=str)[:2000]}, "
                        f"{servers[0].name} {json.dumps(right, default=str)[:2000]}"
                    )
            expected = answers


def refuses(server: Contender, token: str) -> bool:
    try:
        answer = post(server.port, Request(token, server.requests["Task"][0].body))
    except ServerFailed:
        return True
    return "errors" in answer


# Measuring


@dataclass(frozen=True)
class Sample:
    """The result of one server under load with one operation."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    # Milliseconds of CPU time for each request.
    server_ms: float
    database_ms: float
    load_ms: float
    # Cores used by other work meanwhile, including Redis and the idle servers.
    foreign_cores: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


class Bench:
    def __init__(self, site: Site, postgres: Server, connections: int, folder: Path) -> None:
        self.site, self.postgres, self.connections, self.folder = site, postgres, connections, folder

    def sample(self, server: Contender, operation: str, seconds: int) -> Sample:
        """Raises RuntimeError if any request fails."""
        writes = operation == "SetStatus"
        if writes:
            asyncio.run(begin_anew(self.site))
        requests = self.folder / "requests"
        requests.write_text("".join(f"{one.token}\t{one.body}\n" for one in server.requests[operation]))
        processes = Processes({"server": server.pid, "database": self.postgres._require_process().pid})
        before, load_before = processes.cpu_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN)
        found = self._wrk(server.port, requests, seconds)
        if writes:
            asyncio.run(end_relaying(self.site))
        after, load_after = processes.cpu_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN)
        if found["failed"] or not found["requests"]:
            answered = f"{operation} at {server.name}: {found['requests']} answered, {found['failed']} failed"
            raise RuntimeError(f"{answered}: {found['failure']}")

        used = {name: after[name] - before[name] for name in after}
        load_seconds = sum(getattr(load_after, kind) - getattr(load_before, kind) for kind in ("ru_utime", "ru_stime"))
        return Sample(
            requests=found["requests"],
            seconds=found["microseconds"] / 1e6,
            p50_ms=found["p50"] / 1000,
            p99_ms=found["p99"] / 1000,
            server_ms=used["server"] / found["requests"] * 1000,
            database_ms=used["database"] / found["requests"] * 1000,
            load_ms=load_seconds / found["requests"] * 1000,
            foreign_cores=(used["others"] - load_seconds) / found["microseconds"] * 1e6,
        )

    def _wrk(self, port: int, requests: Path, seconds: int) -> dict[str, Any]:
        load: list[str | Path] = ["-t1", f"-c{self.connections}", f"-d{seconds}s", "-s", PEERS / "load.lua"]
        command = [WRK, *load, f"http://127.0.0.1:{port}/graphql", "--", requests]
        _, others = cores_of_servers_and_of_others()
        with on_cores(others):
            said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True).stdout
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found


Samples = dict[tuple[str, str], list[Sample]]


def measure(
    bench: Bench, servers: Sequence[Contender], operations: Sequence[str], rounds: int, seconds: int
) -> Samples:
    """The samples of each server and operation, one for each round. The first round warms up and does not count.

    None for an operation that is not measured at a server.
    """
    samples: Samples = {(server.name, operation): [] for server in servers for operation in operations}
    for round_ in range(rounds + 1):
        for operation in operations:
            # Rotate the order, so that each server comes first equally often.
            takers = [server for server in servers if operation in server.operations]
            turn = round_ % len(takers)
            for server in [*takers[turn:], *takers[:turn]]:
                found = bench.sample(server, operation, seconds if round_ else WARM_UP_SECONDS)
                if round_:
                    samples[server.name, operation].append(found)
                shown = f"round {round_} of {rounds}: {operation} at {server.name}"
                err.print(f"{shown}: {found.per_second:,.0f} requests/s, {found.server_ms:.2f} ms of the server's core")
    return samples


def median(samples: Sequence[Sample], what: str) -> float:
    figures: list[float] = [getattr(sample, what) for sample in samples]
    return statistics.median(figures)


# Memory, cold start, two workers


def memory_mib(pid: int) -> tuple[float, float]:
    """RSS, and PSS, which counts shared memory in proportion."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kib["Rss"] / 1024, kib["Pss"] / 1024


def cold_start_seconds(server: Contender) -> float:
    """Seconds from the start of the process to its answer to the first query."""
    server.stop()
    begun = time.perf_counter()
    server.start()
    return time.perf_counter() - begun


def show_workers(bench: Bench, rounds: int, seconds: int) -> None:
    """Compare one worker with two, on all cores.

    Two workers, PostgreSQL and wrk do not fit on two cores. So the table also has what the workers could do if
    everything else ran elsewhere: n workers that need c seconds of a core for a request serve n / c requests a
    second.
    """
    taskflow = [*TASKFLOW, "--port", "{port}", "--workers"]
    settings = taskflow_settings(bench.site, bench.connections)
    table = Table("workers", "requests/s", "server", "database", "load", "on cores of their own", "PSS of each, MiB")
    table.title = f"Workers, {TITLES['Page']}; ms of processor time a request"
    by_number: dict[int, list[Sample]] = {1: [], 2: []}
    with ExitStack() as stack:
        servers = {}
        for number in by_number:
            server = Contender(f"taskflow {number}", [*taskflow, str(number)], settings, bench.site, "taskflow.graphql")
            servers[number] = stack.enter_context(server)
            server.prepare()
        for _ in range(rounds + 1):
            for number, server in servers.items():
                by_number[number].append(bench.sample(server, "Page", seconds))
        memory = {number: [memory_mib(pid)[1] for pid in living_tree(server.pid)] for number, server in servers.items()}

    measured, own = {}, {}
    for number, (_warm_up, *samples) in by_number.items():
        measured[number], server_ms = median(samples, "per_second"), median(samples, "server_ms")
        own[number] = number / server_ms * 1000
        times = [f"{median(samples, what):.2f}" for what in ("server_ms", "database_ms", "load_ms")]
        shares = ", ".join(f"{pss:.0f}" for pss in sorted(memory[number], reverse=True))
        table.add_row(str(number), f"{measured[number]:,.0f}", *times, f"{own[number]:,.0f}", shares)
    ratios = [f"{figures[2] / figures[1]:.2f} x" for figures in (measured, own)]
    table.add_row("two / one", ratios[0], "", "", "", ratios[1], "", style="bold")
    out.print(table)


# Output


def aim(operation: str, peer: str) -> float | None:
    """The least ratio of taskflow's requests per second to the peer's."""
    if operation == "SetStatus":
        return 1.0 if peer.endswith("+event") else None
    if peer == "floor":
        return 0.65
    if peer == "Go":
        return None
    return {"PostGraphile": 1.3, "Mercurius": 2.5, "ordinary": 12.0}[peer] if operation == "Page" else 1.0


def medians(samples: Sequence[Sample], parts: Sequence[str], between: str, digits: int) -> str:
    """Empty if there are no samples."""
    return between.join(f"{median(samples, part):.{digits}f}" for part in parts) if samples else ""


def show_samples(samples: Samples, names: Sequence[str], operations: Sequence[str], title: str) -> None:
    first, *peers = names

    table = Table("requests/s", *names, title=title, caption=f"In brackets: {first} / that server.")
    missed = []
    for operation in operations:
        own = median(samples[first, operation], "per_second")
        cells = []
        for peer in peers:
            if not samples[peer, operation]:
                cells.append("")
                continue
            figure = median(samples[peer, operation], "per_second")
            cells.append(f"{figure:,.0f} ({own / figure:.2f})")
            least = aim(operation, peer)
            if first == "taskflow" and least is not None and own / figure < least:
                missed.append(f"{operation} / {peer} {own / figure:.2f} ({least})")
        table.add_row(TITLES[operation], f"{own:,.0f}", *cells)
    out.print(table)
    out.print(f"Short of the aim (in brackets): {', '.join(missed) or 'nothing'}", soft_wrap=True)
    foreign = median(list(itertools.chain.from_iterable(samples.values())), "foreign_cores")
    out.print(f"Other work on the machine took {foreign:.2f} of a core (median); a good run has next to none.")

    table = Table("latency, ms: p50 / p99", *names)
    for operation in operations:
        found = [samples[name, operation] for name in names]
        table.add_row(TITLES[operation], *(medians(one, ("p50_ms", "p99_ms"), " / ", 1) for one in found))
    out.print(table)

    table = Table("processor time, ms a request: server + database + load", *names)
    for operation in operations:
        found = [samples[name, operation] for name in names]
        parts = ("server_ms", "database_ms", "load_ms")
        table.add_row(TITLES[operation], *(medians(one, parts, " + ", 2) for one in found))
    out.print(table)


def show_processes(servers: Sequence[Contender], starts: int) -> None:
    """Memory comes first, because measuring the cold start ends the processes."""
    table = Table("a process", *(server.name for server in servers))
    memory = [memory_mib(server.pid) for server in servers]
    table.add_row("memory after the load, MiB: RSS / PSS", *(f"{rss:.0f} / {pss:.0f}" for rss, pss in memory))
    seconds: dict[str, list[float]] = {server.name: [] for server in servers}
    for _ in range(starts):
        for server in servers:
            seconds[server.name].append(cold_start_seconds(server))
    table.add_row("start to first answer, s", *(f"{statistics.median(one):.2f}" for one in seconds.values()))
    out.print(table)


NOTES = """\
Page and People are asked for by the cursors of their first ten pages; Filtered is by assignee and status, newest change
first. SetStatus: taskflow also locks the task, writes an event in the same transaction, gives it its position and rings
Redis; the floor, Mercurius, Go and the ordinary stack write version and time of the change with it, PostGraphile the
status alone. `+event` locks, writes an event and notifies in one transaction, but gives no position: Mercurius with one
statement, PostGraphile with a function of the database. No client listens to the notifications. Go reads each list
with one joined statement, and so the tasks of each of the 20 people with a statement of their own. The Node servers, Go
and the floor serve ADMINs, as whom all is asked, and check no permission per task. PostGraphile looks up the session in
`grafast.context`, without `pgSettings`, with which each request would be a transaction."""


def main(arguments: argparse.Namespace) -> None:
    own, others = cores_of_servers_and_of_others()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskflow-bench-")))
        with on_cores(others):
            postgres = stack.enter_context(PostgresServer(durable=True))
            redis = stack.enter_context(RedisServer())
        postgres.create_database("bench")
        site = asyncio.run(fill(postgres.url("bench"), redis.url()))
        servers = [one for one in contenders(site, arguments.connections) if one.name in arguments.only]
        for server in servers:
            with on_cores(own):
                stack.enter_context(server)
            server.prepare()

        compare(site, servers, [*READS, "SetStatus"])
        err.print(f"{len(servers)} servers give the same answers")
        bench = Bench(site, postgres, arguments.connections, folder)
        operations = [one for one in TITLES if one in arguments.operations and one in servers[0].operations]
        samples = measure(bench, servers, operations, arguments.rounds, arguments.seconds)
        show_samples(samples, [server.name for server in servers], operations, describe(postgres, arguments))
        out.print(NOTES, soft_wrap=True)
        if "processes" in arguments.parts:
            show_processes(servers, arguments.rounds)
        for server in servers:
            server.stop()
        if "workers" in arguments.parts:
            show_workers(bench, arguments.rounds, arguments.seconds)


def describe(postgres: PostgresServer, arguments: argparse.Namespace) -> str:
    node = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return (
        f"{PEOPLE:,} people, {TASKS:,} tasks, one process each on one of {os.cpu_count()} cores, "
        f"{arguments.connections} connections, median of {arguments.rounds} rounds of {arguments.seconds} s; "
        f"Python {sys.version.split()[0]}, Node {node}, PostgreSQL {postgres.version}"
    )


def _give_up(number: int, _frame: object) -> None:
    what = "took too long" if number == signal.SIGALRM else "was told to stop"
    raise SystemExit(f"bench.serving {what}")


if __name__ == "__main__":
    names = [
        "taskflow",
        "floor",
        "PostGraphile",
        "Mercurius",
        "Go",
        "ordinary",
        "PostGraphile+event",
        "Mercurius+event",
    ]
    if not GO_PEER.exists():
        names.remove("Go")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each operation at each server in each round")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SERVER", help=", ".join(names))
    parser.add_argument("--operations", nargs="+", choices=TITLES, default=list(TITLES), metavar="OPERATION")
    parser.add_argument("--parts", nargs="*", choices=("processes", "workers"), default=["processes", "workers"])
    signal.signal(signal.SIGTERM, _give_up)
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(MOST_SECONDS)
    main(parser.parse_args())
