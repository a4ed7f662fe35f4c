"""Sessions: what a unit of work sends its statements with, on either database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any, cast

import asyncpg
from sqlalchemy import CursorResult, Executable, ScalarResult
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.pool import PoolProxiedConnection

from taskflow_gql.database.connections import (
    CONNECTION_LOST,
    Connections,
    as_sqlalchemy_error,
    disconnect,
    driver_of,
)
from taskflow_gql.database.private import connection_over
from taskflow_gql.database.statements import Rows, Statement
from taskflow_gql.database.writes import (
    InsertWithIds,
    WritePair,
    all_together,
    last_alone,
    pair_together,
    second_alone,
    write_alone,
)


class Outdated(Exception):
    """A row was changed or deleted between its read without a lock and its write. Nothing was written."""


class Deadlock(Outdated):
    """Two transactions waited for each other, and the database ended this one. Nothing was written."""


class DatabaseSession:
    """One unit of work. `run` is for statements that are built once, `execute` for all others.

    This class itself reads from SQLite.
    """

    # Whether nobody else can write until this unit of work ends.
    is_only_writer = False
    # Whether rows that are read FOR UPDATE stay locked until the commit. If not, writes name the version that they
    # change.
    locks = True

    def __init__(self, connections: Connections) -> None:
        # The client's name for the mutation, for those who record what it does.
        self.mutation_id: str | None = None
        # The ids that the pairs of writes returned; complete after the commit.
        self.returned_ids: list[int] = []
        # Names of work beside the requests that the commit makes due. Observers are told after the commit.
        self.announcements: set[str] = set()
        self.dialect_name = connections.dialect.name
        self._connections = connections
        self._session: AsyncSession | None = None
        self._pair: WritePair | None = None
        self._last: InsertWithIds | None = None

    async def __aenter__(self) -> DatabaseSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_shielded()

    async def run(self, statement: Statement, parameters: Mapping[str, Any] = MappingProxyType({})) -> Rows:
        """The rows that the statement returns; an empty list when it returns none."""
        if self._pair is not None:
            await self.flush()
        connection = await (await self._opened()).connection()
        result = await connection.execute(statement.clause, dict(parameters))
        return statement.read(result) if result.returns_rows else []

    async def run_locking(self, statement: Statement, parameters: Mapping[str, Any] = MappingProxyType({})) -> Rows:
        """As `run`, and what the statement locks stays locked until the commit."""
        return await self.run(statement, parameters)

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        return cast("CursorResult[Any]", await (await self._opened()).execute(statement, parameters))

    async def scalars(self, statement: Executable) -> ScalarResult[Any]:
        return await (await self._opened()).scalars(statement)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """An error in the block rolls back the block only, not the transaction."""
        async with (await self._opened()).begin_nested():
            yield

    async def write_pair(self, pair: WritePair) -> None:
        """Run the pair with the session's next statement or with the commit, whichever comes first."""
        await self.flush()
        self._pair = pair

    def write_last(self, last: InsertWithIds) -> None:
        """Run this insert with the commit. Raises IntegrityError there, like every write."""
        self._last = last

    async def flush(self) -> None:
        """Run the pair that has not been run yet."""
        pair, self._pair = self._pair, None
        if pair is not None:
            self.returned_ids += await self._run_pair(pair)

    async def _run_pair(self, pair: WritePair) -> list[int]:
        await self.run(write_alone(pair.first), pair.first_values)
        statement = second_alone(pair.table, pair.columns)
        return [id_ for (id_,) in await self.run(statement, pair.second_parameters)]

    async def _flush_all(self) -> None:
        await self.flush()
        if self._last is not None:
            last, self._last = self._last, None
            statement = last_alone(last.table, last.columns, last.ids)
            await self.run(statement, last.parameters(self.returned_ids))

    async def close_shielded(self) -> None:
        """Close the session even when the calling task is cancelled meanwhile."""
        if self.is_open:
            await asyncio.shield(self.close())

    @property
    def is_open(self) -> bool:
        return self._session is not None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _opened(self) -> AsyncSession:
        await self.flush()
        if self._session is None:
            self._session = await self._open()
        return self._session

    async def _open(self) -> AsyncSession:
        return AsyncSession(self._connections.reading, expire_on_commit=False)


class SqliteTransaction(DatabaseSession):
    is_only_writer = True

    async def _open(self) -> AsyncSession:
        return AsyncSession(self._connections.writing, expire_on_commit=False)

    async def commit(self) -> None:
        await self._flush_all()
        if self._session is not None:
            await self._session.commit()

    async def rollback(self) -> None:
        if self._session is not None:
            await self._session.rollback()


class PostgresSession(DatabaseSession):
    """Reads. `run` checks out a connection for each statement, `execute` keeps one until the session closes."""

    # The first statement on the kept connection. This empty one finds out whether the server still answers.
    _opening = "SELECT"

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections)
        # The kept connection, and SQLAlchemy's connection over it once `execute` was called.
        self._pooled: PoolProxiedConnection | None = None
        self._connection: AsyncConnection | None = None

    async def run(self, statement: Statement, parameters: Mapping[str, Any] = MappingProxyType({})) -> Rows:
        if self._pair is not None:
            await self.flush()
        connections = self._connections
        compiled = statement.compiled_for(connections.dialect)
        arguments = compiled.arguments(parameters)
        for tell in connections.on_statement:
            tell(compiled.sql, arguments)
        try:
            return compiled.rows(await self._fetch(compiled.sql, arguments))
        except connections.driver_errors as error:
            raise as_sqlalchemy_error(error, compiled.sql) from error

    async def _fetch(self, sql: str, arguments: list[Any]) -> list[asyncpg.Record]:
        try:
            return await self._fetch_once(sql, arguments)
        except CONNECTION_LOST:
            # Usually the server closed the connection while it was idle. A read can be retried.
            return await self._fetch_once(sql, arguments)

    async def _fetch_once(self, sql: str, arguments: list[Any]) -> list[asyncpg.Record]:
        pooled = await self._connections.check_out()
        driver = driver_of(pooled)
        try:
            return await driver.fetch(sql, *arguments)
        except BaseException as error:
            # A refused statement leaves the connection usable. After a cancellation or a timeout the statement may
            # still be running on it.
            if not isinstance(error, asyncpg.PostgresError) or isinstance(error, CONNECTION_LOST):
                await disconnect(driver)
            raise
        finally:
            await self._connections.check_in(pooled)

    async def _open(self) -> AsyncSession:
        pooled = self._pooled or await self._keep_connection()
        self._connection = await connection_over(self._connections.reading, pooled)
        return AsyncSession(self._connection, expire_on_commit=False)

    async def _keep_connection(self) -> PoolProxiedConnection:
        try:
            try:
                self._pooled = await self._check_out_opened()
            except CONNECTION_LOST:
                self._pooled = await self._check_out_opened()
        except self._connections.driver_errors as error:
            raise as_sqlalchemy_error(error, self._opening) from error
        return self._pooled

    async def _check_out_opened(self) -> PoolProxiedConnection:
        pooled = await self._connections.check_out()
        driver = driver_of(pooled)
        try:
            await driver.execute(self._opening)
        except BaseException:
            try:
                await disconnect(driver)
            finally:
                await self._connections.check_in(pooled)
            raise
        return pooled

    @property
    def is_open(self) -> bool:
        return self._pooled is not None

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            if self._connection is not None:
                await self._connection.close()
            elif self._pooled is not None:
                await self._connections.check_in(self._pooled)


class PostgresTransaction(PostgresSession):
    """A transaction on one connection.

    It sends BEGIN and COMMIT itself, because `run` uses the driver and `execute` uses SQLAlchemy. If its only write is
    one statement at the commit, it needs neither. Without `locks`, `run` is for reads, and they do not begin it.
    """

    _opening = "BEGIN"

    def __init__(self, connections: Connections, *, locks: bool) -> None:
        super().__init__(connections)
        self.locks = locks
        # The driver's connection while it is in the transaction.
        self._driver: asyncpg.Connection | None = None
        self._is_committing = False

    async def run_locking(self, statement: Statement, parameters: Mapping[str, Any] = MappingProxyType({})) -> Rows:
        await self._begin()
        return await self.run(statement, parameters)

    async def _fetch(self, sql: str, arguments: list[Any]) -> list[asyncpg.Record]:
        if self._driver is None:
            if self._is_committing:
                # Not sent again when its connection is lost, because it may have been committed.
                return await self._fetch_once(sql, arguments)
            if not self.locks:
                return await super()._fetch(sql, arguments)
            await self._begin()
        try:
            return await cast("asyncpg.Connection", self._driver).fetch(sql, *arguments)
        except asyncpg.DeadlockDetectedError as error:
            raise Deadlock from error

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        try:
            return await super().execute(statement, parameters)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == asyncpg.DeadlockDetectedError.sqlstate:
                raise Deadlock from error
            raise

    async def _begin(self) -> None:
        if self._driver is None:
            await self._keep_connection()

    async def _keep_connection(self) -> PoolProxiedConnection:
        pooled = await super()._keep_connection()
        self._driver = driver_of(pooled)
        return pooled

    async def _run_pair(self, pair: WritePair) -> list[int]:
        if not self._is_committing:
            await self._begin()
        statement = pair_together(pair.first, pair.table, pair.columns)
        return [(await self._one_row(statement, pair.parameters))[0]]

    async def _flush_all(self) -> None:
        if self._pair is None or self._last is None:
            await super()._flush_all()
            return
        pair, last, self._pair, self._last = self._pair, self._last, None, None
        statement = all_together(pair.first, pair.table, pair.columns, last.table, last.columns, last.ids)
        parameters = {**pair.parameters, **last.parameters(self.returned_ids)}
        (self.returned_ids,) = await self._one_row(statement, parameters)

    async def _one_row(self, statement: Statement, parameters: Mapping[str, Any]) -> Any:
        for row in await self.run(statement, parameters):
            return row
        raise Outdated

    async def commit(self) -> None:
        # From here on there is one statement at most.
        self._is_committing = True
        await self._flush_all()
        if self._driver is None:
            return
        try:
            status = await self._driver.execute("COMMIT")
        except self._connections.driver_errors as error:
            raise as_sqlalchemy_error(error, "COMMIT") from error
        self._driver = None
        if status != "COMMIT":
            # PostgreSQL answers ROLLBACK when a statement failed, even if its error was caught.
            raise RuntimeError("The transaction was rolled back, because one of its statements had failed")

    async def rollback(self) -> None:
        if self._driver is not None:
            with suppress(*CONNECTION_LOST):
                await self._driver.execute("ROLLBACK")
                self._driver = None

    async def close(self) -> None:
        if self._driver is not None:
            # Neither committed nor rolled back: the connection must not be used again.
            await disconnect(self._driver)
        await super().close()
