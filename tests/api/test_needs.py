"""Only the columns that a document needs are read, and every field that it selects has its columns."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import strawberry
from graphql import GraphQLObjectType, get_named_type, is_leaf_type, parse

from taskflow_gql.api.needs import Analysis, Needs
from taskflow_gql.api.schema import make_schema
from taskflow_gql.api.task_lists import _columns
from taskflow_gql.database.rows import row_class_of
from taskflow_gql.execution import IsInstance
from taskflow_gql.execution.strawberry import core_schema
from taskflow_gql.models import UserRow
from taskflow_gql.services.tasks import TaskColumns
from tests.support.client import Api
from tests.support.serving import make_settings


@pytest.mark.parametrize("number", range(20))
def test_a_row_class_is_complete_even_if_garbage_is_collected_meanwhile(number: int) -> None:
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        row_class: Any = row_class_of(UserRow, ("username", f"extra_{number}"))
    finally:
        gc.set_threshold(*before)
    row = row_class("ann", 1)
    assert (row.username, row[1]) == ("ann", 1)
    assert row_class._fields == ("username", f"extra_{number}")


SCHEMA = make_schema(make_settings()).core
ANALYSIS = Analysis(SCHEMA)


def fields_of(type_name: str) -> dict[str, Any]:
    type_ = SCHEMA.get_type(type_name)
    assert isinstance(type_, GraphQLObjectType)
    return dict(type_.fields)


def needs_of(query: str) -> Needs:
    return ANALYSIS(parse(query))


def columns_of(query: str) -> TaskColumns:
    return needs_of(query).derive(_columns)


@pytest.mark.parametrize("type_name", ["Task", "User"])
def test_every_field_declares_its_columns(type_name: str) -> None:
    needs = ANALYSIS.row_types[type_name].fields
    assert [name for name in fields_of(type_name) if needs[name].columns is None] == []


def test_declared_columns_exist() -> None:
    for row_type in ANALYSIS.row_types.values():
        for name, field in row_type.fields.items():
            assert (field.columns or set()) <= set(row_type.row_class._fields), name


def test_only_selected_columns_are_needed() -> None:
    query = "{ tasks { nodes { title overdue creator { username } } } }"
    assert columns_of(query) == TaskColumns(("id", "title", "status", "due_date"), creator=("id", "username"))
    assert not needs_of(query).selects("TaskConnection", "edges", "pageInfo")
    assert needs_of("{ tasks { pageInfo { endCursor } } }").selects("TaskConnection", "edges", "pageInfo")


@pytest.mark.parametrize(
    ("query", "is_counted"),
    [
        ("{ tasks { totalCount } }", True),
        ("{ tasks { nodes { id } } }", False),
        ("query($all: Boolean!) { tasks { nodes { id } totalCount @include(if: $all) } }", False),
        ("{ one: tasks { nodes { id } } two: tasks { totalCount } }", False),
        ("{ tasks { nodes { creator { createdTasks { totalCount } } } } }", False),
    ],
)
def test_total_count_is_read_with_the_page_only_if_it_is_certainly_selected(query: str, is_counted: bool) -> None:
    assert ("TaskConnection" in needs_of(query).counted) is is_counted


def test_fields_in_fragments_and_interfaces_need_their_columns() -> None:
    needs = needs_of(
        """
        query($id: ID!) { node(id: $id) { id ... on Task { ...T } ... on User { fullName } } }
        fragment T on Task { version other: assignee { ...U } }
        fragment U on User { email }
        """
    )
    assert needs.derive(_columns) == TaskColumns(("id", "version"), assignee=("id", "email", "full_name"))
    assert needs.columns(UserRow) == ("id", "email", "full_name")


@strawberry.type
class Thing:
    @strawberry.field
    @staticmethod
    def label(row: strawberry.Parent[UserRow]) -> str:
        return row.username

    is_type_of = IsInstance(UserRow)


@strawberry.type
class ThingQuery:
    thing: Thing


def test_a_field_without_a_declaration_needs_every_column() -> None:
    analysis = Analysis(core_schema(strawberry.Schema(ThingQuery)))
    assert analysis(parse("{ thing { label } }")).columns(UserRow) == UserRow._fields
    assert analysis(parse("{ thing { __typename } }")).columns(UserRow) == ("id",)


def test_a_row_has_the_columns_that_were_read_and_no_others() -> None:
    row_class: Any = row_class_of(UserRow, ("id", "full_name", "friend"))
    assert issubclass(row_class, UserRow)
    row = row_class(1, "Ann", None)
    assert (row.id, row.full_name, row.friend) == (1, "Ann", None)
    assert repr(row) == "UserRow(id=1, full_name='Ann', friend=None)"
    assert row._replace(id=2)._asdict() == {"id": 2, "full_name": "Ann", "friend": None}
    with pytest.raises(AttributeError):
        row.email  # noqa: B018
    assert row_class_of(UserRow, UserRow._fields) is UserRow


def selected(type_name: str, field: str) -> str:
    """The field, with a small selection below it."""
    named_type = get_named_type(fields_of(type_name)[field].type)
    if is_leaf_type(named_type):
        return field
    assert isinstance(named_type, GraphQLObjectType)
    if named_type.name == "User":
        return f"{field} {{ username }}"
    return f"{field} {{ edges {{ cursor }} pageInfo {{ endCursor }} }}"


async def test_each_field_alone_has_the_same_value_as_among_all_fields(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = await api.create_task(ann, "Paint", assigneeId=bob.id, dueDate="2020-01-02T03:04:05Z", description="red")
    ways = {
        "Task": [
            ("task(id: $id)", "task", task["id"]),
            ("tasks", "tasks", None),
            ("node(id: $id) { ... on Task", "node", task["id"]),
        ],
        "User": [
            ("user(id: $id)", "user", ann.id),
            ("users", "users", None),
            ("node(id: $id) { ... on User", "node", ann.id),
        ],
    }
    for type_name, ways_of_type in ways.items():
        selections = {field: selected(type_name, field) for field in fields_of(type_name)}
        for head, name, id_ in ways_of_type:

            async def ask(fields: str, head: str = head, name: str = name, id_: str | None = id_) -> dict[str, Any]:
                body = f"{{ nodes {{ {fields} }} }}" if id_ is None else f"{{ {fields} }}"
                closing = "}" if "{" in head else ""
                query = f"query {'($id: ID!)' if id_ else ''} {{ {head} {body} {closing} }}"
                found = (await api.data(query, {"id": id_} if id_ else None, by=ann))[name]
                result: dict[str, Any] = found["nodes"][0] if id_ is None else found
                return result

            whole = await ask(" ".join(selections.values()))
            for field, selection in selections.items():
                assert await ask(selection) == {field: whole[field]}, (head, field)


async def test_lists_have_cursors_in_every_order(api: Api) -> None:
    ann = await api.register("ann")
    for title in ("One", "Two", "Three"):
        await api.create_task(ann, title)
    for order in ("CREATED_AT", "UPDATED_AT", "DUE_DATE", "PRIORITY", "STATUS", "TITLE"):
        query = f"query($after: String) {{ tasks(first: 1, after: $after, orderBy: [{{field: {order}}}])"
        query += " { nodes { version } pageInfo { endCursor hasNextPage } } }"
        after, pages = None, 0
        while True:
            page = (await api.data(query, {"after": after}, by=ann))["tasks"]
            after, pages = page["pageInfo"]["endCursor"], pages + 1
            if not page["pageInfo"]["hasNextPage"]:
                break
        assert pages == 3, order
    users = await api.data("{ users { edges { cursor } pageInfo { endCursor } nodes { role } } }", by=ann)
    assert users["users"]["pageInfo"]["endCursor"] == users["users"]["edges"][-1]["cursor"]


async def test_an_empty_page_has_a_total_count(api: Api) -> None:
    ann = await api.register("ann")
    query = "query($after: String, $title: String!) { tasks(first: 2, after: $after, filter: {title: {eq: $title}})"
    query += " { totalCount nodes { id } pageInfo { endCursor } } }"
    none = (await api.data(query, {"title": "Three"}, by=ann))["tasks"]
    assert (none["totalCount"], none["nodes"]) == (0, [])
    for _ in range(2):
        await api.create_task(ann, "Three")
    page = (await api.data(query, {"title": "Three"}, by=ann))["tasks"]
    assert (page["totalCount"], len(page["nodes"])) == (2, 2)
    beyond = (await api.data(query, {"title": "Three", "after": page["pageInfo"]["endCursor"]}, by=ann))["tasks"]
    assert (beyond["totalCount"], beyond["nodes"]) == (2, [])
