"""Connections of one engine: idle ones, lost ones, and the errors of the driver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import asyncpg
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from taskflow_gql.database.private import max_connections, return_to_pool

# Errors of asyncpg on a connection that the server has closed or is closing.
CONNECTION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    # The server's closing message arrived while the connection was idle.
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
    ConnectionError,
)

# How long idle connections stay out of the pool. Opening some of them again takes a small part of that time.
_IDLE_SECONDS = 5.0


class Connections:
    """The connections of one engine. PostgreSQL's can be checked out for statements that bypass SQLAlchemy."""

    # Called for each statement that bypasses SQLAlchemy, with its text and its arguments.
    on_statement: tuple[Callable[[str, Any], None], ...] = ()

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.dialect = engine.dialect
        self.is_sqlite = engine.dialect.name == "sqlite"
        # Errors to translate into SQLAlchemy's. The last one is its wrapper, which connecting raises.
        self.driver_errors: tuple[type[BaseException], ...] = (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            engine.dialect.loaded_dbapi.Error,
        )
        # Each read is its own transaction: round trips for BEGIN and ROLLBACK would cost more than the read.
        self.reading = engine if self.is_sqlite else engine.execution_options(isolation_level="AUTOCOMMIT")
        self.writing = engine.execution_options(writes=True)
        # Idle connections not yet returned to the pool. Checking one out costs nearly as much as a read, and the pool
        # closes everything above pool_size, so load slightly above it would reconnect constantly. They still count as
        # checked out.
        self._idle: list[PoolProxiedConnection] = []
        self._pool = cast("QueuePool", engine.pool)
        self._max_connections = 0 if self.is_sqlite else max_connections(self._pool)
        # Calls of `check_out` that wait for the pool.
        self._waiting = 0
        # Returns the idle connections to the pool, which keeps pool_size of them.
        self._timer: asyncio.TimerHandle | None = None
        self._returning: asyncio.Task[None] | None = None

    async def check_out(self) -> PoolProxiedConnection:
        """An open connection to PostgreSQL. The caller passes it to `check_in`, outside any transaction."""
        while self._idle:
            pooled = self._idle.pop()
            if not driver_of(pooled).is_closed():
                return pooled
            await return_to_pool(pooled)
        self._waiting += 1
        try:
            return await self.engine.raw_connection()
        finally:
            self._waiting -= 1

    async def check_in(self, pooled: PoolProxiedConnection) -> None:
        # Only the pool wakes those who wait for a connection. Others than `check_out` can wait there too, but only
        # while all connections are checked out.
        is_wanted = self._waiting > 0 or self._pool.checkedout() >= self._max_connections
        if not is_wanted and not driver_of(pooled).is_closed():
            self._idle.append(pooled)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._start_returning)
        else:
            await return_to_pool(pooled)

    def _start_returning(self) -> None:
        self._timer = None
        self._returning = asyncio.create_task(self._return_idle(), name="pool")

    async def _return_idle(self) -> None:
        while self._idle:
            await return_to_pool(self._idle.pop())

    async def close(self) -> None:
        # From now on `check_in` keeps no connection.
        self._max_connections = 0
        if self._timer is not None:
            self._timer.cancel()
        if self._returning is not None:
            await self._returning
        await self._return_idle()
        await self.engine.dispose()


def driver_of(pooled: PoolProxiedConnection) -> asyncpg.Connection:
    return cast("asyncpg.Connection", pooled.driver_connection)


def as_sqlalchemy_error(error: BaseException, sql: str) -> DBAPIError:
    """The driver's error as SQLAlchemy raises it, so that callers see one kind of error for all statements."""
    kind = IntegrityError if isinstance(error, asyncpg.IntegrityConstraintViolationError) else DBAPIError
    return kind(sql, None, error, hide_parameters=True, connection_invalidated=isinstance(error, CONNECTION_LOST))


async def disconnect(driver: asyncpg.Connection) -> None:
    """Close the connection and cancel its statement, which `terminate()` alone would leave running on the server."""
    try:
        await asyncio.shield(driver.close(timeout=2))
    except (asyncpg.PostgresError, *CONNECTION_LOST, OSError, TimeoutError):
        driver.terminate()


def is_unreachable(error: BaseException) -> bool:
    """Whether the error says that the database cannot be reached, rather than that the statement is wrong."""
    if isinstance(error, DBAPIError):
        # 08: the connection failed. 53: no connection is left. 57P: the server starts or stops.
        state = str(getattr(error.orig, "sqlstate", None))
        return error.connection_invalidated or state.startswith(("08", "53", "57P"))
    return isinstance(error, OSError | TimeoutError | asyncio.TimeoutError)
