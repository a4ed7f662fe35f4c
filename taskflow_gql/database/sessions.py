"""Engine, units of work, and all that differs between PostgreSQL and SQLite."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any, cast
from uuid import UUID

import asyncpg
import orjson
from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    CursorResult,
    DateTime,
    Dialect,
    Executable,
    Integer,
    MetaData,
    ScalarResult,
    Select,
    String,
    Subquery,
    Text,
    TypeDecorator,
    bindparam,
    event,
    func,
    literal,
    literal_column,
    make_url,
    select,
    true,
)
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute
from sqlalchemy.pool import PoolProxiedConnection, QueuePool
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import OperatorType
from sqlalchemy.types import TypeEngine
from sqlalchemy.util import greenlet_spawn

from taskflow_gql.config import Settings, make_data_dir
from taskflow_gql.database.statements import Rows, Statement
from taskflow_gql.errors import ConfigurationError

# What asyncpg raises on a connection whose other end is gone, or says that it is going.
_HUNG_UP = (
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

# asyncpg takes TLS as an argument and knows nothing of libpq's query parameters.
_SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
# What it takes from a URL as it stands; `host` may name the folder of a socket.
_PLAIN_PARAMETERS = {"host", "port", "user", "password", "passfile", "prepared_statement_cache_size"}


class Model(DeclarativeBase):
    """Every constraint has a name, so that migrations and error handlers can speak of it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


# asyncpg writes these two as -infinity and infinity, which PostgreSQL sorts with what has no date. Comparisons with
# them are right all the same as long as no column holds them, and none does: see `check_due_date`.
FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
LAST_MOMENT = datetime.max.replace(tzinfo=UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC. SQLite has no such type and gives naive values back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        # asyncpg gives them in UTC as they come.
        return None if dialect.name == "postgresql" else super().result_processor(dialect, coltype)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class WordList(TypeDecorator[str]):
    """Words with one blank between them, as the index on words wants them.

    PostgreSQL keeps the words as they are. FTS5 would cut and fold them once more by rules of its own, so it gets each
    word as the hexadecimal digits of its UTF-8: what is a prefix stays a prefix, and nothing is left to cut.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or dialect.name != "sqlite":
            return value
        return " ".join(word.encode().hex() for word in value.split())


class WordsQuery(TypeDecorator[tuple[str, ...]]):
    """Words as the query that finds rows in which each of them starts a word."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        # Words are letters and digits only, so between quotes nothing of them can be syntax.
        if dialect.name == "sqlite":
            return " AND ".join(f'"{word.encode().hex()}" *' for word in value)
        return " & ".join(f"'{word}':*" for word in value)


class _MatchesWords(FunctionElement[bool]):
    type = Boolean()
    inherit_cache = True

    def self_group(self, against: OperatorType | None = None) -> Any:
        # SQLAlchemy would compare it with 1 on SQLite, which then goes through all tasks instead of into the index.
        return self


@compiles(_MatchesWords, "postgresql")
def _matches_words_on_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    _, words, query = (compiler.process(clause, **options) for clause in element.clauses)
    # Made of an array, not of text: a text search parser would cut the words again.
    return f"(array_to_tsvector(string_to_array({words}, ' ')) @@ CAST({query} AS tsquery))"


@compiles(_MatchesWords, "sqlite")
def _matches_words_on_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    key, _, query = (compiler.process(clause, **options) for clause in element.clauses)
    found = (
        "SELECT task_search_ids.task_id FROM task_search"
        " JOIN task_search_ids ON task_search_ids.id = task_search.rowid WHERE task_search MATCH"
    )
    return f"({key} IN ({found} {query}))"


def matches_words(
    task_id: ColumnElement[UUID] | InstrumentedAttribute[UUID],
    words: ColumnElement[str] | InstrumentedAttribute[str],
    query: ColumnElement[tuple[str, ...]],
) -> ColumnElement[bool]:
    """Whether each word of the query, a WordsQuery, starts a word of the task, by the index on words."""
    return _MatchesWords(task_id, words, query)


class _PositionOf(FunctionElement[int]):
    type = Integer()
    inherit_cache = True


@compiles(_PositionOf, "postgresql")
def _position_on_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **options)})"


@compiles(_PositionOf, "sqlite")
def _position_on_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    return f"instr({compiler.process(element.clauses, **options)})"


def position_of(text: Any, part: ColumnElement[str] | str) -> ColumnElement[int]:
    """Where the part begins in the text, counted from 1; 0 when it is not there. Case counts."""
    return _PositionOf(text, literal(part) if isinstance(part, str) else part)


class AfterAllTimes(ColumnElement[datetime]):
    """Later than every time. Literal, so that an index on an expression with it is recognised."""

    type = UtcDateTime()
    inherit_cache = True


class BeforeAllTimes(ColumnElement[datetime]):
    """Earlier than every time."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(AfterAllTimes, "postgresql")
def _after_all_times_on_postgresql(_: Any, _compiler: SQLCompiler, **_options: Any) -> str:
    return "'infinity'::timestamptz"


@compiles(BeforeAllTimes, "postgresql")
def _before_all_times_on_postgresql(_: Any, _compiler: SQLCompiler, **_options: Any) -> str:
    return "'-infinity'::timestamptz"


@compiles(AfterAllTimes, "sqlite")
def _after_all_times_on_sqlite(_: Any, _compiler: SQLCompiler, **_options: Any) -> str:
    # Times are text there, and no minute has a 60th second.
    return "'9999-12-31 23:59:60'"


@compiles(BeforeAllTimes, "sqlite")
def _before_all_times_on_sqlite(_: Any, _compiler: SQLCompiler, **_options: Any) -> str:
    return "''"


def sorted_text(length: int) -> String:
    """Text that sorts by code point on both databases, whatever locale the PostgreSQL cluster was made with."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class ValueList(TypeDecorator[Collection[Any]]):
    """Any number of values as one parameter, so that there is one statement however many there are."""

    impl = Text
    cache_ok = True

    def __init__(self, item_type: TypeEngine[Any]) -> None:
        super().__init__()
        self.item_type = item_type

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(ARRAY(self.item_type) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Collection[Any] | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value and list(value)
        process = self.item_type.dialect_impl(dialect).bind_processor(dialect)
        return json.dumps([process(one) if process else one for one in value])


class _Among(FunctionElement[bool]):
    type = Boolean()
    inherit_cache = True


@compiles(_Among, "postgresql")
def _among_on_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({column} = ANY ({values}))"


@compiles(_Among, "sqlite")
def _among_on_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({column} IN (SELECT value FROM json_each({values})))"  # noqa: S608


def among(column: Any, values: ColumnElement[Any] | str) -> ColumnElement[bool]:
    """Whether the column is one of the values of the parameter, or of the parameter of this name, a ValueList."""
    return _Among(column, bindparam(values, type_=ValueList(column.type)) if isinstance(values, str) else values)


class _AmongFew(_Among):
    inherit_cache = True


@compiles(_AmongFew, "postgresql")
def _among_few_on_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({column} = ANY (ARRAY(SELECT unnest({values}))))"


def among_few(column: Any, values: str) -> ColumnElement[bool]:
    """As `among`, for a list that is short as a rule and asked for all the time.

    PostgreSQL's estimate for a parameter is ten values. With fewer it finds that dear, and plans anew for each
    execution, which takes longer than the look-up; of a list that it cannot look into it knows nothing else.
    """
    return _AmongFew(column, bindparam(values, type_=ValueList(column.type)))


def top_of_each(
    dialect_name: str,
    rows: Select[Any],
    *,
    parent: InstrumentedAttribute[UUID],
    child: InstrumentedAttribute[Any],
    keys: str,
    order_by: Sequence[ColumnElement[Any]],
    limit: int,
) -> Subquery:
    """For each key of the parameter `keys` the first rows whose `child` column is that key, with `parent_id` beside
    their columns.

    PostgreSQL looks into the index once for each key and stops at the limit. SQLite knows no LATERAL and numbers the
    rows of every key.
    """
    if dialect_name == "postgresql":
        parents = select(parent.label("parent_id")).where(among_few(parent, keys)).subquery("parents")
        rows = rows.where(child == parents.c.parent_id).order_by(*order_by)
        # Written out, not a parameter: PostgreSQL has to know it to plan well once.
        top = rows.limit(literal_column(str(limit))).lateral("top")
        return select(parents.c.parent_id, top).join(top, true()).subquery("page")
    number = func.row_number().over(partition_by=child, order_by=list(order_by)).label("number")
    numbered = rows.add_columns(child.label("parent_id"), number).where(among(child, keys)).subquery("numbered")
    return select(numbered).where(numbered.c.number <= limit).subquery("page")


def look_up(
    dialect_name: str, statement: Select[Any], model: type[Model], key: ColumnElement[Any], name: str
) -> tuple[Select[Any], Any]:
    """The statement with one more row beside each of its own, the one of the model with that id if any, and the
    columns of that row.

    PostgreSQL goes to the index for each: its estimates prefer to read a table of some thousands whole.
    """
    if dialect_name == "postgresql":
        row = select(model.__table__).where(model.__table__.c.id == key).limit(literal_column("1")).lateral(name)
        return statement.outerjoin(row, true()), row.c
    aliased = model.__table__.alias(name)
    return statement.outerjoin(aliased, aliased.c.id == key), aliased.c


def database_url(settings: Settings) -> URL:
    """The configured URL with our drivers; a SQLite file in the data folder when nothing is configured."""
    if settings.database_url is None:
        path = make_data_dir(settings.data_dir) / "taskflow.sqlite3"
        return URL.create("sqlite+aiosqlite", database=str(path))
    try:
        url = make_url(settings.database_url)
        if url.port is not None and url.port > 65535:
            raise ValueError(url.port)
    # ValueError: a port that is no number.
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            "DATABASE_URL is not a database URL; it looks like postgresql://user:password@host:5432/name"
        ) from error
    match url.get_backend_name():
        # Heroku and its kin still hand out `postgres://`; a bare `postgresql://` would mean psycopg.
        case "postgresql" | "postgres":
            return url.set(drivername="postgresql+asyncpg")
        case "sqlite":
            if url.database in (None, "", ":memory:"):
                raise ConfigurationError("DATABASE_URL names no file, and memory forgets; write sqlite:///file.sqlite3")
            if url.query:
                raise ConfigurationError("DATABASE_URL: a SQLite file takes no parameters; leave them out")
            return url.set(drivername="sqlite+aiosqlite")
        case other:
            raise ConfigurationError(f"DATABASE_URL names {other!r}; it must be postgresql:// or sqlite:///")


def create_engine(settings: Settings, *, command_timeout_seconds: float | None = 60) -> AsyncEngine:
    """A server that stops answering must not keep a request, or the relay, for ever: hence the timeout of each
    statement. Migrations go without one; an index over many rows takes its time, and so does waiting for another
    process that migrates.
    """
    url = database_url(settings)
    if url.get_backend_name() == "sqlite":
        return _create_sqlite_engine(url)
    return _create_postgresql_engine(url, settings, command_timeout_seconds)


def _create_postgresql_engine(url: URL, settings: Settings, command_timeout_seconds: float | None) -> AsyncEngine:
    query = dict(url.query)
    connect_args: dict[str, Any] = {
        "server_settings": {
            # Seen in pg_stat_activity by whoever looks for what holds a lock.
            "application_name": str(query.pop("application_name", "taskflow")),
            "timezone": "UTC",
            # A process that is stopped in the middle of a transaction, and so neither works nor hangs up, must not
            # keep its row locks: the relay of every other process would wait for it.
            "idle_in_transaction_session_timeout": "3s",
        },
        "timeout": _whole_number("connect_timeout", query.pop("connect_timeout", "10")),
        "command_timeout": command_timeout_seconds,
    }
    if "statement_cache_size" in query:
        # 0 is what PgBouncer wants, of this and of prepared_statement_cache_size.
        connect_args["statement_cache_size"] = _whole_number("statement_cache_size", query.pop("statement_cache_size"))
    mode = query.pop("sslmode", None)
    root_certificate = query.pop("sslrootcert", None)
    if mode is not None:
        if mode not in _SSL_MODES:
            raise ConfigurationError(f"DATABASE_URL: sslmode must be one of {', '.join(sorted(_SSL_MODES))}")
        if root_certificate is not None and mode in ("verify-ca", "verify-full"):
            try:
                context = ssl.create_default_context(cafile=str(root_certificate))
            except OSError as error:
                raise ConfigurationError(
                    f"DATABASE_URL: sslrootcert {root_certificate} cannot be used: {error.strerror}"
                ) from error
            context.check_hostname = mode == "verify-full"
            connect_args["ssl"] = context
        else:
            connect_args["ssl"] = mode
    query.pop("channel_binding", None)
    if unknown := sorted(query.keys() - _PLAIN_PARAMETERS):
        raise ConfigurationError(f"DATABASE_URL: this server knows no parameter {', '.join(unknown)}; leave it out")
    engine = create_async_engine(
        url.set(query=query),
        pool_size=settings.database_pool_size,
        max_overflow=settings.database_max_overflow,
        connect_args=connect_args,
        json_serializer=_as_json,
        json_deserializer=orjson.loads,
        # Errors are logged, and parameters may be hashes of passwords.
        hide_parameters=True,
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def require_open(connection: Any, _record: object, _proxy: object) -> None:
        # A server that goes away closes its connections, which costs nothing to see; `pool_pre_ping` costs a round
        # trip with every unit of work. Another connection is taken instead.
        if connection.driver_connection.is_closed():
            raise DisconnectionError

    return engine


def _as_json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _whole_number(name: str, value: str | tuple[str, ...]) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise ConfigurationError(f"DATABASE_URL: {name} must be a whole number") from error


def _switch_to_wal(cursor: Any) -> None:
    """Does nothing where the file is in that mode already. Of processes that switch a new file at the same time SQLite
    tells all but one that it is locked, and does not wait.
    """
    for attempts_left in reversed(range(250)):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or not attempts_left:
                raise
            time.sleep(0.02)
        else:
            return


def _create_sqlite_engine(url: URL) -> AsyncEngine:
    # The driver's own transaction handling is off: it begins none before a SELECT and would begin a deferred one
    # before a write, which two writers turn into SQLITE_BUSY. We say BEGIN ourselves.
    engine = create_async_engine(url, connect_args={"isolation_level": None}, hide_parameters=True)

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        _switch_to_wal(cursor)
        # FULL: an acknowledged write survives a power cut, not only a killed process.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # Other processes on the file are commands such as `seed`.
        cursor.execute("PRAGMA busy_timeout = 10000")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        # SQLite ignores FOR UPDATE silently. IMMEDIATE takes the write lock before the first read, so that what a
        # service has checked is still true when it writes.
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def forbid_writes(engine: AsyncEngine) -> None:
    """On connections that are made from now on."""
    sql = "PRAGMA query_only = ON" if engine.dialect.name == "sqlite" else "SET default_transaction_read_only = on"

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        connection.run_async(lambda driver_connection: driver_connection.execute(sql))


class DatabaseSession:
    """One unit of work: `run` is for statements that are built once, `execute` for all others."""

    def __init__(self, database: Database) -> None:
        # Set by whoever records an event, so that the doorbell rings after the commit.
        self.recorded_event = False
        self.dialect_name = database.engine.dialect.name
        self._database = database
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
        return AsyncSession(self._database.reading, expire_on_commit=False)


class _SqliteTransaction(DatabaseSession):
    async def _open(self) -> AsyncSession:
        return AsyncSession(self._database.writing, expire_on_commit=False)

    async def commit(self) -> None:
        if self._session is not None:
            await self._session.commit()

    async def rollback(self) -> None:
        if self._session is not None:
            await self._session.rollback()


class _PostgresSession(DatabaseSession):
    """Reads. `run` takes whichever connection is free for each statement; `execute` keeps one."""

    # What the kept connection begins with. An empty statement, to see whether there is anybody at the other end.
    _opening = "SELECT"

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        # Kept until the end; and what SQLAlchemy sees of it, once `execute` has asked for that.
        self._pooled: PoolProxiedConnection | None = None
        self._connection: AsyncConnection | None = None

    async def run(self, statement: Statement, parameters: Mapping[str, Any] = MappingProxyType({})) -> Rows:
        database = self._database
        compiled = statement.compiled_for(database.dialect)
        arguments = compiled.arguments(parameters)
        if database.on_statement is not None:
            database.on_statement(compiled.sql, arguments)
        try:
            return compiled.rows(await self._fetch(compiled.sql, arguments))
        except database.driver_errors as error:
            raise _as_sqlalchemy(error, compiled.sql) from error

    async def _fetch(self, sql: str, arguments: list[Any]) -> list[asyncpg.Record]:
        try:
            return await self._fetch_once(sql, arguments)
        except _HUNG_UP:
            # The server did so while the connection lay in the pool, as a rule. A read may be asked again.
            return await self._fetch_once(sql, arguments)

    async def _fetch_once(self, sql: str, arguments: list[Any]) -> list[asyncpg.Record]:
        pooled = await self._database.borrow()
        driver = _driver_of(pooled)
        try:
            return await driver.fetch(sql, *arguments)
        except BaseException as error:
            # After a wrong statement it is as good as before. Cancelled or out of time, it may still be answering.
            if not isinstance(error, asyncpg.PostgresError) or isinstance(error, _HUNG_UP):
                await _end(driver)
            raise
        finally:
            await self._database.give_back(pooled)

    async def _open(self) -> AsyncSession:
        pooled = self._pooled or await self._keep_one()
        engine = self._database.reading
        connection = await greenlet_spawn(Connection, engine.sync_engine, pooled)
        self._connection = AsyncConnection(engine, connection)
        return AsyncSession(self._connection, expire_on_commit=False)

    async def _keep_one(self) -> PoolProxiedConnection:
        try:
            try:
                self._pooled = await self._borrow_opened()
            except _HUNG_UP:
                self._pooled = await self._borrow_opened()
        except self._database.driver_errors as error:
            raise _as_sqlalchemy(error, self._opening) from error
        return self._pooled

    async def _borrow_opened(self) -> PoolProxiedConnection:
        pooled = await self._database.borrow()
        driver = _driver_of(pooled)
        try:
            await driver.execute(self._opening)
        except BaseException:
            try:
                await _end(driver)
            finally:
                await self._database.give_back(pooled)
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
                await self._database.give_back(self._pooled)


class _PostgresTransaction(_PostgresSession):
    """All on one connection, to which we say BEGIN and COMMIT ourselves, as two ways lead to it: the driver's for `run`
    and SQLAlchemy's for `execute`.
    """

    _opening = "BEGIN"

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        # While it is in the transaction.
        self._driver: asyncpg.Connection | None = None

    async def _fetch(self, sql: str, arguments: list[Any]) -> list[asyncpg.Record]:
        if self._driver is None:
            await self._keep_one()
        return await cast("asyncpg.Connection", self._driver).fetch(sql, *arguments)

    async def _keep_one(self) -> PoolProxiedConnection:
        pooled = await super()._keep_one()
        self._driver = _driver_of(pooled)
        return pooled

    async def commit(self) -> None:
        if self._driver is None:
            return
        try:
            status = await self._driver.execute("COMMIT")
        except self._database.driver_errors as error:
            raise _as_sqlalchemy(error, "COMMIT") from error
        self._driver = None
        if status != "COMMIT":
            # So PostgreSQL answers after a statement that failed, whatever was made of its error.
            raise RuntimeError("The transaction had failed and was rolled back")

    async def rollback(self) -> None:
        if self._driver is not None:
            with suppress(*_HUNG_UP):
                await self._driver.execute("ROLLBACK")
                self._driver = None

    async def close(self) -> None:
        if self._driver is not None:
            # Neither committed nor rolled back. Nobody must get it in this state.
            await _end(self._driver)
        await super().close()


def _driver_of(pooled: PoolProxiedConnection) -> asyncpg.Connection:
    return cast("asyncpg.Connection", pooled.driver_connection)


def _as_sqlalchemy(error: BaseException, sql: str) -> DBAPIError:
    """Whatever way a statement goes, its errors are SQLAlchemy's."""
    kind = IntegrityError if isinstance(error, asyncpg.IntegrityConstraintViolationError) else DBAPIError
    return kind(sql, None, error, hide_parameters=True, connection_invalidated=isinstance(error, _HUNG_UP))


async def _end(driver: asyncpg.Connection) -> None:
    """Ends a connection, and what it may still be doing: `terminate()` alone would leave the server at it."""
    try:
        await asyncio.shield(driver.close(timeout=2))
    except (asyncpg.PostgresError, *_HUNG_UP, OSError, TimeoutError):
        driver.terminate()


class Database:
    """Units of work over one engine. `on_event` is called after each commit that recorded an event."""

    # Called with the text and the parameters of statements that go past SQLAlchemy and its events.
    on_statement: Callable[[str, Sequence[Any]], None] | None = None

    def __init__(self, engine: AsyncEngine, on_event: Callable[[], None] = lambda: None) -> None:
        self.engine = engine
        self.on_event = on_event
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
        self._most_out = 0 if self.is_sqlite else self._pool.size() + self._pool._max_overflow
        self._waiting = 0
        # When it ends the pool gets them, and keeps as many as its size.
        self._timer: asyncio.TimerHandle | None = None
        self._putting_back: asyncio.Task[None] | None = None
        # SQLite has one writer at a time. Waiting here is fair and free; its own busy handler sleeps and polls.
        self._writer: asyncio.Lock | nullcontext[None] = asyncio.Lock() if self.is_sqlite else nullcontext()

    def read(self) -> AbstractAsyncContextManager[DatabaseSession]:
        """A session for reading. Every statement sees what was committed when it began."""
        return DatabaseSession(self) if self.is_sqlite else _PostgresSession(self)

    def write_at_once(self) -> AbstractAsyncContextManager[DatabaseSession]:
        """A session for what PostgreSQL writes with one statement, which then is a transaction of its own. It may be
        sent twice, when a connection breaks off.
        """
        return self.write() if self.is_sqlite else self.read()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[DatabaseSession]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        async with self._writer:
            session = _SqliteTransaction(self) if self.is_sqlite else _PostgresTransaction(self)
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

    async def borrow(self) -> PoolProxiedConnection:
        """A connection of the pool's, with PostgreSQL's driver; to be given back as it was."""
        while self._at_hand:
            pooled = self._at_hand.pop()
            if not _driver_of(pooled).is_closed():
                return pooled
            await greenlet_spawn(pooled.close)
        self._waiting += 1
        try:
            return await self.engine.raw_connection()
        finally:
            self._waiting -= 1

    async def give_back(self, pooled: PoolProxiedConnection) -> None:
        # Not when somebody waits for one, or may as all are out: only the pool wakes them.
        is_wanted = self._waiting > 0 or self._pool.checkedout() >= self._most_out
        if not is_wanted and not _driver_of(pooled).is_closed():
            self._at_hand.append(pooled)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_AT_HAND_SECONDS, self._put_back)
        else:
            await greenlet_spawn(pooled.close)

    def _put_back(self) -> None:
        self._timer = None
        self._putting_back = asyncio.create_task(self._give_to_pool(), name="pool")

    async def _give_to_pool(self) -> None:
        while self._at_hand:
            await greenlet_spawn(self._at_hand.pop().close)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """A connection outside any session, for commands."""
        async with self.engine.connect() as connection:
            yield connection

    async def close(self) -> None:
        self._most_out = 0
        if self._timer is not None:
            self._timer.cancel()
        if self._putting_back is not None:
            await self._putting_back
        await self._give_to_pool()
        await self.engine.dispose()


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


def is_unreachable(error: BaseException) -> bool:
    """Whether this says that the database is away, not that the statement was wrong."""
    if isinstance(error, DBAPIError):
        # 08: the connection failed; 53: no connection left; 57P: the server starts or stops.
        state = str(getattr(error.orig, "sqlstate", None))
        return error.connection_invalidated or state.startswith(("08", "53", "57P"))
    return isinstance(error, OSError | TimeoutError | asyncio.TimeoutError)
