"""The database as services see it: units of work that read or write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from types import TracebackType
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskflow_gql.database.connections import Connections
from taskflow_gql.database.observers import DatabaseObserver
from taskflow_gql.database.sessions import DatabaseSession, PostgresSession, PostgresTransaction, SqliteTransaction


class Database:
    """Units of work over one engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._observers: list[DatabaseObserver] = []
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.connections = Connections(engine)
        # SQLite has one writer at a time. Waiting for this lock is fair and costs nothing; SQLite itself would poll.
        self._writer: asyncio.Lock | nullcontext[None] = asyncio.Lock() if self.is_sqlite else nullcontext()

    def observe(self, observer: DatabaseObserver) -> Callable[[], None]:
        """Tell the observer from now on, until the function that is returned is called."""

        def on_cursor(_connection: object, _cursor: object, sql: str, parameters: Any, *_: object) -> None:
            observer.on_statement(sql, parameters)

        hears_statements = type(observer).on_statement is not DatabaseObserver.on_statement
        self._observers.append(observer)
        if hears_statements:
            # Statements go to the driver directly, or through SQLAlchemy.
            self.connections.on_statement += (observer.on_statement,)
            event.listen(self.engine.sync_engine, "before_cursor_execute", on_cursor)

        def stop() -> None:
            self._observers.remove(observer)
            if hears_statements:
                told = [tell for tell in self.connections.on_statement if tell != observer.on_statement]
                self.connections.on_statement = tuple(told)
                event.remove(self.engine.sync_engine, "before_cursor_execute", on_cursor)

        return stop

    def read(self) -> AbstractAsyncContextManager[DatabaseSession]:
        """A session that reads. Each statement sees what was committed when it began."""
        return DatabaseSession(self.connections) if self.is_sqlite else PostgresSession(self.connections)

    def write_single_statement(self) -> AbstractAsyncContextManager[DatabaseSession]:
        """A session for a write that is one statement on PostgreSQL, where it needs no BEGIN and COMMIT.

        The statement may be sent twice, because it is retried when its connection is lost.
        """
        return self.write() if self.is_sqlite else self.read()

    @asynccontextmanager
    async def write(self, mutation_id: str | None = None, *, locks: bool = True) -> AsyncIterator[DatabaseSession]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Without `locks`, PostgreSQL reads rows without locking them, which saves BEGIN and COMMIT. Then the block must
        write one pair at most, which names the version of the row that it changes. The commit raises Outdated if the
        row has another version by then; the caller repeats the block with locks.
        """
        async with self._writer:
            session: SqliteTransaction | PostgresTransaction
            if self.is_sqlite:
                session = SqliteTransaction(self.connections)
            else:
                session = PostgresTransaction(self.connections, locks=locks)
            session.mutation_id = mutation_id
            try:
                try:
                    yield session
                    await session.commit()
                except Exception:
                    await session.rollback()
                    raise
            finally:
                await session.close_shielded()
        if session.returned_ids:
            for observer in self._observers:
                observer.on_event_committed()
        if session.announcements:
            for observer in self._observers:
                observer.on_committed(session.announcements)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """A connection outside any session, for commands."""
        async with self.engine.connect() as connection:
            yield connection

    async def close(self) -> None:
        await self.connections.close()


class BoundedReads:
    """Read sessions of which at most `limit` are open at once. Further ones wait in order.

    One operation can have sixty fields that count rows. Without a limit it would check out every connection.
    """

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._slots = asyncio.Semaphore(limit)

    def read(self) -> AbstractAsyncContextManager[DatabaseSession]:
        return _BoundedRead(self._database.read(), self._slots)


class _BoundedRead:
    def __init__(self, session: AbstractAsyncContextManager[DatabaseSession], slots: asyncio.Semaphore) -> None:
        self._session = session
        self._slots = slots

    async def __aenter__(self) -> DatabaseSession:
        await self._slots.acquire()
        try:
            return await self._session.__aenter__()
        except BaseException:
            self._slots.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._session.__aexit__(kind, error, trace)
        finally:
            self._slots.release()
