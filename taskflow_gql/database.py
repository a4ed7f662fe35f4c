"""Engine, units of work, and all that differs between PostgreSQL and SQLite."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, MetaData, String, TypeDecorator, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from taskflow_gql.config import Settings, make_data_dir
from taskflow_gql.errors import ConfigurationError

# The key under which a unit of work remembers that it recorded an event, so that the doorbell rings after commit.
RECORDED_EVENT = "recorded_event"

# asyncpg takes TLS as an argument and knows nothing of libpq's query parameters.
_SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}


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


def sorted_text(length: int) -> String:
    """Text that sorts by code point on both databases, whatever locale the PostgreSQL cluster was made with."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


def database_url(settings: Settings) -> URL:
    """The configured URL with our drivers; a SQLite file in the data folder when nothing is configured."""
    if settings.database_url is None:
        path = make_data_dir(settings.data_dir) / "taskflow.sqlite3"
        return URL.create("sqlite+aiosqlite", database=str(path))
    try:
        url = make_url(settings.database_url)
    except ArgumentError as error:
        raise ConfigurationError(
            "DATABASE_URL is not a database URL; it looks like postgresql://user:password@host:5432/name"
        ) from error
    match url.get_backend_name():
        # Heroku and its kin still hand out `postgres://`; a bare `postgresql://` would mean psycopg.
        case "postgresql" | "postgres":
            return url.set(drivername="postgresql+asyncpg")
        case "sqlite":
            return url.set(drivername="sqlite+aiosqlite")
        case other:
            raise ConfigurationError(f"DATABASE_URL names {other!r}; it must be postgresql:// or sqlite:///")


def create_engine(settings: Settings) -> AsyncEngine:
    url = database_url(settings)
    if url.get_backend_name() == "sqlite":
        return _create_sqlite_engine(url)
    return _create_postgresql_engine(url, settings)


def _create_postgresql_engine(url: URL, settings: Settings) -> AsyncEngine:
    query = dict(url.query)
    connect_args: dict[str, Any] = {
        # Seen in pg_stat_activity by whoever looks for what holds a lock.
        "server_settings": {
            "application_name": "taskflow",
            "timezone": "UTC",
            # A process that is stopped in the middle of a transaction, and so neither works nor hangs up, must not
            # keep its row locks: the relay of every other process would wait for it.
            "idle_in_transaction_session_timeout": "3s",
        },
        "timeout": 10,
        # A server that stops answering must not keep a request, or the relay, for ever.
        "command_timeout": 60,
    }
    mode = query.pop("sslmode", None)
    root_certificate = query.pop("sslrootcert", None)
    if mode is not None:
        if mode not in _SSL_MODES:
            raise ConfigurationError(f"DATABASE_URL: sslmode must be one of {', '.join(sorted(_SSL_MODES))}")
        if root_certificate is not None and mode in ("verify-ca", "verify-full"):
            context = ssl.create_default_context(cafile=str(root_certificate))
            context.check_hostname = mode == "verify-full"
            connect_args["ssl"] = context
        else:
            connect_args["ssl"] = mode
    query.pop("channel_binding", None)
    return create_async_engine(
        url.set(query=query),
        pool_size=settings.database_pool_size,
        max_overflow=settings.database_max_overflow,
        pool_pre_ping=True,
        connect_args=connect_args,
    )


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
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OSError | TimeoutError | asyncio.TimeoutError)
