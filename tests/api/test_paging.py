"""Pages of tasks and users: every way through a list, and every kind of invalid cursor."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from tests.support.client import Api, Person
from tests.support.factories import make_task, make_user, make_viewer, noting_statements
from tests.support.serving import make_admin

PAGE = """
query($first: Int, $after: String, $last: Int, $before: String) {
  FIELD(first: $first, after: $after, last: $last, before: $before) {
    edges { cursor node { id } } nodes { id }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}
"""


async def read(api: Api, by: Person, field: str, **arguments: Any) -> dict[str, Any]:
    """Read a page, and check what holds for every page."""
    page: dict[str, Any] = (await api.data(PAGE.replace("FIELD", field), arguments, by=by))[field]
    assert page["nodes"] == [edge["node"] for edge in page["edges"]]
    assert page["pageInfo"]["startCursor"] == (page["edges"][0]["cursor"] if page["edges"] else None)
    assert page["pageInfo"]["endCursor"] == (page["edges"][-1]["cursor"] if page["edges"] else None)
    return page


def ids(page: dict[str, Any]) -> list[str]:
    return [node["id"] for node in page["nodes"]]


async def tie(session: DatabaseSession) -> None:
    """Give all tasks the same creation time."""
    await session.execute(text("UPDATE tasks SET created_at = (SELECT min(created_at) FROM tasks)"))


async def fill(api: Api, database: Database, field: str, size: int) -> Person:
    """Fill a list to this size, and return a person who sees it."""
    ann = await api.register("ann")
    async with database.write() as session:
        if field == "users":
            for n in range(size - 1):
                await make_user(session, f"user{n}")
        else:
            for n in range(size):
                await make_task(session, make_viewer(ann.id), f"Task {n}")
            await tie(session)
    return ann


both_lists = pytest.mark.parametrize("field", ["tasks", "users"])


@both_lists
async def test_every_row_is_on_exactly_one_page_forwards_and_backwards(
    api: Api, database: Database, field: str
) -> None:
    ann = await fill(api, database, field, 7)
    whole = ids(await read(api, ann, field))
    assert len(set(whole)) == 7
    for size in (1, 2, 3, 6, 7, 8):
        forwards: list[str] = []
        page = await read(api, ann, field, first=size)
        while True:
            forwards += ids(page)
            assert len(page["nodes"]) == size or not page["pageInfo"]["hasNextPage"]
            if not page["pageInfo"]["hasNextPage"]:
                break
            page = await read(api, ann, field, first=size, after=page["pageInfo"]["endCursor"])
        assert forwards == whole, size

        backwards: list[str] = []
        page = await read(api, ann, field, last=size)
        while True:
            backwards = ids(page) + backwards
            if not page["pageInfo"]["hasPreviousPage"]:
                break
            page = await read(api, ann, field, last=size, before=page["pageInfo"]["startCursor"])
        assert backwards == whole, size


# (arguments, with indexes into a list of five in place of cursors; indexes on the page; hasNextPage; hasPreviousPage)
PAGES: list[tuple[dict[str, Any], list[int], bool, bool]] = [
    ({}, [0, 1, 2, 3, 4], False, False),
    ({"first": 2}, [0, 1], True, False),
    ({"first": 5}, [0, 1, 2, 3, 4], False, False),
    ({"first": 100}, [0, 1, 2, 3, 4], False, False),
    ({"first": 2, "after": 1}, [2, 3], True, True),
    ({"first": 2, "after": 2}, [3, 4], False, True),
    ({"after": 2}, [3, 4], False, True),
    ({"first": 2, "after": 4}, [], False, True),
    ({"last": 2}, [3, 4], False, True),
    ({"last": 5}, [0, 1, 2, 3, 4], False, False),
    ({"last": 2, "before": 3}, [1, 2], True, True),
    ({"last": 3, "before": 3}, [0, 1, 2], True, False),
    ({"before": 3}, [0, 1, 2], True, False),
    ({"last": 5, "before": 0}, [], True, False),
    ({"first": 2, "before": 3}, [0, 1], True, False),
    ({"first": 2, "after": 0, "before": 4}, [1, 2], True, True),
    ({"last": 2, "after": 0, "before": 4}, [2, 3], True, True),
    ({"last": 2, "after": 1}, [3, 4], False, True),
    ({"first": 2, "after": 3, "before": 1}, [], False, True),
    ({"first": None, "last": 1, "after": None, "before": None}, [4], False, True),
]


@both_lists
async def test_each_combination_of_arguments_gives_the_right_page(api: Api, database: Database, field: str) -> None:
    ann = await fill(api, database, field, 5)
    edges = (await read(api, ann, field))["edges"]
    for arguments, places, has_next, has_previous in PAGES:
        given = {
            name: edges[value]["cursor"] if name in ("after", "before") and value is not None else value
            for name, value in arguments.items()
        }
        page = await read(api, ann, field, **given)
        assert page["edges"] == [edges[place] for place in places], arguments
        found = (page["pageInfo"]["hasNextPage"], page["pageInfo"]["hasPreviousPage"])
        assert found == (has_next, has_previous), arguments


@both_lists
async def test_the_default_page_size_is_50(api: Api, database: Database, field: str) -> None:
    ann = await fill(api, database, field, 51)
    page = await read(api, ann, field)
    assert (len(page["nodes"]), page["pageInfo"]["hasNextPage"]) == (50, True)
    whole = (await read(api, ann, field, first=100))["nodes"]
    assert whole[:50] == page["nodes"]
    assert (await read(api, ann, field, after=page["pageInfo"]["endCursor"]))["nodes"] == whole[50:]


@both_lists
async def test_a_bad_page_size_is_refused_with_a_message(api: Api, database: Database, field: str) -> None:
    ann = await fill(api, database, field, 2)
    cursor = (await read(api, ann, field, first=1))["pageInfo"]["endCursor"]
    for arguments, message in (
        ({"first": 0}, "first must be from 1 to 100, not 0"),
        ({"first": 101}, "first must be from 1 to 100, not 101"),
        ({"first": -1}, "first must be from 1 to 100, not -1"),
        ({"first": 2**31 - 1}, "first must be from 1 to 100, not 2147483647"),
        ({"last": 0}, "last must be from 1 to 100, not 0"),
        ({"last": 101}, "last must be from 1 to 100, not 101"),
        ({"last": -(2**31)}, "last must be from 1 to 100, not -2147483648"),
        ({"first": 1, "last": 1}, "Give first or last, not both"),
        ({"first": 1, "last": 1, "after": cursor}, "Give first or last, not both"),
    ):
        assert await refusal(api, ann, field, **arguments) == message
    not_an_int: list[Any] = [2**31, 1.5, "1", True, [1], {}]
    for value in not_an_int:
        codes = await api.codes(PAGE.replace("FIELD", field), {"first": value}, by=ann)
        assert codes == ["BAD_USER_INPUT"], value


async def refusal(api: Api, by: Person, field: str, **arguments: Any) -> str:
    """The message of the BAD_USER_INPUT error."""
    answer = await api.post(PAGE.replace("FIELD", field), arguments, by=by)
    assert answer["data"] is None, arguments
    (error,) = answer["errors"]
    assert (error["extensions"], error["path"]) == ({"code": "BAD_USER_INPUT"}, [field]), arguments
    message: str = error["message"]
    return message


def encode(value: object) -> str:
    plain = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(plain).decode().rstrip("=")


def decode(cursor: str) -> list[Any]:
    parts: list[Any] = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return parts


@both_lists
async def test_a_cursor_of_another_list_or_order_is_refused(api: Api, database: Database, field: str) -> None:
    ann = await fill(api, database, field, 2)
    await api.create_task(ann)
    other = "users" if field == "tasks" else "tasks"
    foreign = (await read(api, ann, other, first=1))["pageInfo"]["endCursor"]
    order, *keys = decode((await read(api, ann, field, first=1))["pageInfo"]["endCursor"])
    for cursor in (foreign, encode([order.swapcase(), *keys]), encode([f"{order},id:asc", *keys]), encode(["", *keys])):
        for argument in ("after", "before"):
            message = f"{argument} is a cursor of another ordering: start again without it"
            assert await refusal(api, ann, field, **{argument: cursor}) == message


@both_lists
async def test_a_malformed_cursor_is_refused(api: Api, database: Database, field: str) -> None:
    # tests/services/test_paging.py has many more. These have gone through JSON and GraphQL.
    ann = await fill(api, database, field, 2)
    good = (await read(api, ann, field, first=1))["pageInfo"]["endCursor"]
    order, *keys = decode(good)
    assert encode([order, *keys]) == good
    for cursor in (
        "",
        "%%%",
        "\N{GRINNING FACE}",
        good[:-3],
        f"{good}AAAA",
        "A" * 50_000,
        encode(b"[" * 5000),
        encode([]),
        encode([order, *keys[:-1], "\x00"]),
        encode([order, *keys[:-1], "\ud800"]),
        encode([order, *keys[:-1], 10**400]),
    ):
        for argument in ("after", "before"):
            assert await refusal(api, ann, field, **{argument: cursor}) == f"{argument} is not a cursor of this server"


async def test_the_minimum_and_maximum_datetime_work_in_cursors(api: Api, database: Database) -> None:
    ann = await fill(api, database, "tasks", 2)
    order, _, key = decode((await read(api, ann, "tasks", first=1))["pageInfo"]["endCursor"])
    whole = (await read(api, ann, "tasks"))["nodes"]
    first_moment, last_moment = -62135596800 * 10**6, 253402300800 * 10**6 - 1
    for moment, after, before in ((first_moment, [], whole), (last_moment, whole, [])):
        cursor = encode([order, moment, key])
        assert (await read(api, ann, "tasks", after=cursor))["nodes"] == after
        assert (await read(api, ann, "tasks", before=cursor))["nodes"] == before
        assert await refusal(api, ann, "tasks", after=encode([order, moment * 2, key]))


async def test_pages_stay_stable_while_rows_are_added_and_deleted(api: Api, database: Database) -> None:
    ann = await fill(api, database, "tasks", 12)
    edges = (await read(api, ann, "tasks"))["edges"]
    # Every third row is deleted while we page: some ahead of us, some behind us, one that our cursor names.
    doomed = [edge["node"]["id"] for edge in edges[1::3]]
    seen: list[str] = []
    page = await read(api, ann, "tasks", first=2)
    while True:
        seen += ids(page)
        if not page["pageInfo"]["hasNextPage"]:
            break
        if doomed:
            task_id = doomed.pop(0)
            await api.data(f'mutation {{ deleteTask(input: {{id: "{task_id}"}}) {{ errors {{ code }} }} }}', by=ann)
        await api.create_task(ann, title="Newcomer")
        page = await read(api, ann, "tasks", first=2, after=page["pageInfo"]["endCursor"])
    untouched = [edge["node"]["id"] for place, edge in enumerate(edges) if place % 3 != 1]
    assert [task_id for task_id in seen if task_id in untouched] == untouched
    assert len(set(seen)) == len(seen)
    # New tasks sort before all of these, so a reader who goes on from the top does not meet them.
    assert set(seen) <= {edge["node"]["id"] for edge in edges}


async def test_total_count_covers_the_whole_list_and_is_computed_only_if_selected(api: Api, database: Database) -> None:
    ann, bob = await fill(api, database, "tasks", 5), await api.register("bob")
    await api.create_task(bob)
    for person, tasks in ((ann, 5), (bob, 1)):
        assert (await api.data("{ tasks(first: 1) { totalCount } }", by=person))["tasks"] == {"totalCount": tasks}
        assert (await api.data("{ users(first: 1) { totalCount } }", by=person))["users"] == {"totalCount": 2}
    for field in ("tasks", "users"):
        with statements() as executed:
            await api.data(f"{{ {field} {{ nodes {{ id }} }} }}", by=ann)
        assert executed != []
        assert [statement for statement in executed if "count(" in statement] == []


@pytest.mark.usefixtures("completion_in_one_part")
async def test_a_page_of_50_costs_as_many_statements_as_a_page_of_1(api: Api, database: Database) -> None:
    boss = await api.register("boss")
    await make_admin(database, boss.id)
    async with database.write() as session:
        people = [await make_user(session, f"user{n}") for n in range(50)]
        for n, creator in enumerate(people):
            await make_task(session, make_viewer(creator.id), assignee_id=people[n - 7].id)
    query = """query($first: Int) {
      tasks(first: $first) { nodes { title creator { username email } assignee { username email } } }
      again: tasks(first: $first) { edges { cursor node { creator { id } assignee { id } } } pageInfo { endCursor } }
    }"""
    counts = {}
    for size in (1, 50):
        with statements() as executed:
            data = await api.data(query, {"first": size}, by=boss)
        assert len(data["tasks"]["nodes"]) == len(data["again"]["edges"]) == size
        counts[size] = len(executed)
    assert counts[50] == counts[1]
    # The token check, the two pages, and at most the users of each page.
    assert counts[1] <= 5


# In the statements of relay, fan-out, retention and mail.
_BESIDE_REQUESTS = ("events", "stream_state", "DELETE", "outgoing_mails", "password_reset")


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements executed meanwhile, without those of what runs beside the requests."""
    executed: list[str] = []

    def note(statement: str) -> None:
        if not any(word in statement for word in _BESIDE_REQUESTS):
            executed.append(statement)

    with noting_statements(note):
        yield executed
