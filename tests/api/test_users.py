"""user, users, setUserRole, deactivateUser, reactivateUser."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, select

from taskflow_gql.database.units import Database
from taskflow_gql.models import User, UserRole
from tests.support.client import Api, Person
from tests.support.serving import make_admin

USER = "id username fullName email role isActive createdAt updatedAt"
MUTATIONS = {
    "setUserRole": "mutation($input: SetUserRoleInput!) { setUserRole(input: $input)",
    "deactivateUser": "mutation($input: DeactivateUserInput!) { deactivateUser(input: $input)",
    "reactivateUser": "mutation($input: ReactivateUserInput!) { reactivateUser(input: $input)",
}
ME = "{ me { username role } }"


def mutation(name: str) -> str:
    return f"{MUTATIONS[name]} {{ user {{ {USER} }} errors {{ code message field }} }} }}"


async def change(api: Api, name: str, by: Person, user_id: str, **given: Any) -> dict[str, Any]:
    """Run the mutation and return its payload."""
    payload: dict[str, Any] = (await api.data(mutation(name), {"input": {"userId": user_id, **given}}, by=by))[name]
    return payload


async def read(api: Api, by: Person, user_id: str) -> dict[str, Any] | None:
    query = f"query($id: ID!) {{ user(id: $id) {{ {USER} }} }}"
    user: dict[str, Any] | None = (await api.data(query, {"id": user_id}, by=by))["user"]
    return user


async def make_boss(api: Api, database: Database, username: str = "boss") -> Person:
    boss = await api.register(username)
    await make_admin(database, boss.id)
    return boss


async def count_admins(database: Database) -> int:
    async with database.read() as session:
        statement = select(func.count()).select_from(User).where(User.role == UserRole.ADMIN, User.is_active)
        return int((await session.execute(statement)).scalar_one())


def refused(code: str, message: str, *field: str) -> dict[str, Any]:
    return {"user": None, "errors": [{"code": code, "message": message, "field": list(field) or None}]}


NOT_FOUND = refused("NOT_FOUND", "There is no such user", "userId")
NOT_AN_ID = refused("BAD_USER_INPUT", "'bob' is not an id: ids are UUIDs, as the server hands them out", "userId")
ADMINS_ONLY = refused("FORBIDDEN", "Only an admin can do this")
LAST_ADMIN = refused("LAST_ADMIN", "This is the last active admin: make somebody else an admin first", "userId")
INPUTS: dict[str, dict[str, Any]] = {"setUserRole": {"role": "ADMIN"}, "deactivateUser": {}, "reactivateUser": {}}


# ---------------------------------------------------------------- reading


async def test_users_are_sorted_by_username_ignoring_case(api: Api) -> None:
    names = ["bob", "Alice", "carl", "Zoe", "a.b", "a-b", "a_b", "Bob2", "007"]
    people = [await api.register(name) for name in names]
    page = (await api.data("{ users { nodes { username } edges { node { username } } totalCount } }", by=people[0]))[
        "users"
    ]
    in_order = [{"username": name} for name in sorted(names, key=str.casefold)]
    assert page == {"nodes": in_order, "edges": [{"node": node} for node in in_order], "totalCount": 9}


async def test_anonymous_callers_may_not_see_users(api: Api) -> None:
    ann = await api.register("ann")
    for query in ("{ users { nodes { id } } }", "{ users { totalCount } }", f'{{ user(id: "{ann.id}") {{ id }} }}'):
        assert await api.codes(query) == ["UNAUTHENTICATED"]


async def test_inactive_users_are_listed_only_for_admins_and_found_by_id_by_everybody(
    api: Api, database: Database
) -> None:
    ann, bob, boss = await api.register("ann"), await api.register("bob"), await make_boss(api, database)
    await change(api, "deactivateUser", boss, bob.id)
    listed = "{ users { nodes { username isActive } totalCount } }"
    active = [{"username": "ann", "isActive": True}, {"username": "boss", "isActive": True}]
    assert (await api.data(listed, by=ann))["users"] == {"nodes": active, "totalCount": 2}
    everyone = [active[0], {"username": "bob", "isActive": False}, active[1]]
    assert (await api.data(listed, by=boss))["users"] == {"nodes": everyone, "totalCount": 3}
    # A task may still name a deactivated user.
    for viewer in (ann, boss):
        found = await read(api, viewer, bob.id)
        assert found is not None
        assert (found["username"], found["isActive"]) == ("bob", False)


async def test_user_is_null_for_an_unknown_id_and_refuses_an_invalid_one(api: Api) -> None:
    ann = await api.register("ann")
    found = await read(api, ann, ann.id)
    assert found is not None
    assert found == {
        "id": ann.id,
        "username": "ann",
        "fullName": "Ann",
        "email": "ann@example.com",
        "role": "MEMBER",
        "isActive": True,
        "createdAt": found["createdAt"],
        "updatedAt": found["createdAt"],
    }
    assert await read(api, ann, ann.id.upper()) == found
    assert await read(api, ann, str(uuid4())) is None
    task = await api.create_task(ann)
    assert await read(api, ann, task["id"]) is None
    for wrong in ("", "ann", f"{ann.id} "):
        assert await api.codes("query($id: ID!) { user(id: $id) { id } }", {"id": wrong}, by=ann) == ["BAD_USER_INPUT"]


async def test_an_email_address_is_shown_only_to_its_owner_and_to_admins(api: Api, database: Database) -> None:
    ann, bob, boss = await api.register("ann"), await api.register("bob"), await make_boss(api, database)
    task = await api.create_task(ann, assigneeId=bob.id)
    query = """query($task: ID!, $ann: ID!, $bob: ID!) {
      users { nodes { username email } edges { node { username email } } }
      user(id: $ann) { username email }
      node(id: $bob) { ... on User { username email } }
      nodes(ids: [$ann, $bob]) { ... on User { username email } }
      task(id: $task) { creator { username email } assignee { username email } }
      tasks { nodes { creator { username email } assignee { username email } } }
      me { username email }
    }"""
    addresses = {person.username: person.email for person in (ann, bob, boss)}

    def emails(value: Any) -> list[tuple[str, str | None]]:
        if isinstance(value, list):
            return [pair for item in value for pair in emails(item)]
        if isinstance(value, dict):
            if "email" in value:
                return [(value["username"], value["email"])]
            return [pair for item in value.values() for pair in emails(item)]
        return []

    for viewer in (ann, bob, boss):
        seen = emails(await api.data(query, {"task": task["id"], "ann": ann.id, "bob": bob.id}, by=viewer))
        assert len(seen) == 15
        for username, email in seen:
            shown = viewer is boss or viewer.username == username
            assert email == (addresses[username] if shown else None), (viewer.username, username)


# ---------------------------------------------------------------- administration


async def test_anonymous_callers_and_members_may_not_manage_users(api: Api, database: Database) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    await make_boss(api, database)
    before = await read(api, ann, bob.id)
    for name, given in INPUTS.items():
        answer = await api.post(mutation(name), {"input": {"userId": bob.id, **given}})
        assert answer["data"] is None
        (error,) = answer["errors"]
        assert (error["message"], error["extensions"]) == ("Not authenticated", {"code": "UNAUTHENTICATED"})
        # The target makes no difference: another user, oneself or an unknown id.
        for user_id in (bob.id, ann.id, str(uuid4())):
            assert await change(api, name, ann, user_id, **given) == ADMINS_ONLY
        assert await change(api, name, ann, "bob", **given) == NOT_AN_ID
    assert await read(api, ann, bob.id) == before
    assert await api.data(ME, by=ann) == {"me": {"username": "ann", "role": "MEMBER"}}


async def test_admins_get_not_found_and_bad_input_for_unknown_and_invalid_ids(api: Api, database: Database) -> None:
    boss = await make_boss(api, database)
    for name, given in INPUTS.items():
        assert await change(api, name, boss, str(uuid4()), **given) == NOT_FOUND
        assert await change(api, name, boss, "bob", **given) == NOT_AN_ID


async def test_a_role_change_counts_from_the_next_request_with_the_same_token(api: Api, database: Database) -> None:
    ann, bob, boss = await api.register("ann"), await api.register("bob"), await make_boss(api, database)
    task = await api.create_task(bob)
    sees = f'{{ task(id: "{task["id"]}") {{ title }} }}'
    member = await read(api, boss, ann.id)
    assert member is not None
    assert await api.data(sees, by=ann) == {"task": None}

    promoted = await change(api, "setUserRole", boss, ann.id, role="ADMIN")
    admin = member | {"role": "ADMIN", "updatedAt": promoted["user"]["updatedAt"]}
    assert promoted == {"user": admin, "errors": []}
    assert admin["updatedAt"] > member["updatedAt"]
    assert await api.data(sees, by=ann) == {"task": {"title": "A task"}}
    # Setting the same role again changes nothing.
    assert await change(api, "setUserRole", ann, ann.id, role="ADMIN") == promoted

    demoted = await change(api, "setUserRole", boss, ann.id, role="MEMBER")
    assert demoted["user"] == member | {"updatedAt": demoted["user"]["updatedAt"]}
    assert await api.data(sees, by=ann) == {"task": None}
    assert await change(api, "setUserRole", ann, ann.id, role="ADMIN") == ADMINS_ONLY


async def test_an_unknown_role_is_refused(api: Api, database: Database) -> None:
    ann, boss = await api.register("ann"), await make_boss(api, database)
    for role in ("OWNER", "admin", "", None, 1):
        given = {"input": {"userId": ann.id, "role": role}}
        assert await api.codes(mutation("setUserRole"), given, by=boss) == ["BAD_USER_INPUT"]
    assert await api.data(ME, by=ann) == {"me": {"username": "ann", "role": "MEMBER"}}


async def test_deactivating_ends_all_sessions_and_reactivating_restores_none(api: Api, database: Database) -> None:
    ann, boss = await api.register("ann"), await make_boss(api, database)
    login = 'mutation { login(input: {usernameOrEmail: "ann", password: "correct horse"}) { accessToken } }'
    second = (await api.data(login))["login"]["accessToken"]
    task = await api.create_task(ann)
    before = await read(api, boss, ann.id)
    assert before is not None

    gone = await change(api, "deactivateUser", boss, ann.id)
    assert gone == {
        "user": before | {"isActive": False, "updatedAt": gone["user"]["updatedAt"]},
        "errors": [],
    }
    assert await change(api, "deactivateUser", boss, ann.id) == gone
    for token in (ann.token, second):
        assert await api.codes(ME, by=token) == ["UNAUTHENTICATED"]
        update = f'mutation {{ deleteTask(input: {{id: "{task["id"]}"}}) {{ errors {{ code }} }} }}'
        assert await api.codes(update, by=token) == ["UNAUTHENTICATED"]
    assert (await api.data(login))["login"] == {"accessToken": None}
    title = await api.data(f'{{ task(id: "{task["id"]}") {{ title }} }}', by=boss)
    assert title == {"task": {"title": "A task"}}

    back = await change(api, "reactivateUser", boss, ann.id)
    assert back == {"user": before | {"updatedAt": back["user"]["updatedAt"]}, "errors": []}
    assert await change(api, "reactivateUser", boss, ann.id) == back
    for token in (ann.token, second):
        assert await api.codes(ME, by=token) == ["UNAUTHENTICATED"]
    third = (await api.data(login))["login"]["accessToken"]
    assert await api.data(ME, by=third) == {"me": {"username": "ann", "role": "MEMBER"}}


async def test_the_last_active_admin_cannot_be_demoted_or_deactivated(api: Api, database: Database) -> None:
    boss, ann, bob = await make_boss(api, database), await api.register("ann"), await api.register("bob")
    await change(api, "setUserRole", boss, bob.id, role="ADMIN")
    await change(api, "deactivateUser", boss, bob.id)
    before = await read(api, boss, boss.id)
    # There is another admin, who is deactivated.
    assert await change(api, "setUserRole", boss, boss.id, role="MEMBER") == LAST_ADMIN
    assert await change(api, "deactivateUser", boss, boss.id) == LAST_ADMIN
    assert await read(api, boss, boss.id) == before

    # A deactivated admin can be demoted: they are not the last active one.
    assert (await change(api, "setUserRole", boss, bob.id, role="MEMBER"))["errors"] == []
    await change(api, "setUserRole", boss, ann.id, role="ADMIN")
    assert (await change(api, "setUserRole", boss, boss.id, role="MEMBER"))["errors"] == []
    assert await change(api, "deactivateUser", ann, ann.id) == LAST_ADMIN
    assert await count_admins(database) == 1


@pytest.mark.parametrize(("name", "given"), [("setUserRole", {"role": "MEMBER"}), ("deactivateUser", {})])
async def test_admins_who_demote_each_other_concurrently_leave_at_least_one(
    api: Api, database: Database, name: str, given: dict[str, Any]
) -> None:
    admins = [await make_boss(api, database, f"boss{n}") for n in range(4)]
    # In a ring: each demotes or deactivates the next.
    answers = await asyncio.gather(
        *(
            api.post(mutation(name), {"input": {"userId": admins[(n + 1) % 4].id, **given}}, by=admin)
            for n, admin in enumerate(admins)
        )
    )
    remaining = await count_admins(database)
    assert remaining >= 1
    outcomes = []
    for answer in answers:
        if "errors" in answer:
            # Deactivated and signed out before the request was authenticated.
            assert [error["extensions"]["code"] for error in answer["errors"]] == ["UNAUTHENTICATED"]
            outcomes.append("refused")
        else:
            payload = answer["data"][name]
            assert payload["errors"] == [] or payload in (ADMINS_ONLY, LAST_ADMIN)
            outcomes.append("refused" if payload["errors"] else "done")
    assert outcomes.count("done") == 4 - remaining


async def test_two_admins_who_demote_each_other_concurrently_leave_exactly_one(api: Api, database: Database) -> None:
    first, second = await make_boss(api, database, "first"), await make_boss(api, database, "second")
    for _ in range(5):
        payloads = await asyncio.gather(
            change(api, "setUserRole", first, second.id, role="MEMBER"),
            change(api, "setUserRole", second, first.id, role="MEMBER"),
        )
        (done,) = (payload["user"]["id"] for payload in payloads if not payload["errors"])
        (not_done,) = (payload for payload in payloads if payload["errors"])
        assert not_done in (ADMINS_ONLY, LAST_ADMIN)
        assert await count_admins(database) == 1
        await make_admin(database, done)
