"""Mutations that are repeated with their `mutationId`, and ids made by clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text

from taskflow_gql.config import Settings
from taskflow_gql.database.units import Database
from taskflow_gql.models import Receipt
from tests.support.client import Api, Person
from tests.support.factories import noting_statements
from tests.support.serving import make_admin, serving

CREATE = """
mutation($input: CreateTaskInput!) {
  createTask(input: $input) {
    task { id title version creator { username } }
    taskEdge { node { title } }
    replayed changeCursor errors { code field message }
  }
}
"""
UPDATE = """
mutation($input: UpdateTaskInput!) {
  updateTask(input: $input) { task { title version } replayed changeCursor errors { code field message } }
}
"""
TOGGLE = """
mutation($input: ToggleTaskCompletionInput!) {
  toggleTaskCompletion(input: $input) { task { status version } replayed changeCursor errors { code field } }
}
"""
DELETE = """
mutation($input: DeleteTaskInput!) {
  deleteTask(input: $input) { deletedTaskId replayed changeCursor errors { code field } }
}
"""
REGISTER = """
mutation($input: RegisterInput!) {
  register(input: $input) { accessToken expiresIn user { id email } replayed errors { code field } }
}
"""
LOGIN = """
mutation($input: LoginInput!) {
  login(input: $input) { accessToken tokenType expiresIn user { id email } replayed errors { code field } }
}
"""
CHANGE_PASSWORD = """
mutation($input: ChangePasswordInput!) { changePassword(input: $input) { replayed errors { code field } } }
"""
SET_ROLE = """
mutation($input: SetUserRoleInput!) { setUserRole(input: $input) { user { role } replayed errors { code field } } }
"""
TITLES = "{ tasks { nodes { title } } }"
CHANGES = (
    "query($after: String!) { taskChanges(after: $after) { nodes { cursor kind mutationId actor { username } } } }"
)


async def ask(api: Api, document: str, by: Person | None = None, **given: Any) -> dict[str, Any]:
    payload: dict[str, Any]
    (payload,) = (await api.data(document, {"input": given}, by=by)).values()
    return payload


async def titles(api: Api, by: Person) -> list[str]:
    return sorted(task["title"] for task in (await api.data(TITLES, by=by))["tasks"]["nodes"])


def codes(payload: dict[str, Any]) -> list[tuple[str, list[str] | None]]:
    return [(error["code"], error["field"]) for error in payload["errors"]]


REUSED = [("MUTATION_ID_REUSED", ["mutationId"])]


async def test_a_repeated_mutation_gets_the_first_answer_and_changes_nothing(api: Api) -> None:
    ann = await api.register("ann")
    first = await ask(api, CREATE, ann, title="Once", mutationId="create")
    assert (first["replayed"], first["errors"], first["task"]["version"]) == (False, [], 1)
    assert await ask(api, CREATE, ann, title="Once", mutationId="create") == first | {"replayed": True}
    assert await titles(api, ann) == ["Once"]


async def test_a_repeat_shows_the_task_as_its_mutation_left_it(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann)
    toggled = await ask(api, TOGGLE, ann, id=task["id"], mutationId="toggle")
    await ask(api, UPDATE, ann, id=task["id"], title="Later")
    assert await ask(api, TOGGLE, ann, id=task["id"], mutationId="toggle") == toggled | {"replayed": True}
    deleted = await ask(api, DELETE, ann, id=task["id"], mutationId="delete")
    assert deleted["deletedTaskId"] == task["id"]
    for document, name, first in ((TOGGLE, "toggle", toggled), (DELETE, "delete", deleted)):
        assert await ask(api, document, ann, id=task["id"], mutationId=name) == first | {"replayed": True}
    assert await titles(api, ann) == []


async def test_a_refusal_is_an_answer_too(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann)
    given: dict[str, Any] = {"id": task["id"], "title": "New", "expectedVersion": 2, "mutationId": "early"}
    refused = await ask(api, UPDATE, ann, **given)
    assert codes(refused) == [("VERSION_CONFLICT", ["expectedVersion"])]
    assert refused["task"] == {"title": "A task", "version": 1}
    await ask(api, UPDATE, ann, id=task["id"], title="Second version")
    assert await ask(api, UPDATE, ann, **given) == refused | {"replayed": True}
    assert await titles(api, ann) == ["Second version"]


@pytest.mark.parametrize("name", ["create", "toggle", "delete"])
async def test_of_concurrent_repeats_one_is_done(api: Api, name: str) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    document, given = {
        "create": (CREATE, {"title": "Once"}),
        "toggle": (TOGGLE, {"id": task["id"]}),
        "delete": (DELETE, {"id": task["id"]}),
    }[name]
    answers = await asyncio.gather(*(ask(api, document, ann, mutationId="same", **given) for _ in range(8)))
    assert sorted(answer.pop("replayed") for answer in answers) == [False] + [True] * 7
    assert all(answer == answers[0] and answer["errors"] == [] for answer in answers)
    assert answers[0]["changeCursor"] is not None
    if name == "create":
        assert await titles(api, ann) == ["Before", "Once"]


async def test_the_same_id_for_something_else_is_refused(api: Api) -> None:
    ann = await api.register("ann")
    task = (await ask(api, CREATE, ann, title="First", mutationId="m"))["task"]
    for document, given in (
        (CREATE, {"title": "Second"}),
        (CREATE, {"title": "First", "description": "More"}),
        (TOGGLE, {"id": task["id"]}),
        (DELETE, {"id": task["id"]}),
    ):
        answer = await ask(api, document, ann, mutationId="m", **given)
        assert codes(answer) == REUSED
        assert answer["changeCursor"] is None
    assert await titles(api, ann) == ["First"]
    # A value that is the default changes nothing.
    assert (await ask(api, CREATE, ann, title="First", description=None, priority="MEDIUM", mutationId="m"))["replayed"]


async def test_ids_of_mutations_belong_to_their_person(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    for person in (ann, bob):
        assert not (await ask(api, CREATE, person, title="Mine", mutationId="m"))["replayed"]
    assert await titles(api, bob) == ["Mine"]


@pytest.mark.parametrize("mutation_id", ["", "m" * 65, "é" * 65])
async def test_an_id_has_1_to_64_characters(api: Api, mutation_id: str) -> None:
    ann = await api.register("ann")
    assert codes(await ask(api, CREATE, ann, title="One", mutationId=mutation_id)) == [
        ("BAD_USER_INPUT", ["mutationId"])
    ]
    assert (await ask(api, CREATE, ann, title="One", mutationId="m" * 64))["errors"] == []
    assert await api.codes(CREATE, {"input": {"title": "One", "mutationId": mutation_id}}) == ["UNAUTHENTICATED"]


async def test_an_administrators_mutations_are_repeated_too(api: Api, database: Database) -> None:
    boss, bob = await api.register("boss"), await api.register("bob")
    await make_admin(database, boss.id)
    first = await ask(api, SET_ROLE, boss, userId=bob.id, role="ADMIN", mutationId="m")
    assert first == {"user": {"role": "ADMIN"}, "replayed": False, "errors": []}
    await ask(api, SET_ROLE, boss, userId=bob.id, role="MEMBER")
    again = await ask(api, SET_ROLE, boss, userId=bob.id, role="ADMIN", mutationId="m")
    assert again == first | {"replayed": True}
    assert (await ask(api, SET_ROLE, boss, userId=bob.id, role="MEMBER", mutationId="n"))["user"] == {"role": "MEMBER"}


ZOE: dict[str, Any] = {"email": "zoe@example.com", "username": "zoe", "fullName": "Zoe", "password": "correct horse"}
ME = "{ me { username } }"


async def test_a_repeated_registration_and_sign_in_get_a_token_of_the_same_session(
    api: Api, database: Database
) -> None:
    first = await ask(api, REGISTER, **ZOE, mutationId="r")
    again = await ask(api, REGISTER, **ZOE, mutationId="r")
    assert (first["errors"], again["errors"], again["replayed"]) == ([], [], True)
    assert again["user"] == first["user"] == {"id": first["user"]["id"], "email": "zoe@example.com"}
    given: dict[str, Any] = {"usernameOrEmail": "zoe", "password": "correct horse", "mutationId": "l"}
    login, repeat = await ask(api, LOGIN, **given), await ask(api, LOGIN, **given)
    assert (repeat["replayed"], repeat["tokenType"]) == (True, "Bearer")
    assert 0 < repeat["expiresIn"] <= login["expiresIn"]
    for answer in (first, again, login, repeat):
        assert (await api.post(ME, by=answer["accessToken"]))["data"] == {"me": {"username": "zoe"}}
    async with database.read() as session:
        assert (await session.execute(text("SELECT count(*) FROM sessions"))).scalar_one() == 2
        kept = repr((await session.execute(text("SELECT * FROM receipts"))).all())
    for secret in ("correct horse", "127.0.0.1", *(answer["accessToken"] for answer in (first, again, login, repeat))):
        assert secret not in kept
    # Other input is another request: nobody learns what somebody else sent with the same id.
    wrong = await ask(api, LOGIN, **(given | {"password": "wrong horse"}))
    assert codes(wrong) == [("INVALID_CREDENTIALS", None)]


async def test_of_concurrent_registrations_with_one_id_one_is_done(api: Api) -> None:
    answers = await asyncio.gather(*(ask(api, REGISTER, **ZOE, mutationId="r") for _ in range(4)))
    assert [answer["errors"] for answer in answers] == [[]] * 4
    assert sorted(answer["replayed"] for answer in answers) == [False, True, True, True]
    assert len({answer["user"]["id"] for answer in answers}) == 1
    for answer in answers:
        assert (await api.post(ME, by=answer["accessToken"]))["data"] == {"me": {"username": "zoe"}}


async def test_an_old_password_gets_no_token_from_a_repeated_sign_in(api: Api) -> None:
    zoe = await api.register("zoe")
    given: dict[str, Any] = {"usernameOrEmail": "zoe", "password": zoe.password, "mutationId": "l"}
    token = (await ask(api, LOGIN, **given))["accessToken"]
    change = {"input": {"currentPassword": zoe.password, "newPassword": "battery staple"}}
    assert (await api.post(CHANGE_PASSWORD, change, by=token))["data"]["changePassword"]["errors"] == []
    repeat = await ask(api, LOGIN, **given)
    assert (repeat["accessToken"], codes(repeat)) == (None, [("INVALID_CREDENTIALS", None)])
    assert (await api.post(ME, by=token))["data"] == {"me": {"username": "zoe"}}


async def test_a_refusal_without_a_person_is_not_kept(api: Api, database: Database) -> None:
    given: dict[str, Any] = ZOE | {"email": "no address", "mutationId": "r"}
    for _ in range(2):
        assert not (await ask(api, REGISTER, **given))["replayed"]
    long = await ask(api, REGISTER, **(given | {"email": "\u0100" * 100_000}))
    assert codes(long) == [("BAD_USER_INPUT", ["email"])]
    assert len(str(long)) < 500
    async with database.read() as session:
        assert (await session.execute(select(Receipt.mutation_id))).all() == []


async def test_aliases_of_change_cursor_read_it_once(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    aliases = " ".join(f"c{number}: changeCursor" for number in range(50))
    document = f"mutation($input: CreateTaskInput!) {{ createTask(input: $input) {{ {aliases} }} }}"
    statements: list[str] = []
    with noting_statements(statements.append):
        cursors = await ask(api, document, ann, title="One")
    assert len(set(cursors.values())) == 1
    assert len([sql for sql in statements if "events.position IS NOT NULL" in sql]) == 1


async def test_a_changed_password_is_not_changed_twice(api: Api) -> None:
    zoe = await api.register("zoe")
    given: dict[str, Any] = {"currentPassword": zoe.password, "newPassword": "battery staple", "mutationId": "m"}
    assert await ask(api, CHANGE_PASSWORD, zoe, **given) == {"replayed": False, "errors": []}
    assert await ask(api, CHANGE_PASSWORD, zoe, **given) == {"replayed": True, "errors": []}
    assert codes(await ask(api, CHANGE_PASSWORD, zoe, **(given | {"newPassword": "other staple"}))) == REUSED
    assert (await ask(api, LOGIN, usernameOrEmail="zoe", password="battery staple"))["errors"] == []


@pytest.mark.parametrize("key", ["key", '"key"'])
async def test_the_header_idempotency_key_is_the_id_of_a_single_mutation(api: Api, key: str) -> None:
    ann = await api.register("ann")
    headers = {"Authorization": ann.token, "Idempotency-Key": key}

    async def send(query: str) -> Any:
        response = await api.http.post("/graphql", json={"query": query}, headers=headers)
        return response.json()["data"]

    one = 'mutation { createTask(input: {title: "One"}) { replayed errors { code field } } }'
    assert await send(one) == {"createTask": {"replayed": False, "errors": []}}
    assert await send(one) == {"createTask": {"replayed": True, "errors": []}}
    assert (await ask(api, CREATE, ann, title="One", mutationId="key"))["replayed"]
    two = one.replace("createTask", "a: createTask").removesuffix("}") + "b: __typename }"
    assert codes((await send(two))["a"]) == [("BAD_USER_INPUT", ["mutationId"])]
    own = two.replace('"One"', '"One", mutationId: "own"')
    assert (await send(own))["a"] == {"replayed": False, "errors": []}
    assert await titles(api, ann) == ["One", "One"]
    # Queries take no notice of it.
    assert await send(ME) == {"me": {"username": "ann"}}


async def test_a_payload_names_the_place_of_its_change_in_the_stream(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    first = await ask(api, CREATE, ann, title="First", assigneeId=bob.id)
    after = {"after": first["changeCursor"]}
    assert (await api.data(CHANGES, after, by=ann))["taskChanges"]["nodes"] == []
    second = await ask(api, UPDATE, ann, id=first["task"]["id"], title="Second", mutationId="mine")
    change = {"cursor": second["changeCursor"], "kind": "UPDATED", "actor": {"username": "ann"}}
    # Only the person who made the change learns their own id of it.
    for person, mutation_id in ((ann, "mine"), (bob, None)):
        (node,) = (await api.data(CHANGES, after, by=person))["taskChanges"]["nodes"]
        assert node == change | {"mutationId": mutation_id}
    for title, version in (("Second", 2), ("x", None)):
        nothing = await ask(api, UPDATE, ann, id=first["task"]["id"], title=title)
        assert (nothing["changeCursor"], (nothing["task"] or {}).get("version")) == (None, version)


@pytest.fixture
async def other(postgresql_settings: Settings) -> AsyncIterator[tuple[Api, Api]]:
    """Two servers on one database."""
    async with serving(postgresql_settings) as one, serving(postgresql_settings) as two:
        yield one, two


async def test_a_repeat_on_another_server_gets_the_first_answer(other: tuple[Api, Api]) -> None:
    one, two = other
    ann = await one.register("ann")
    first = await ask(one, CREATE, ann, title="Once", mutationId="m")
    assert await ask(two, CREATE, ann, title="Once", mutationId="m") == first | {"replayed": True}
    answers = await asyncio.gather(
        *(ask(api, CREATE, ann, title="Again", mutationId="n") for api in (one, two) for _ in range(4))
    )
    assert sorted(answer["replayed"] for answer in answers) == [False] + [True] * 7
    assert await titles(one, ann) == ["Again", "Once"]


async def test_a_client_names_its_new_task(api: Api) -> None:
    ann = await api.register("ann")
    id_ = str(uuid4())
    created = await ask(api, CREATE, ann, title="Mine", id=id_.upper())
    assert created["task"]["id"] == id_
    assert codes(await ask(api, CREATE, ann, title="x", id="mine")) == [
        ("BAD_USER_INPUT", ["title"]),
        ("BAD_USER_INPUT", ["id"]),
    ]


async def test_an_id_is_taken_by_anything_and_by_what_was_deleted(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = await api.create_task(ann, "Mine")
    gone = await api.create_task(ann, "Gone")
    await ask(api, DELETE, ann, id=gone["id"])
    for taken in (task["id"], gone["id"], ann.id):
        answer = await ask(api, CREATE, bob, title="Mine too", id=taken)
        assert codes(answer) == [("ID_TAKEN", ["id"])]
        assert answer["task"] is None
    assert await titles(api, bob) == []


@pytest.mark.parametrize("is_named", [False, True])
async def test_of_concurrent_tasks_with_one_id_one_is_made(api: Api, is_named: bool) -> None:
    people = [await api.register(name) for name in ("ann", "bob", "cid", "dan")]
    id_ = str(uuid4())
    name = {"mutationId": "m"} if is_named else {}
    answers = await asyncio.gather(*(ask(api, CREATE, each, title="Mine", id=id_, **name) for each in people))
    assert sorted(codes(answer) for answer in answers) == [[]] + [[("ID_TAKEN", ["id"])]] * 3


async def test_a_mutation_that_fails_leaves_no_receipt(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    break_, mend = (
        (
            "CREATE TRIGGER broken BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'broken'); END",
            "DROP TRIGGER broken",
        )
        if database.is_sqlite
        else (
            "ALTER TABLE events ADD CONSTRAINT broken CHECK (false) NOT VALID",
            "ALTER TABLE events DROP CONSTRAINT broken",
        )
    )
    async with database.write() as session:
        await session.execute(text(break_))
    assert await api.codes(CREATE, {"input": {"title": "Once", "mutationId": "m"}}, by=ann) == ["INTERNAL_SERVER_ERROR"]
    async with database.write() as session:
        await session.execute(text(mend))
    async with database.read() as session:
        assert (await session.execute(select(Receipt.mutation_id))).all() == []
    created = await ask(api, CREATE, ann, title="Once", mutationId="m")
    assert (created["replayed"], created["errors"]) == (False, [])
    assert await titles(api, ann) == ["Once"]
