"""Engine, units of work, and all that differs between PostgreSQL and SQLite."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Boolean,
    ColumnElement,
    DateTime,
    Dialect,
    Integer,
    MetaData,
    Select,
    String,
    Subquery,
    Text,
    TypeDecorator,
    event,
    func,
    literal,
    make_url,
    select,
    true,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import OperatorType

from taskflow_gql.config import Settings, make_data_dir
from taskflow_gql.errors import ConfigurationError

# The key under which a unit of work remembers that it recorded an event, so that the doorbell rings after commit.
RECORDED_EVENT = "recorded_event"

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


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC. SQLite has no such type and gives naive values back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

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


class _WordsQuery(TypeDecorator[tuple[str, ...]]):
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
    query: tuple[str, ...],
) -> ColumnElement[bool]:
    """Whether each word of the query starts a word of the task, by the index on words."""
    return _MatchesWords(task_id, words, literal(query, _WordsQuery))


class _PositionOf(FunctionElement[int]):
    type = Integer()
    inherit_cache = True


@compiles(_PositionOf, "postgresql")
def _position_on_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **options)})"


@compiles(_PositionOf, "sqlite")
def _position_on_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    return f"instr({compiler.process(element.clauses, **options)})"


def position_of(text: ColumnElement[str] | InstrumentedAttribute[str], part: str) -> ColumnElement[int]:
    """Where the part begins in the text, counted from 1; 0 when it is not there. Case counts."""
    return _PositionOf(text, literal(part))


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


def dialect_of(session: AsyncSession) -> str:
    return session.get_bind().dialect.name


def top_of_each(
    dialect_name: str,
    rows: Select[Any],
    *,
    parent: InstrumentedAttribute[UUID],
    child: InstrumentedAttribute[Any],
    keys: ColumnElement[Any] | Collection[UUID],
    order_by: Sequence[ColumnElement[Any]],
    limit: int,
) -> Subquery:
    """For each key the first rows whose `child` column is that key, with `parent_id` beside their columns.

    PostgreSQL looks into the index once for each key and stops at the limit. SQLite knows no LATERAL and numbers the
    rows of every key.
    """
    if dialect_name == "postgresql":
        parents = select(parent.label("parent_id")).where(parent.in_(keys)).subquery("parents")
        top = rows.where(child == parents.c.parent_id).order_by(*order_by).limit(limit).lateral("top")
        return select(parents.c.parent_id, top).join(top, true()).subquery("page")
    number = func.row_number().over(partition_by=child, order_by=list(order_by)).label("number")
    numbered = rows.add_columns(child.label("parent_id"), number).where(child.in_(keys)).subquery("numbered")
    return select(numbered).where(numbered.c.number <= limit).subquery("page")


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
    return create_async_engine(
        url.set(query=query),
        pool_size=settings.database_pool_size,
        max_overflow=settings.database_max_overflow,
        pool_pre_ping=True,
        connect_args=connect_args,
    )


def _whole_number(name: str, value: str | tuple[str, ...]) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise ConfigurationError(f"DATABASE_URL: {name} must be a whole number") from error


def _create_sqlite_engine(url: URL) -> AsyncEngine:
    # The driver's own transaction handling is off: it begins none before a SELECT and would begin a deferred one
    # before a write, which two writers turn into SQLITE_BUSY. We say BEGIN ourselves.
    engine = create_async_engine(url, connect_args={"isolation_level": None})

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        # FULL: an acknowledged write survives a power cut, not only a killed process.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # Other processes on the file are commands such as `seed`; they commit in small batches.
        cursor.execute("PRAGMA busy_timeout = 10000")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        # SQLite ignores FOR UPDATE silently. IMMEDIATE takes the write lock before the first read, so that what a
        # service has checked is still true when it writes.
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


class Database:
    """Units of work over one engine. `on_event` is called after each commit that recorded an event."""

    def __init__(self, engine: AsyncEngine, on_event: Callable[[], None] = lambda: None) -> None:
        self.engine = engine
        self.on_event = on_event
        self.is_sqlite = engine.dialect.name == "sqlite"
        # Each statement its own transaction: no BEGIN and ROLLBACK round trips, which cost more than the read.
        self._reading = engine if self.is_sqlite else engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writing = engine.execution_options(writes=True)
        # SQLite has one writer at a time. Waiting here is fair and free; its own busy handler sleeps and polls.
        self._writer: asyncio.Lock | nullcontext[None] = asyncio.Lock() if self.is_sqlite else nullcontext()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session for reading. Every statement sees what was committed when it began."""
        async with AsyncSession(self._reading, expire_on_commit=False) as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        async with (
            self._writer,
            AsyncSession(self._writing, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session
        if session.info.get(RECORDED_EVENT):
            self.on_event()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """A connection outside any session, for commands."""
        async with self.engine.connect() as connection:
            yield connection

    async def close(self) -> None:
        await self.engine.dispose()


def is_unreachable(error: BaseException) -> bool:
    """Whether this says that the database is away, not that the statement was wrong."""
    if isinstance(error, DBAPIError):
        # 08: the connection failed; 53: no connection left; 57P: the server starts or stops.
        state = str(getattr(error.orig, "sqlstate", None))
        return error.connection_invalidated or state.startswith(("08", "53", "57P"))
    return isinstance(error, OSError | TimeoutError | asyncio.TimeoutError)
