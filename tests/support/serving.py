"""The application behind a real HTTP server, its settings, and changes that the API does not offer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from sqlalchemy import text

from taskflow_gql.app import create_app
from taskflow_gql.config import Settings
from taskflow_gql.database.units import Database
from taskflow_gql.execution.strawberry import BatchingExecutor, StrawberryExecutor
from taskflow_gql.transport.server import uvicorn_config
from tests.support.client import Api

SECRET = "only for tests, and long enough for HS256"


# Tests sign up and sign in as often as they like, all from one address.
UNLIMITED = {"auth": 0, "refresh": 0}


def make_settings(**given: object) -> Settings:
    """Settings with these values, ignoring the machine's `.env` file."""
    given.setdefault("rate_limits", UNLIMITED)
    return Settings(_env_file=None, secret_key=SECRET, **given)  # type: ignore[arg-type,call-arg]


class CompilingAtOnce(BatchingExecutor):
    """The server's executor, except that it compiles a document at first sight: most tests send theirs only once."""

    seen_before_planned = 1


Executor = type[StrawberryExecutor]


GRAPHQL_CORE: Executor = StrawberryExecutor


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """Uvicorn's loop looks ten times a second whether to exit. End it at once, to save time in each test."""
        loop = asyncio.ensure_future(super().main_loop())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((loop, stopping), return_when=asyncio.FIRST_COMPLETED)
        for task in (loop, stopping):
            task.cancel()
        await asyncio.gather(loop, stopping, return_exceptions=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave Ctrl+C to pytest."""
        yield


@asynccontextmanager
async def listening(config: uvicorn.Config) -> AsyncIterator[str]:
    """Run the server in this event loop and yield its URL. Connections wait in the backlog until it has started."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    # asyncio turns Nagle's algorithm off only for sockets with an explicit protocol, which this one lacks.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        await running
        listener.close()


@asynccontextmanager
async def serving(settings: Settings, executor: Executor = CompilingAtOnce) -> AsyncIterator[Api]:
    """Run the real app behind a real HTTP server in this event loop."""
    config = uvicorn_config(create_app(settings, executor=executor), settings)
    async with listening(config) as url, Api(url) as api:
        assert (await api.http.get("/health")).status_code == 200
        yield api


async def make_admin(database: Database, user_id: str) -> None:
    async with database.write() as session:
        await session.execute(
            text("UPDATE users SET role = 'ADMIN' WHERE id = :id"),
            {"id": user_id.replace("-", "") if database.is_sqlite else user_id},
        )
