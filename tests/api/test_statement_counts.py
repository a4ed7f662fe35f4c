"""How many SQL statements an operation costs: the same for one parent as for fifty, whichever fields are selected."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any
from uuid import UUID

import httpx
import pytest
from graphql import (
    GraphQLField,
    GraphQLNamedType,
    GraphQLObjectType,
    get_named_type,
    is_leaf_type,
    is_required_argument,
)
from starlette.applications import Starlette

from taskflow_gql.api.schema import make_schema
from taskflow_gql.app import create_app
from taskflow_gql.config import Settings
from taskflow_gql.database.observers import DatabaseObserver
from taskflow_gql.database.units import Database
from taskflow_gql.models import UserRole
from tests.support.client import Api, Person
from tests.support.factories import make_task, make_user, make_viewer
from tests.support.serving import Executor, make_admin, make_settings

pytestmark = pytest.mark.usefixtures("completion_in_one_part")

SCHEMA = make_schema(make_settings()).core

_statements: ContextVar[list[str] | None] = ContextVar("statements", default=None)


@pytest.fixture
async def api(settings: Settings, executor: Executor) -> AsyncIterator[Api]:
    async with without_network(create_app(settings, executor=executor)) as api:
        yield api


@asynccontextmanager
async def without_network(app: Starlette) -> AsyncIterator[Api]:
    """The real app, answering in the test's own context, which tells a request's statements from those of the relay
    and the fan-out.
    """
    database = app.state.parts.database

    class Noting(DatabaseObserver):
        def on_statement(self, sql: str, _parameters: object) -> None:
            statements = _statements.get()
            if statements is not None:
                statements.append(sql)

    database.observe(Noting())
    async with app.router.lifespan_context(app), Api("http://app") as api:
        await api.http.aclose()
        api.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=api.url)
        yield api


@contextmanager
def counting() -> Iterator[list[str]]:
    """The statements of the requests made in the block."""
    statements: list[str] = []
    token = _statements.set(statements)
    yield statements
    _statements.reset(token)


async def count(api: Api, query: str, by: Person, variables: dict[str, Any] | None = None) -> int:
    with counting() as statements:
        await api.data(query, variables, by=by)
    return len(statements)


async def boss_of(api: Api, database: Database) -> Person:
    boss = await api.register("boss")
    await make_admin(database, boss.id)
    async with database.write() as session:
        await make_task(session, make_viewer(boss.id, UserRole.ADMIN), assignee_id=UUID(boss.id))
    return boss


async def add_people(database: Database, start: int, stop: int) -> None:
    """Each user creates one task, and is assigned the task of another user."""
    async with database.write() as session:
        people = [await make_user(session, f"user{number}") for number in range(start, stop)]
        for maker, assignee in zip(people, people[1:] + people[:1], strict=True):
            await make_task(session, make_viewer(maker.id), assignee_id=assignee.id)


# ---------------------------------------------------------------- every relation of the schema


def selected(name: str, field: GraphQLField, levels: int) -> str:
    """The field with every possible selection below it, down to `levels` relations."""
    required = [argument for argument, made in field.args.items() if is_required_argument(made)]
    assert not required, f"{name} cannot be asked for without {required}: say here what to give"
    arguments = "(first: 2)" if "first" in field.args else ""
    target = get_named_type(field.type)
    return f"{name}{arguments}" if is_leaf_type(target) else f"{name}{arguments} {{ {selection(target, levels)} }}"


def selection(type_: GraphQLNamedType, levels: int) -> str:
    assert isinstance(type_, GraphQLObjectType), f"{type_.name} is no object type: say here what to select of it"
    # Connections and edges stand between a list and its objects. They are not relations.
    below = levels if type_.name.endswith(("Connection", "Edge")) else levels - 1
    return " ".join(
        selected(name, field, below)
        for name, field in type_.fields.items()
        if below >= 0 or is_leaf_type(get_named_type(field.type))
    )


LISTS = {"User": "users", "Task": "tasks"}


def fields_of(type_name: str) -> dict[str, GraphQLField]:
    type_ = SCHEMA.type_map[type_name]
    assert isinstance(type_, GraphQLObjectType)
    fields: dict[str, GraphQLField] = type_.fields
    return fields


# Every field of a user or a task that leads to other objects.
RELATIONS = [
    (type_name, name)
    for type_name in LISTS
    for name, field in fields_of(type_name).items()
    if not is_leaf_type(get_named_type(field.type))
]


def query_of(type_name: str, name: str) -> str:
    """A query for a page of parents with this relation, and with the relations of the objects that it leads to."""
    relation = selected(name, fields_of(type_name)[name], 1)
    return f"{{ {LISTS[type_name]}(first: 100) {{ nodes {{ {relation} }} }} }}"


def test_the_relations_and_their_queries_are_derived_from_the_schema() -> None:
    assert {("User", "createdTasks"), ("User", "assignedTasks"), ("Task", "creator"), ("Task", "assignee")} <= {
        *RELATIONS
    }
    assert "creator { id" in query_of("User", "createdTasks")
    assert "createdTasks(first: 2) { edges { cursor node { id" in query_of("Task", "creator")


@pytest.mark.parametrize(("type_name", "name"), RELATIONS)
async def test_a_relation_costs_the_same_for_1_parent_and_for_50(
    api: Api, database: Database, type_name: str, name: str
) -> None:
    query = query_of(type_name, name)
    boss = await boss_of(api, database)
    counts = []
    for start, stop in ((0, 1), (1, 50)):
        await add_people(database, start, stop)
        # This request also lets the relay place the events, which does not count as a cost of the query.
        parents = (await api.data(query, by=boss))[LISTS[type_name]]["nodes"]
        assert len(parents) == stop + 1
        for parent in parents:
            assert parent[name], "the test's data leave this relation empty"
            assert parent[name].get("nodes") != [], "the test's data leave this connection empty"
        counts.append(await count(api, query, boss))
    assert counts[0] == counts[1]


PEOPLE = "creator { username } assignee { username createdTasks(first: 1) { totalCount nodes { title } } }"


@pytest.mark.parametrize(
    "query",
    [
        f"query($ids: [ID!]!) {{ nodes(ids: $ids) {{ ... on Task {{ {PEOPLE} }} }} }}",
        f"query($ids: [ID!]) {{ tasks(filter: {{id: {{in: $ids}}}}) {{ edges {{ node {{ {PEOPLE} }} }} }} }}",
        f"""query($ids: [ID!]) {{
          a: tasks(filter: {{id: {{in: $ids}}}}) {{ nodes {{ ...Both }} }} b: tasks {{ nodes {{ ...Both }} }}
        }} fragment Both on Task {{ {PEOPLE} }}""",
    ],
    ids=["nodes by id", "edges", "aliases"],
)
async def test_the_cost_does_not_depend_on_how_the_parents_were_reached(
    api: Api, database: Database, query: str
) -> None:
    boss = await boss_of(api, database)
    counts = []
    for start, stop in ((0, 1), (1, 50)):
        await add_people(database, start, stop)
        tasks = await api.data("{ tasks(first: 100) { nodes { id } } }", by=boss)
        ids = [node["id"] for node in tasks["tasks"]["nodes"]]
        assert len(ids) == stop + 1
        counts.append(await count(api, query, boss, {"ids": ids}))
    # Two paths that need the same rows at the same moment share a statement; otherwise there are two. 50 parents that
    # each ran a statement would make many more.
    assert abs(counts[0] - counts[1]) <= 1


# ---------------------------------------------------------------- exact numbers, including the token check


STATS = """
total pending inProgress completed overdue
byStatus { status count } byPriority { priority count } byCategory { category count }
"""
BOTH = "creator { username } assignee { username }"


@pytest.mark.parametrize(
    ("query", "statements"),
    [
        ("{ serverInfo { name } }", 0),
        ("{ me { username email } }", 1),
        ("{ tasks { nodes { title status } pageInfo { hasNextPage endCursor } } }", 2),
        (f"{{ tasks {{ nodes {{ title {BOTH} }} }} }}", 2),
        (f"{{ tasks {{ edges {{ cursor node {{ title {BOTH} }} }} }} }}", 2),
        (f"{{ tasks {{ ...Page }} }} fragment Page on TaskConnection {{ nodes {{ ... on Task {{ {BOTH} }} }} }}", 2),
        ("{ tasks { nodes { viewerCanUpdate viewerCanDelete viewerCanChangeStatus overdue completed } } }", 2),
        ("{ tasks { nodes { title } totalCount } }", 2),
        ('{ tasks(last: 3, filter: {search: "task", overdue: false}, orderBy: [{field: TITLE}]) { nodes { id } } }', 2),
        ("{ users { nodes { username } } }", 2),
        ('{ users(search: "u") { nodes { username } totalCount } }', 3),
        ("{ users { nodes { createdTasks(first: 5) { nodes { assignee { username } } } } } }", 3),
        (f"{{ users {{ nodes {{ assignedTasks(first: 5) {{ nodes {{ {BOTH} }} }} }} }} }}", 3),
        ("{ users { nodes { createdTasks(first: 5) { nodes { id } } assignedTasks(last: 5) { nodes { id } } } } }", 4),
        ("{ users { nodes { createdTasks(first: 5) { nodes { id } totalCount } } } }", 4),
        ("{ users { nodes { createdTasks(filter: {overdue: false}) { nodes { id } totalCount } } } }", 4),
        (
            "{ users { nodes { a: createdTasks(first: 1) { totalCount } b: createdTasks { totalCount } } } }",
            5,
        ),
        (f"{{ taskStats {{ {STATS} }} }}", 2),
        (f"{{ taskStats(filter: {{not: {{overdue: true}}, creator: {{isMe: true}}}}) {{ {STATS} }} }}", 2),
        ("{ taskStats { total byAssignee { count } } }", 3),
        ("{ taskStats { total changesCursor } }", 3),
        ("{ taskStats { changesCursor } tasks { changesCursor } }", 4),
    ],
)
async def test_an_operation_costs_exactly_this_many_statements(
    api: Api, database: Database, query: str, statements: int
) -> None:
    boss = await boss_of(api, database)
    ann = await api.register("ann")
    await add_people(database, 0, 5)
    async with database.write() as session:
        await make_task(session, make_viewer(boss.id), assignee_id=UUID(ann.id))
    for by in (boss, ann):
        with counting() as counted:
            await api.data(query, by=by)
        assert len(counted) == statements, "\n\n".join(counted)


async def test_all_assignees_of_statistics_are_read_in_one_statement(api: Api, database: Database) -> None:
    boss = await boss_of(api, database)
    for start, stop in ((0, 2), (2, 40)):
        await add_people(database, start, stop)
        assert await count(api, "{ taskStats { total byAssignee { count assignee { username } } } }", boss) == 4


@pytest.mark.parametrize(
    ("query", "statements"),
    [
        ("{ tasks { nodes { history { nodes { kind } } } } }", 4),
        ("{ tasks { nodes { history(last: 2) { nodes { kind } pageInfo { startCursor } } } } }", 4),
        ("{ taskChanges { nodes { kind taskEdge { cursor } } pageInfo { startCursor endCursor } } }", 4),
        ('{ taskChanges(last: 5, filter: {title: {eq: "A task"}}) { nodes { id deletedTaskId } } }', 4),
    ],
)
async def test_changes_cost_exactly_this_many_statements(
    api: Api, database: Database, query: str, statements: int
) -> None:
    """One of the statements asks whether events wait for their positions."""
    boss = await boss_of(api, database)
    for start, stop in ((0, 1), (1, 50)):
        await add_people(database, start, stop)
        # This request also lets the relay place the events.
        await api.data(query, by=boss)
        assert await count(api, query, boss) == statements


async def test_the_people_before_and_after_changes_are_read_in_as_many_statements_for_many(
    api: Api, database: Database
) -> None:
    query = (
        "{ taskChanges(last: 100) { nodes { actor { id } task { assignee { id } } previous { assignee { id } } } } }"
    )
    boss = await boss_of(api, database)
    counts = []
    for start, stop in ((0, 2), (2, 40)):
        await add_people(database, start, stop)
        tasks = await api.data("{ tasks(first: 100) { nodes { id } } }", by=boss)
        for task in tasks["tasks"]["nodes"][: stop - start]:
            await api.update_task(boss, task["id"], assigneeId=boss.id)
        await api.data(query, by=boss)
        counts.append(await count(api, query, boss))
    # graphql-core's executor asks for the people of each level separately.
    assert counts in ([5, 5], [7, 7])


@pytest.mark.parametrize(
    ("fields", "now", "then"),
    [("title status version", 2, 3), ("title assignee { username }", 2, 4), ("history { nodes { kind } }", 4, 5)],
)
async def test_a_task_as_it_stood_costs_one_statement_more_and_its_people_another(
    api: Api, database: Database, fields: str, now: int, then: int
) -> None:
    boss, ann, bob = await boss_of(api, database), await api.register("ann"), await api.register("bob")
    id_ = {"id": (await api.create_task(ann, assigneeId=bob.id))["id"]}
    query = f"query($id: ID!, $asOf: DateTime) {{ task(id: $id, asOf: $asOf) {{ {fields} }} }}"
    for number in range(3):
        task = (await api.data("query($id: ID!) { task(id: $id) { updatedAt } }", id_, by=boss))["task"]
        await api.update_task(ann, id_["id"], title=f"Title {number}")
        variables = id_ | {"asOf": task["updatedAt"]}
        # This request also lets the relay place the events.
        assert (await api.data(query, variables, by=boss))["task"] is not None
        assert await count(api, query, boss, variables) == then
        for as_now in (None, "9999-01-01T00:00:00Z"):
            assert await count(api, query, boss, id_ | {"asOf": as_now}) == now
    assert await count(api, query, boss, id_ | {"asOf": "1999-01-01T00:00:00Z"}) == 3


async def test_a_merge_costs_one_statement_more(api: Api, database: Database) -> None:
    boss = await boss_of(api, database)
    task = await api.create_task(boss)
    update = "mutation($input: UpdateTaskInput!) { updateTask(input: $input) { task { version } errors { code } } }"

    async def count_update(title: str, **given: Any) -> int:
        return await count(api, update, boss, {"input": {"id": task["id"], "title": title, **given}})

    plain = await count_update("Second")
    assert await count_update("Third", expectedVersion=2, onConflict="MERGE") == plain
    await api.update_task(boss, task["id"], category="HOME")
    assert await count_update("Fourth", expectedVersion=3, onConflict="MERGE") == plain + 1


async def test_invisible_objects_cost_no_further_statements(api: Api, database: Database) -> None:
    await boss_of(api, database)
    ann = await api.register("ann")
    await add_people(database, 0, 5)
    assert await count(api, "{ tasks { nodes { creator { username } } } }", ann) == 2
    assert await count(api, "{ users { nodes { createdTasks { nodes { assignee { username } } } } } }", ann) == 3


async def test_a_request_without_a_valid_token_reads_no_tasks(api: Api) -> None:
    with counting() as statements:
        assert await api.codes("{ tasks { nodes { title } } }") == ["UNAUTHENTICATED"]
        assert await api.codes("{ tasks { nodes { title } } }", by="rubbish") == ["UNAUTHENTICATED"]
    assert statements == []
