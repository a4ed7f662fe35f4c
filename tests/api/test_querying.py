"""tasks, createdTasks, assignedTasks, users(search:) and taskStats: results, visibility and refusals."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import pytest

from taskflow_gql.database.units import Database
from taskflow_gql.models import TaskCategory, TaskPriority, TaskRow, TaskStatus
from tests.support.client import Api, Person
from tests.support.serving import make_admin
from tests.support.task_filters import insert_tasks, make_task

ARGUMENTS = "first: $first, after: $after, last: $last, before: $before, filter: $filter, orderBy: $orderBy"
VARIABLES = "$first: Int, $after: String, $last: Int, $before: String, $filter: TaskFilter, $orderBy: [TaskOrder!]"
PAGE = """
fragment Page on TaskConnection {
  edges { cursor node { title } } nodes { title } totalCount
  pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
}
"""
TASKS = f"query({VARIABLES}) {{ tasks({ARGUMENTS}) {{ ...Page }} }} {PAGE}"
TASKS_OF = f"query($id: ID!, {VARIABLES}) {{ user(id: $id) {{ FIELD({ARGUMENTS}) {{ ...Page }} }} }} {PAGE}"
USERS = "query($search: String) { users(search: $search) { nodes { username } totalCount } }"
STATS = """
query($filter: TaskFilter) {
  taskStats(filter: $filter) {
    total pending inProgress completed overdue
    byPriority { priority count } byCategory { category count } byStatus { status count }
  }
}
"""
TITLES = """
query($filter: TaskFilter) {
  tasks(filter: $filter) { nodes { title } totalCount }
  taskStats(filter: $filter) { total }
}
"""


def day(number: int, year: int = 2026) -> datetime:
    return datetime(year, 1, number, tzinfo=UTC)


@dataclass
class Team:
    """Ann and Bob work together, Eve works alone, and the boss is an admin."""

    ann: Person
    bob: Person
    eve: Person
    boss: Person
    tasks: dict[str, TaskRow]

    def cast(self, given: Any) -> Any:
        """The filter with ids in place of names: `@ann` becomes Ann's id, `#Milk` the task's."""
        match given:
            case dict():
                return {name: self.cast(value) for name, value in given.items()}
            case list():
                return [self.cast(value) for value in given]
            case str() if given.startswith("@"):
                return getattr(self, given[1:]).id
            case str() if given.startswith("#"):
                return str(self.tasks[given[1:]].id)
        return given


@pytest.fixture
async def team(api: Api, database: Database) -> Team:
    ann, bob, eve, boss = await asyncio.gather(*map(api.register, ("ann", "bob", "eve", "boss")))
    await make_admin(database, boss.id)
    me, colleague, chief = UUID(ann.id), UUID(bob.id), UUID(boss.id)
    low, high = TaskPriority.LOW, TaskPriority.HIGH
    done = {"status": TaskStatus.COMPLETED, "completed_at": day(20)}
    tasks = [
        make_task(title="Milk", description="two BOTTLES", creator_id=me, due_date=day(1, 2020), priority=low),
        make_task(title="Report", creator_id=me, assignee_id=colleague, due_date=day(1, 2099), priority=high),
        make_task(title="Stamps", creator_id=colleague, assignee_id=me, due_date=day(2, 2020), **done),
        make_task(title="Straße kehren", description="", creator_id=me, assignee_id=me, due_date=day(3, 2020)),
        make_task(title="Holidays", creator_id=colleague, priority=high),
        make_task(title="Salaries", creator_id=chief, assignee_id=chief, **done),
    ]
    statuses = [TaskStatus.PENDING, TaskStatus.IN_PROGRESS, None, TaskStatus.IN_PROGRESS, TaskStatus.PENDING, None]
    categories = [TaskCategory.HOME, TaskCategory.WORK, TaskCategory.OTHER, TaskCategory.HOME, None, TaskCategory.WORK]
    tasks = [
        task._replace(
            id=uuid4(),
            status=status or task.status,
            category=category or task.category,
            created_at=day(number),
            updated_at=day(30 - number),
        )
        for number, (task, status, category) in enumerate(zip(tasks, statuses, categories, strict=True), start=1)
    ]
    async with database.write() as session:
        await insert_tasks(session, tasks)
    return Team(ann, bob, eve, boss, {task.title.split()[0]: task for task in tasks})


def nodes(page: dict[str, Any]) -> list[str]:
    return [node["title"].split()[0] for node in page["nodes"]]


ALL_OF_ANN = ["Straße", "Stamps", "Report", "Milk"]
ALL = ["Salaries", "Holidays", *ALL_OF_ANN]

# A filter, and the titles that Ann finds with it, newest first.
FILTERS: list[tuple[dict[str, Any] | None, list[str]]] = [
    (None, ALL_OF_ANN),
    ({}, ALL_OF_ANN),
    ({"title": {"eq": "mILK"}}, ["Milk"]),
    ({"title": {"eq": "STRASSE KEHREN"}}, ["Straße"]),
    ({"title": {"ne": "milk"}}, ["Straße", "Stamps", "Report"]),
    ({"title": {"in": ["MILK", "report", "nothing"]}}, ["Report", "Milk"]),
    ({"title": {"in": []}}, []),
    ({"title": {"contains": "T"}}, ["Straße", "Stamps", "Report"]),
    ({"title": {"contains": "%"}}, []),
    ({"title": {"startsWith": "strass"}}, ["Straße"]),
    ({"title": {"eq": "Milk", "in": ["Milk", "Report"]}}, ["Milk"]),
    ({"title": {"eq": "Milk", "in": ["Report"]}}, []),
    ({"title": {"eq": None, "in": ["Report"]}}, ["Report"]),
    ({"description": {"eq": ""}}, ["Straße"]),
    ({"description": {"ne": ""}}, ["Milk"]),
    ({"not": {"description": {"ne": ""}}}, ["Straße", "Stamps", "Report"]),
    ({"description": {"contains": "bottle"}}, ["Milk"]),
    ({"id": {"eq": "#Milk"}}, ["Milk"]),
    ({"id": {"ne": "#Milk"}}, ["Straße", "Stamps", "Report"]),
    ({"id": {"in": ["#Milk", "#Report", "#Holidays", "@ann"]}}, ["Report", "Milk"]),
    ({"id": {"notIn": ["#Milk", "#Report"]}}, ["Straße", "Stamps"]),
    ({"id": {"notIn": []}}, ALL_OF_ANN),
    ({"status": {"eq": "PENDING"}}, ["Milk"]),
    ({"status": {"ne": "PENDING"}}, ["Straße", "Stamps", "Report"]),
    ({"status": {"in": ["PENDING", "COMPLETED"]}}, ["Stamps", "Milk"]),
    ({"status": {"notIn": ["PENDING", "COMPLETED"]}}, ["Straße", "Report"]),
    ({"priority": {"eq": "HIGH"}}, ["Report"]),
    ({"priority": {"in": ["LOW", "HIGH"]}}, ["Report", "Milk"]),
    ({"category": {"eq": "HOME"}}, ["Straße", "Milk"]),
    ({"category": {"notIn": ["HOME"]}}, ["Stamps", "Report"]),
    ({"dueDate": {"lt": "2020-01-02T00:00:00Z"}}, ["Milk"]),
    ({"dueDate": {"lte": "2020-01-02T01:00:00+01:00"}}, ["Stamps", "Milk"]),
    ({"dueDate": {"gt": "2020-01-02T00:00:00Z", "lt": "2030-01-01T00:00:00Z"}}, ["Straße"]),
    ({"dueDate": {"gte": "2020-01-02T00:00:00Z"}}, ["Straße", "Stamps", "Report"]),
    ({"dueDate": {"eq": "2020-01-03T02:00:00+02:00"}}, ["Straße"]),
    ({"dueDate": {"isNull": True}}, []),
    ({"dueDate": {"isNull": False}}, ALL_OF_ANN),
    ({"completedAt": {"isNull": False}}, ["Stamps"]),
    ({"completedAt": {"gt": "2000-01-01T00:00:00Z"}}, ["Stamps"]),
    ({"not": {"completedAt": {"gt": "2000-01-01T00:00:00Z"}}}, ["Straße", "Report", "Milk"]),
    ({"createdAt": {"gte": "2026-01-03T00:00:00Z"}}, ["Straße", "Stamps"]),
    ({"updatedAt": {"eq": "2026-01-29T00:00:00Z"}}, ["Milk"]),
    ({"overdue": True}, ["Straße", "Milk"]),
    ({"overdue": False}, ["Stamps", "Report"]),
    ({"overdue": None}, ALL_OF_ANN),
    ({"creator": {"isMe": True}}, ["Straße", "Report", "Milk"]),
    ({"creator": {"isMe": False}}, ["Stamps"]),
    ({"creator": {"id": {"eq": "@bob"}}}, ["Stamps"]),
    ({"creator": {"id": {"in": ["@boss", "@eve"]}}}, []),
    ({"assignee": {"isMe": True}}, ["Straße", "Stamps"]),
    ({"assignee": {"isMe": False}}, ["Report", "Milk"]),
    ({"assignee": {"isNull": True}}, ["Milk"]),
    ({"assignee": {"isNull": False, "isMe": False}}, ["Report"]),
    ({"assignee": {"id": {"ne": "@bob"}}}, ["Straße", "Stamps"]),
    ({"not": {"assignee": {"id": {"eq": "@bob"}}}}, ["Straße", "Stamps", "Milk"]),
    ({"search": "st"}, ["Straße", "Stamps"]),
    ({"search": "KEHR, strass!"}, ["Straße"]),
    ({"search": "bottles milk"}, ["Milk"]),
    ({"search": "ottles"}, []),
    ({"search": "milk OR report"}, []),
    ({"search": "' & | ! : * ( ) \""}, ALL_OF_ANN),
    ({"and": []}, ALL_OF_ANN),
    ({"and": [{"status": {"eq": "PENDING"}}, {"title": {"contains": "e"}}]}, []),
    ({"or": [{"status": {"eq": "PENDING"}}, {"title": {"contains": "e"}}]}, ["Straße", "Report", "Milk"]),
    ({"not": {}}, []),
    ({"not": None, "or": None, "and": None, "search": None}, ALL_OF_ANN),
    (
        {"or": [{"priority": {"eq": "HIGH"}}, {"not": {"overdue": False}}], "creator": {"isMe": True}},
        ["Straße", "Report", "Milk"],
    ),
]


@pytest.mark.slow
async def test_every_filter_finds_and_counts_the_same_tasks(api: Api, team: Team) -> None:
    for given, titles in FILTERS:
        data = await api.data(TITLES, {"filter": team.cast(given)}, by=team.ann)
        assert nodes(data["tasks"]) == titles, given
        assert data["tasks"]["totalCount"] == data["taskStats"]["total"] == len(titles), given


async def test_filters_may_also_be_literals_in_the_document(api: Api, team: Team) -> None:
    query = (
        '{ tasks(filter: {title: {in: ["milk"]}, or: [{overdue: true}, {not: {search: "x"}}]}) { nodes { title } } }'
    )
    assert nodes((await api.data(query, by=team.ann))["tasks"]) == ["Milk"]


ORDERS: list[tuple[list[dict[str, str]] | None, list[str]]] = [
    ([{"field": "CREATED_AT"}], ["Milk", "Report", "Stamps", "Straße"]),
    ([{"field": "CREATED_AT", "direction": "DESC"}], ALL_OF_ANN),
    ([{"field": "UPDATED_AT"}], ALL_OF_ANN),
    ([{"field": "DUE_DATE"}], ["Milk", "Stamps", "Straße", "Report"]),
    ([{"field": "DUE_DATE", "direction": "DESC"}], ["Report", "Straße", "Stamps", "Milk"]),
    ([{"field": "PRIORITY"}, {"field": "TITLE", "direction": "DESC"}], ["Milk", "Straße", "Stamps", "Report"]),
    ([{"field": "PRIORITY", "direction": "DESC"}, {"field": "TITLE"}], ["Report", "Stamps", "Straße", "Milk"]),
    ([{"field": "STATUS"}, {"field": "DUE_DATE"}], ["Milk", "Straße", "Report", "Stamps"]),
    ([{"field": "TITLE"}], ["Milk", "Report", "Stamps", "Straße"]),
    ([], ALL_OF_ANN),
    (None, ALL_OF_ANN),
]


async def test_every_order_sorts_tasks_and_an_empty_one_means_newest_first(api: Api, team: Team) -> None:
    for order, titles in ORDERS:
        assert nodes((await api.data(TASKS, {"orderBy": order}, by=team.ann))["tasks"]) == titles, order


# ---------------------------------------------------------------- visibility


async def test_members_see_their_own_tasks_and_admins_all(api: Api, team: Team) -> None:
    seen = {
        name: nodes((await api.data(TASKS, by=person))["tasks"])
        for name, person in {"ann": team.ann, "bob": team.bob, "eve": team.eve, "boss": team.boss}.items()
    }
    assert seen == {"ann": ALL_OF_ANN, "bob": ["Holidays", "Stamps", "Report"], "eve": [], "boss": ALL}


async def test_no_filter_finds_or_counts_an_invisible_task(api: Api, team: Team) -> None:
    every = [given for given, _ in FILTERS] + [
        {"id": {"in": [f"#{title}" for title in team.tasks]}},
        {"creator": {"id": {"eq": "@ann"}}},
        {"not": {"creator": {"isMe": True}}},
        {"or": [{}, {"not": {}}]},
    ]
    for given in every:
        found = await api.data(TITLES, {"filter": team.cast(given)}, by=team.eve)
        assert found == {"tasks": {"nodes": [], "totalCount": 0}, "taskStats": {"total": 0}}, given
    for given in every[len(FILTERS) :]:
        found = await api.data(TITLES, {"filter": team.cast(given)}, by=team.ann)
        assert set(nodes(found["tasks"])) <= set(ALL_OF_ANN), given


# Every path from the query to the tasks of another user.
PATHS = """
query($id: ID!, $task: ID!) {
  users(search: "bob") { nodes { ...Tasks } }
  user(id: $id) { ...Tasks }
  node(id: $id) { ... on User { ...Tasks } }
  nodes(ids: [$id]) { ... on User { ...Tasks } }
  task(id: $task) { creator { ...Tasks } assignee { assignedTasks { nodes { creator { ...Tasks } } } } }
}
fragment Tasks on User {
  username
  createdTasks { nodes { title } totalCount }
  assignedTasks { nodes { title } totalCount }
  pending: createdTasks(filter: {status: {eq: PENDING}}) { totalCount }
}
"""


def lists_in(answer: Any) -> Iterator[tuple[str, Any]]:
    """Every list of Bob's tasks at any depth, with its name."""
    if isinstance(answer, dict) and answer.get("username") == "bob":
        yield from ((name, page) for name, page in answer.items() if name != "username")
    elif isinstance(answer, dict | list):
        for value in answer.values() if isinstance(answer, dict) else answer:
            yield from lists_in(value)


async def test_no_path_shows_more_of_a_users_tasks_than_the_viewer_may_see(api: Api, team: Team) -> None:
    variables = team.cast({"id": "@bob", "task": "#Stamps"})
    expected = {
        "ann": {"createdTasks": ["Stamps"], "assignedTasks": ["Report"], "pending": 0},
        "eve": {"createdTasks": [], "assignedTasks": [], "pending": 0},
        "bob": {"createdTasks": ["Holidays", "Stamps"], "assignedTasks": ["Report"], "pending": 1},
        "boss": {"createdTasks": ["Holidays", "Stamps"], "assignedTasks": ["Report"], "pending": 1},
    }
    for name, lists in expected.items():
        found = list(lists_in(await api.data(PATHS, variables, by=getattr(team, name))))
        # Four paths lead to Bob. Viewers who see the task reach him twice more: as its creator, and as the creator of
        # the tasks assigned to its assignee.
        assert len(found) == 3 * (4 if name == "eve" else 6), name
        for field, page in found:
            if field == "pending":
                assert page == {"totalCount": lists["pending"]}
            else:
                assert (nodes(page), page["totalCount"]) == (lists[field], len(nodes(page))), (name, field)


async def test_queries_without_a_token_are_refused(api: Api, team: Team) -> None:
    for query in (TASKS, STATS, USERS):
        assert await api.codes(query) == ["UNAUTHENTICATED"]
    # Also when the list is below a user.
    assert await api.codes(TASKS_OF.replace("FIELD", "createdTasks"), {"id": team.ann.id}) == ["UNAUTHENTICATED"]


# ---------------------------------------------------------------- pages, and the lists of a user


def whole(titles: list[str], page: dict[str, Any], *, total: int, more: bool, earlier: bool) -> dict[str, Any]:
    """The expected page. Its cursors are taken from the page itself."""
    cursors = [edge["cursor"] for edge in page["edges"]]
    assert len(set(cursors)) == len(titles)
    return {
        "edges": [{"cursor": cursor, "node": {"title": title}} for cursor, title in zip(cursors, titles, strict=True)],
        "nodes": [{"title": title} for title in titles],
        "totalCount": total,
        "pageInfo": {
            "hasNextPage": more,
            "hasPreviousPage": earlier,
            "startCursor": cursors[0] if cursors else None,
            "endCursor": cursors[-1] if cursors else None,
        },
    }


@pytest.mark.parametrize("field", ["tasks", "createdTasks", "assignedTasks"])
async def test_every_list_of_tasks_takes_all_arguments(api: Api, database: Database, team: Team, field: str) -> None:
    owner = UUID(team.eve.id)
    # The filter removes two of these, in the middle of the others.
    names = ["Aa", "bb", "Cc", "dd", "Ee", "ff", "gg"]
    tasks = [
        make_task(id=uuid4(), title=name, creator_id=owner, assignee_id=owner, created_at=day(1 + number))
        for number, name in enumerate(names)
    ]
    async with database.write() as session:
        await insert_tasks(session, tasks)

    async def read(**arguments: Any) -> dict[str, Any]:
        given = {
            "filter": {"title": {"ne": "DD"}, "not": {"search": "ff"}},
            "orderBy": [{"field": "STATUS"}, {"field": "TITLE", "direction": "DESC"}],
            **arguments,
        }
        if field == "tasks":
            data = await api.data(TASKS, given, by=team.eve)
        else:
            query = TASKS_OF.replace("FIELD", field)
            data = (await api.data(query, {"id": team.eve.id, **given}, by=team.eve))["user"]
        page: dict[str, Any] = data[field]
        return page

    page = await read(first=2)
    assert page == whole(["gg", "Ee"], page, total=5, more=True, earlier=False)
    page = await read(first=2, after=page["pageInfo"]["endCursor"])
    assert page == whole(["Cc", "bb"], page, total=5, more=True, earlier=True)
    middle = page["pageInfo"]
    page = await read(first=2, after=middle["endCursor"])
    assert page == whole(["Aa"], page, total=5, more=False, earlier=True)
    page = await read(first=2, after=page["pageInfo"]["endCursor"])
    assert page == whole([], page, total=5, more=False, earlier=True)
    page = await read(last=2, before=middle["startCursor"])
    assert page == whole(["gg", "Ee"], page, total=5, more=True, earlier=False)
    page = await read(last=1)
    assert page == whole(["Aa"], page, total=5, more=False, earlier=True)
    page = await read(after=middle["startCursor"], before=middle["endCursor"])
    assert page == whole([], page, total=5, more=False, earlier=True)
    page = await read()
    assert page == whole(["gg", "Ee", "Cc", "bb", "Aa"], page, total=5, more=False, earlier=False)


async def test_nested_lists_continue_from_one_cursor_while_tasks_come_and_go(api: Api, team: Team) -> None:
    query = """
    query($after: String) {
      users(search: "") { nodes { username createdTasks(first: 2, after: $after, orderBy: [{field: TITLE}]) {
        nodes { id title } pageInfo { hasNextPage endCursor }
      } } }
    }
    """
    for name in ("Alpha", "Gamma", "Delta", "Omega"):
        for person in (team.eve, team.bob):
            await api.create_task(person, name)

    async def read(after: str | None) -> dict[str, dict[str, Any]]:
        users = (await api.data(query, {"after": after}, by=team.boss))["users"]["nodes"]
        return {user["username"]: user["createdTasks"] for user in users}

    pages = await read(None)
    assert {name: nodes(page) for name, page in pages.items()} == {
        "ann": ["Milk", "Report"],
        "bob": ["Alpha", "Delta"],
        "boss": ["Salaries"],
        "eve": ["Alpha", "Delta"],
    }
    # The task that the page ended with is deleted, one task is added before it and one after it.
    last = pages["eve"]["nodes"][-1]["id"]
    await api.data(f'mutation {{ deleteTask(input: {{id: "{last}"}}) {{ errors {{ code }} }} }}', by=team.eve)
    await api.create_task(team.eve, "Beta")
    await api.create_task(team.eve, "Epsilon")
    after = await read(pages["eve"]["pageInfo"]["endCursor"])
    assert {name: nodes(page) for name, page in after.items()} == {
        "ann": ["Milk", "Report"],
        # Bob's Delta has the same title as the deleted task and a later id, so it comes after the cursor.
        "bob": ["Delta", "Gamma"],
        "boss": ["Salaries"],
        "eve": ["Epsilon", "Gamma"],
    }
    assert after["eve"]["pageInfo"]["hasNextPage"] is True


# ---------------------------------------------------------------- statistics


def stats(**counts: Any) -> dict[str, Any]:
    """An answer of taskStats. Counts that are not given are 0."""
    plain = {name: counts.get(name, 0) for name in ("total", "pending", "inProgress", "completed", "overdue")}
    return {
        **plain,
        "byPriority": [{"priority": name, "count": counts.get(name, 0)} for name in ("LOW", "MEDIUM", "HIGH")],
        "byCategory": [
            {"category": name, "count": counts.get(name, 0)} for name in ("WORK", "PERSONAL", "HOME", "OTHER")
        ],
        "byStatus": [
            {"status": status, "count": counts.get(name, 0)}
            for status, name in (("PENDING", "pending"), ("IN_PROGRESS", "inProgress"), ("COMPLETED", "completed"))
        ],
    }


async def test_statistics_cover_the_visible_tasks(api: Api, team: Team) -> None:
    expected = {
        "ann": stats(
            total=4, pending=1, inProgress=2, completed=1, overdue=2, LOW=1, MEDIUM=2, HIGH=1, WORK=1, HOME=2, OTHER=1
        ),
        "bob": stats(total=3, pending=1, inProgress=1, completed=1, MEDIUM=1, HIGH=2, WORK=1, OTHER=2),
        "eve": stats(),
        "boss": stats(
            total=6, pending=2, inProgress=2, completed=2, overdue=2, LOW=1, MEDIUM=3, HIGH=2, WORK=2, HOME=2, OTHER=2
        ),
    }
    for name, answer in expected.items():
        assert await api.data(STATS, by=getattr(team, name)) == {"taskStats": answer}, name


async def test_statistics_cover_the_filtered_tasks(api: Api, team: Team) -> None:
    answer = await api.data(STATS, {"filter": {"overdue": True, "category": {"eq": "HOME"}}}, by=team.boss)
    assert answer == {"taskStats": stats(total=2, pending=1, inProgress=1, overdue=2, LOW=1, MEDIUM=1, HOME=2)}
    assert await api.data(STATS, {"filter": {"title": {"in": []}}}, by=team.boss) == {"taskStats": stats()}


BY_ASSIGNEE = """
query($filter: TaskFilter, $first: Int) {
  taskStats(filter: $filter) { byAssignee(first: $first) { assignee { username } count } }
}
"""


async def by_assignee(api: Api, by: Person, **variables: Any) -> list[tuple[str | None, int]]:
    entries = (await api.data(BY_ASSIGNEE, variables, by=by))["taskStats"]["byAssignee"]
    return [(entry["assignee"] and entry["assignee"]["username"], entry["count"]) for entry in entries]


async def test_statistics_name_the_people_with_most_of_the_visible_and_filtered_tasks(api: Api) -> None:
    ann, bob, cid, eve = [await api.register(name) for name in ("ann", "bob", "cid", "eve")]
    for assignee, count in ((cid, 1), (ann, 2), (bob, 2), (None, 2), (eve, 3)):
        for number in range(count):
            await api.create_task(ann, f"Task {number}", assigneeId=assignee and assignee.id)
    # Nobody stands after people with as many tasks, and people are ordered by id, which grows with time.
    everyone = [("eve", 3), ("ann", 2), ("bob", 2), (None, 2), ("cid", 1)]
    assert await by_assignee(api, ann) == everyone
    assert await by_assignee(api, ann, first=2) == everyone[:2]
    assert await by_assignee(api, bob) == [("bob", 2)]
    assert await by_assignee(api, cid, filter={"title": {"eq": "Task 1"}}) == []
    assert await by_assignee(api, ann, filter={"title": {"eq": "Task 2"}}) == [("eve", 1)]
    for first in (0, 101):
        assert await api.codes(BY_ASSIGNEE, {"first": first}, by=ann) == ["BAD_USER_INPUT"]


async def test_the_cursor_of_statistics_is_where_the_stream_stood_before_they_were_read(api: Api) -> None:
    read = "{ taskStats { total changesCursor } }"
    changes = "query($after: String!) { taskChanges(after: $after) { nodes { taskId } } }"
    ann = await api.register("ann")
    await api.create_task(ann)
    # This query answers once the task has its position.
    await api.data("{ tasks { nodes { history { nodes { id } } } } }", by=ann)
    stats = (await api.data(read, by=ann))["taskStats"]
    assert stats["total"] == 1
    later = await api.create_task(ann)
    told = await api.data(changes, {"after": stats["changesCursor"]}, by=ann)
    assert told == {"taskChanges": {"nodes": [{"taskId": later["id"]}]}}


# ---------------------------------------------------------------- users


async def test_users_are_found_by_prefixes_of_their_username_or_the_words_of_their_name(
    api: Api, database: Database
) -> None:
    people = {"maria": "Ana Öztürk", "ana_1": "Max Straßer", "zed": "Maria-Ana  O'Hara", "boss": "The Boss"}
    persons = {name: await api.register(name) for name in people}
    update = "mutation($name: String) { updateProfile(input: {fullName: $name}) { errors { code } } }"
    for name, full_name in people.items():
        await api.data(update, {"name": full_name}, by=persons[name])
    await make_admin(database, persons["boss"].id)
    deactivate = "mutation($id: ID!) { deactivateUser(input: {userId: $id}) { errors { code } } }"
    await api.data(deactivate, {"id": persons["zed"].id}, by=persons["boss"])

    for search, found in {
        None: ["ana_1", "boss", "maria"],
        "": ["ana_1", "boss", "maria"],
        "  ": ["ana_1", "boss", "maria"],
        "MA": ["ana_1", "maria"],
        "ana": ["ana_1", "maria"],
        # Other characters than letters separate words, but are part of a username.
        "ana_": ["ana_1", "maria"],
        "ana_1": ["ana_1"],
        " ana öz ": ["maria"],
        "ÖZ": ["maria"],
        "strasser": ["ana_1"],
        "ürk": [],
        # No wildcards.
        "a_a": [],
        "%": [],
        "_": [],
        "'": [],
        "x" * 5000: [],
    }.items():
        for by, also in ((persons["maria"], []), (persons["boss"], ["zed"])):
            expected = sorted(found + (also if search in (None, "", "  ", "MA", "ana", "ana_") else []))
            data = await api.data(USERS, {"search": search}, by=by)
            assert data == {
                "users": {"nodes": [{"username": name} for name in expected], "totalCount": len(expected)}
            }, search
    data = await api.data(USERS, {"search": "maria-ana o'h"}, by=persons["boss"])
    assert data["users"]["nodes"] == [{"username": "zed"}]


# ---------------------------------------------------------------- refusals


async def errors(api: Api, by: Person, query: str, variables: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    return await errors_of(api, by, json.dumps({"query": query, "variables": variables}))


async def errors_of(api: Api, by: Person, body: str) -> list[tuple[str, str]]:
    """The code and message of each error. Every request gets a GraphQL answer."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {by.token}"}
    response = await api.http.post("/graphql", content=body, headers=headers)
    assert response.status_code in (200, 400), response.text
    return [(error["extensions"]["code"], error["message"]) for error in response.json()["errors"]]


def bad(message: str) -> list[tuple[str, str]]:
    return [("BAD_USER_INPUT", message)]


SIZE = "must be from 1 to 100, not"
NOT_AN_ID = "is not an id: ids are UUIDs, as the server hands them out"
NOT_TEXT = "U+0000 and half surrogate pairs are in no text that is kept here"

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"first": 0}, f"first {SIZE} 0"),
    ({"first": -1}, f"first {SIZE} -1"),
    ({"first": 101}, f"first {SIZE} 101"),
    ({"last": 0}, f"last {SIZE} 0"),
    ({"last": 2**31 - 1}, f"last {SIZE} 2147483647"),
    ({"first": 1, "last": 1}, "Give first or last, not both"),
    ({"after": ""}, "after is not a cursor of this server"),
    ({"before": "no cursor"}, "before is not a cursor of this server"),
    ({"filter": {"or": []}}, "`or` needs at least one filter: of none, none can hold"),
    ({"filter": {"and": [{"not": {"or": []}}]}}, "`or` needs at least one filter: of none, none can hold"),
    ({"filter": {"id": {"eq": "1"}}}, f"'1' {NOT_AN_ID}"),
    ({"filter": {"id": {"in": [""]}}}, f"'' {NOT_AN_ID}"),
    ({"filter": {"creator": {"id": {"notIn": ["x" * 60]}}}}, f"'{'x' * 50}…' {NOT_AN_ID}"),
    ({"filter": {"assignee": {"id": {"ne": "null"}}}}, f"'null' {NOT_AN_ID}"),
    ({"filter": {"title": {"in": ["x"] * 501}}}, "A list of a filter may have at most 500 values"),
    ({"filter": {"status": {"notIn": ["PENDING"] * 501}}}, "A list of a filter may have at most 500 values"),
    (
        {"filter": {"and": [{"title": {"in": ["x"] * 500}}] * 11}},
        "The lists of a filter may have at most 5000 values together",
    ),
    ({"filter": {"or": [{"overdue": True}] * 201}}, "A filter may make at most 200 comparisons"),
    ({"filter": {"and": [{}] * 201}}, "A filter may make at most 200 comparisons"),
    ({"filter": {"search": " ".join(map(str, range(201)))}}, "A filter may make at most 200 comparisons"),
]


def nested(depth: int, *, by: str = "not") -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(depth - 1):
        made = {by: made if by == "not" else [made]}
    return made


@pytest.mark.parametrize("field", ["tasks", "createdTasks"])
async def test_every_list_of_tasks_refuses_invalid_arguments_with_a_message(api: Api, team: Team, field: str) -> None:
    query = TASKS if field == "tasks" else TASKS_OF.replace("FIELD", field)
    for given, message in REFUSED + [
        ({"filter": nested(11, by=by)}, "A filter may be nested at most 10 deep") for by in ("not", "and", "or")
    ]:
        variables = given if field == "tasks" else {"id": team.ann.id, **given}
        assert await errors(api, team.ann, query, variables) == bad(message), given
    # Values exactly at the limits are accepted.
    for filter_ in (
        nested(10),
        {"title": {"in": ["x"] * 500}},
        {"or": [{"overdue": True}] * 200},
        {"and": [{"title": {"in": ["x"] * 500}}] * 10},
    ):
        within = {"filter": filter_, "first": 100}
        variables = within if field == "tasks" else {"id": team.ann.id, **within}
        await api.data(query, variables, by=team.ann)


async def test_statistics_and_users_refuse_invalid_arguments_with_a_message(api: Api, team: Team) -> None:
    for given, message in REFUSED:
        if "filter" in given:
            assert await errors(api, team.ann, STATS, given) == bad(message), given
        else:
            query = "query($first: Int, $after: String, $last: Int, $before: String) {" + (
                " users(first: $first, after: $after, last: $last, before: $before) { totalCount } }"
            )
            assert await errors(api, team.ann, query, given) == bad(message), given


async def test_a_cursor_is_valid_only_in_its_order(api: Api, team: Team) -> None:
    async def cursor(query: str, **variables: Any) -> str:
        (data,) = (await api.data(query, variables, by=team.ann)).values()
        found: str = data["pageInfo"]["startCursor"]
        return found

    title = await cursor(TASKS, orderBy=[{"field": "TITLE"}])
    newest = await cursor(TASKS)
    person = await cursor("{ users { pageInfo { startCursor } } }")
    another = bad("after is a cursor of another ordering: start again without it")
    assert await errors(api, team.ann, TASKS, {"after": title}) == another
    assert await errors(api, team.ann, TASKS, {"after": person}) == another
    assert await errors(api, team.ann, TASKS, {"after": newest, "orderBy": [{"field": "CREATED_AT"}]}) == another
    assert await errors(api, team.ann, TASKS, {"after": newest, "orderBy": [{"field": "TITLE"}]}) == another
    assert await errors(api, team.ann, '{ users(after: "%s") { totalCount } }' % newest) == another  # noqa: UP031
    # The default order can be given explicitly, and a cursor is valid for every list in its order.
    same = {"after": newest, "orderBy": [{"field": "CREATED_AT", "direction": "DESC"}]}
    assert nodes((await api.data(TASKS, same, by=team.ann))["tasks"]) == ALL_OF_ANN[1:]
    of_bob = await api.data(
        TASKS_OF.replace("FIELD", "createdTasks"), {"id": team.bob.id, "after": newest}, by=team.ann
    )
    assert nodes(of_bob["user"]["createdTasks"]) == ["Stamps"]


def forged(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


async def test_a_forged_cursor_is_refused_or_acts_as_a_position(api: Api, team: Team) -> None:
    id = str(uuid4())
    keys: dict[str, list[Any]] = {
        "CREATED_AT": [0, -(10**18), 10**18, 10**30, 2**63, None, "x", 1.5, True, [], {}],
        "DUE_DATE": [None, 0, 10**30, "x"],
        "PRIORITY": [0, -1, 3, 2**31, 2**40, 2**63 - 1, -(2**63), 2**64, None, "LOW", 1.0],
        "TITLE": ["", "x" * 100_000, "\0", "\ud800", None, 1, "'"],
    }
    for field, values in keys.items():
        for value in values:
            cursor = forged(f"{field.lower()}:asc,id:asc", value, id)
            answer = await api.post(TASKS, {"orderBy": [{"field": field}], "after": cursor}, by=team.boss)
            if "errors" in answer:
                (error,) = answer["errors"]
                assert error["extensions"]["code"] == "BAD_USER_INPUT", (field, value, error)
                assert error["message"] == "after is not a cursor of this server"
            else:
                assert set(nodes(answer["data"]["tasks"])) <= set(ALL)
    for cursor in (
        forged(),
        forged("created_at:desc,id:desc"),
        forged("created_at:desc,id:desc", 0, 1),
        "W10",
        "e30",
        "MQ",
        "é",
    ):
        (error,) = await errors(api, team.ann, TASKS, {"after": cursor})
        assert error[0] == "BAD_USER_INPUT", cursor


async def test_an_endlessly_nested_filter_is_refused_everywhere(api: Api, team: Team) -> None:
    for by, depth in product(("not", "and", "or"), (11, 12, 100, 1000, 5000)):
        opening, closing = ("{%s: ", "}") if by == "not" else ("{%s: [", "]}")
        # Built as text: json.dumps() recurses, and would overflow the interpreter's stack.
        literal = (opening % by) * depth + "{}" + closing * depth
        variable = (opening % f'"{by}"') * depth + "{}" + closing * depth
        for body in (
            json.dumps({"query": f"{{ tasks(filter: {literal}) {{ totalCount }} }}"}),
            f'{{"query": {json.dumps(TASKS)}, "variables": {{"filter": {variable}}}}}',
        ):
            found = {code for code, _ in await errors_of(api, team.ann, body)}
            assert found <= {"BAD_USER_INPUT", "QUERY_TOO_COMPLEX", "GRAPHQL_PARSE_FAILED"}, (by, depth, found)
            assert found
    assert nodes((await api.data(TASKS, by=team.ann))["tasks"]) == ALL_OF_ANN


async def test_text_that_cannot_be_stored_is_refused_in_literals_too(api: Api, team: Team) -> None:
    for text in (r"a\u0000b", r"\u0000", r"\uD800", r"\uDC00\uD800"):
        for place in (
            f'tasks(filter: {{title: {{eq: "{text}"}}}}) {{ totalCount }}',
            f'tasks(filter: {{description: {{in: ["a", "{text}"]}}}}) {{ totalCount }}',
            f'tasks(filter: {{not: {{search: "{text}"}}}}) {{ totalCount }}',
            f'tasks(filter: {{id: {{eq: "{text}"}}}}) {{ totalCount }}',
            f'tasks(filter: {{dueDate: {{eq: "{text}"}}}}) {{ totalCount }}',
            f'tasks(after: "{text}") {{ totalCount }}',
            f'taskStats(filter: {{title: {{startsWith: "{text}"}}}}) {{ total }}',
            f'users(search: "{text}") {{ totalCount }}',
            f'me {{ createdTasks(filter: {{title: {{contains: "{text}"}}}}) {{ totalCount }} }}',
        ):
            found = {code for code, _ in await errors(api, team.ann, f"{{ {place} }}")}
            assert found <= {"BAD_USER_INPUT", "GRAPHQL_PARSE_FAILED", "GRAPHQL_VALIDATION_FAILED"}, (place, found)
            assert found


NO_FILTERS: list[Any] = [
    {"titel": {"eq": "x"}},
    {"title": "x"},
    {"title": {"eq": 1}},
    {"title": {"isNull": True}},
    {"status": {"eq": "DONE"}},
    {"status": {"in": [None]}},
    {"dueDate": {"eq": "2026-01-01"}},
    {"dueDate": {"eq": "2026-01-01T00:00:00"}},
    {"dueDate": {"lt": "0001-01-01T00:00:00+02:00"}},
    {"overdue": "yes"},
    {"or": [None]},
    {"creator": {"isMe": 1}},
    [],
    "x",
]


async def test_an_invalid_filter_is_a_bad_user_input(api: Api, team: Team) -> None:
    for filter_, query in product(NO_FILTERS, (TASKS, STATS)):
        found = await errors(api, team.ann, query, {"filter": filter_})
        assert {code for code, _ in found} == {"BAD_USER_INPUT"}, (filter_, found)


async def test_long_texts_in_filters_are_accepted(api: Api, team: Team) -> None:
    for filter_, titles in (
        ({"search": "milk " * 100_000}, ["Milk"]),
        ({"search": "x" * 900_000}, []),
        ({"not": {"title": {"contains": "ß" * 400_000}}}, ALL_OF_ANN),
        ({"title": {"eq": "x" * 900_000}}, []),
    ):
        assert nodes((await api.data(TITLES, {"filter": filter_}, by=team.ann))["tasks"]) == titles
