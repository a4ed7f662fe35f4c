"""Connections of an engine, and errors that say that one was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import asyncpg
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from taskflow_gql.database.private import max_connections, return_to_pool

# What asyncpg raises on a connection whose other end is gone, or says that it is going.
HUNG_UP = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    # Its goodbye has come in while the connection lay in the pool.
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
    ConnectionError,
)

# How long connections are kept at hand: long beside what it takes to open some anew.
_AT_HAND_SECONDS = 5.0


class Connections:
    """The connections of an engine. Those to PostgreSQL are lent to whoever sends statements past SQLAlchemy."""

    # Called with the text and the parameters of statements that go past SQLAlchemy and its events.
    on_statement: Callable[[str, Sequence[Any]], None] | None = None

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.dialect = engine.dialect
        self.is_sqlite = engine.dialect.name == "sqlite"
        # Those of the driver that become SQLAlchemy's; its own wrapping of them comes from connecting.
        self.driver_errors: tuple[type[BaseException], ...] = (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            engine.dialect.loaded_dbapi.Error,
        )
        # Each statement its own transaction: no BEGIN and ROLLBACK round trips, which cost more than the read.
        self.reading = engine if self.is_sqlite else engine.execution_options(isolation_level="AUTOCOMMIT")
        self.writing = engine.execution_options(writes=True)
        # Out of the pool for whoever is next, as taking one costs nearly as much as a read, and as the pool closes what
        # comes back beyond its size: with a few more at work than that it would close and open connections all the
        # time. They count as the pool's.
        self._at_hand: list[PoolProxiedConnection] = []
        self._pool = cast("QueuePool", engine.pool)
        self._most_out = 0 if self.is_sqlite else max_connections(self._pool)
        self._waiting = 0
        # When it ends the pool gets them, and keeps as many as its size.
        self._timer: asyncio.TimerHandle | None = None
        self._putting_back: asyncio.Task[None] | None = None

    async def borrow(self) -> PoolProxiedConnection:
        """A connection of the pool's, with PostgreSQL's driver; to be given back as it was."""
        while self._at_hand:
            pooled = self._at_hand.pop()
            if not driver_of(pooled).is_closed():
                return pooled
            await return_to_pool(pooled)
        self._waiting += 1
        try:
            return await self.engine.raw_connection()
        finally:
            self._waiting -= 1

    async def give_back(self, pooled: PoolProxiedConnection) -> None:
        # Not when somebody waits for one, or may as all are out: only the pool wakes them.
        is_wanted = self._waiting > 0 or self._pool.checkedout() >= self._most_out
        if not is_wanted and not driver_of(pooled).is_closed():
            self._at_hand.append(pooled)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_AT_HAND_SECONDS, self._put_back)
        else:
            await return_to_pool(pooled)

    def _put_back(self) -> None:
        self._timer = None
        self._putting_back = asyncio.create_task(self._give_to_pool(), name="pool")

    async def _give_to_pool(self) -> None:
        while self._at_hand:
            await return_to_pool(self._at_hand.pop())

    async def close(self) -> None:
        self._most_out = 0
        if self._timer is not None:
            self._timer.cancel()
        if self._putting_back is not None:
            await self._putting_back
        await self._give_to_pool()
        await self.engine.dispose()


def driver_of(pooled: PoolProxiedConnection) -> asyncpg.Connection:
    return cast("asyncpg.Connection", pooled.driver_connection)


def as_sqlalchemy(error: BaseException, sql: str) -> DBAPIError:
    """Whatever way a statement goes, its errors are SQLAlchemy's."""
    kind = IntegrityError if isinstance(error, asyncpg.IntegrityConstraintViolationError) else DBAPIError
    return kind(sql, None, error, hide_parameters=True, connection_invalidated=isinstance(error, HUNG_UP))


async def end(driver: asyncpg.Connection) -> None:
    """Ends a connection, and what it may still be doing: `terminate()` alone would leave the server at it."""
    try:
        await asyncio.shield(driver.close(timeout=2))
    except (asyncpg.PostgresError, *HUNG_UP, OSError, TimeoutError):
        driver.terminate()


def is_unreachable(error: BaseException) -> bool:
    """Whether this says that the database is away, not that the statement was wrong."""
    if isinstance(error, DBAPIError):
        # 08: the connection failed; 53: no connection left; 57P: the server starts or stops.
        state = str(getattr(error.orig, "sqlstate", None))
        return error.connection_invalidated or state.startswith(("08", "53", "57P"))
    return isinstance(error, OSError | TimeoutError | asyncio.TimeoutError)
