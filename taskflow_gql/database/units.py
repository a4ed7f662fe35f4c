"""The database as services see it: units of work for reading and for writing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from types import TracebackType

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskflow_gql.database.connections import Connections
from taskflow_gql.database.sessions import DatabaseSession, PostgresSession, PostgresTransaction, SqliteTransaction


class Database:
    """Units of work over one engine. `on_event` is called after each commit that recorded an event."""

    def __init__(self, engine: AsyncEngine, on_event: Callable[[], None] = lambda: None) -> None:
        self.engine = engine
        self.on_event = on_event
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.connections = Connections(engine)
        # SQLite has one writer at a time. Waiting here is fair and free; its own busy handler sleeps and polls.
        self._writer: asyncio.Lock | nullcontext[None] = asyncio.Lock() if self.is_sqlite else nullcontext()

    def read(self) -> AbstractAsyncContextManager[DatabaseSession]:
        """A session for reading. Every statement sees what was committed when it began."""
        return DatabaseSession(self.connections) if self.is_sqlite else PostgresSession(self.connections)

    def write_at_once(self) -> AbstractAsyncContextManager[DatabaseSession]:
        """A session for what PostgreSQL writes with one statement, which then is a transaction of its own. It may be
        sent twice, when a connection breaks off.
        """
        return self.write() if self.is_sqlite else self.read()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[DatabaseSession]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        async with self._writer:
            session = SqliteTransaction(self.connections) if self.is_sqlite else PostgresTransaction(self.connections)
            try:
                try:
                    yield session
                except Exception:
                    await session.rollback()
                    raise
                await session.commit()
            finally:
                await session.close_undisturbed()
        if session.recorded_event:
            self.on_event()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """A connection outside any session, for commands."""
        async with self.engine.connect() as connection:
            yield connection

    async def close(self) -> None:
        await self.connections.close()


class BoundedReads:
    """Read sessions of which only a few are open at once, in the order in which they were asked for.

    One operation may have sixty fields that count. Without a bound it would take every connection of the pool.
    """

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._room = asyncio.Semaphore(limit)

    def read(self) -> AbstractAsyncContextManager[DatabaseSession]:
        return _BoundedRead(self._database.read(), self._room)


class _BoundedRead:
    def __init__(self, session: AbstractAsyncContextManager[DatabaseSession], room: asyncio.Semaphore) -> None:
        self._session = session
        self._room = room

    async def __aenter__(self) -> DatabaseSession:
        await self._room.acquire()
        try:
            return await self._session.__aenter__()
        except BaseException:
            self._room.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._session.__aexit__(kind, error, trace)
        finally:
            self._room.release()
