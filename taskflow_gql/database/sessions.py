"""Units of work on either database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any, cast

import asyncpg
from sqlalchemy import CursorResult, Executable, ScalarResult
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.pool import PoolProxiedConnection

from taskflow_gql.database.connections import HUNG_UP, Connections, as_sqlalchemy, driver_of, end
from taskflow_gql.database.private import connection_over
from taskflow_gql.database.statements import Rows, Statement


class DatabaseSession:
    """One unit of work: `run` is for statements that are built once, `execute` for all others."""

    def __init__(self, connections: Connections) -> None:
        # Set by whoever records an event, so that the doorbell rings after the commit.
        self.recorded_event = False
        self.dialect_name = connections.dialect.name
        self._connections = connections
        self._session: AsyncSession | None = None

    async def __aenter__(self) -> DatabaseSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_undisturbed()

    async def run(self, statement: Statement, parameters: Mapping[str, Any] = MappingProxyType({})) -> Rows:
        """The rows of a statement; none of one that gives none."""
        connection = await (await self._opened()).connection()
        result = await connection.execute(statement.clause, dict(parameters))
        return statement.read(result) if result.returns_rows else []

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        return cast("CursorResult[Any]", await (await self._opened()).execute(statement, parameters))

    async def scalars(self, statement: Executable) -> ScalarResult[Any]:
        return await (await self._opened()).scalars(statement)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """What fails in the block leaves the rest of the transaction as it is."""
        async with (await self._opened()).begin_nested():
            yield

    async def close_undisturbed(self) -> None:
        """To the end, even when who closes is cancelled meanwhile."""
        if self.is_open:
            await asyncio.shield(self.close())

    @property
    def is_open(self) -> bool:
        return self._session is not None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _opened(self) -> AsyncSession:
        if self._session is None:
            self._session = await self._open()
        return self._session

    async def _open(self) -> AsyncSession:
        return AsyncSession(self._connections.reading, expire_on_commit=False)


class SqliteTransaction(DatabaseSession):
    async def _open(self) -> AsyncSession:
        return AsyncSession(self._connections.writing, expire_on_commit=False)

    async def commit(self) -> None:
        if self._session is not None:
            await self._session.commit()

    async def rollback(self) -> None:
        if self._session is not None:
            await self._session.rollback()


class PostgresSession(DatabaseSession):
    """Reads. `run` takes whichever connection is free for each statement; `execute` keeps one."""

    # What the kept connection begins with. An empty statement, to see whether there is anybody at the other end.
    _opening = "SELECT"

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections)
        # Kept until the end; and what SQLAlchemy sees of it, once `execute` has asked for that.
        self._pooled: PoolProxiedConnection | None = None
        self._connection: AsyncConnection | None = None

    async def run(self, statement: Statement, parameters: Mapping[str, Any] = MappingProxyType({})) -> Rows:
        connections = self._connections
        compiled = statement.compiled_for(connections.dialect)
        arguments = compiled.arguments(parameters)
        if connections.on_statement is not None:
            connections.on_statement(compiled.sql, arguments)
        try:
            return compiled.rows(await self._fetch(compiled.sql, arguments))
        except connections.driver_errors as error:
            raise as_sqlalchemy(error, compiled.sql) from error

    async def _fetch(self, sql: str, arguments: list[Any]) -> list[asyncpg.Record]:
        try:
            return await self._fetch_once(sql, arguments)
        except HUNG_UP:
            # The server did so while the connection lay in the pool, as a rule. A read may be asked again.
            return await self._fetch_once(sql, arguments)

    async def _fetch_once(self, sql: str, arguments: list[Any]) -> list[asyncpg.Record]:
        pooled = await self._connections.borrow()
        driver = driver_of(pooled)
        try:
            return await driver.fetch(sql, *arguments)
        except BaseException as error:
            # After a wrong statement it is as good as before. Cancelled or out of time, it may still be answering.
            if not isinstance(error, asyncpg.PostgresError) or isinstance(error, HUNG_UP):
                await end(driver)
            raise
        finally:
            await self._connections.give_back(pooled)

    async def _open(self) -> AsyncSession:
        pooled = self._pooled or await self._keep_one()
        self._connection = await connection_over(self._connections.reading, pooled)
        return AsyncSession(self._connection, expire_on_commit=False)

    async def _keep_one(self) -> PoolProxiedConnection:
        try:
            try:
                self._pooled = await self._borrow_opened()
            except HUNG_UP:
                self._pooled = await self._borrow_opened()
        except self._connections.driver_errors as error:
            raise as_sqlalchemy(error, self._opening) from error
        return self._pooled

    async def _borrow_opened(self) -> PoolProxiedConnection:
        pooled = await self._connections.borrow()
        driver = driver_of(pooled)
        try:
            await driver.execute(self._opening)
        except BaseException:
            try:
                await end(driver)
            finally:
                await self._connections.give_back(pooled)
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
                await self._connections.give_back(self._pooled)


class PostgresTransaction(PostgresSession):
    """All on one connection, to which we say BEGIN and COMMIT ourselves, as two ways lead to it: the driver's for `run`
    and SQLAlchemy's for `execute`.
    """

    _opening = "BEGIN"

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections)
        # While it is in the transaction.
        self._driver: asyncpg.Connection | None = None

    async def _fetch(self, sql: str, arguments: list[Any]) -> list[asyncpg.Record]:
        if self._driver is None:
            await self._keep_one()
        return await cast("asyncpg.Connection", self._driver).fetch(sql, *arguments)

    async def _keep_one(self) -> PoolProxiedConnection:
        pooled = await super()._keep_one()
        self._driver = driver_of(pooled)
        return pooled

    async def commit(self) -> None:
        if self._driver is None:
            return
        try:
            status = await self._driver.execute("COMMIT")
        except self._connections.driver_errors as error:
            raise as_sqlalchemy(error, "COMMIT") from error
        self._driver = None
        if status != "COMMIT":
            # So PostgreSQL answers after a statement that failed, whatever was made of its error.
            raise RuntimeError("The transaction had failed and was rolled back")

    async def rollback(self) -> None:
        if self._driver is not None:
            with suppress(*HUNG_UP):
                await self._driver.execute("ROLLBACK")
                self._driver = None

    async def close(self) -> None:
        if self._driver is not None:
            # Neither committed nor rolled back. Nobody must get it in this state.
            await end(self._driver)
        await super().close()
