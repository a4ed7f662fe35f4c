"""`taskflow serve` as users run it: real processes, alone and side by side, stopped and killed."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from taskflow_gql import __version__
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import migrate
from taskflow_gql.database.units import Database
from taskflow_gql.models import Event, Task
from tests.support.client import Api, Person, Socket
from tests.support.processes import child
from tests.support.serve import SOON_SECONDS, START_SECONDS, TASKFLOW, Served, environment_of, serve
from tests.support.servers import PostgresServer, RedisServer, living_tree, wait_until
from tests.support.serving import make_settings

pytestmark = pytest.mark.slow

ME = "{ me { username } }"
LOGIN = """
mutation($input: LoginInput!) { login(input: $input) { accessToken errors { code } } }
"""
TASK_CHANGED = "subscription { taskChanged { kind taskId task { title } } }"


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[], Path]:
    """Makes a new folder at each call: two servers of one project do not share a folder."""
    numbers = iter(range(1000))

    def new_folder() -> Path:
        folder = tmp_path / f"server-{next(numbers)}"
        folder.mkdir()
        return folder

    return new_folder


async def whoami(api: Api, by: Person) -> str | None:
    username: str | None = (await api.data(ME, by=by))["me"]["username"]
    return username


# One server without any settings


@pytest.mark.parametrize(("path", "command"), [(str(Path(TASKFLOW).parent), "taskflow"), ("/usr/bin", TASKFLOW)])
async def test_the_first_start_prints_its_url_and_how_to_get_an_account(
    tmp_path: Path, path: str, command: str
) -> None:
    async with serve(tmp_path, PATH=path) as served:
        address = served.api.url.replace("127.0.0.1", "localhost")
        assert served.greeting == [
            f"TaskFlow GQL {__version__}",
            f"  API       {address}/graphql",
            f"  GraphiQL  {address}/graphql  (open it in a browser)",
            "  Database  sqlite+aiosqlite:///.taskflow/taskflow.sqlite3",
            "  Mode      embedded: one process, everything kept under .taskflow/",
            f"  Account   `{command} create-admin` makes an ADMIN; the mutation `register` makes a MEMBER.",
            "  Stop with Ctrl+C.",
        ]
        kept = tmp_path / ".taskflow"
        assert stat.S_IMODE((kept / "secret").stat().st_mode) == 0o600
        assert (kept / "taskflow.sqlite3").is_file()

        assert (await served.api.http.get("/ready")).json() == {"status": "ready"}
        page = await served.api.http.get("/graphql", headers={"Accept": "text/html"})
        assert page.headers["Content-Type"].startswith("text/html")
        assert "GraphiQL" in page.text
        eva = await served.api.register("eva")
        assert await whoami(served.api, eva) == "eva"


async def test_a_second_start_keeps_users_and_their_tokens(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        eva = await served.api.register("eva")
        task = await served.api.create_task(eva, title="Kept")
        assert await served.stop() == 0
    async with serve(tmp_path) as served:
        # The secret is kept, so the old token is still valid.
        assert await whoami(served.api, eva) == "eva"
        read = await served.api.data("query($id: ID!) { task(id: $id) { title } }", {"id": task["id"]}, by=eva)
        assert read == {"task": {"title": "Kept"}}
        signed_in = await served.api.data(LOGIN, {"input": {"usernameOrEmail": "eva", "password": eva.password}})
        assert signed_in["login"]["errors"] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_signal_ends_the_server_promptly_with_exit_code_0(tmp_path: Path, number: signal.Signals) -> None:
    async with serve(tmp_path) as served:
        eva = await served.api.register("eva")
        # Neither an open keep-alive connection nor a subscription delays the end.
        async with served.api.signed_in_socket(eva) as socket:
            await socket.subscribe(TASK_CHANGED)
            assert await served.stop(number) == 0
            assert await socket.close_code() == 1012
        assert "Traceback" not in served.log.read_text()
        with pytest.raises(httpx.ConnectError):
            await served.api.http.get("/health")


async def test_a_server_raises_its_descriptor_limit_to_the_maximum(tmp_path: Path) -> None:
    async with serve(tmp_path, limits="ulimit -S -n 64") as served:
        soft, hard = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        assert soft == min(hard, 1024 * 1024) > 64


async def test_with_few_descriptors_a_server_warns_and_still_accepts_new_clients(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serve(tmp_path, limits="ulimit -n 128"))
        for _ in range(200):
            _, writer = await asyncio.open_connection("127.0.0.1", int(served.api.url.rpartition(":")[2]))
            stack.callback(writer.close)
            writer.write(b"POST /graphql HTTP/1.1\r\nHost: x\r\n")
        async with Api(served.api.url) as late:
            assert (await late.http.get("/health")).status_code == 200
            # Registering needs the database, which needs descriptors too.
            await late.register("eva")
        log = served.log.read_text()
        assert "The limit of 128 open files leaves room for 21 connections" in log
        assert "Traceback" not in log


async def test_options_override_the_environment(tmp_path: Path) -> None:
    async with serve(tmp_path, "--host", "localhost", TASKFLOW_PORT="1", TASKFLOW_HOST="nowhere.invalid") as served:
        assert (await served.api.http.get("/health")).json()["status"] == "healthy"


async def test_json_log_format_makes_every_line_json(tmp_path: Path) -> None:
    async with serve(tmp_path, TASKFLOW_LOG_FORMAT="json") as served:
        await served.api.register("eva")
        await served.stop()
        lines = [json.loads(line) for line in served.log.read_text().splitlines()]
    assert {"Application startup complete.", "Application shutdown complete."} <= {line["message"] for line in lines}
    assert {line["level"] for line in lines} == {"INFO"}


async def test_an_unknown_variable_is_a_warning_in_the_log(folders: Callable[[], Path]) -> None:
    async with serve(folders(), TASKFLOW_PROT="9000", TASKFLOW_LOG_FORMAT="json") as served:
        await served.stop()
        lines = [json.loads(line) for line in served.log.read_text().splitlines()]
    assert [line["message"] for line in lines if line["level"] != "INFO"] == [
        "TASKFLOW_PROT is not a setting: did you mean TASKFLOW_PORT?"
    ]
    assert lines[0]["level"] == "WARNING"


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_of_two_servers_started_on_one_port_one_serves_and_the_other_explains(
    folders: Callable[[], Path], free_port: int
) -> None:
    async with AsyncExitStack() as stack:
        command = (TASKFLOW, "serve", "--port", str(free_port))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes = [await stack.enter_async_context(child(*command, cwd=folders(), **pipes)) for _ in range(2)]
        ends = {asyncio.create_task(process.wait()): process for process in processes}
        done, _ = await asyncio.wait(ends, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        (loser,) = (ends[end] for end in done)
        out, err = await loser.communicate()
        assert (loser.returncode, out) == (3, b"")
        assert err.decode() == (
            f"taskflow: Cannot listen on 127.0.0.1:{free_port}: it is in use. "
            "Stop what listens there, or choose another with --port\n"
        )
        async with Api(f"http://127.0.0.1:{free_port}") as api:
            assert (await api.http.get("/health", timeout=START_SECONDS)).status_code == 200


# Several servers, on PostgreSQL and Redis


@dataclass
class Listener:
    """A subscriber on one server to a task that is changed through another server."""

    socket: Socket
    through: Api
    by: Person
    task_id: str
    number: int = 0

    async def change(self) -> None:
        """Change the title to the next number, so that a missed or repeated change shows."""
        self.number += 1
        payload = await self.through.update_task(self.by, self.task_id, title=f"Change {self.number}")
        assert payload["errors"] == [], payload

    async def hear(self) -> int:
        change = (await self.socket.next())["taskChanged"]
        assert (change["kind"], change["taskId"]) == ("UPDATED", self.task_id)
        return int(change["task"]["title"].removeprefix("Change "))

    async def hear_of(self, changes: int) -> None:
        before = self.number
        for _ in range(changes):
            await self.change()
        assert [await self.hear() for _ in range(changes)] == list(range(before + 1, self.number + 1))

    async def hear_first(self) -> None:
        """Change the task until a change arrives: nothing else tells when a subscription has begun."""
        first = asyncio.create_task(self.hear())
        while not first.done():
            await self.change()
        unheard = range(await first + 1, self.number + 1)
        assert [await self.hear() for _ in unheard] == list(unheard)


@asynccontextmanager
async def listening(by: Person, *, at: Api, through: Api) -> AsyncIterator[Listener]:
    task = await through.create_task(by, title="Change 0")
    async with at.signed_in_socket(by) as socket:
        await socket.subscribe(TASK_CHANGED)
        listener = Listener(socket, through, by, task["id"])
        await listener.hear_first()
        yield listener


async def test_a_change_on_one_server_reaches_a_subscriber_on_another(
    postgresql_settings: Settings, folders: Callable[[], Path]
) -> None:
    environment = environment_of(postgresql_settings)
    async with serve(folders(), **environment) as one, serve(folders(), **environment) as other:
        assert one.greeting[-3] == "  Mode      1 worker(s), Redis on"
        eva = await one.api.register("eva")
        async with listening(eva, at=other.api, through=one.api) as listener:
            await listener.hear_of(20)
        async with listening(eva, at=one.api, through=other.api) as listener:
            await listener.hear_of(20)


async def test_changes_arrive_soon_while_redis_is_down_and_after_it_is_back(
    postgresql_settings: Settings, folders: Callable[[], Path]
) -> None:
    with RedisServer() as redis:
        environment = environment_of(postgresql_settings) | {"TASKFLOW_REDIS_URL": redis.url()}
        async with serve(folders(), **environment) as one, serve(folders(), **environment) as other:
            eva = await one.api.register("eva")
            async with listening(eva, at=other.api, through=one.api) as listener:
                redis.kill()
                for _ in range(2):
                    async with asyncio.timeout(SOON_SECONDS):
                        await listener.hear_of(3)
                assert (await one.api.http.get("/ready")).json() == {"status": "unavailable", "failing": ["redis"]}

                redis.start()
                async with asyncio.timeout(SOON_SECONDS):
                    await listener.hear_of(3)
                    # The first check may use a connection that died with Redis. It is then discarded.
                    while (await one.api.http.get("/ready")).json() != {"status": "ready"}:
                        pass


async def test_several_workers_share_one_port(postgresql_settings: Settings, folders: Callable[[], Path]) -> None:
    folder = folders()
    async with serve(folder, "--workers", "2", **environment_of(postgresql_settings)) as served:
        assert served.greeting[-3] == "  Mode      2 worker(s), Redis on"
        eva = await served.api.register("eva")
        # A client of its own for each side makes separate connections, so that both workers get some.
        async with listening(eva, at=served.api, through=Api(served.api.url)) as listener:
            await listener.hear_of(10)
            await listener.through.http.aclose()
        started = await asyncio.to_thread(wait_until, lambda: len(started_workers(served.log)) == 2, START_SECONDS)
        assert started, served.log.read_text()
        tree = living_tree(served.process.pid)
        assert started_workers(served.log) <= set(tree)

        assert await served.stop() == 0
        # Python's helper process ends when it notices that its parent is gone.
        assert await asyncio.to_thread(wait_until, lambda: not any(map(living_tree, tree)), SOON_SECONDS)
        assert "Traceback" not in served.log.read_text()


def started_workers(log: Path) -> set[int]:
    return {int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", log.read_text())}


# kill -9


async def create_tasks_until_killed(api: Api, by: Person, acknowledged: list[str]) -> None:
    with suppress(httpx.TransportError):
        while True:
            acknowledged.append((await api.create_task(by, title=f"Task {len(acknowledged)}"))["id"])


async def kill_in_the_middle_of_mutations(served: Served, by: Person) -> set[str]:
    """The ids of the tasks that the server acknowledged before it was killed."""
    acknowledged: list[str] = []
    async with asyncio.TaskGroup() as writers:
        for _ in range(8):
            writers.create_task(create_tasks_until_killed(served.api, by, acknowledged))
        while len(acknowledged) < 50:
            await whoami(served.api, by)
        await served.kill()
    assert len(acknowledged) >= 50
    return set(acknowledged)


async def all_events_placed(database: Database) -> list[Event]:
    """All events, once every one of them has a position."""
    async with asyncio.timeout(SOON_SECONDS):
        while True:
            async with database.read() as session:
                events = list(await session.scalars(select(Event).order_by(Event.position)))
            if None not in {event.position for event in events}:
                return events


async def test_acknowledged_tasks_survive_kill_9(settings: Settings, folders: Callable[[], Path]) -> None:
    environment = environment_of(settings)
    database = Database(create_engine(settings))
    async with serve(folders(), **environment) as served:
        eva = await served.api.register("eva")
        acknowledged = await kill_in_the_middle_of_mutations(served, eva)

    async with serve(folders(), **environment) as served:
        assert await whoami(served.api, eva) == "eva"
        async with database.read() as session:
            made = {str(id) for id in await session.scalars(select(Task.id))}
        assert acknowledged <= made
        # Each task has its event and each event its task, and positions have no gaps.
        events = await all_events_placed(database)
        assert {str(event.subject_id) for event in events} == made
        assert [event.position for event in events] == list(range(1, len(made) + 1))

        async with listening(eva, at=served.api, through=served.api) as listener:
            await listener.hear_of(3)
    await database.close()


async def test_subscribers_of_another_server_get_every_change_that_a_killed_one_acknowledged(
    postgresql_settings: Settings, folders: Callable[[], Path]
) -> None:
    environment = environment_of(postgresql_settings)
    database = Database(create_engine(postgresql_settings))
    async with serve(folders(), **environment) as one, serve(folders(), **environment) as other:
        eva = await one.api.register("eva")
        async with listening(eva, at=other.api, through=one.api) as listener:
            acknowledged = await kill_in_the_middle_of_mutations(one, eva)
            events = await all_events_placed(database)
            made = [str(event.subject_id) for event in events if event.kind == "CREATED"][1:]
            assert acknowledged <= set(made)
            changes = [(await listener.socket.next())["taskChanged"] for _ in made]
            assert [(change["kind"], change["taskId"]) for change in changes] == [("CREATED", id) for id in made]
    await database.close()


# Restarts of the database


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


async def test_a_server_recovers_when_its_database_is_back(
    own_postgres: PostgresServer, folders: Callable[[], Path]
) -> None:
    settings = make_settings(database_url=own_postgres.url())
    engine = create_engine(settings)
    await migrate(engine)
    await engine.dispose()
    async with serve(folders(), **environment_of(settings)) as served:
        eva = await served.api.register("eva")
        async with listening(eva, at=served.api, through=served.api) as listener:
            own_postgres.stop()
            assert (await served.api.http.get("/ready")).json() == {"status": "unavailable", "failing": ["database"]}
            answer = await served.api.post(ME, by=eva)
            assert answer["data"] == {"me": None}
            assert [error["path"] for error in answer["errors"]] == [["me"]]
            assert "127.0.0.1" not in json.dumps(answer)

            own_postgres.start()
            assert await whoami(served.api, eva) == "eva"
            async with asyncio.timeout(SOON_SECONDS):
                await listener.hear_of(3)
        assert await served.stop() == 0
