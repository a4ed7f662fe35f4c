"""Every fault of the cluster, at random and overlapping, from a generator with a known seed."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from uuid import UUID

import asyncpg
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from taskflow_gql.errors import Refusal
from taskflow_gql.services import tasks
from tests.faults.checker import Acknowledged, Seen
from tests.faults.clients import Log
from tests.support.cluster import Cluster
from tests.support.factories import make_viewer
from tests.support.servers import PostgresServer, RedisServer, Server


class RolledBack(Exception):
    pass


class Faults:
    def __init__(self, cluster: Cluster, log: Log, seed: int) -> None:
        self._cluster = cluster
        self._log = log
        self._random = Random(seed)
        self.done: Counter[str] = Counter()
        # Each process has one fault at a time. Faults of different processes overlap.
        self._locks: defaultdict[Server, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "kill -9 of a server": lambda: self._kill(self._some_server()),
            "SIGSTOP of a server": lambda: self._pause(self._some_server()),
            "SIGTERM of a server": lambda: self._restart(self._some_server()),
            "kill -9 of Redis": lambda: self._kill(cluster.redis),
            "SIGSTOP of Redis": lambda: self._pause(cluster.redis),
            "CLIENT KILL TYPE pubsub": self._kill_pubsub,
            "kill -9 of PostgreSQL": lambda: self._kill(cluster.postgres),
            "SIGSTOP of PostgreSQL": lambda: self._pause(cluster.postgres),
            "pg_terminate_backend": self._terminate_backends,
            "sockets cut mid-frame": self._cut,
            "late commit": lambda: self._hold_transaction(commit=True),
            "rollback": lambda: self._hold_transaction(commit=False),
        }

    async def run(self, seconds: float, *, pause_seconds: float) -> None:
        """Inject every kind of fault in random order, round after round. Returns once the last ones have ended."""
        until = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as group:
            while True:
                kinds = list(self._kinds)
                self._random.shuffle(kinds)
                for kind in kinds:
                    if asyncio.get_running_loop().time() > until:
                        return
                    group.create_task(self._do(kind))
                    await asyncio.sleep(self._random.uniform(0.5, 1.5) * pause_seconds)

    async def _do(self, kind: str) -> None:
        await self._kinds[kind]()
        self.done[kind] += 1

    def _some_server(self) -> Server:
        return self._random.choice(self._cluster.servers)

    async def _kill(self, server: Server) -> None:
        async with self._locks[server]:
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(self._random.uniform(0, 1.5))
            await self._cluster.start_again(server)

    async def _restart(self, server: Server) -> None:
        async with self._locks[server]:
            await asyncio.to_thread(server.stop)
            await self._cluster.start_again(server)

    async def _pause(self, server: Server) -> None:
        # Freeze servers for longer than the database lets a transaction idle, so that the database ends what they hold.
        longest = 2.0 if isinstance(server, PostgresServer | RedisServer) else 5.0
        async with self._locks[server]:
            await asyncio.to_thread(server.pause)
            await asyncio.sleep(self._random.uniform(0.2, longest))
            await asyncio.to_thread(server.resume)

    async def _kill_pubsub(self) -> None:
        async with self._locks[self._cluster.redis], Redis.from_url(self._cluster.redis.url()) as redis:
            await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]

    async def _terminate_backends(self) -> None:
        async with self._locks[self._cluster.postgres]:
            connection = await asyncpg.connect(self._cluster.postgres.url(), timeout=10)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            await connection.close()

    async def _cut(self) -> None:
        # Fewer bytes than a frame with a change has, so most connections are cut in the middle of one.
        self._random.choice(self._cluster.proxies).cut(lambda: self._random.randint(0, 300))

    async def _hold_transaction(self, *, commit: bool) -> None:
        """Change a task like a server, from a process that commits late and rings no doorbell."""
        task_id, creator_id = self._log.some_task(self._random)
        title = f"{'late' if commit else 'rolled back'} {self._random.getrandbits(32):x}"
        with suppress(Refusal, SQLAlchemyError, OSError, TimeoutError, RolledBack):
            async with self._cluster.database.write() as session:
                await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                task = await tasks.update_task(session, make_viewer(creator_id), UUID(task_id), {"title": title})
                await asyncio.sleep(self._random.uniform(0.5, 4))
                if not commit:
                    raise RolledBack
            assignee_id = None if task.assignee_id is None else str(task.assignee_id)
            shown = Seen(task.title, task.status, task.priority, assignee_id, task.version)
            self._log.acknowledged.append(Acknowledged(task_id, shown))
