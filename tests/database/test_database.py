"""The engine and the units of work, on both databases."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, event, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from taskflow_gql.config import Settings
from taskflow_gql.database.connections import is_unreachable
from taskflow_gql.database.engines import create_engine, database_url, forbid_writes
from taskflow_gql.database.types import UtcDateTime
from taskflow_gql.database.units import BoundedReads, Database
from taskflow_gql.errors import ConfigurationError
from tests.support.servers import PostgresServer
from tests.support.serving import make_settings

# Made for this file; its key was thrown away.
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

TABLES = MetaData()
COUNTERS = Table("test_counters", TABLES, Column("id", Integer, primary_key=True), Column("value", Integer))
MOMENTS = Table("test_moments", TABLES, Column("id", Integer, primary_key=True), Column("moment", UtcDateTime))


@pytest.fixture
async def tables(database: Database) -> AsyncIterator[None]:
    """Two tables of our own beside the server's, with a counter at 0."""
    async with database.engine.begin() as connection:
        await connection.run_sync(TABLES.drop_all)
        await connection.run_sync(TABLES.create_all)
        await connection.execute(insert(COUNTERS).values(id=1, value=0))
    yield
    async with database.engine.begin() as connection:
        await connection.run_sync(TABLES.drop_all)


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """One that may be restarted, and that certainly speaks no TLS."""
    with PostgresServer() as server:
        yield server


async def counted(database: Database) -> int:
    async with database.read() as session:
        return (await session.execute(select(COUNTERS.c.value))).scalar_one()  # type: ignore[no-any-return]


# URLs


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
def test_urls_get_our_drivers(given: str, used: str) -> None:
    assert database_url(make_settings(database_url=given)).render_as_string(hide_password=False) == used


def test_without_a_url_the_database_is_a_file_in_the_data_folder(tmp_path: Path) -> None:
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
        ("sqlite://", "DATABASE_URL names no file, and memory forgets; write sqlite:///file.sqlite3"),
        ("sqlite:///:memory:", "DATABASE_URL names no file, and memory forgets; write sqlite:///file.sqlite3"),
        ("sqlite:///tasks.sqlite3?mode=ro", "DATABASE_URL: a SQLite file takes no parameters; leave them out"),
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
            "DATABASE_URL: this server knows no parameter pgbouncer, schema; leave it out",
        ),
        (
            "postgresql://db.example/tasks?connect_timeout=soon",
            "DATABASE_URL: connect_timeout must be a whole number",
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_line(given: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        create_engine(make_settings(database_url=given))
    assert str(refused.value) == problem


def connect_arguments(url: str) -> dict[str, Any]:
    """What the driver would be called with."""
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
def test_sslmode_becomes_the_argument_that_asyncpg_knows(mode: str) -> None:
    arguments = connect_arguments(f"postgresql://db.example/tasks?sslmode={mode}&channel_binding=require")
    assert arguments["ssl"] == mode
    assert not {"sslmode", "channel_binding"} & arguments.keys()


def test_without_sslmode_the_driver_decides() -> None:
    assert "ssl" not in connect_arguments("postgresql://db.example/tasks")


@pytest.mark.parametrize(("mode", "checks_host"), [("verify-ca", False), ("verify-full", True)])
def test_sslrootcert_is_what_the_server_s_certificate_is_checked_against(
    tmp_path: Path, mode: str, checks_host: bool
) -> None:
    (tmp_path / "root.pem").write_text(CERTIFICATE)
    url = f"postgresql://db.example/tasks?sslmode={mode}&sslrootcert={tmp_path}/root.pem"
    context = connect_arguments(url)["ssl"]
    assert isinstance(context, ssl.SSLContext)
    assert [known["subject"] for known in context.get_ca_certs()] == [((("commonName", "test"),),)]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, checks_host)


def test_other_parameters_of_libpq_and_of_pgbouncer_s_users_are_translated() -> None:
    arguments = connect_arguments(
        "postgresql://db.example/tasks?application_name=tasks-eu&connect_timeout=3"
        "&statement_cache_size=0&prepared_statement_cache_size=0"
    )
    assert arguments["server_settings"]["application_name"] == "tasks-eu"
    assert (arguments["timeout"], arguments["statement_cache_size"]) == (3, 0)
    assert arguments["prepared_statement_cache_size"] == 0


async def test_a_server_without_tls_is_named_when_tls_is_required(own_postgres: PostgresServer) -> None:
    engine = create_engine(make_settings(database_url=f"{own_postgres.url()}?sslmode=require"))
    with pytest.raises(ConnectionError) as refused:
        async with engine.connect():
            pass
    assert str(refused.value) == f'PostgreSQL server at "127.0.0.1:{own_postgres.port}" rejected SSL upgrade'
    await engine.dispose()


async def test_a_server_without_tls_serves_who_only_prefers_it(own_postgres: PostgresServer) -> None:
    engine = create_engine(make_settings(database_url=f"{own_postgres.url()}?sslmode=prefer"))
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await engine.dispose()


# Moments


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (datetime(2026, 2, 3, 4, 5, 6, 789_012, UTC), datetime(2026, 2, 3, 4, 5, 6, 789_012, UTC)),
        (datetime(2026, 2, 3, 4, 5, 6, 0, UTC), datetime(2026, 2, 3, 4, 5, 6, 0, UTC)),
        (
            datetime(2026, 1, 1, 1, 30, 0, 1, timezone(timedelta(hours=5, minutes=45))),
            datetime(2025, 12, 31, 19, 45, 0, 1, UTC),
        ),
        (datetime(1969, 12, 31, 23, 0, tzinfo=timezone(timedelta(hours=-3))), datetime(1970, 1, 1, 2, 0, tzinfo=UTC)),
        (datetime(1, 1, 2, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC)),
        (datetime(9999, 12, 30, 23, 59, 59, 999_999, UTC), datetime(9999, 12, 30, 23, 59, 59, 999_999, UTC)),
        (None, None),
    ],
)
async def test_a_moment_comes_back_to_the_microsecond_and_in_utc(
    database: Database, given: datetime | None, kept: datetime | None
) -> None:
    async with database.write() as session:
        await session.execute(insert(MOMENTS).values(id=1, moment=given))
    async with database.read() as session:
        read = (await session.execute(select(MOMENTS.c.moment))).scalar_one()
    assert read == kept
    assert read is None or read.tzinfo is UTC


@pytest.mark.usefixtures("tables")
async def test_moments_compare_and_sort_as_moments_whatever_their_offsets(database: Database) -> None:
    east, west = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    moments = [noon.astimezone(east), noon + timedelta(microseconds=1), (noon + timedelta(seconds=1)).astimezone(west)]
    async with database.write() as session:
        rows = [{"id": number, "moment": moment} for number, moment in enumerate(moments)]
        await session.execute(insert(MOMENTS), rows[::-1])
    async with database.read() as session:
        ordered = (await session.execute(select(MOMENTS.c.id).order_by(MOMENTS.c.moment))).scalars().all()
        later = (await session.execute(select(MOMENTS.c.id).where(MOMENTS.c.moment > noon.astimezone(west)))).scalars()
        assert (ordered, sorted(later)) == ([0, 1, 2], [1, 2])


async def test_an_error_of_a_statement_does_not_hold_its_parameters(database: Database) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with database.write() as session:
            await session.execute(text("INSERT INTO nowhere VALUES (:hash)"), {"hash": "hash of a password"})
    assert "nowhere" in str(caught.value)
    assert "hash of a password" not in str(caught.value)


# Units of work


@pytest.mark.usefixtures("tables")
async def test_what_is_written_is_there_when_the_block_has_ended_and_not_before(database: Database) -> None:
    async with database.write() as session:
        await session.execute(update(COUNTERS).values(value=1))
        assert await counted(database) == 0
    assert await counted(database) == 1


@pytest.mark.usefixtures("tables")
async def test_a_block_that_raises_leaves_nothing(database: Database) -> None:
    async def write_and_fail() -> None:
        async with database.write() as session:
            await session.execute(update(COUNTERS).values(value=1))
            raise LookupError

    with pytest.raises(LookupError):
        await write_and_fail()
    assert await counted(database) == 0
    async with database.write() as session:
        await session.execute(update(COUNTERS).values(value=2))
    assert await counted(database) == 2


@pytest.mark.usefixtures("tables")
async def test_a_cancelled_block_leaves_nothing_and_frees_the_writer(database: Database) -> None:
    written = asyncio.Event()

    async def write_and_wait() -> None:
        async with database.write() as session:
            await session.execute(update(COUNTERS).values(value=1))
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write_and_wait())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.write() as session:
        assert (await session.execute(select(COUNTERS.c.value))).scalar_one() == 0


async def increment(database: Database, times: int) -> None:
    for _ in range(times):
        async with database.write() as session:
            # Read, then written: what is lost when two read before either writes.
            statement = select(COUNTERS.c.value).with_for_update()
            value = (await session.execute(statement)).scalar_one()
            await session.execute(update(COUNTERS).values(value=value + 1))


@pytest.mark.usefixtures("tables")
async def test_writers_at_once_lose_no_increment(database: Database) -> None:
    await asyncio.gather(*(increment(database, 25) for _ in range(4)))
    assert await counted(database) == 100


@pytest.mark.usefixtures("tables")
async def test_writers_in_two_processes_lose_no_increment(database: Database, settings: Settings) -> None:
    """Two `Database`s share no lock in Python, as two processes do not."""
    other = Database(create_engine(settings))
    await asyncio.gather(increment(database, 50), increment(other, 50))
    await other.close()
    assert await counted(database) == 100


@pytest.mark.usefixtures("tables")
async def test_a_writer_does_not_make_readers_wait(database: Database) -> None:
    async with database.write() as session:
        await session.execute(update(COUNTERS).values(value=1))
        async with asyncio.timeout(5):
            assert await asyncio.gather(*(counted(database) for _ in range(5))) == [0] * 5


async def test_sqlite_is_set_up_for_durable_writes_and_foreign_keys(sqlite_settings: Settings) -> None:
    engine = create_engine(sqlite_settings)
    async with engine.connect() as connection:
        names = ["journal_mode", "synchronous", "foreign_keys"]
        values = [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in names]
    await engine.dispose()
    assert values == ["wal", 2, 1]  # 2 is FULL.


# The doorbell


async def test_nothing_is_written_where_it_is_forbidden(settings: Settings, tables: None) -> None:
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


@pytest.mark.parametrize("records", [True, False])
async def test_the_doorbell_rings_after_the_commit_of_a_recorded_event_only(
    database: Database, settings: Settings, records: bool
) -> None:
    rung: list[bool] = []
    ringing = Database(database.engine, on_event=lambda: rung.append(True))
    async with ringing.write() as session:
        if records:
            session.recorded_event = True
        await session.execute(text("UPDATE stream_state SET last_position = last_position"))
        assert rung == []
    assert rung == [True] * records


async def test_the_doorbell_does_not_ring_for_a_block_that_raises(database: Database) -> None:
    rung: list[bool] = []
    ringing = Database(database.engine, on_event=lambda: rung.append(True))

    async def record_and_fail() -> None:
        async with ringing.write() as session:
            session.recorded_event = True
            raise LookupError

    with pytest.raises(LookupError):
        await record_and_fail()
    async with ringing.write() as session:
        await session.execute(text("SELECT 1"))
    assert rung == []


@pytest.mark.usefixtures("tables")
async def test_who_hears_the_doorbell_reads_what_was_committed(database: Database, settings: Settings) -> None:
    seen: list[asyncio.Task[int]] = []
    ringing = Database(database.engine, on_event=lambda: seen.append(asyncio.create_task(counted(database))))
    async with ringing.write() as session:
        await session.execute(update(COUNTERS).values(value=1))
        session.recorded_event = True
    assert await asyncio.gather(*seen) == [1]


# A server that goes away


async def test_the_pool_survives_a_restart_of_postgresql(own_postgres: PostgresServer) -> None:
    database = Database(create_engine(make_settings(database_url=own_postgres.url())))

    async def backend() -> int:
        async with database.read() as session:
            return (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()  # type: ignore[no-any-return]

    # Several connections, all of them dead afterwards.
    before = set(await asyncio.gather(*(backend() for _ in range(5))))
    own_postgres.restart()
    after = set(await asyncio.gather(*(backend() for _ in range(5))))
    assert len(before) > 1
    assert before.isdisjoint(after)
    await database.close()


async def test_the_pool_is_back_when_postgresql_is(own_postgres: PostgresServer) -> None:
    database = Database(create_engine(make_settings(database_url=own_postgres.url())))
    async with database.read() as session:
        await session.execute(text("SELECT 1"))
    own_postgres.stop()
    with pytest.raises(ConnectionRefusedError) as failure:
        async with database.read() as session:
            await session.execute(text("SELECT 1"))
    assert is_unreachable(failure.value)
    own_postgres.start()
    async with database.read() as session:
        assert (await session.execute(text("SELECT 1"))).scalar_one() == 1
    await database.close()


async def test_a_statement_that_never_ends_is_given_up(own_postgres: PostgresServer) -> None:
    engine = create_engine(make_settings(database_url=own_postgres.url()), command_timeout_seconds=0.2)
    async with engine.connect() as connection:
        with pytest.raises(TimeoutError):
            await connection.execute(text("SELECT pg_sleep(60)"))
    await engine.dispose()


async def test_a_server_without_a_free_connection_is_unreachable(own_postgres: PostgresServer) -> None:
    engine = create_engine(make_settings(database_url=own_postgres.url()))
    async with engine.begin() as connection:
        await connection.execute(text("CREATE ROLE guest LOGIN CONNECTION LIMIT 0"))
    await engine.dispose()
    engine = create_engine(make_settings(database_url=own_postgres.url().replace("postgres@", "guest@")))
    with pytest.raises(DBAPIError, match="too many connections") as failure:
        async with engine.connect():
            pass
    assert is_unreachable(failure.value)
    await engine.dispose()


async def test_a_wrong_statement_is_no_unreachable_database(database: Database) -> None:
    with pytest.raises(DBAPIError) as failure:
        async with database.read() as session:
            await session.execute(text("SELECT nonsense FROM nowhere"))
    assert not is_unreachable(failure.value)


async def test_bounded_reads_are_open_a_few_at_a_time_whatever_becomes_of_them(database: Database) -> None:
    reads = BoundedReads(database, 2)
    open_now = most = 0

    async def read(number: int) -> None:
        nonlocal open_now, most
        async with reads.read() as session:
            open_now += 1
            most = max(most, open_now)
            try:
                await session.execute(text("SELECT 1"))
                if number % 3 == 0:
                    raise ValueError(number)
            finally:
                open_now -= 1

    tasks = [asyncio.create_task(read(number)) for number in range(30)]
    await asyncio.sleep(0)
    for task in tasks[1::4]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 2
    assert {type(outcome) for outcome in outcomes} == {type(None), ValueError, asyncio.CancelledError}
    async with asyncio.timeout(5), reads.read(), reads.read():
        pass
