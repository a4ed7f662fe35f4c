"""Fixtures with real parts: the app behind a real HTTP server, on SQLite, and on PostgreSQL with Redis."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import hypothesis
import pytest
from sqlalchemy import make_url

from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import migrate
from taskflow_gql.database.units import Database
from taskflow_gql.execution import run
from tests.support.client import Api
from tests.support.processes import give_children_default_signals
from tests.support.servers import postgres_for_tests, redis_for_tests
from tests.support.serving import GRAPHQL_CORE, CompilingAtOnce, Executor, make_settings, serving


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="SQLite only, few examples, no test marked slow")


def pytest_configure(config: pytest.Config) -> None:
    give_children_default_signals()
    # pytest-xdist sets it, and Rich's consoles keep the width that they find when they are made.
    os.environ.pop("COLUMNS", None)
    if config.getoption("quick"):
        hypothesis.settings.register_profile("quick", deadline=None, max_examples=10)
        hypothesis.settings.load_profile("quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("quick"):
        return
    left_out = [item for item in items if is_slow(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def is_slow(item: pytest.Item) -> bool:
    """Marked slow, or in need of PostgreSQL or Redis."""
    if not isinstance(item, pytest.Function):
        return False
    is_on_postgresql = hasattr(item, "callspec") and "postgresql" in item.callspec.id.split("-")
    has_server = not _SERVERS.isdisjoint(item.fixturenames)
    return is_on_postgresql or has_server or item.get_closest_marker("slow") is not None


# Fixtures that start a server.
_SERVERS = {"postgres_url", "redis_url", "own_postgres", "redis_server"}


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Keep settings of the developer's shell away from the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(f"TASKFLOW_{name.upper()}", raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres_for_tests() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with redis_for_tests() as url:
        yield url


@asynccontextmanager
async def new_database(server_url: str) -> AsyncIterator[str]:
    """URL of a new database on this server. It is dropped at the end."""
    name = f"taskflow_test_{uuid4().hex[:12]}"
    maintenance = await asyncpg.connect(server_url)
    await maintenance.execute(f'CREATE DATABASE "{name}"')
    yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    await maintenance.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await maintenance.close()


@pytest.fixture
async def new_postgres(postgres_url: str) -> AsyncIterator[str]:
    """URL of a database without tables."""
    async with new_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
async def migrated_postgres(postgres_url: str) -> AsyncIterator[str]:
    """URL of our own database on that server, with tables."""
    async with new_database(postgres_url) as url:
        engine = create_engine(make_settings(database_url=url))
        await migrate(engine)
        await engine.dispose()
        yield url


@pytest.fixture(scope="session")
async def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with tables, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite3"
    engine = create_engine(make_settings(database_url=f"sqlite:///{path}"))
    await migrate(engine)
    await engine.dispose()
    return path


@pytest.fixture
async def empty_postgres(migrated_postgres: str) -> str:
    connection = await asyncpg.connect(migrated_postgres)
    tables = "users, sessions, tasks, events, receipts, outgoing_mails, password_reset_requests"
    await connection.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
    await connection.execute("UPDATE stream_state SET last_position = 0, expired_position = 0")
    await connection.close()
    return migrated_postgres


@pytest.fixture
def postgresql_settings(empty_postgres: str, redis_url: str, tmp_path: Path) -> Settings:
    """Settings for features that need PostgreSQL and Redis, such as several processes."""
    return make_settings(data_dir=tmp_path, database_url=empty_postgres, redis_url=redis_url)


@pytest.fixture
def sqlite_settings(migrated_sqlite: Path, tmp_path: Path) -> Settings:
    path = tmp_path / "taskflow.sqlite3"
    shutil.copy(migrated_sqlite, path)
    return make_settings(data_dir=tmp_path, database_url=f"sqlite:///{path}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every database test on both databases, and tests that need a server also under graphql-core's own
    executor.

    graphql-core is the reference for our executor. One database is enough for that, because the executors do not
    depend on it.
    """
    is_quick = metafunc.config.getoption("quick")
    marks = metafunc.definition.iter_markers("parametrize")
    if any(mark.args[0] == "settings" for mark in marks):
        # The test chooses its own database.
        if "executor" in metafunc.fixturenames:
            metafunc.parametrize("executor", [CompilingAtOnce], ids=["compiled"])
    elif "executor" in metafunc.fixturenames:
        servers = [("sqlite", CompilingAtOnce), ("postgresql", CompilingAtOnce), ("sqlite", GRAPHQL_CORE)]
        ids = ["sqlite", "postgresql", "graphql-core"]
        count = 1 if is_quick else len(servers)
        metafunc.parametrize(("settings", "executor"), servers[:count], indirect=["settings"], ids=ids[:count])
    elif "settings" in metafunc.fixturenames:
        metafunc.parametrize("settings", ["sqlite"] if is_quick else ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settings:
    """Settings of a server with an empty database."""
    chosen: Settings = request.getfixturevalue(f"{request.param}_settings")
    return chosen


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """The database of `api`, for changes that the API does not offer."""
    database = Database(create_engine(settings))
    yield database
    await database.close()


@pytest.fixture
async def api(settings: Settings, executor: Executor) -> AsyncIterator[Api]:
    async with serving(settings, executor) as api:
        yield api


class _Collecting(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def no_errors_are_logged() -> Iterator[None]:
    """Fail if the server logs an error: nothing that a client does may be an error of ours.

    `caplog` does not help here: at the end of a fixture it has only the records of the teardown, and an application
    that starts removes the root logger's handlers.
    """
    collecting = _Collecting()
    loggers = [
        logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "taskflow_gql", "strawberry", "asyncio")
    ]
    for logger in loggers:
        logger.addHandler(collecting)
    yield
    for logger in loggers:
        logger.removeHandler(collecting)
    assert collecting.messages == []


@pytest.fixture
def completion_in_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine the executor completes a page in several parts, and each part loads its relations."""
    monkeypatch.setattr(run, "MAX_PART_SECONDS", 60)
