"""`changesCursor` of a list read in several pages: each page has the first page's, so that no change is lost."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from taskflow_gql.database.units import Database
from taskflow_gql.models import StreamState
from tests.support.client import Api, Person
from tests.support.factories import noting_statements

CONNECTION = """
  edges { cursor node { id title } } pageInfo { startCursor endCursor hasNextPage hasPreviousPage }
"""
ARGUMENTS = "first: $first, after: $after, last: $last, before: $before"
VARIABLES = "($first: Int, $after: String, $last: Int, $before: String)"
# The three fields that list tasks, each with the path to its connection.
LISTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "tasks": (f"query{VARIABLES} {{ tasks({ARGUMENTS}) {{ SELECTED }} }}", lambda data: data["tasks"]),
    "createdTasks": (
        f"query{VARIABLES} {{ me {{ createdTasks({ARGUMENTS}) {{ SELECTED }} }} }}",
        lambda data: data["me"]["createdTasks"],
    ),
    "assignedTasks": (
        f"query{VARIABLES} {{ me {{ assignedTasks({ARGUMENTS}) {{ SELECTED }} }} }}",
        lambda data: data["me"]["assignedTasks"],
    ),
}
CHANGES = "query($after: String!) { taskChanges(after: $after) { nodes { task { title } } } }"
CHANGED = "subscription($after: String) { taskChanged(after: $after) { task { title } } }"

every_list = pytest.mark.parametrize("name", LISTS)


async def read(api: Api, by: Person, name: str = "tasks", *, selects: bool = True, **arguments: Any) -> dict[str, Any]:
    """Read a page, with `changesCursor` if `selects`."""
    query, found = LISTS[name]
    selected = f"changesCursor {CONNECTION}" if selects else CONNECTION
    page: dict[str, Any] = found(await api.data(query.replace("SELECTED", selected), arguments, by=by))
    return page


async def change(api: Api, by: Person, page: dict[str, Any], place: int, title: str) -> None:
    """Change a task, and return once the change has its position in the stream."""
    payload = await api.update_task(by, page["edges"][place]["node"]["id"], title=title)
    assert payload["errors"] == []
    await api.data(CHANGES, {"after": page["changesCursor"]}, by=by)


async def fill(api: Api) -> Person:
    ann = await api.register("ann")
    for number in range(6):
        await api.create_task(ann, f"Task {number}", assigneeId=ann.id)
    # This query answers once all of them have their positions.
    await titles_since(api, ann, (await read(api, ann))["changesCursor"])
    return ann


async def titles_since(api: Api, by: Person, cursor: str) -> list[str]:
    return [
        node["task"]["title"] for node in (await api.data(CHANGES, {"after": cursor}, by=by))["taskChanges"]["nodes"]
    ]


def decode(cursor: str) -> list[Any]:
    parts: list[Any] = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return parts


def encode(parts: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode().rstrip("=")


@every_list
async def test_all_pages_of_a_list_have_the_first_pages_changes_cursor(api: Api, name: str) -> None:
    ann = await fill(api)
    first = await read(api, ann, name, first=2)
    await change(api, ann, first, 0, "Changed between the pages")
    second = await read(api, ann, name, first=2, after=first["pageInfo"]["endCursor"])
    await change(api, ann, second, 1, "Changed between the later pages")
    third = await read(api, ann, name, first=2, after=second["edges"][1]["cursor"])
    assert first["changesCursor"] == second["changesCursor"] == third["changesCursor"]
    assert [edge["node"]["title"] for edge in second["edges"] + third["edges"]] == [f"Task {n}" for n in (3, 2, 1, 0)]
    between = ["Changed between the pages", "Changed between the later pages"]
    assert await titles_since(api, ann, third["changesCursor"]) == between
    async with api.signed_in_socket(ann) as socket:
        await socket.subscribe(CHANGED, variables={"after": third["changesCursor"]})
        assert [(await socket.next())["taskChanged"]["task"]["title"] for _ in between] == between
    # A list begun now gets a new cursor.
    assert await titles_since(api, ann, (await read(api, ann, name, first=2))["changesCursor"]) == []


@every_list
async def test_pages_read_backwards_also_keep_the_first_changes_cursor(api: Api, name: str) -> None:
    ann = await fill(api)
    last = await read(api, ann, name, last=2)
    await change(api, ann, last, 0, "Changed between the pages")
    middle = await read(api, ann, name, last=2, before=last["pageInfo"]["startCursor"])
    first = await read(api, ann, name, last=2, before=middle["edges"][0]["cursor"])
    assert first["changesCursor"] == middle["changesCursor"] == last["changesCursor"]
    assert [edge["node"]["title"] for edge in first["edges"]] == ["Task 5", "Task 4"]
    assert await titles_since(api, ann, first["changesCursor"]) == ["Changed between the pages"]


async def test_a_page_between_two_cursors_gets_the_older_changes_cursor(api: Api) -> None:
    ann = await fill(api)
    older = await read(api, ann, first=1)
    await change(api, ann, older, 0, "Changed")
    newer = await read(api, ann, last=1)
    assert older["changesCursor"] != newer["changesCursor"]
    between = await read(
        api, ann, after=older["pageInfo"]["endCursor"], before=newer["pageInfo"]["startCursor"], first=100
    )
    assert (len(between["edges"]), between["changesCursor"]) == (4, older["changesCursor"])
    # The same with the older cursor as `before`.
    between = await read(
        api, ann, after=newer["pageInfo"]["startCursor"], before=older["pageInfo"]["endCursor"], first=100
    )
    assert (between["edges"], between["changesCursor"]) == ([], older["changesCursor"])


async def test_a_page_that_does_not_select_changes_cursor_passes_it_on(api: Api) -> None:
    ann = await fill(api)
    first = await read(api, ann, first=2)
    await change(api, ann, first, 0, "Changed between the pages")
    second = await read(api, ann, selects=False, first=2, after=first["pageInfo"]["endCursor"])
    third = await read(api, ann, first=2, after=second["pageInfo"]["endCursor"])
    assert third["changesCursor"] == first["changesCursor"]


async def test_cursors_without_a_stream_position_are_unchanged_and_start_now(api: Api) -> None:
    ann = await fill(api)
    plain = await read(api, ann, selects=False, first=2)
    assert [len(decode(edge["cursor"])) for edge in plain["edges"]] == [3, 3]
    assert plain == await read(api, ann, selects=False, first=2)
    carrying = await read(api, ann, first=2)
    assert [decode(edge["cursor"])[:3] for edge in carrying["edges"]] == [
        decode(edge["cursor"]) for edge in plain["edges"]
    ]
    await change(api, ann, carrying, 0, "Changed between the pages")
    second = await read(api, ann, first=2, after=plain["pageInfo"]["endCursor"])
    assert [edge["node"]["title"] for edge in second["edges"]] == ["Task 3", "Task 2"]
    assert await titles_since(api, ann, second["changesCursor"]) == []


async def test_the_edge_of_a_new_task_has_no_stream_position(api: Api) -> None:
    ann = await fill(api)
    first = await read(api, ann, first=2)
    create = """mutation { createTask(input: {title: "Newest"}) { taskEdge { cursor } errors { code } } }"""
    edge = (await api.data(create, by=ann))["createTask"]["taskEdge"]
    assert len(decode(edge["cursor"])) == 3
    page = await read(api, ann, first=2, after=edge["cursor"])
    assert [edge["node"] for edge in page["edges"]] == [edge["node"] for edge in first["edges"]]


async def test_later_pages_need_no_statement_for_changes_cursor(api: Api) -> None:
    ann = await fill(api)
    end = (await read(api, ann, first=2))["pageInfo"]["endCursor"]
    plain_end = (await read(api, ann, selects=False, first=2))["pageInfo"]["endCursor"]

    async def state_reads(**arguments: Any) -> int:
        # The relay and the fan-out read the state too, in statements that also read events.
        noted: list[str] = []
        with noting_statements(noted.append):
            await read(api, ann, **arguments)
        return sum("stream_state" in statement and "events" not in statement for statement in noted)

    assert await state_reads(first=2) == 1
    assert await state_reads(first=2, after=plain_end) == 1
    assert await state_reads(first=2, after=end) == 0
    assert await state_reads(selects=False, first=2) == 0
    assert await state_reads(selects=False, first=2, after=end) == 0


async def test_pages_stay_readable_when_their_stream_position_is_useless(api: Api, database: Database) -> None:
    ann = await fill(api)
    first = await read(api, ann, first=2)
    *keys, place = decode(first["pageInfo"]["endCursor"])
    stream_id, position = place.split(":")
    codes = "query($after: String!) { taskChanges(after: $after) { nodes { kind } } }"
    for made, code in (
        (f"{'0' * 16}:{position}", "BAD_USER_INPUT"),
        (f"{stream_id}:{10**17}", "BAD_USER_INPUT"),
        (f"{stream_id}:0", "CURSOR_EXPIRED"),
    ):
        if code == "CURSOR_EXPIRED":
            async with database.write() as session:
                await session.execute(update(StreamState).values(expired_position=1))
        second = await read(api, ann, first=2, after=encode([*keys, made]))
        assert [edge["node"]["title"] for edge in second["edges"]] == ["Task 3", "Task 2"]
        assert [decode(edge["cursor"])[-1] for edge in second["edges"]] == [made, made]
        assert await api.codes(codes, {"after": second["changesCursor"]}, by=ann) == [code]
    query = LISTS["tasks"][0].replace("SELECTED", CONNECTION)
    assert await api.codes(query, {"after": encode([*keys, "garbage"])}, by=ann) == ["BAD_USER_INPUT"]
    two = {"after": first["pageInfo"]["endCursor"], "before": encode([*keys, f"{'0' * 16}:1"])}
    assert await api.codes(query, two, by=ann) == ["BAD_USER_INPUT"]
