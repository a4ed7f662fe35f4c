"""What clients learn of errors, and what stays in the log."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from taskflow_gql import errors
from taskflow_gql.api.payloads import ErrorCode
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import migrate
from taskflow_gql.database.units import Database
from tests.support.client import Api
from tests.support.servers import PostgresServer
from tests.support.serving import make_settings, serving

TESTS = Path(__file__).parent.parent


def subclasses(cls: type[errors.TaskflowError]) -> set[type[errors.TaskflowError]]:
    return {cls} | {leaf for child in cls.__subclasses__() for leaf in subclasses(child)}


def sources(folder: Path) -> str:
    """The source of all tests in the folder except this file."""
    return "".join(path.read_text() for path in sorted(folder.rglob("test_*.py")) if path != Path(__file__))


@pytest.mark.parametrize("code", ErrorCode)
def test_every_payload_error_code_is_reached_by_a_test(code: ErrorCode) -> None:
    assert f'"{code}"' in sources(TESTS / "api")


# Clients never see ServerStops: their connection is closed.
@pytest.mark.parametrize("error", sorted(subclasses(errors.TaskflowError) - {errors.ServerStops}, key=str))
def test_every_error_code_is_reached_by_a_test(error: type[errors.TaskflowError]) -> None:
    if hasattr(error, "code"):
        assert f'"{error.code}"' in sources(TESTS)


def test_every_refusal_has_a_code_of_the_schema() -> None:
    codes = {refusal.code for refusal in subclasses(errors.Refusal) if hasattr(refusal, "code")}
    # A mutation of a batch that was not tried is not refused itself.
    assert codes | {ErrorCode.NOT_APPLIED} == set(ErrorCode)


async def test_an_error_has_message_location_path_and_code(api: Api) -> None:
    ann = await api.register("ann")
    assert await api.post("{ a: tasks(first: 0) { totalCount } me { username } }", by=ann) == {
        "data": None,
        "errors": [
            {
                "message": "first must be from 1 to 100, not 0",
                "locations": [{"line": 1, "column": 3}],
                "path": ["a"],
                "extensions": {"code": "BAD_USER_INPUT"},
            }
        ],
    }
    answer = await api.post('{ a: task(id: "x") { id } b: node(id: "y") { id } me { username } }', by=ann)
    assert answer["data"] == {"a": None, "b": None, "me": {"username": "ann"}}
    assert sorted(error["path"] for error in answer["errors"]) == [["a"], ["b"]]
    assert {error["extensions"]["code"] for error in answer["errors"]} == {"BAD_USER_INPUT"}


@pytest.fixture
async def broken(sqlite_settings: Settings) -> AsyncIterator[Api]:
    """A server whose `tasks` table was renamed."""
    async with serving(sqlite_settings) as api:
        database = Database(create_engine(sqlite_settings))
        async with database.write() as session:
            await session.execute(text("ALTER TABLE tasks RENAME TO secret_tasks"))
        await database.close()
        yield api


async def test_an_internal_error_is_detailed_in_the_log_and_not_in_the_answer(
    broken: Api, caplog: pytest.LogCaptureFixture
) -> None:
    ann = await broken.register("ann")
    answer = await broken.post("{ tasks { totalCount } me { username } }", by=ann)
    (record,) = errors_logged(caplog)
    assert answer == {
        "data": None,
        "errors": [
            {
                "message": f"Internal server error; the log has it under id {record.error_id}",
                "locations": [{"line": 1, "column": 3}],
                "path": ["tasks"],
                "extensions": {"code": "INTERNAL_SERVER_ERROR", "id": record.error_id},
            }
        ],
    }
    # The log has everything that helps: the id, the field, the statement and the stack.
    assert record.error_id in record.getMessage()
    assert "tasks" in record.getMessage()
    assert record.exc_info is not None
    assert "no such table" in str(record.exc_info[1])


async def test_each_internal_error_has_its_own_id(broken: Api, caplog: pytest.LogCaptureFixture) -> None:
    ann = await broken.register("ann")
    query = "query($id: ID!) { a: task(id: $id) { id } b: node(id: $id) { id } me { username } }"
    answer = await broken.post(query, {"id": ann.id}, by=ann)
    assert answer["data"] == {"a": None, "b": None, "me": {"username": "ann"}}
    ids = {error["extensions"]["id"] for error in answer["errors"]}
    assert len(ids) == 2
    assert {record.error_id for record in errors_logged(caplog)} == ids
    create = 'mutation { createTask(input: {title: "A task"}) { task { id } errors { code } } }'
    refused = await broken.post(create, by=ann)
    assert refused["data"] is None
    assert [error["extensions"]["code"] for error in refused["errors"]] == ["INTERNAL_SERVER_ERROR"]


@pytest.fixture
async def doomed(tmp_path: Path) -> AsyncIterator[tuple[Api, PostgresServer]]:
    """A server, and the database that it is going to lose."""
    with PostgresServer(durable=True) as postgres:
        settings = make_settings(data_dir=tmp_path, database_url=postgres.url())
        engine = create_engine(settings)
        await migrate(engine)
        await engine.dispose()
        async with serving(settings) as api:
            yield api, postgres


@pytest.mark.slow
async def test_losing_the_database_is_detailed_in_the_log_only(
    doomed: tuple[Api, PostgresServer], caplog: pytest.LogCaptureFixture
) -> None:
    api, postgres = doomed
    ann = await api.register("ann")
    async with api.signed_in_socket(ann) as socket:
        postgres.kill()
        answers = [
            await api.post("{ tasks { totalCount } }", by=ann),
            await api.post("{ me { username } }", by=ann),
            await api.post('mutation { createTask(input: {title: "A task"}) { task { id } } }', by=ann),
            await api.post('mutation { login(input: {usernameOrEmail: "ann", password: "x"}) { tokenType } }'),
        ]
        await socket.subscribe("subscription { taskChanged { kind } }")
        message = await socket.receive()
        payload = message["payload"]
        answers.append({"data": None, "errors": payload if isinstance(payload, list) else payload["errors"]})
    logged = {record.error_id: record for record in errors_logged(caplog)}
    for answer in answers:
        (error,) = answer["errors"]
        assert answer["data"] in (None, {"me": None})
        error_id = error["extensions"]["id"]
        assert error["extensions"] == {"code": "INTERNAL_SERVER_ERROR", "id": error_id}
        assert error["message"] == f"Internal server error; the log has it under id {error_id}"
        assert error_id in logged.pop(error_id).getMessage()
    assert logged == {}
    assert await api.data("{ serverInfo { name } }") == {"serverInfo": {"name": "TaskFlow GQL"}}

    # The server recovers by itself.
    postgres.start()
    assert await api.data("{ me { username } tasks { totalCount } }", by=ann) == {
        "me": {"username": "ann"},
        "tasks": {"totalCount": 0},
    }


def errors_logged(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]
