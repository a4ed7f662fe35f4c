"""`changesCursor` of a list of several pages: each page has the first page's, so no change between them is lost."""

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
# The three fields that list tasks, each with the way to its connection.
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
    """A page; `selects`: with `changesCursor`."""
    query, found = LISTS[name]
    selected = f"changesCursor {CONNECTION}" if selects else CONNECTION
    page: dict[str, Any] = found(await api.data(query.replace("SELECTED", selected), arguments, by=by))
    return page


async def change(api: Api, by: Person, page: dict[str, Any], place: int, title: str) -> None:
    """A change that has its place in the stream when this returns."""
    payload = await api.update_task(by, page["edges"][place]["node"]["id"], title=title)
    assert payload["errors"] == []
    await api.data(CHANGES, {"after": page["changesCursor"]}, by=by)


async def fill(api: Api) -> Person:
    ann = await api.register("ann")
    for number in range(6):
        await api.create_task(ann, f"Task {number}", assigneeId=ann.id)
    # Answered when all of them have their places in the stream.
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
async def test_the_pages_of_a_list_have_its_first_pages_changes_cursor(api: Api, name: str) -> None:
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
    # A list that is begun now is begun now.
    assert await titles_since(api, ann, (await read(api, ann, name, first=2))["changesCursor"]) == []


@every_list
async def test_the_pages_of_a_list_that_is_read_backwards_have_it_too(api: Api, name: str) -> None:
    ann = await fill(api)
    last = await read(api, ann, name, last=2)
    await change(api, ann, last, 0, "Changed between the pages")
    middle = await read(api, ann, name, last=2, before=last["pageInfo"]["startCursor"])
    first = await read(api, ann, name, last=2, before=middle["edges"][0]["cursor"])
    assert first["changesCursor"] == middle["changesCursor"] == last["changesCursor"]
    assert [edge["node"]["title"] for edge in first["edges"]] == ["Task 5", "Task 4"]
    assert await titles_since(api, ann, first["changesCursor"]) == ["Changed between the pages"]


async def test_between_two_cursors_the_older_place_counts(api: Api) -> None:
    ann = await fill(api)
    older = await read(api, ann, first=1)
    await change(api, ann, older, 0, "Changed")
    newer = await read(api, ann, last=1)
    assert older["changesCursor"] != newer["changesCursor"]
    between = await read(
        api, ann, after=older["pageInfo"]["endCursor"], before=newer["pageInfo"]["startCursor"], first=100
    )
    assert (len(between["edges"]), between["changesCursor"]) == (4, older["changesCursor"])
    # And the other way round, from the end of the list that was read first.
    between = await read(
        api, ann, after=newer["pageInfo"]["startCursor"], before=older["pageInfo"]["endCursor"], first=100
    )
    assert (between["edges"], between["changesCursor"]) == ([], older["changesCursor"])


async def test_a_page_without_changes_cursor_hands_the_place_on(api: Api) -> None:
    ann = await fill(api)
    first = await read(api, ann, first=2)
    await change(api, ann, first, 0, "Changed between the pages")
    second = await read(api, ann, selects=False, first=2, after=first["pageInfo"]["endCursor"])
    third = await read(api, ann, first=2, after=second["pageInfo"]["endCursor"])
    assert third["changesCursor"] == first["changesCursor"]


async def test_cursors_without_a_place_are_as_before_and_start_now(api: Api) -> None:
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


async def test_the_edge_of_a_new_task_has_no_place(api: Api) -> None:
    ann = await fill(api)
    first = await read(api, ann, first=2)
    create = """mutation { createTask(input: {title: "Newest"}) { taskEdge { cursor } errors { code } } }"""
    edge = (await api.data(create, by=ann))["createTask"]["taskEdge"]
    assert len(decode(edge["cursor"])) == 3
    page = await read(api, ann, first=2, after=edge["cursor"])
    assert [edge["node"] for edge in page["edges"]] == [edge["node"] for edge in first["edges"]]


async def test_places_cost_no_statement_and_later_pages_need_none(api: Api) -> None:
    ann = await fill(api)
    end = (await read(api, ann, first=2))["pageInfo"]["endCursor"]
    plain_end = (await read(api, ann, selects=False, first=2))["pageInfo"]["endCursor"]

    async def state_reads(**arguments: Any) -> int:
        # Relay and fan-out read the events too, in statements of their own.
        noted: list[str] = []
        with noting_statements(noted.append):
            await read(api, ann, **arguments)
        return sum("stream_state" in statement and "events" not in statement for statement in noted)

    assert await state_reads(first=2) == 1
    assert await state_reads(first=2, after=plain_end) == 1
    assert await state_reads(first=2, after=end) == 0
    assert await state_reads(selects=False, first=2) == 0
    assert await state_reads(selects=False, first=2, after=end) == 0


async def test_a_place_that_is_of_no_use_leaves_the_pages_readable(api: Api, database: Database) -> None:
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
