"""Two server processes on one PostgreSQL and one Redis, with a proxy in front of each server."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg

from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import migrate
from taskflow_gql.database.units import Database
from tests.faults.checker import Event, Seen
from tests.support.servers import Account, PostgresServer, RedisServer, Server, ServerFailed

RECOVERY_SECONDS = 60


class TaskflowServer(Server):
    """`taskflow serve`, which can be killed and frozen like the other servers."""

    name = "taskflow"
    stop_signals = (signal.SIGTERM,)

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        super().__init__(Account())

    def command(self, port: int) -> list[str | Path]:
        environment = [f"{name}={value}" for name, value in self._settings.items()]
        taskflow = Path(sys.executable).with_name("taskflow")
        return [shutil.which("env") or "env", *environment, taskflow, "serve", "--port", str(port)]

    def is_ready(self, pid: int, port: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


class Proxy:
    """Forwards bytes to a server. It can cut every connection in the middle of a message, and withhold answers."""

    def __init__(self, server: TaskflowServer) -> None:
        self._server = server
        self._connections: set[_Connection] = set()
        self._listener: asyncio.Server | None = None
        self._passes = asyncio.Event()
        self._passes.set()
        # Set when an answer has arrived from the server and is withheld.
        self.has_withheld = asyncio.Event()
        self.url = ""

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut(lambda: 0)
        await self._listener.wait_closed()

    def cut(self, after_bytes: Callable[[], int]) -> int:
        """Cut each connection after this many more bytes in either direction. Returns the number of connections."""
        for connection in self._connections:
            connection.cut(after_bytes())
        return len(self._connections)

    @asynccontextmanager
    async def withholding(self) -> AsyncIterator[None]:
        """Withhold what the server answers during the block. At its end, cut the connections with a withheld answer."""
        self.has_withheld.clear()
        self._passes.clear()
        try:
            yield
        finally:
            self._passes.set()

    async def may_pass(self) -> bool:
        """Whether an answer may pass. If not, returns when its connection is to be cut."""
        if self._passes.is_set():
            return True
        self.has_withheld.set()
        await self._passes.wait()
        return False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection("127.0.0.1", self._server.port)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection((reader, writer), upstream, self.may_pass)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    def __init__(self, client: Streams, server: Streams, may_pass: Callable[[], Awaitable[bool]]) -> None:
        self._client, self._server = client, server
        self._may_pass = may_pass
        self._bytes_left: int | None = None

    async def run(self) -> None:
        await asyncio.gather(self._pump(self._client[0], self._server[1]), self._pump(self._server[0], self._client[1]))

    def cut(self, after_bytes: int) -> None:
        self._bytes_left = after_bytes
        if after_bytes == 0:
            self._abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if reader is self._server[0] and not await self._may_pass():
                    break
                if self._bytes_left is not None:
                    data = data[: self._bytes_left]
                    self._bytes_left -= len(data)
                writer.write(data)
                await writer.drain()
                if self._bytes_left == 0:
                    break
        self._abort()

    def _abort(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()


class Cluster:
    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self.postgres = PostgresServer(durable=True)
        self.redis = RedisServer()
        self.servers: list[TaskflowServer] = []
        self.proxies: list[Proxy] = []

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _start(self) -> None:
        await asyncio.gather(asyncio.to_thread(self.postgres.start), asyncio.to_thread(self.redis.start))
        # A sign-in that a fault cuts off stays counted, and all clients have one address.
        environment = {"TASKFLOW_RATE_LIMITS": '{"auth": 0, "refresh": 0}'} | self._settings
        environment |= {
            "TASKFLOW_DATABASE_URL": self.postgres.url(),
            "TASKFLOW_REDIS_URL": self.redis.url(),
            "TASKFLOW_LOG_LEVEL": "WARNING",
        }
        self.database = Database(create_engine(Settings(_env_file=None, database_url=self.postgres.url())))  # type: ignore[call-arg]
        await migrate(self.database.engine)
        self.servers = [TaskflowServer(environment) for _ in range(2)]
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in self.servers))
        self.proxies = [Proxy(server) for server in self.servers]
        for proxy in self.proxies:
            await proxy.start()

    async def _close(self) -> None:
        for proxy in self.proxies:
            await proxy.close()
        if hasattr(self, "database"):
            await self.database.close()
        for server in [*self.servers, self.redis, self.postgres]:
            await asyncio.to_thread(server.close)

    @property
    def urls(self) -> list[str]:
        return [proxy.url for proxy in self.proxies]

    def logs(self) -> str:
        """The logs of both servers."""
        return "".join(server.log.read_text(errors="replace") for server in self.servers)

    async def start_again(self, server: Server) -> None:
        """Start the server, and retry: `taskflow serve` exits if Redis or the database is not back yet."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while not server.running:
            try:
                await asyncio.to_thread(server.start)
            except ServerFailed:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)

    async def heal(self) -> None:
        """Start everything that is down, and wait until every committed event has its position."""
        for server in [self.postgres, self.redis, *self.servers]:
            await self.start_again(server)
        async with asyncio.timeout(RECOVERY_SECONDS):
            while any(event.position is None for event in await self.record()):  # noqa: ASYNC110  (by the relay)
                await asyncio.sleep(0.2)

    async def record(self) -> list[Event]:
        """All events, in order."""
        async with self._connection() as connection:
            rows = await connection.fetch("SELECT * FROM events ORDER BY position, id")
        return [
            Event(row["position"], str(row["subject_id"]), row["before"], row["after"], row["mutation_id"])
            for row in rows
        ]

    async def tasks(self) -> dict[str, Seen]:
        async with self._connection() as connection:
            rows = await connection.fetch("SELECT id, title, status, priority, assignee_id, version FROM tasks")
        return {
            str(id_): Seen(title, status, priority, None if assignee_id is None else str(assignee_id), version)
            for id_, title, status, priority, assignee_id, version in rows
        }

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        connection = await asyncpg.connect(self.postgres.url(), timeout=10)
        try:
            await connection.set_type_codec("json", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
            yield connection
        finally:
            await connection.close(timeout=5)
