import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.support.processes import blocking_child
from tests.support.servers import (
    DATABASE_URL_VARIABLE,
    REDIS_URL_VARIABLE,
    PortTaken,
    PostgresServer,
    RedisServer,
    ServerFailed,
    ServerMissing,
    living_tree,
    postgres_directories,
    postgres_for_tests,
    postgres_machine_directories,
    postgres_wheel_directories,
    redis_for_tests,
    redis_programs,
    wait_until,
)

pytestmark = pytest.mark.slow


async def ask(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def ping(url: str) -> bool:
    async with Redis.from_url(url, socket_timeout=5) as client:
        return bool(await client.ping())


def tree_of(server: PostgresServer | RedisServer) -> list[int]:
    assert server._process is not None
    return living_tree(server._process.pid)


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if living_tree(pid)]


@pytest.fixture(scope="module")
def durable() -> Iterator[PostgresServer]:
    with PostgresServer(durable=True) as server:
        yield server


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


# PostgreSQL


@pytest.mark.parametrize("directory", postgres_directories(), ids=str)
async def test_postgres_from_every_location_answers(directory: Path) -> None:
    with PostgresServer(directories=[directory]) as server:
        assert await ask(server.url(), "select 1") == 1
        assert str(await ask(server.url(), "show server_version")).split()[0] == server.version
        assert await ask(server.url(), "show server_encoding") == "UTF8"
        assert await ask(server.url(), "show max_connections") == "200"
        assert await ask(server.url(), "show fsync") == "off"


def test_the_wheels_postgres_versions_are_listed_newest_first() -> None:
    names = [folder.parent.name for folder in postgres_wheel_directories()]
    assert names[-2:] == ["pginstall18", "pginstall"]


def test_installed_postgres_is_preferred_to_the_wheel() -> None:
    assert postgres_directories() == postgres_machine_directories() + postgres_wheel_directories()


async def test_durable_postgres_keeps_the_safe_settings(durable: PostgresServer) -> None:
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await ask(durable.url(), f"show {setting}") == "on"


async def test_a_committed_row_survives_kill(durable: PostgresServer) -> None:
    durable.create_database("killed")
    url = durable.url("killed")
    await ask(url, "create table notes (text text)")
    await ask(url, "insert into notes values ('kept')")

    durable.kill()
    with pytest.raises(ConnectionRefusedError):
        await ask(url, "select 1")
    durable.start()

    assert durable.url("killed") == url
    assert await ask(url, "select text from notes") == "kept"


async def test_kill_ends_backends_in_the_middle_of_a_query(durable: PostgresServer) -> None:
    connection = await asyncpg.connect(durable.url())
    backend = connection.get_server_pid()
    assert backend in tree_of(durable)

    durable.kill()

    assert living([backend]) == []
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("select 1")
    connection.terminate()
    durable.start()


async def test_paused_postgres_answers_only_when_resumed(durable: PostgresServer) -> None:
    connection = await asyncpg.connect(durable.url())
    durable.pause()
    with pytest.raises(TimeoutError):
        await connection.fetchval("select 1", timeout=0.2)
    with pytest.raises(TimeoutError):
        await asyncpg.connect(durable.url(), timeout=0.2)
    connection.terminate()

    durable.resume()
    assert await ask(durable.url(), "select 1") == 1


async def test_restart_keeps_data_and_port(durable: PostgresServer) -> None:
    durable.create_database("restarted")
    port = durable.port
    durable.restart()
    assert durable.port == port
    assert await ask(durable.url("restarted"), "select current_database()::text") == "restarted"


async def test_databases_are_created_from_a_template_and_dropped_while_in_use(durable: PostgresServer) -> None:
    durable.create_database("original")
    await ask(durable.url("original"), "create table notes (text text)")
    durable.create_database('Copy "1"', template="original")
    connection = await asyncpg.connect(durable.url('Copy "1"'))
    assert await connection.fetchval("select count(*) from notes") == 0

    durable.drop_database('Copy "1"')
    durable.drop_database('Copy "1"')

    connection.terminate()
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await ask(durable.url('Copy "1"'), "select 1")


def test_creating_an_existing_database_is_refused(durable: PostgresServer) -> None:
    with pytest.raises(ServerFailed, match='database "postgres" already exists'):
        durable.create_database("postgres")


@pytest.mark.parametrize("state", ["running", "paused", "killed", "with a client"])
async def test_closed_postgres_leaves_no_process_and_no_file(state: str) -> None:
    client = None
    with PostgresServer() as server:
        tree = tree_of(server)
        assert len(tree) > 1
        if state == "paused":
            server.pause()
        elif state == "killed":
            server.kill()
        elif state == "with a client":
            client = await asyncpg.connect(server.url())
            tree = tree_of(server)
    assert living(tree) == []
    assert not server.home.exists()
    if client is not None:
        client.terminate()


@pytest.fixture
def wheel_for_root_only(tmp_path: Path) -> Path:
    newest = postgres_wheel_directories()[0]
    package = newest.parents[1]
    for folder in (package, package.with_name(f"{package.name}.libs")):
        subprocess.run(["cp", "-r", folder, tmp_path], check=True)
    tmp_path.chmod(0o700)
    return tmp_path / newest.relative_to(package.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another who cannot see all")
async def test_postgres_works_from_a_wheel_and_temporary_folder_that_only_root_can_enter(
    wheel_for_root_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with PostgresServer(directories=[wheel_for_root_only]) as server:
        assert await ask(server.url(), "select 1") == 1
        assert tmp_path not in server.home.parents


async def test_binaries_that_do_not_run_are_skipped(tmp_path: Path) -> None:
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "postgres").write_text("#!/bin/sh\necho 'no such library' >&2\nexit 127\n")
    (broken / "postgres").chmod(0o755)

    with PostgresServer(directories=[broken, *postgres_directories()]) as server:
        assert await ask(server.url(), "select 1") == 1
    with pytest.raises(ServerMissing) as missing:
        PostgresServer(directories=[broken])

    advice, passed_over = str(missing.value).splitlines()
    assert "apt-get install postgresql" in advice
    assert passed_over.startswith(f"Passed over {broken}: ")


def test_without_postgres_the_error_says_what_to_install() -> None:
    with pytest.raises(ServerMissing) as missing:
        PostgresServer(directories=[])
    assert str(missing.value) == (
        "The tests need PostgreSQL and found none. Install it (Debian: `apt-get install postgresql`), or the "
        "wheel that carries it (`pip install -e '.[test]'`), or set TASKFLOW_TEST_DATABASE_URL to a database "
        "from which tests may create others."
    )


def test_a_stopped_server_cannot_be_killed(durable: PostgresServer) -> None:
    durable.stop()
    with pytest.raises(ServerFailed, match="postgres is not running: start"):
        durable.kill()
    durable.start()


# Redis


@pytest.mark.parametrize("program", redis_programs(), ids=str)
async def test_redis_from_every_location_answers(program: Path) -> None:
    with RedisServer(programs=[program]) as server:
        assert await ping(server.url())


async def test_killed_redis_restarts_empty_on_the_same_port(redis: RedisServer) -> None:
    url = redis.url()
    async with Redis.from_url(url) as client:
        await client.set("key", "value")

    redis.kill()
    with pytest.raises(RedisConnectionError):
        await ping(url)
    redis.start()

    assert redis.url() == url
    async with Redis.from_url(url) as client:
        assert await client.get("key") is None


async def test_redis_restarts_on_the_same_port(redis: RedisServer) -> None:
    url = redis.url()
    redis.restart()
    assert redis.url() == url
    assert await ping(url)


async def test_paused_redis_answers_only_when_resumed(redis: RedisServer) -> None:
    async with Redis.from_url(redis.url(), socket_timeout=0.2, retry=None) as client:
        redis.pause()
        with pytest.raises(RedisTimeoutError):
            await client.ping()
        redis.resume()
    assert await ping(redis.url())


@pytest.mark.parametrize("state", ["running", "paused", "killed"])
def test_closed_redis_leaves_no_process_and_no_file(state: str) -> None:
    with RedisServer() as server:
        tree = tree_of(server)
        assert len(tree) == 1
        if state == "paused":
            server.pause()
        elif state == "killed":
            server.kill()
    assert living(tree) == []
    assert not server.home.exists()


def test_without_redis_the_error_says_what_to_install() -> None:
    with pytest.raises(ServerMissing) as missing:
        RedisServer(programs=[])
    assert str(missing.value) == (
        "The tests need Redis and found none. Install it (Debian: `apt-get install redis-server`), or the "
        "wheel that carries it (`pip install -e '.[test]'`), or set TASKFLOW_TEST_REDIS_URL to a server that "
        "tests may empty."
    )


# Both


@pytest.mark.parametrize("kind", [PostgresServer, RedisServer])
def test_a_port_that_was_taken_meanwhile_is_named(kind: type[PostgresServer] | type[RedisServer]) -> None:
    with kind() as server:
        server.stop()
        with socket.create_server(("127.0.0.1", server.port)):
            with pytest.raises(PortTaken, match=f"{server.name} cannot listen on 127.0.0.1:{server.port}"):
                server.start()
            assert not server.running
        server.start()
        assert server.running


@pytest.mark.parametrize("kind", [PostgresServer, RedisServer])
@pytest.mark.parametrize("ending", ["killed", "killed while the server is paused", "terminated", "exit"])
def test_a_server_ends_with_the_process_that_started_it(kind: type, ending: str) -> None:
    script = (
        f"from tests.support.servers import {kind.__name__} as Server, living_tree\n"
        "server = Server()\n"
        "server.start()\n"
        "print(server.home, server._watcher.pid, *living_tree(server._process.pid), flush=True)\n"
        f"{'paused' in ending} and server.pause()\n"
        "print(input(), flush=True)\n"
        "input()\n"
    )
    with blocking_child(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        home, *numbers = owner.stdout.readline().split()
        owner.stdin.write("it is as you want it\n")
        owner.stdin.flush()
        assert owner.stdout.readline() == "it is as you want it\n"
        if ending.startswith("killed"):
            owner.kill()
        elif ending == "terminated":
            owner.terminate()
        # "exit": the block closes the script's input, and the script ends with an EOFError.

    pids = [int(number) for number in numbers]
    assert wait_until(lambda: living(pids) == [], 20)
    assert not Path(home).exists()


def test_a_server_outlives_the_thread_that_started_it(redis: RedisServer) -> None:
    redis.stop()
    thread = Thread(target=redis.start)
    thread.start()
    thread.join()
    assert redis.running
    redis.restart()


def test_urls_in_the_environment_are_used_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATABASE_URL_VARIABLE, "postgresql://someone@elsewhere/tests")
    monkeypatch.setenv(REDIS_URL_VARIABLE, "redis://elsewhere/3")
    with postgres_for_tests() as database_url, redis_for_tests() as redis_url:
        assert database_url == "postgresql://someone@elsewhere/tests"
        assert redis_url == "redis://elsewhere/3"


async def test_servers_are_started_without_urls_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATABASE_URL_VARIABLE, raising=False)
    monkeypatch.delenv(REDIS_URL_VARIABLE, raising=False)
    with postgres_for_tests() as database_url, redis_for_tests() as redis_url:
        assert await ask(database_url, "select 1") == 1
        assert await ping(redis_url)
