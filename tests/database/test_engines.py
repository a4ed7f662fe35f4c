"""Database URLs and the settings of connections."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text, update
from sqlalchemy.exc import DBAPIError

from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine, database_url, forbid_writes
from taskflow_gql.database.units import Database
from taskflow_gql.errors import ConfigurationError
from tests.database.tables import COUNTERS, counted
from tests.support.servers import PostgresServer
from tests.support.serving import make_settings

# Made for these tests. Its key does not exist any more.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUbBEEEQhOoq4XpB3SbC3alAuHHbkwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjEwODIyMzdaGA8yMTI2MTAyODA4MjIz
N1owDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABIHn
Ish6BXZcECt+4WFrL5ssfKHOhulnUs/wsVfFrnGNBtndjOtd7upzOsnyNbO3Md6s
1zztiqgdte+4Md3k5mejUzBRMB0GA1UdDgQWBBQ4QU0O5t1wdcjibE7oJg9oBxrO
NDAfBgNVHSMEGDAWgBQ4QU0O5t1wdcjibE7oJg9oBxrONDAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIEd670T4k1bWai/RpAAxxvKULz1rwY2EBhKH
P4RiX5QhAiEAq51alAVTSKdnPIStM7zTvvPXvWGUHabACX80LsGXp+Q=
-----END CERTIFICATE-----
"""


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u:p@db.example/tasks", "postgresql+asyncpg://u:p@db.example/tasks"),
        ("postgres://u:p@db.example:5433/tasks", "postgresql+asyncpg://u:p@db.example:5433/tasks"),
        ("postgresql+psycopg://u@db.example/tasks", "postgresql+asyncpg://u@db.example/tasks"),
        ("postgresql:///tasks?host=/run/postgresql", "postgresql+asyncpg:///tasks?host=%2Frun%2Fpostgresql"),
        ("sqlite:///tasks.sqlite3", "sqlite+aiosqlite:///tasks.sqlite3"),
        ("sqlite:////var/lib/tasks.sqlite3", "sqlite+aiosqlite:////var/lib/tasks.sqlite3"),
        ("sqlite+aiosqlite:///tasks.sqlite3", "sqlite+aiosqlite:///tasks.sqlite3"),
    ],
)
def test_urls_get_the_driver_of_their_database(given: str, used: str) -> None:
    assert database_url(make_settings(database_url=given)).render_as_string(hide_password=False) == used


def test_the_default_database_is_a_file_in_the_data_directory(tmp_path: Path) -> None:
    url = database_url(make_settings(data_dir=tmp_path / "data"))
    assert url.render_as_string() == f"sqlite+aiosqlite:///{tmp_path}/data/taskflow.sqlite3"
    assert (tmp_path / "data").is_dir()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            "db.example/tasks",
            "DATABASE_URL is not a database URL; it looks like postgresql://user:password@host:5432/name",
        ),
        (
            "postgresql://db.example:port/tasks",
            "DATABASE_URL is not a database URL; it looks like postgresql://user:password@host:5432/name",
        ),
        (
            "postgresql://db.example:99999/tasks",
            "DATABASE_URL is not a database URL; it looks like postgresql://user:password@host:5432/name",
        ),
        (
            "sqlite://",
            "DATABASE_URL names no file, and an in-memory database is lost at exit; write sqlite:///file.sqlite3",
        ),
        (
            "sqlite:///:memory:",
            "DATABASE_URL names no file, and an in-memory database is lost at exit; write sqlite:///file.sqlite3",
        ),
        ("sqlite:///tasks.sqlite3?mode=ro", "DATABASE_URL: SQLite takes no parameters; remove them"),
        ("mysql://db.example/tasks", "DATABASE_URL names 'mysql'; it must be postgresql:// or sqlite:///"),
        (
            "postgresql://db.example/tasks?sslmode=maybe",
            "DATABASE_URL: sslmode must be one of allow, disable, prefer, require, verify-ca, verify-full",
        ),
        (
            "postgresql://db.example/tasks?sslmode=verify-full&sslrootcert=/nowhere.pem",
            "DATABASE_URL: sslrootcert /nowhere.pem cannot be used: No such file or directory",
        ),
        (
            "postgresql://db.example/tasks?schema=public&pgbouncer=true",
            "DATABASE_URL: unknown parameter pgbouncer, schema; remove it",
        ),
        (
            "postgresql://db.example/tasks?connect_timeout=soon",
            "DATABASE_URL: connect_timeout must be a whole number",
        ),
    ],
)
def test_an_unusable_url_is_refused_with_one_line(given: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        create_engine(make_settings(database_url=given))
    assert str(refused.value) == problem


def connect_arguments(url: str) -> dict[str, Any]:
    """The arguments that the driver would connect with."""
    engine = create_engine(make_settings(database_url=url))
    arguments: list[dict[str, Any]] = []

    def note(_dialect: object, _record: object, _args: object, given: dict[str, Any]) -> None:
        arguments.append(given)
        raise LookupError

    event.listen(engine.sync_engine, "do_connect", note)
    with pytest.raises(LookupError):
        engine.sync_engine.raw_connection()
    return arguments[0]


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-full"])
def test_sslmode_becomes_asyncpgs_ssl_argument(mode: str) -> None:
    arguments = connect_arguments(f"postgresql://db.example/tasks?sslmode={mode}&channel_binding=require")
    assert arguments["ssl"] == mode
    assert not {"sslmode", "channel_binding"} & arguments.keys()


def test_without_sslmode_asyncpg_uses_its_default() -> None:
    assert "ssl" not in connect_arguments("postgresql://db.example/tasks")


@pytest.mark.parametrize(("mode", "checks_host"), [("verify-ca", False), ("verify-full", True)])
def test_sslrootcert_verifies_the_servers_certificate(tmp_path: Path, mode: str, checks_host: bool) -> None:
    (tmp_path / "root.pem").write_text(CERTIFICATE)
    url = f"postgresql://db.example/tasks?sslmode={mode}&sslrootcert={tmp_path}/root.pem"
    context = connect_arguments(url)["ssl"]
    assert isinstance(context, ssl.SSLContext)
    assert [known["subject"] for known in context.get_ca_certs()] == [((("commonName", "test"),),)]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, checks_host)


def test_other_parameters_of_libpq_and_for_pgbouncer_are_translated() -> None:
    arguments = connect_arguments(
        "postgresql://db.example/tasks?application_name=tasks-eu&connect_timeout=3"
        "&statement_cache_size=0&prepared_statement_cache_size=0"
    )
    assert arguments["server_settings"]["application_name"] == "tasks-eu"
    assert (arguments["timeout"], arguments["statement_cache_size"]) == (3, 0)
    assert arguments["prepared_statement_cache_size"] == 0


async def test_the_error_names_a_server_without_the_required_tls(own_postgres: PostgresServer) -> None:
    engine = create_engine(make_settings(database_url=f"{own_postgres.url()}?sslmode=require"))
    with pytest.raises(ConnectionError) as refused:
        async with engine.connect():
            pass
    assert str(refused.value) == f'PostgreSQL server at "127.0.0.1:{own_postgres.port}" rejected SSL upgrade'
    await engine.dispose()


async def test_sslmode_prefer_connects_to_a_server_without_tls(own_postgres: PostgresServer) -> None:
    engine = create_engine(make_settings(database_url=f"{own_postgres.url()}?sslmode=prefer"))
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await engine.dispose()


async def test_sqlite_connections_have_durable_writes_and_foreign_keys(sqlite_settings: Settings) -> None:
    engine = create_engine(sqlite_settings)
    async with engine.connect() as connection:
        names = ["journal_mode", "synchronous", "foreign_keys"]
        values = [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in names]
    await engine.dispose()
    assert values == ["wal", 2, 1]  # 2 is FULL.


async def test_forbid_writes_makes_every_session_read_only(settings: Settings, tables: None) -> None:
    engine = create_engine(settings)
    forbid_writes(engine)
    database = Database(engine)
    with pytest.raises(DBAPIError, match=r"read-?only"):
        async with database.write() as session:
            await session.execute(update(COUNTERS).values(value=1))
    with pytest.raises(DBAPIError, match=r"read-?only"):
        async with database.read() as session:
            await session.execute(update(COUNTERS).values(value=1))
    assert await counted(database) == 0
    await database.close()


async def test_a_statement_times_out(own_postgres: PostgresServer) -> None:
    engine = create_engine(make_settings(database_url=own_postgres.url()), command_timeout_seconds=0.2)
    async with engine.connect() as connection:
        with pytest.raises(TimeoutError):
            await connection.execute(text("SELECT pg_sleep(60)"))
    await engine.dispose()
