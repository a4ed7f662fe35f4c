"""SQLAlchemy has the undocumented parts that `database.private` uses. A failing test names the one that changed."""

from __future__ import annotations

import inspect

import pytest
import sqlalchemy
from sqlalchemy import Alias, Column, Integer, MetaData, Select, String, Table, bindparam, select, text
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import QueuePool
from sqlalchemy.sql.compiler import SQLCompiler

from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.private import (
    alias_of_class,
    connection_over,
    max_connections,
    positional_parameters,
    result_types,
    return_to_pool,
)

PEOPLE = Table("people", MetaData(), Column("id", Integer), Column("name", String))


def changed(part: str, function: object) -> str:
    name = getattr(function, "__name__", function)
    return f"SQLAlchemy {sqlalchemy.__version__} changed {part}; adapt `{name}` in taskflow_gql/database/private.py"


def compiled(statement: Select[*tuple[object, ...]]) -> SQLCompiler:
    result = statement.compile(dialect=asyncpg_dialect())  # type: ignore[no-untyped-call]
    assert isinstance(result, SQLCompiler)
    return result


def test_a_pool_has_its_maximum_overflow() -> None:
    pool = QueuePool(lambda: None, pool_size=2, max_overflow=3)  # type: ignore[arg-type]
    assert hasattr(pool, "_max_overflow"), changed("QueuePool._max_overflow", max_connections)
    assert max_connections(pool) == 5, changed("the meaning of QueuePool._max_overflow", max_connections)


async def test_a_connection_can_wrap_a_checked_out_one(postgresql_settings: Settings) -> None:
    names = list(inspect.signature(Connection).parameters)[:2]
    assert names == ["engine", "connection"], changed("the arguments of Connection", connection_over)
    names = list(inspect.signature(AsyncConnection).parameters)[:2]
    assert names == ["async_engine", "sync_connection"], changed("the arguments of AsyncConnection", connection_over)
    engine = create_engine(postgresql_settings)
    pooled = await engine.raw_connection()
    expected = await pooled.driver_connection.fetchval("SELECT pg_backend_pid()")  # type: ignore[union-attr]
    connection = await connection_over(engine, pooled)
    found = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    assert found == expected, changed("Connection(engine, pooled)", connection_over)
    await connection.close()
    await engine.dispose()


async def test_closing_a_connection_returns_it_to_the_pool(postgresql_settings: Settings) -> None:
    engine = create_engine(postgresql_settings)
    pooled = await engine.raw_connection()
    assert isinstance(engine.pool, QueuePool), changed("the pool of asynchronous engines", max_connections)
    assert engine.pool.checkedout() == 1
    await return_to_pool(pooled)
    counts = (engine.pool.checkedout(), engine.pool.checkedin())
    assert counts == (0, 1), changed("sqlalchemy.util.greenlet_spawn", return_to_pool)
    await engine.dispose()


def test_a_compiled_statement_lists_its_parameters_in_order() -> None:
    statement = select(PEOPLE.c.id).where(PEOPLE.c.name == bindparam("name"), PEOPLE.c.id > bindparam("least", value=7))
    found = compiled(statement)
    assert "$1" in str(found)
    part = "SQLCompiler.positiontup or SQLCompiler.binds"
    names = [(name, parameter.key) for name, parameter in positional_parameters(found)]
    assert names == [("name", "name"), ("least", "least")], changed(part, positional_parameters)
    parameters = dict(positional_parameters(found))
    assert parameters["name"].required, changed("BindParameter.required", positional_parameters)
    assert parameters["least"].effective_value == 7, changed("BindParameter.effective_value", positional_parameters)


def test_a_compiled_statement_tells_which_parameters_expand() -> None:
    found = compiled(select(PEOPLE.c.id).where(PEOPLE.c.id.in_([1, 2])))
    assert getattr(found, "post_compile_params", None), changed(
        "SQLCompiler.post_compile_params", positional_parameters
    )
    with pytest.raises(TypeError, match="expands"):
        positional_parameters(found)


def test_a_compiled_statement_lists_the_types_of_its_columns() -> None:
    found = compiled(select(PEOPLE.c.name, PEOPLE.c.id))
    assert hasattr(found, "_result_columns"), changed("SQLCompiler._result_columns", result_types)
    types = [type(one) for one in result_types(found)]
    assert types == [String, Integer], changed("SQLCompiler._result_columns", result_types)


def test_a_subclass_of_alias_can_have_its_own_compilation() -> None:
    class Shouted(Alias):
        inherit_cache = True

    @compiles(Shouted)
    def shout(element: Alias, compiler: SQLCompiler, **options: object) -> str:
        return compiler.visit_alias(element, **options).upper()  # type: ignore[no-any-return,no-untyped-call]

    assert hasattr(Alias, "_construct"), changed("Alias._construct", alias_of_class)
    alias = alias_of_class(Shouted, PEOPLE, "p")
    sql = " ".join(str(compiled(select(alias.c.id).select_from(alias))).split())
    assert sql == "SELECT p.id FROM PEOPLE AS P", changed("Alias._construct", alias_of_class)
