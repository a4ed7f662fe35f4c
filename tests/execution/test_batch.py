"""A batched relation is loaded once for all objects of a level."""

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from graphql import ExecutionResult, GraphQLSchema, build_schema, execute, parse

from taskflow_gql.execution import BATCH, Batch, CompilingExecutor, batch_resolver
from taskflow_gql.execution import run as execution_run

SDL = """
type Query { tasks: [Task!]! users: [User!]! }
type Task { id: ID! creator: User! assignee: User parent: Task }
type User { id: ID! name: String! tasks(first: Int = 2): [Task!]! boss: User }
"""


class PlansAtOnce(CompilingExecutor):
    seen_before_planned = 1


class Database:
    """Tasks and users, with a list of the loads."""

    def __init__(self) -> None:
        self.loads: list[Any] = []
        self.running = 0
        self.most_running = 0
        self.error: Exception | None = None
        self.missing: set[str] = set()

    async def load(self, name: str, keys: list[str], **arguments: Any) -> None:
        self.loads.append((name, keys, *arguments.items()))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if self.error:
            raise self.error


async def users_by_id(database: Database, ids: list[str]) -> Mapping[str, Any]:
    await database.load("users_by_id", ids)
    return {id_: {"id": id_, "name": f"user {id_}", "boss_id": "boss"} for id_ in ids if id_ not in database.missing}


async def tasks_by_id(database: Database, ids: list[str]) -> Mapping[str, Any]:
    await database.load("tasks_by_id", ids)
    return {id_: task(id_, "a") for id_ in ids}


async def tasks_by_user_id(database: Database, ids: list[str], first: int) -> Mapping[str, Any]:
    await database.load("tasks_by_user_id", ids, first=first)
    return {id_: [task(f"{id_}{number}", id_) for number in range(first)] for id_ in ids if id_ != "c"}


def task(id_: str, creator_id: str, assignee_id: str | None = None) -> dict[str, Any]:
    return {"id": id_, "creator_id": creator_id, "assignee_id": assignee_id, "parent_id": "9"}


BATCHES = {
    ("Task", "creator"): Batch(users_by_id, "creator_id", carried_as="creator"),
    ("Task", "assignee"): Batch(users_by_id, lambda task: getattr(task, "assignee_id", None) or task["assignee_id"]),
    ("Task", "parent"): Batch(tasks_by_id, "parent_id"),
    ("User", "tasks"): Batch(tasks_by_user_id, "id", many=True),
    ("User", "boss"): Batch(users_by_id, "boss_id"),
}


def make_schema() -> GraphQLSchema:
    schema = build_schema(SDL)
    for (type_name, field_name), batch in BATCHES.items():
        field = schema.type_map[type_name].fields[field_name]  # type: ignore[attr-defined]
        field.extensions[BATCH] = batch
        field.resolve = batch_resolver(batch)
    return schema


SCHEMA = make_schema()
ROOT = {
    "tasks": [task("1", "a", "b"), task("2", "b"), task("3", "a", "c")],
    "users": [{"id": id_, "name": id_, "boss_id": None} for id_ in "abc"],
}


async def run(
    query: str, *, error: Exception | None = None, missing: str = "", root: Any = ROOT
) -> tuple[ExecutionResult, Database]:
    """Return the result and its loads. The result is equal to graphql-core's."""
    results = []
    for executor_class in (None, PlansAtOnce):
        database = Database()
        database.error, database.missing = error, set(missing)
        result = execute(SCHEMA, parse(query), root, database, executor_class=executor_class)
        results.append(result if isinstance(result, ExecutionResult) else await result)
    assert results[0] == results[1]
    return results[1], database


async def test_fields_with_the_same_batch_share_a_load() -> None:
    result, database = await run("{ tasks { creator { name } assignee { name } } }")
    assert result.data is not None
    assert result.data["tasks"][0] == {"creator": {"name": "user a"}, "assignee": {"name": "user b"}}
    assert result.data["tasks"][1]["assignee"] is None
    assert database.loads == [("users_by_id", ["a", "b", "c"])]


async def test_different_batches_load_concurrently() -> None:
    _, database = await run("{ tasks { creator { id } parent { id } } }")
    assert database.loads == [("users_by_id", ["a", "b"]), ("tasks_by_id", ["9"])]
    assert database.most_running == 2


async def test_each_level_is_one_load() -> None:
    result, database = await run("{ users { tasks(first: 3) { creator { boss { name } } } } }")
    assert result.errors is None
    assert database.loads == [
        ("tasks_by_user_id", ["a", "b", "c"], ("first", 3)),
        ("users_by_id", ["a", "b"]),
        ("users_by_id", ["boss"]),
    ]


async def test_a_large_load_is_completed_in_parts_and_its_relations_are_one_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execution_run, "MAX_PART_SECONDS", 0)
    root = {"users": [{"id": str(number), "name": "x", "boss_id": None} for number in range(80)]}
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    result, database = await run("{ users { tasks { creator { boss { name } } } } }", root=root)
    counting.cancel()
    assert result.errors is None
    assert [name for name, *_ in database.loads] == ["tasks_by_user_id", "users_by_id", "users_by_id"]
    assert turns > 80 / execution_run.MAX_SLOTS_OF_PART


async def test_a_task_failing_between_parts_of_a_load_fails_the_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execution_run, "MAX_PART_SECONDS", 0)

    async def cancelled(_user: Any, _info: Any) -> str:
        raise asyncio.CancelledError

    schema = make_schema()
    schema.type_map["User"].fields["name"].resolve = cancelled  # type: ignore[attr-defined]
    users = [{"id": str(number), "name": "x", "boss_id": str(number)} for number in range(80)]
    database = Database()
    # Only objects of the first part have relations below them.
    database.missing = {str(number) for number in range(8, 80)}
    query = parse("{ users { boss { a: name b: name } } }")
    answer = execute(schema, query, {"users": users}, database, executor_class=PlansAtOnce)
    assert not isinstance(answer, ExecutionResult)
    with pytest.raises(asyncio.CancelledError):
        await answer


async def test_keys_of_the_same_turn_are_one_load() -> None:
    async def user(info: Any) -> Any:
        await asyncio.sleep(0)
        return {"boss_id": info.path.prev.key}

    database = Database()
    schema = build_schema("type Query { users: [User] } type User { later: User boss: User name: String }")
    batch = Batch(users_by_id, "boss_id")
    field = schema.type_map["User"].fields["boss"]  # type: ignore[attr-defined]
    field.extensions[BATCH] = batch
    awaited = execute(
        schema,
        parse("{ users { later { boss { name } } } }"),
        {"users": [{"later": user}, {"later": user}, {"later": user}]},
        database,
        executor_class=PlansAtOnce,
    )
    assert not isinstance(awaited, ExecutionResult)
    assert (await awaited).data == {"users": [{"later": {"boss": {"name": f"user {index}"}}} for index in range(3)]}
    assert database.loads == [("users_by_id", [0, 1, 2])]


async def test_fields_with_different_arguments_load_separately() -> None:
    result, database = await run("{ users { tasks { id } one: tasks(first: 1) { id } two: tasks(first: 2) { id } } }")
    assert result.data is not None
    assert result.data["users"][2] == {"tasks": [], "one": [], "two": []}
    assert database.loads == [
        ("tasks_by_user_id", ["a", "b", "c"], ("first", 2)),
        ("tasks_by_user_id", ["a", "b", "c"], ("first", 1)),
    ]


@pytest.mark.parametrize("executor_class", [None, PlansAtOnce])
async def test_equal_arguments_of_different_types_load_separately(executor_class: Any) -> None:
    async def load(context: object, ids: list[str], **arguments: Any) -> Mapping[str, Any]:
        return dict.fromkeys(ids, repr(arguments))

    result = await run_loading(load, executor_class)
    assert result.data == {"tasks": [{"one": "{'x': {'a': 1}}", "yes": "{'x': {'a': True}}"}]}


@pytest.mark.parametrize("executor_class", [None, PlansAtOnce])
async def test_a_cancelled_load_cancels_the_operation(executor_class: Any) -> None:
    async def load(context: object, ids: list[str], **arguments: Any) -> Mapping[str, Any]:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(60):
            await run_loading(load, executor_class)


async def run_loading(load: Any, executor_class: Any) -> ExecutionResult:
    """Select the same field twice, with the arguments 1 and True."""
    schema = build_schema("scalar X type Query { tasks: [Task!]! } type Task { loaded(x: X): String }")
    batch = Batch(load, "id")
    field = schema.type_map["Task"].fields["loaded"]  # type: ignore[attr-defined]
    field.extensions[BATCH] = batch
    field.resolve = batch_resolver(batch)
    document = parse("query($one: X, $yes: X) { tasks { one: loaded(x: $one) yes: loaded(x: $yes) } }")
    variables = {"one": {"a": 1}, "yes": {"a": True}}
    result = execute(
        schema, document, ROOT | {"tasks": [task("1", "a")]}, Database(), variables, executor_class=executor_class
    )
    assert not isinstance(result, ExecutionResult)
    return await result


async def test_objects_without_keys_load_nothing() -> None:
    result, database = await run("{ users { boss { name } } }")
    assert result.data == {"users": [{"boss": None}] * 3}
    assert database.loads == []


async def test_missing_values_are_null() -> None:
    result, _ = await run("{ tasks { assignee { name } } }", missing="b")
    assert result.data == {"tasks": [{"assignee": None}, {"assignee": None}, {"assignee": {"name": "user c"}}]}
    assert result.errors is None


async def test_a_missing_value_of_a_non_null_field_nulls_the_parent() -> None:
    result, _ = await run("{ tasks { creator { name } } }", missing="b")
    assert result.data is None
    assert result.errors is not None
    assert [error.path for error in result.errors] == [["tasks", 1, "creator"]]


async def test_an_error_of_the_batch_function_is_an_error_of_each_field() -> None:
    error = ValueError("no connection")
    result, _ = await run("{ tasks { assignee { name } } }", error=error)
    assert result.data == {"tasks": [{"assignee": None}] * 3}
    assert result.errors is not None
    assert [(e.path, e.original_error) for e in result.errors] == [
        (["tasks", index, "assignee"], error) for index in (0, 2)
    ]


@pytest.mark.parametrize("executor_class", [None, PlansAtOnce])
async def test_values_are_loaded_again_after_a_mutation(executor_class: type[CompilingExecutor] | None) -> None:
    schema = build_schema("type Query { x: Int } type Mutation { rename: User } type User { boss: User name: String }")
    names = ["old", "new"]
    batch = Batch(lambda _, keys: _immediately({key: {"name": names.pop(0)} for key in keys}), "boss_id")
    field = schema.type_map["User"].fields["boss"]  # type: ignore[attr-defined]
    field.extensions[BATCH] = batch
    field.resolve = batch_resolver(batch)
    document = parse("mutation { a: rename { boss { name } } b: rename { boss { name } } }")
    result = execute(schema, document, {"rename": {"boss_id": 1}}, {}, executor_class=executor_class)
    assert not isinstance(result, ExecutionResult)
    assert (await result).data == {"a": {"boss": {"name": "old"}}, "b": {"boss": {"name": "new"}}}


async def _immediately(value: Any) -> Any:
    return value


class Carrying:
    """A task that carries its creator."""

    id = "1"
    creator_id, assignee_id = "a", "c"
    creator: ClassVar[Any] = {"name": "carried"}
    # This relation does not declare `carried_as`.
    assignee: ClassVar[Any] = {"name": "not asked"}


class CarryingNobody(Carrying):
    creator = None


async def test_carried_relations_are_not_loaded() -> None:
    result, database = await run(
        "{ tasks { creator { name } assignee { name } } }", root={"tasks": [Carrying(), task("2", "b"), Carrying()]}
    )
    assert result.errors is None
    carried = {"creator": {"name": "carried"}, "assignee": {"name": "user c"}}
    assert result.data == {"tasks": [carried, {"creator": {"name": "user b"}, "assignee": None}, carried]}
    assert sorted(key for _, keys in database.loads for key in keys) == ["b", "c"]


async def test_a_carried_null_of_a_non_null_field_is_an_error() -> None:
    result, database = await run("{ tasks { creator { name } } }", root={"tasks": [CarryingNobody()]})
    assert result.data is None
    assert result.errors is not None
    assert result.errors[0].message == "Cannot return null for non-nullable field Task.creator."
    assert database.loads == []
