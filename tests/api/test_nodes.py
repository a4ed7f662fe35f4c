"""serverInfo, node, nodes."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from taskflow_gql import __version__
from taskflow_gql.database.units import Database
from tests.support.client import Api, Person
from tests.support.serving import make_admin

NODE = "query($id: ID!) { node(id: $id) { id __typename ... on Task { title } ... on User { username } } }"
NODES = "query($ids: [ID!]!) { nodes(ids: $ids) { id __typename ... on Task { title } ... on User { username } } }"


async def nodes(api: Api, by: Person, *ids: str) -> list[dict[str, Any] | None]:
    found: list[dict[str, Any] | None] = (await api.data(NODES, {"ids": ids}, by=by))["nodes"]
    return found


async def test_server_info_is_public(api: Api) -> None:
    info = {"serverInfo": {"name": "TaskFlow GQL", "version": __version__}}
    assert await api.data("{ serverInfo { name version } }") == info
    assert await api.post("{ serverInfo { name version } }", by="rubbish") == {"data": info}


async def test_node_and_nodes_require_authentication(api: Api) -> None:
    ann = await api.register("ann")
    for by in (None, "rubbish"):
        assert await api.codes(NODE, {"id": ann.id}, by=by) == ["UNAUTHENTICATED"]
        answer = await api.post(NODES, {"ids": [ann.id]}, by=by)
        assert answer["data"] is None
        assert [error["extensions"] for error in answer["errors"]] == [{"code": "UNAUTHENTICATED"}]


async def test_node_finds_only_what_the_viewer_may_see(api: Api, database: Database) -> None:
    ann, bob, eve, boss = [await api.register(name) for name in ("ann", "bob", "eve", "boss")]
    await make_admin(database, boss.id)
    task = await api.create_task(ann, title="Secret", assigneeId=bob.id)
    shown = {"id": task["id"], "__typename": "Task", "title": "Secret"}
    for person, expected in ((ann, shown), (bob, shown), (eve, None), (boss, shown)):
        assert await api.data(NODE, {"id": task["id"]}, by=person) == {"node": expected}
        user = {"id": bob.id, "__typename": "User", "username": "bob"}
        assert await api.data(NODE, {"id": bob.id}, by=person) == {"node": user}
        assert await api.data(NODE, {"id": str(uuid4())}, by=person) == {"node": None}


async def test_nodes_keep_the_order_and_repetitions_of_the_ids(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    mine = await api.create_task(ann, title="Mine")
    theirs = await api.create_task(bob, title="Theirs")
    user = {"id": bob.id, "__typename": "User", "username": "bob"}
    task = {"id": mine["id"], "__typename": "Task", "title": "Mine"}
    ids = [bob.id, mine["id"], theirs["id"], str(uuid4()), mine["id"].upper(), bob.id, mine["id"]]
    assert await nodes(api, ann, *ids) == [user, task, None, None, task, user, task]
    assert await nodes(api, ann) == []


async def test_an_invalid_id_is_refused(api: Api) -> None:
    ann = await api.register("ann")
    for wrong in ("", "7", f"{ann.id}x", f" {ann.id}", ann.id.replace("-", ""), "x" * 10_000):
        assert await api.codes(NODE, {"id": wrong}, by=ann) == ["BAD_USER_INPUT"]
        answer = await api.post(NODES, {"ids": [ann.id, wrong]}, by=ann)
        assert answer["data"] is None
        (error,) = answer["errors"]
        shown = wrong if len(wrong) <= 50 else f"{wrong[:50]}…"
        assert error["message"] == f"{shown!r} is not an id: ids are UUIDs, as the server hands them out"
        assert error["extensions"] == {"code": "BAD_USER_INPUT"}
    for not_a_list in (None, [None], {"id": ann.id}, 1.5):
        assert await api.codes(NODES, {"ids": not_a_list}, by=ann) == ["BAD_USER_INPUT"]


async def test_nodes_takes_at_most_100_ids(api: Api) -> None:
    ann = await api.register("ann")
    assert await nodes(api, ann, *[ann.id] * 100) == [{"id": ann.id, "__typename": "User", "username": "ann"}] * 100
    answer = await api.post(NODES, {"ids": [ann.id] * 101}, by=ann)
    assert answer["data"] is None
    (error,) = answer["errors"]
    assert error["message"] == "nodes takes at most 100 ids, not 101"
    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
