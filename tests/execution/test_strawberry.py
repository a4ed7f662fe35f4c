"""One Strawberry schema under the compiling executor and under Strawberry's own."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest
import strawberry
from strawberry.permission import BasePermission
from strawberry.types import Info

from taskflow_gql.execution.strawberry import Batched, BatchingExecutor, core_schema


@strawberry.enum
class Status(Enum):
    OPEN = "open"
    DONE = "done"


@dataclass(slots=True, frozen=True)
class UserRow:
    id: str
    name: str


@dataclass(slots=True, frozen=True)
class TaskRow:
    id: str
    title: str
    status: Status
    creator_id: str
    assignee_id: str | None


@dataclass
class Context:
    loads: list[Any] = field(default_factory=list)


async def users_by_id(context: Context, ids: list[str]) -> dict[str, UserRow]:
    context.loads.append(("users_by_id", ids))
    await asyncio.sleep(0)
    if "broken" in ids:
        raise ValueError("no connection")
    return {id_: UserRow(id_, f"user {id_}") for id_ in ids if id_ != "missing"}


@strawberry.input
class TagFilter:
    starts_with: str


async def tags_by_task_id(
    context: Context, ids: list[str], max_count: int, tag_filter: TagFilter | None = None
) -> dict[str, list[str]]:
    context.loads.append(("tags_by_task_id", ids, max_count, tag_filter))
    prefix = tag_filter.starts_with if tag_filter else "tag"
    return {id_: [f"{prefix} {id_}"] * max_count for id_ in ids if id_ != "2"}


class IsAllowed(BasePermission):
    message = "not allowed"

    def has_permission(self, source: Any, info: Info[Any, Any], **kwargs: Any) -> bool:
        return False


@strawberry.interface
class Node:
    id: strawberry.ID


@strawberry.type
class User(Node):
    name: str

    @classmethod
    def is_type_of(cls, value: Any, info: Any) -> bool:
        return isinstance(value, UserRow)


@strawberry.type
class Task:
    id: strawberry.ID
    title: str
    status: Status
    creator: User = strawberry.field(extensions=[Batched(users_by_id, key="creator_id")])
    assignee: User | None = strawberry.field(extensions=[Batched(users_by_id, key="assignee_id")])
    secret: User | None = strawberry.field(
        permission_classes=[IsAllowed], extensions=[Batched(users_by_id, key="creator_id")]
    )

    @strawberry.field(extensions=[Batched(tags_by_task_id, key="id", many=True)])  # type: ignore[untyped-decorator]
    def tags(self, max_count: int = 1, tag_filter: TagFilter | None = None) -> list[str]: ...  # type: ignore[empty-body]

    @strawberry.field
    def shout(self, info: Info[Any, Any]) -> str:
        assert info.variable_values == {"ids": ["a", "b"]} or not info.variable_values
        return str(self.title).upper() + "!"

    @strawberry.field
    def loud(self) -> str:
        if self.title == "two":
            raise ValueError("not so loud")
        return str(self.title).upper()

    @strawberry.field
    def of_parent(parent: strawberry.Parent[Any]) -> str:
        return f"of {parent.id}"

    @strawberry.field
    async def later(self) -> str:
        await asyncio.sleep(0)
        return "later"


@strawberry.type
class Query:
    @strawberry.field
    async def tasks(self) -> list[Task]:
        rows: list[Any] = [
            TaskRow("1", "one", Status.OPEN, "a", "b"),
            TaskRow("2", "two", Status.DONE, "b", None),
            TaskRow("3", "three", Status.DONE, "c", "missing"),
        ]
        return rows

    @strawberry.field
    async def broken(self) -> list[Task | None]:
        rows: list[Any] = [
            TaskRow("1", "one", Status.OPEN, "a", "b"),
            TaskRow("2", "two", Status.DONE, "missing", "b"),
            TaskRow("3", "three", Status.OPEN, "b", "broken"),
        ]
        return rows

    @strawberry.field
    def node(self) -> Node:
        return UserRow("7", "seven")  # type: ignore[return-value]


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def task_changed(self) -> AsyncIterator[Task]:
        for number in range(3):
            yield TaskRow(str(number), "changed", Status.OPEN, f"user {number}", None)  # type: ignore[misc]


compiled = strawberry.Schema(Query, subscription=Subscription, types=[User], execution_context_class=BatchingExecutor)
stock = strawberry.Schema(Query, subscription=Subscription, types=[User])


async def both(query: str, variables: dict[str, Any] | None = None) -> tuple[Any, Any, list[Any]]:
    """Return the data and errors, which both executors agree on, and the loads of the compiled operation."""
    expected = await stock.execute(query, variables, context_value=Context())
    for _ in range(3):
        context = Context()
        result = await compiled.execute(query, variables, context_value=context)
        assert result.data == expected.data
        assert [str(error) for error in result.errors or []] == [str(error) for error in expected.errors or []]
    return result.data, result.errors, context.loads


async def test_relations_of_a_level_are_one_load() -> None:
    data, errors, loads = await both("{ tasks { id status creator { id name } assignee { name } } }")
    assert errors is None
    assert data["tasks"][2] == {"id": "3", "status": "DONE", "creator": {"id": "c", "name": "user c"}, "assignee": None}
    assert loads == [("users_by_id", ["a", "b", "c", "missing"])]


async def test_a_request_is_freed_without_the_garbage_collector() -> None:
    """Reference counts free it at once. Whole answers would keep the garbage collector busy."""
    gc.disable()
    try:
        for _ in range(3):
            context = Context()
            query = "{ tasks { shout later tags(maxCount: 2) creator { id name } assignee { name } } }"
            result = await compiled.execute(query, context_value=context)
            assert result.errors is None
            gone = weakref.ref(context)
            del context, result
        assert gone() is None
    finally:
        gc.enable()


async def test_resolvers_get_converted_arguments() -> None:
    query = '{ tasks { shout later tags(maxCount: 2) other: tags(tagFilter: {startsWith: "x"}) } }'
    data, errors, loads = await both(query)
    assert errors is None
    assert data["tasks"][1] == {"shout": "TWO!", "later": "later", "tags": [], "other": []}
    assert data["tasks"][0]["other"] == ["x 1"]
    assert loads == [
        ("tags_by_task_id", ["1", "2", "3"], 2, None),
        ("tags_by_task_id", ["1", "2", "3"], 1, TagFilter(starts_with="x")),
    ]


async def test_methods_without_arguments_are_called_directly() -> None:
    data, errors, _ = await both("{ broken { loud ofParent later } }")
    assert data["broken"] == [
        {"loud": "ONE", "ofParent": "of 1", "later": "later"},
        None,
        {"loud": "THREE", "ofParent": "of 3", "later": "later"},
    ]
    assert [error.path for error in errors] == [["broken", 1, "loud"]]
    schema = core_schema(compiled)
    fields = schema.type_map["Task"].fields  # type: ignore[attr-defined]
    direct = {name for name, field in fields.items() if BatchingExecutor.function_of(schema, field)}
    assert direct == {"loud", "ofParent", "later"}


async def test_missing_and_failing_relations_are_errors_of_their_fields() -> None:
    data, errors, _ = await both("{ broken { title creator { name } } }")
    assert data["broken"][1] is None
    assert errors[0].path == ["broken", 1, "creator"]
    data, errors, _ = await both("{ broken { title assignee { name } } }")
    assert [error.path for error in errors] == [["broken", index, "assignee"] for index in range(3)]


async def test_permissions_are_checked_before_batched_fields_load() -> None:
    data, errors, loads = await both("{ tasks { secret { name } } }")
    assert data == {"tasks": [{"secret": None}] * 3}
    assert {error.message for error in errors} == {"not allowed"}
    assert loads == []


async def test_interfaces_and_introspection_are_answered() -> None:
    data, _, _ = await both("{ node { __typename id ... on User { name } } __schema { queryType { name } } }")
    assert data["node"] == {"__typename": "User", "id": "7", "name": "seven"}


async def test_subscription_events_are_compiled() -> None:
    query = "subscription { taskChanged { id creator { name } } }"
    for schema in (stock, compiled):
        events = await schema.subscribe(query, context_value=Context())
        received = [event async for event in events]
        assert [event.errors for event in received] == [None] * 3
        assert [event.data for event in received] == [
            {"taskChanged": {"id": str(number), "creator": {"name": f"user user {number}"}}} for number in range(3)
        ]


@pytest.mark.parametrize("field_name", ["id", "title"])
def test_plain_fields_are_read_as_attributes(field_name: str) -> None:
    definition = core_schema(compiled).type_map["Task"].fields[field_name]  # type: ignore[attr-defined]
    assert BatchingExecutor.attribute_of(definition) == field_name
