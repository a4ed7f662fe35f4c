"""Undocumented parts of SQLAlchemy that the database modules use, one function for each.

tests/database/test_private.py checks each one and names what broke when a new release changes it. asyncpg and Alembic
are used through their documented interfaces only.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from sqlalchemy import Alias, BindParameter, FromClause
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import PoolProxiedConnection, QueuePool
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine
from sqlalchemy.util import greenlet_spawn

AliasClass = TypeVar("AliasClass", bound=Alias)


def max_connections(pool: QueuePool) -> int:
    """The number of connections that the pool opens at most."""
    return pool.size() + pool._max_overflow


def return_to_pool(pooled: PoolProxiedConnection) -> Awaitable[None]:
    """Close a checked-out connection of an asynchronous engine, which returns it to the pool."""
    return greenlet_spawn(pooled.close)


async def connection_over(engine: AsyncEngine, pooled: PoolProxiedConnection) -> AsyncConnection:
    """SQLAlchemy's connection over one that is already checked out."""
    return AsyncConnection(engine, await greenlet_spawn(Connection, engine.sync_engine, pooled))


def positional_parameters(compiled: SQLCompiler) -> list[tuple[str, BindParameter[Any]]]:
    """The parameters in the order of the placeholders. Raises TypeError when one expands at execution."""
    if compiled.post_compile_params:
        raise TypeError(
            "A statement that is compiled once cannot have a parameter that expands; use `constructs.among`"
        )
    return [(name, compiled.binds[name]) for name in compiled.positiontup or ()]


def result_types(compiled: SQLCompiler) -> list[TypeEngine[Any]]:
    """The types of the columns that the statement returns, in order."""
    return [column.type for column in compiled._result_columns]


def alias_of_class(alias_class: type[AliasClass], table: FromClause, name: str) -> AliasClass:
    """As `table.alias(name)`, but an instance of a subclass, which may have its own compilation."""
    return alias_class._construct(table, name=name)
