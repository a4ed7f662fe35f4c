"""`undo`: taking back what a mutation did."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from taskflow_gql import clock
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.events import SUBJECT_OF_ROW
from taskflow_gql.services.positions import expire_events
from taskflow_gql.services.undo import REVERTING, Undo
from tests.support.client import Api, Person
from tests.support.serving import make_admin

TASK = "id title description status priority category dueDate completedAt createdAt assignee { id } version"
ERRORS = "errors { code field message conflictingFields }"
UNDO = f"""
mutation($input: UndoInput!) {{
  undo(input: $input) {{
    undone {{ kind taskId mutationId cursor changedFields task {{ {TASK} }} }}
    conflicts {{ subjectId fields message }}
    replayed changeCursor {ERRORS}
  }}
}}
"""
READ = f"query($id: ID!) {{ task(id: $id) {{ {TASK} }} }}"
HISTORY = "query($id: ID!) { task(id: $id) { history(first: 100) { nodes { kind mutationId } } } }"


async def undo(api: Api, by: Person, undoes: str, **given: Any) -> dict[str, Any]:
    payload: dict[str, Any] = (await api.data(UNDO, {"input": {"undoes": undoes, **given}}, by=by))["undo"]
    return payload


async def do(api: Api, name: str, by: Person, **given: Any) -> dict[str, Any]:
    kind = f"{name[0].upper()}{name[1:]}Input"
    entity = "deletedTaskId" if name == "deleteTask" else f"task {{ {TASK} }}"
    document = f"mutation($input: {kind}!) {{ {name}(input: $input) {{ {entity} {ERRORS} }} }}"
    payload: dict[str, Any] = (await api.data(document, {"input": given}, by=by))[name]
    assert payload["errors"] == [], payload
    return payload


async def apply(api: Api, by: Person, *mutations: dict[str, Any], **given: Any) -> None:
    document = f"mutation($input: ApplyMutationsInput!) {{ applyMutations(input: $input) {{ {ERRORS} }} }}"
    payload = (await api.data(document, {"input": {"mutations": list(mutations), **given}}, by=by))["applyMutations"]
    assert payload["errors"] == [], payload


async def read(api: Api, by: Person, id_: str) -> Any:
    return (await api.data(READ, {"id": id_}, by=by))["task"]


def codes(payload: dict[str, Any]) -> list[tuple[str, list[str] | None]]:
    return [(error["code"], error["field"]) for error in payload["errors"]]


def but_version(task: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in task.items() if name != "version"}


def test_every_recorded_noun_can_be_undone() -> None:
    assert set(REVERTING) == set(SUBJECT_OF_ROW)


async def test_changed_fields_get_their_old_values(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    before = (await do(api, "createTask", ann, title="Before", description="Long", assigneeId=bob.id))["task"]
    await do(
        api,
        "updateTask",
        ann,
        mutationId="change",
        id=before["id"],
        title="After",
        description=None,
        assigneeId=None,
        dueDate="2030-01-01T00:00:00Z",
        status="COMPLETED",
    )
    payload = await undo(api, ann, "change", mutationId="undo")
    assert (payload["errors"], payload["conflicts"], payload["replayed"]) == ([], [], False)
    (change,) = payload["undone"]
    assert (change["kind"], change["taskId"], change["mutationId"]) == ("UPDATED", before["id"], "undo")
    assert change["changedFields"] == ["TITLE", "DESCRIPTION", "STATUS", "DUE_DATE", "ASSIGNEE"]
    assert change["task"] == before | {"version": 3} == await read(api, ann, before["id"])
    assert payload["changeCursor"] == change["cursor"]


async def test_a_completed_task_gets_its_old_time_of_completion(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann)
    done = (await do(api, "toggleTaskCompletion", ann, id=task["id"]))["task"]
    await do(api, "setTaskStatus", ann, id=task["id"], status="PENDING", mutationId="open")
    await undo(api, ann, "open")
    assert await read(api, ann, task["id"]) == done | {"version": 4}


async def test_what_was_made_is_deleted(api: Api) -> None:
    ann = await api.register("ann")
    task = (await do(api, "createTask", ann, title="Made", mutationId="make"))["task"]
    payload = await undo(api, ann, "make")
    assert [(change["kind"], change["taskId"], change["task"]) for change in payload["undone"]] == [
        ("DELETED", task["id"], None)
    ]
    assert await read(api, ann, task["id"]) is None


async def test_what_was_deleted_comes_back_with_its_id_and_history(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann)
    before = (await do(api, "toggleTaskCompletion", ann, id=task["id"]))["task"]
    await do(api, "deleteTask", ann, id=task["id"], mutationId="delete")
    payload = await undo(api, ann, "delete", mutationId="undo")
    # The deletion was a version too.
    assert payload["undone"][0]["task"] == before | {"version": 4} == await read(api, ann, task["id"])
    nodes = (await api.data(HISTORY, {"id": task["id"]}, by=ann))["task"]["history"]["nodes"]
    assert [(change["kind"], change["mutationId"]) for change in nodes] == [
        ("CREATED", None),
        ("UPDATED", None),
        ("DELETED", "delete"),
        ("CREATED", "undo"),
    ]
    # A client that still shows the version from before the deletion can merge.
    merged = await api.update_task(ann, task["id"], title="Merged", expectedVersion=2, onConflict="MERGE")
    assert (merged["errors"], merged["task"]["version"]) == ([], 5)


async def test_an_undo_can_be_undone_again_and_again(api: Api) -> None:
    ann = await api.register("ann")
    made = (await do(api, "createTask", ann, title="Made", mutationId="0"))["task"]
    for number in range(1, 5):
        payload = await undo(api, ann, str(number - 1), mutationId=str(number))
        assert (payload["errors"], payload["conflicts"]) == ([], [])
        found = await read(api, ann, made["id"])
        assert (found and but_version(found)) == (None if number % 2 else but_version(made))


async def test_what_somebody_changed_since_stays_and_is_named(api: Api, database: Database) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    await make_admin(database, bob.id)
    task = await api.create_task(ann, "Before")
    await do(api, "updateTask", ann, id=task["id"], title="Ann's", priority="HIGH", mutationId="change")
    await do(api, "updateTask", bob, id=task["id"], title="Bob's", category="WORK")
    refused = await undo(api, ann, "change", onConflict="REFUSE")
    assert codes(refused) == [("VERSION_CONFLICT", ["undoes"])]
    assert (refused["undone"], (await read(api, ann, task["id"]))["priority"]) == ([], "HIGH")
    payload = await undo(api, ann, "change")
    assert payload["errors"] == []
    assert (
        payload["conflicts"]
        == refused["conflicts"]
        == [{"subjectId": task["id"], "fields": ["title"], "message": "It was changed since"}]
    )
    found = await read(api, ann, task["id"])
    assert [found[name] for name in ("title", "priority", "category")] == ["Bob's", "MEDIUM", "WORK"]


async def test_a_task_that_others_changed_is_not_deleted(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = (await do(api, "createTask", ann, title="Made", assigneeId=bob.id, mutationId="make"))["task"]
    await do(api, "setTaskStatus", bob, id=task["id"], status="IN_PROGRESS")
    payload = await undo(api, ann, "make")
    assert (payload["undone"], payload["changeCursor"]) == ([], None)
    assert [conflict["fields"] for conflict in payload["conflicts"]] == [["status"]]
    assert await read(api, ann, task["id"]) is not None


async def test_the_present_rights_count(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = await api.create_task(ann, assigneeId=bob.id)
    await do(api, "setTaskStatus", bob, id=task["id"], status="COMPLETED", mutationId="done")
    await do(api, "updateTask", ann, id=task["id"], assigneeId=None)
    payload = await undo(api, bob, "done")
    gone = [{"subjectId": task["id"], "fields": ["status"], "message": "It is gone, or you may no longer change it"}]
    assert (payload["undone"], payload["conflicts"]) == ([], gone)
    # A deleted task gives the same answer.
    await do(api, "deleteTask", ann, id=task["id"])
    assert (await undo(api, bob, "done"))["conflicts"] == gone


async def test_a_person_who_is_no_longer_admin_takes_back_nothing_of_others(api: Api, database: Database) -> None:
    ann, root = await api.register("ann"), await api.register("root")
    await make_admin(database, root.id)
    changed, deleted = [await api.create_task(ann, title) for title in ("Changed", "Deleted")]
    await do(api, "updateTask", root, id=changed["id"], title="Root's", mutationId="change")
    await do(api, "deleteTask", root, id=deleted["id"], mutationId="delete")
    boss = await api.register("boss")
    await make_admin(database, boss.id)
    document = "mutation($input: SetUserRoleInput!) { setUserRole(input: $input) { errors { code } } }"
    await api.data(document, {"input": {"userId": root.id, "role": "MEMBER"}}, by=boss)
    for undoes, task, fields in (("change", changed, ["title"]), ("delete", deleted, [])):
        payload = await undo(api, root, undoes)
        assert payload["undone"] == []
        assert [(each["subjectId"], each["fields"]) for each in payload["conflicts"]] == [(task["id"], fields)]
    assert (await read(api, ann, changed["id"]))["title"] == "Root's"


async def test_a_deactivated_assignee_is_not_assigned_again(api: Api, database: Database) -> None:
    ann, bob, root = [await api.register(name) for name in ("ann", "bob", "root")]
    await make_admin(database, root.id)
    task = await api.create_task(ann, assigneeId=bob.id)
    await do(api, "updateTask", ann, id=task["id"], assigneeId=None, title="After", mutationId="change")
    document = "mutation($input: DeactivateUserInput!) { deactivateUser(input: $input) { errors { code } } }"
    await api.data(document, {"input": {"userId": bob.id}}, by=root)
    payload = await undo(api, ann, "change")
    assert [(each["fields"], each["message"]) for each in payload["conflicts"]] == [
        (["assigneeId"], "The previous assignee is deactivated")
    ]
    found = await read(api, ann, task["id"])
    assert (found["title"], found["assignee"]) == ("A task", None)


@pytest.mark.parametrize("mode", ["ALL_OR_NOTHING", "EACH"])
async def test_a_batch_is_undone_as_a_whole(api: Api, mode: str) -> None:
    ann = await api.register("ann")
    old, doomed = await api.create_task(ann, "Old"), await api.create_task(ann, "Doomed")
    new = str(uuid4())
    await apply(
        api,
        ann,
        {"createTask": {"id": new, "title": "New"}},
        {"updateTask": {"id": new, "title": "Newer"}},
        {"updateTask": {"id": old["id"], "title": "Step"}},
        {"updateTask": {"id": old["id"], "title": "Last", "priority": "LOW"}},
        {"updateTask": {"id": doomed["id"], "title": "Going"}},
        {"deleteTask": {"id": doomed["id"]}},
        mutationId="batch",
        mode=mode,
    )
    payload = await undo(api, ann, "batch", mutationId="undo")
    assert (payload["conflicts"], len(payload["undone"])) == ([], 3)
    assert await read(api, ann, new) is None
    found = [(await read(api, ann, task["id"])) for task in (old, doomed)]
    assert [(task["title"], task["priority"]) for task in found] == [("Old", "MEDIUM"), ("Doomed", "MEDIUM")]
    # And forward again.
    payload = await undo(api, ann, "undo")
    assert (payload["conflicts"], len(payload["undone"])) == ([], 3)
    assert await read(api, ann, doomed["id"]) is None
    assert [(await read(api, ann, id_))["title"] for id_ in (new, old["id"])] == ["Newer", "Last"]


async def test_a_batch_can_be_undone_in_part(api: Api) -> None:
    ann = await api.register("ann")
    one, two = await api.create_task(ann, "One"), await api.create_task(ann, "Two")
    both = [{"updateTask": {"id": task["id"], "title": "Changed"}} for task in (one, two)]
    await apply(api, ann, *both, mutationId="batch")
    await do(api, "deleteTask", ann, id=two["id"])
    payload = await undo(api, ann, "batch")
    assert [change["taskId"] for change in payload["undone"]] == [one["id"]]
    assert [(each["subjectId"], each["fields"]) for each in payload["conflicts"]] == [(two["id"], ["title"])]


async def test_a_repeated_undo_gets_the_first_answer(api: Api) -> None:
    ann = await api.register("ann")
    task = (await do(api, "createTask", ann, title="Before"))["task"]
    await do(api, "updateTask", ann, id=task["id"], title="After", mutationId="change")
    answers = await asyncio.gather(*(undo(api, ann, "change", mutationId="undo") for _ in range(5)))
    assert sorted(answer.pop("replayed") for answer in answers) == [False] + [True] * 4
    assert all(answer == answers[0] for answer in answers)
    assert await read(api, ann, task["id"]) == task | {"version": 3}
    refused = await undo(api, ann, "other", mutationId="refused")
    assert await undo(api, ann, "other", mutationId="refused") == refused | {"replayed": True}


async def test_conflicts_are_part_of_the_repeated_answer(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann)
    await do(api, "updateTask", ann, id=task["id"], title="After", priority="LOW", mutationId="change")
    await do(api, "updateTask", ann, id=task["id"], title="Later")
    for policy in ("SKIP", "REFUSE"):
        first = await undo(api, ann, "change", mutationId=policy, onConflict=policy)
        assert first["conflicts"] != []
        assert await undo(api, ann, "change", mutationId=policy, onConflict=policy) == first | {"replayed": True}


async def test_only_your_own_mutations_of_tasks_can_be_undone(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    await do(api, "createTask", bob, title="Bob's", mutationId="bobs", assigneeId=ann.id)
    profile = "mutation($input: UpdateProfileInput!) { updateProfile(input: $input) { errors { code } } }"
    await api.data(profile, {"input": {"fullName": "Ann the First", "mutationId": "name"}}, by=ann)
    for undoes, code in (("bobs", "NOT_FOUND"), ("none", "NOT_FOUND"), ("name", "BAD_USER_INPUT")):
        assert codes(await undo(api, ann, undoes)) == [(code, ["undoes"])]
    for undoes in ("", "x" * 65):
        assert codes(await undo(api, ann, undoes)) == [("BAD_USER_INPUT", ["undoes"])]


async def test_a_mutation_that_changed_nothing_leaves_nothing_to_undo(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann)
    await do(api, "setTaskStatus", ann, id=task["id"], status="PENDING", mutationId="same")
    payload = await undo(api, ann, "same")
    assert [payload[name] for name in ("errors", "undone", "conflicts", "changeCursor")] == [[], [], [], None]


async def test_undoing_twice_finds_nothing_to_do(api: Api) -> None:
    ann = await api.register("ann")
    task = (await do(api, "createTask", ann, title="Made", mutationId="make"))["task"]
    await do(api, "deleteTask", ann, id=task["id"], mutationId="delete")
    for undoes in ("delete", "delete", "make", "make"):
        payload = await undo(api, ann, undoes)
        assert (payload["errors"], payload["conflicts"]) == ([], [])
    assert await read(api, ann, task["id"]) is None


async def test_what_the_record_no_longer_keeps_cannot_be_undone(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann)
    await do(api, "updateTask", ann, id=task["id"], title="After", mutationId="change")
    await api.data("{ taskChanges { nodes { id } } }", by=ann)
    async with database.write() as session:
        assert await expire_events(session, clock.now() + timedelta(seconds=1), limit=100) == 2
    assert codes(await undo(api, ann, "change")) == [("NOT_FOUND", ["undoes"])]
    assert (await read(api, ann, task["id"]))["title"] == "After"


async def test_concurrent_undos_and_changes_leave_a_consistent_task(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann)
    await do(api, "deleteTask", ann, id=task["id"], mutationId="delete")
    payloads = await asyncio.gather(*(undo(api, ann, "delete") for _ in range(6)))
    assert all(payload["errors"] == [] for payload in payloads)
    assert sum(len(payload["undone"]) for payload in payloads) == 1
    assert (await read(api, ann, task["id"]))["version"] == 3


async def test_an_old_deletion_is_not_a_newer_one(api: Api) -> None:
    ann = await api.register("ann")
    task = (await do(api, "createTask", ann, title="Old title"))["task"]
    await do(api, "deleteTask", ann, id=task["id"], mutationId="first")
    await undo(api, ann, "first")
    await do(api, "updateTask", ann, id=task["id"], title="New title")
    await do(api, "deleteTask", ann, id=task["id"], mutationId="second")
    payload = await undo(api, ann, "first")
    assert (payload["undone"], [conflict["subjectId"] for conflict in payload["conflicts"]]) == ([], [task["id"]])
    await undo(api, ann, "second")
    found = await read(api, ann, task["id"])
    assert (found["title"], found["version"]) == ("New title", 6)


# SQLite has one writer, so nothing comes in between.
@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
async def test_a_deletion_is_not_taken_back_if_the_task_came_back_meanwhile(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody brings it back, changes it and deletes it again, between the plan of an undo and its insert."""
    ann = await api.register("ann")
    task = (await do(api, "createTask", ann, title="Old title"))["task"]
    await do(api, "deleteTask", ann, id=task["id"], mutationId="first")
    run, times = Undo.run, 0

    async def run_late(self: Undo, session: DatabaseSession, viewer: Viewer) -> None:
        nonlocal times
        times += 1
        if times == 1:
            await undo(api, ann, "first")
            await do(api, "updateTask", ann, id=task["id"], title="New title")
            await do(api, "deleteTask", ann, id=task["id"], mutationId="second")
        await run(self, session, viewer)

    monkeypatch.setattr(Undo, "run", run_late)
    payload = await undo(api, ann, "first")
    assert (payload["undone"], len(payload["conflicts"])) == ([], 1)
    assert await read(api, ann, task["id"]) is None
    assert (await undo(api, ann, "second"))["undone"][0]["task"]["title"] == "New title"


async def test_an_ex_admin_does_not_learn_whether_a_task_is_gone(api: Api, database: Database) -> None:
    ann, root, boss = [await api.register(name) for name in ("ann", "root", "boss")]
    for admin in (root, boss):
        await make_admin(database, admin.id)
    tasks = [await api.create_task(ann), await api.create_task(ann)]
    for number, task in enumerate(tasks):
        await do(api, "deleteTask", root, id=task["id"], mutationId=f"delete {number}")
        await undo(api, root, f"delete {number}", mutationId=f"undo {number}")
    document = "mutation($input: SetUserRoleInput!) { setUserRole(input: $input) { errors { code } } }"
    await api.data(document, {"input": {"userId": root.id, "role": "MEMBER"}}, by=boss)
    await do(api, "deleteTask", ann, id=tasks[1]["id"])
    found = [(await undo(api, root, f"undo {number}"))["conflicts"] for number in range(2)]
    assert [[(each["fields"], each["message"]) for each in one] for one in found] == [
        [([], "It is gone, or you may no longer change it")]
    ] * 2
