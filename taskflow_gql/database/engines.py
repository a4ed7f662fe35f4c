"""Engines: the URL of the configured database, and the settings of its connections."""

from __future__ import annotations

import sqlite3
import ssl
import time
from typing import Any

import orjson
from sqlalchemy import event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from taskflow_gql.config import Settings, make_data_dir
from taskflow_gql.errors import ConfigurationError

# asyncpg takes TLS settings as an argument and does not know libpq's query parameters.
_SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
# Query parameters that asyncpg accepts unchanged. `host` can be the directory of a socket.
_PLAIN_PARAMETERS = {"host", "port", "user", "password", "passfile", "prepared_statement_cache_size"}


def database_url(settings: Settings) -> URL:
    """The configured URL with the driver this server uses. The default is a SQLite file in the data directory."""
    if settings.database_url is None:
        path = make_data_dir(settings.data_dir) / "taskflow.sqlite3"
        return URL.create("sqlite+aiosqlite", database=str(path))
    try:
        url = make_url(settings.database_url)
        if url.port is not None and url.port > 65535:
            raise ValueError(url.port)
    # make_url raises ValueError for a port that is not a number.
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            "DATABASE_URL is not a database URL; it looks like postgresql://user:password@host:5432/name"
        ) from error
    match url.get_backend_name():
        # Heroku and others still use `postgres://`. Without a driver name `postgresql://` would mean psycopg.
        case "postgresql" | "postgres":
            return url.set(drivername="postgresql+asyncpg")
        case "sqlite":
            if url.database in (None, "", ":memory:"):
                raise ConfigurationError(
                    "DATABASE_URL names no file, and an in-memory database is lost at exit; write sqlite:///file.sqlite3"
                )
            if url.query:
                raise ConfigurationError("DATABASE_URL: SQLite takes no parameters; remove them")
            return url.set(drivername="sqlite+aiosqlite")
        case other:
            raise ConfigurationError(f"DATABASE_URL names {other!r}; it must be postgresql:// or sqlite:///")


def create_engine(settings: Settings, *, command_timeout_seconds: float | None = 60) -> AsyncEngine:
    """An engine for the configured database.

    The timeout of each statement keeps a database that stops answering from blocking a request, or the relay, forever.
    Migrations have none: building an index on many rows takes long, and so does waiting for another process to migrate.
    """
    url = database_url(settings)
    if url.get_backend_name() == "sqlite":
        return _create_sqlite_engine(url)
    return _create_postgresql_engine(url, settings, command_timeout_seconds)


def _create_postgresql_engine(url: URL, settings: Settings, command_timeout_seconds: float | None) -> AsyncEngine:
    query = dict(url.query)
    connect_args: dict[str, Any] = {
        "server_settings": {
            # Shown in pg_stat_activity, for example when somebody looks for the holder of a lock.
            "application_name": str(query.pop("application_name", "taskflow")),
            "timezone": "UTC",
            # A process suspended inside a transaction neither continues nor disconnects. It must lose its row locks,
            # because the relays of all other processes wait for them.
            "idle_in_transaction_session_timeout": "3s",
        },
        "timeout": _whole_number("connect_timeout", query.pop("connect_timeout", "10")),
        "command_timeout": command_timeout_seconds,
    }
    if "statement_cache_size" in query:
        # PgBouncer needs 0 here and for prepared_statement_cache_size.
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
        raise ConfigurationError(f"DATABASE_URL: unknown parameter {', '.join(unknown)}; remove it")
    engine = create_async_engine(
        url.set(query=query),
        pool_size=settings.database_pool_size,
        max_overflow=settings.database_max_overflow,
        connect_args=connect_args,
        json_serializer=_as_json,
        json_deserializer=orjson.loads,
        # Errors are logged, and parameters can be password hashes.
        hide_parameters=True,
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def require_open(connection: Any, _record: object, _proxy: object) -> None:
        # A server that shuts down closes its connections. Checking for that is free, while `pool_pre_ping` costs a
        # round trip per unit of work. This error makes the pool try another connection.
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
    """Switch the file to write-ahead logging, unless it is in that mode already.

    When several processes switch a new file at once, SQLite reports to all but one that it is locked, without waiting.
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
    # Turns off the driver's own transactions. It begins none before a SELECT, and before a write a deferred one, with
    # which two writers run into SQLITE_BUSY. `begin` below sends BEGIN instead.
    engine = create_async_engine(
        url,
        connect_args={"isolation_level": None},
        json_serializer=_as_json,
        json_deserializer=orjson.loads,
        hide_parameters=True,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        _switch_to_wal(cursor)
        # FULL: an acknowledged write survives a power failure, not only a killed process.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # Commands such as `seed` use the file from other processes.
        cursor.execute("PRAGMA busy_timeout = 10000")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        # SQLite silently ignores FOR UPDATE. IMMEDIATE takes the write lock before the first read, so that what a
        # service checks is still true when it writes.
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def forbid_writes(engine: AsyncEngine) -> None:
    """Make every connection that the engine opens from now on read-only."""
    sql = "PRAGMA query_only = ON" if engine.dialect.name == "sqlite" else "SET default_transaction_read_only = on"

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        connection.run_async(lambda driver_connection: driver_connection.execute(sql))
