"""task, tasks, createTask, updateTask, setTaskStatus, toggleTaskCompletion, deleteTask."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select

from taskflow_gql.database.units import Database
from taskflow_gql.models import Event
from taskflow_gql.services.events import events_after
from taskflow_gql.services.ids import make_id
from tests.support.client import Api, Person
from tests.support.serving import make_admin

TASK = """
fragment Whole on Task {
  id title description status priority category dueDate completed completedAt overdue
  creator { username } assignee { username } version createdAt updatedAt
}
"""
# The field that each mutation's payload has besides `errors`.
ENTITY = {
    "createTask": "task",
    "updateTask": "task",
    "setTaskStatus": "task",
    "toggleTaskCompletion": "task",
    "deleteTask": "deletedTaskId",
}
# The four that change an existing task, each with an input that changes something.
CHANGES: dict[str, dict[str, Any]] = {
    "updateTask": {"title": "Changed"},
    "setTaskStatus": {"status": "IN_PROGRESS"},
    "toggleTaskCompletion": {},
    "deleteTask": {},
}


def mutation(name: str) -> str:
    input_type = f"{name[0].upper()}{name[1:]}Input"
    if ENTITY[name] == "task":
        selected, fragment = "task { ...Whole }", TASK
    else:
        selected, fragment = ENTITY[name], ""
    payload = f"{selected} errors {{ code message field }}"
    return f"mutation($input: {input_type}!) {{ {name}(input: $input) {{ {payload} }} }} {fragment}"


async def change(api: Api, name: str, by: Person, **given: Any) -> dict[str, Any]:
    """Run the mutation and return its payload."""
    payload: dict[str, Any] = (await api.data(mutation(name), {"input": given}, by=by))[name]
    return payload


async def create(api: Api, by: Person, **given: Any) -> dict[str, Any]:
    payload = await change(api, "createTask", by, **{"title": "A task", **given})
    assert payload["errors"] == []
    task: dict[str, Any] = payload["task"]
    return task


async def read(api: Api, by: Person, task_id: str) -> dict[str, Any] | None:
    query = f"query($id: ID!) {{ task(id: $id) {{ ...Whole }} }} {TASK}"
    task: dict[str, Any] | None = (await api.data(query, {"id": task_id}, by=by))["task"]
    return task


async def deactivate(api: Api, by: Person, person: Person) -> None:
    document = "mutation($id: ID!) { deactivateUser(input: {userId: $id}) { errors { code } } }"
    assert (await api.data(document, {"id": person.id}, by=by))["deactivateUser"]["errors"] == []


async def count_events(database: Database) -> int:
    async with database.read() as session:
        return int((await session.execute(select(func.count()).select_from(Event))).scalar_one())


async def make_boss(api: Api, database: Database) -> Person:
    boss = await api.register("boss")
    await make_admin(database, boss.id)
    return boss


def refused(name: str, *errors: dict[str, Any], task: dict[str, Any] | None = None) -> dict[str, Any]:
    return {ENTITY[name]: task, "errors": list(errors)}


def refusal(code: str, message: str, *field: str) -> dict[str, Any]:
    return {"code": code, "message": message, "field": list(field) or None}


def bad(message: str, *field: str) -> dict[str, Any]:
    return refusal("BAD_USER_INPUT", message, *field)


NOT_FOUND = refusal("NOT_FOUND", "There is no such task, or you may not see it", "id")
ASSIGNEE_NOT_FOUND = refusal("ASSIGNEE_NOT_FOUND", "Assignee not found", "assigneeId")
TITLE_SHORT = bad("Title must be at least 3 characters long", "title")
TITLE_LONG = bad("Title must be at most 255 characters long", "title")
DESCRIPTION_LONG = bad("Description must be at most 10000 characters long", "description")
NOT_AN_ID = bad("'nobody' is not an id: ids are UUIDs, as the server hands them out", "assigneeId")
UNKNOWN = str(uuid4())

# (given, errors): refused by both createTask and updateTask.
REFUSED = [
    ({"title": "ab"}, [TITLE_SHORT]),
    ({"title": ""}, [TITLE_SHORT]),
    ({"title": " \n ab\t "}, [TITLE_SHORT]),
    ({"title": "x" * 256}, [TITLE_LONG]),
    ({"description": "x" * 10_001}, [DESCRIPTION_LONG]),
    ({"assigneeId": UNKNOWN}, [ASSIGNEE_NOT_FOUND]),
    ({"assigneeId": "nobody"}, [NOT_AN_ID]),
    (
        {"title": "x", "description": "x" * 10_001, "assigneeId": UNKNOWN},
        [TITLE_SHORT, DESCRIPTION_LONG, ASSIGNEE_NOT_FOUND],
    ),
]


# ---------------------------------------------------------------- access


async def test_anonymous_callers_may_not_change_anything(api: Api) -> None:
    ann = await api.register("ann")
    task = await create(api, ann)
    inputs = {name: {"id": task["id"], **given} for name, given in CHANGES.items()}
    for name, given in ({"createTask": {"title": "A task"}} | inputs).items():
        answer = await api.post(mutation(name), {"input": given})
        assert answer["data"] is None
        (error,) = answer["errors"]
        assert (error["message"], error["extensions"]) == ("Not authenticated", {"code": "UNAUTHENTICATED"})
    assert await read(api, ann, task["id"]) == task
    assert (await api.data("{ tasks { totalCount } }", by=ann))["tasks"] == {"totalCount": 1}


async def test_anonymous_callers_may_not_read_anything(api: Api) -> None:
    ann = await api.register("ann")
    task = await create(api, ann)
    assert await api.codes("query($id: ID!) { task(id: $id) { title } }", {"id": task["id"]}) == ["UNAUTHENTICATED"]
    assert await api.codes("{ tasks { nodes { title } } }") == ["UNAUTHENTICATED"]


async def test_somebody_elses_task_looks_like_one_that_does_not_exist(api: Api, database: Database) -> None:
    ann, eve = await api.register("ann"), await api.register("eve")
    task = await create(api, ann, assigneeId=ann.id)
    for name, given in CHANGES.items():
        for task_id in (task["id"], UNKNOWN):
            assert await change(api, name, eve, id=task_id, **given) == refused(name, NOT_FOUND)
            # An expected version does not reveal that the task exists either.
            payload = await change(api, name, eve, id=task_id, expectedVersion=7, **given)
            assert payload == refused(name, NOT_FOUND)
        not_an_id = bad("'7' is not an id: ids are UUIDs, as the server hands them out", "id")
        assert await change(api, name, eve, id="7", **given) == refused(name, not_an_id)
    assert await read(api, eve, task["id"]) is None
    assert (await api.data("{ tasks { nodes { id } totalCount } }", by=eve))["tasks"] == {"nodes": [], "totalCount": 0}
    assert await read(api, ann, task["id"]) == task
    assert await count_events(database) == 1


async def test_assignee_may_change_status_but_nothing_else(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = await create(api, ann, assigneeId=bob.id)
    no_update = refusal("FORBIDDEN", "Only its creator or an admin can update a task")
    no_delete = refusal("FORBIDDEN", "Only its creator or an admin can delete a task")
    for given in ({"title": "Mine now"}, {"status": "COMPLETED"}, {"assigneeId": None}, {}, {"expectedVersion": 9}):
        assert await change(api, "updateTask", bob, id=task["id"], **given) == refused("updateTask", no_update)
    assert await change(api, "deleteTask", bob, id=task["id"]) == refused("deleteTask", no_delete)
    assert await change(api, "deleteTask", bob, id=task["id"], expectedVersion=9) == refused("deleteTask", no_delete)
    assert await read(api, bob, task["id"]) == task

    begun = (await change(api, "setTaskStatus", bob, id=task["id"], status="IN_PROGRESS"))["task"]
    assert begun == task | {"status": "IN_PROGRESS", "version": 2, "updatedAt": begun["updatedAt"]}
    done = (await change(api, "toggleTaskCompletion", bob, id=task["id"]))["task"]
    assert (done["status"], done["version"]) == ("COMPLETED", 3)


async def test_a_former_assignee_no_longer_sees_the_task(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = await create(api, ann, assigneeId=bob.id)
    await change(api, "updateTask", ann, id=task["id"], assigneeId=None)
    assert await read(api, bob, task["id"]) is None
    payload = await change(api, "setTaskStatus", bob, id=task["id"], status="COMPLETED")
    assert payload == refused("setTaskStatus", NOT_FOUND)


@pytest.mark.parametrize("who", ["creator", "admin"])
async def test_creator_and_admin_may_do_everything(api: Api, database: Database, who: str) -> None:
    ann, boss = await api.register("ann"), await make_boss(api, database)
    by = ann if who == "creator" else boss
    task = await create(api, ann)
    for version, (name, given) in enumerate(CHANGES.items(), start=2):
        payload = await change(api, name, by, id=task["id"], **given)
        assert payload["errors"] == []
        if name == "deleteTask":
            assert payload == {"deletedTaskId": task["id"], "errors": []}
        else:
            assert payload["task"]["version"] == version
            assert payload["task"] == await read(api, ann, task["id"])
    assert await read(api, ann, task["id"]) is None
    assert await change(api, "deleteTask", by, id=task["id"]) == refused("deleteTask", NOT_FOUND)


async def test_viewer_can_fields_agree_with_the_mutations(api: Api, database: Database) -> None:
    ann, bob, boss = await api.register("ann"), await api.register("bob"), await make_boss(api, database)
    task = await create(api, ann, assigneeId=bob.id)
    query = "query($id: ID!) { task(id: $id) { viewerCanUpdate viewerCanChangeStatus viewerCanDelete } }"
    for person, may_update, may_change_status, may_delete in (
        (ann, True, True, True),
        (bob, False, True, False),
        (boss, True, True, True),
    ):
        assert (await api.data(query, {"id": task["id"]}, by=person))["task"] == {
            "viewerCanUpdate": may_update,
            "viewerCanChangeStatus": may_change_status,
            "viewerCanDelete": may_delete,
        }


async def test_tasks_lists_created_and_assigned_ones_and_all_for_admins_newest_first(
    api: Api, database: Database
) -> None:
    ann, bob, boss = await api.register("ann"), await api.register("bob"), await make_boss(api, database)
    mine = await create(api, ann)
    given = await create(api, bob, assigneeId=ann.id)
    both = await create(api, ann, assigneeId=ann.id)
    theirs = await create(api, bob)
    for person, expected in ((ann, [both, given, mine]), (bob, [theirs, given]), (boss, [theirs, both, given, mine])):
        page = (await api.data(f"{{ tasks {{ nodes {{ ...Whole }} totalCount }} }} {TASK}", by=person))["tasks"]
        assert page == {"nodes": expected, "totalCount": len(expected)}


# ---------------------------------------------------------------- createTask


async def test_create_task_needs_only_a_title(api: Api) -> None:
    ann = await api.register("ann")
    before = datetime.now(UTC)
    task = await create(api, ann, title="  Write tests \n")
    assert task == {
        "id": task["id"],
        "title": "Write tests",
        "description": None,
        "status": "PENDING",
        "priority": "MEDIUM",
        "category": "OTHER",
        "dueDate": None,
        "completed": False,
        "completedAt": None,
        "overdue": False,
        "creator": {"username": "ann"},
        "assignee": None,
        "version": 1,
        "createdAt": task["createdAt"],
        "updatedAt": task["createdAt"],
    }
    assert UUID(task["id"]).version == 7
    assert before <= datetime.fromisoformat(task["createdAt"]) <= datetime.now(UTC)
    assert await read(api, ann, task["id"]) == task


async def test_create_task_stores_everything_that_is_given(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    given = {
        "title": "Écrire des tests 😀",
        "description": " kept as it is \n",
        "priority": "HIGH",
        "category": "WORK",
        "dueDate": "2030-01-31T10:00:00.123456+02:00",
    }
    task = await create(api, ann, **given, assigneeId=bob.id.upper())
    kept = given | {"dueDate": "2030-01-31T08:00:00.123456+00:00", "assignee": {"username": "bob"}}
    assert task == task | kept
    assert await read(api, bob, task["id"]) == task


async def test_create_task_takes_the_shortest_and_longest_allowed_texts(api: Api) -> None:
    ann = await api.register("ann")
    for given in ({"title": " abc "}, {"title": "😀" * 255}, {"description": "é" * 10_000}, {"description": ""}):
        task = await create(api, ann, **given)
        assert task == task | {name: text.strip() for name, text in given.items()}
        assert await read(api, ann, task["id"]) == task


async def test_create_task_reports_everything_that_is_wrong(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    for given, errors in REFUSED:
        payload = await change(api, "createTask", ann, **{"title": "A task", **given})
        assert payload == refused("createTask", *errors)
    edge = 'mutation { createTask(input: {title: "x"}) { taskEdge { cursor } } }'
    assert await api.data(edge, by=ann) == {"createTask": {"taskEdge": None}}
    assert (await api.data("{ tasks { totalCount } }", by=ann))["tasks"] == {"totalCount": 0}
    assert await count_events(database) == 0


async def test_each_mutation_of_a_document_succeeds_or_fails_on_its_own(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    document = """mutation {
      a: createTask(input: {title: "First"}) { task { title } errors { code } }
      b: createTask(input: {title: "x"}) { task { title } errors { code } }
      c: createTask(input: {title: "Third"}) { task { title } errors { code } }
    }"""
    assert await api.data(document, by=ann) == {
        "a": {"task": {"title": "First"}, "errors": []},
        "b": {"task": None, "errors": [{"code": "BAD_USER_INPUT"}]},
        "c": {"task": {"title": "Third"}, "errors": []},
    }
    titles = await api.data("{ tasks { nodes { title } } }", by=ann)
    assert titles == {"tasks": {"nodes": [{"title": "Third"}, {"title": "First"}]}}
    assert await count_events(database) == 2


async def test_the_edge_of_a_new_task_equals_its_edge_in_the_list(api: Api) -> None:
    ann = await api.register("ann")
    old = await create(api, ann, title="Old")
    document = """mutation {
      createTask(input: {title: "New"}) { taskEdge { cursor node { id title } } errors { code } }
    }"""
    payload = (await api.data(document, by=ann))["createTask"]
    edge = payload["taskEdge"]
    assert payload == {
        "taskEdge": {"cursor": edge["cursor"], "node": {"id": edge["node"]["id"], "title": "New"}},
        "errors": [],
    }
    await create(api, ann, title="Newest")
    edges = (await api.data("{ tasks { edges { cursor node { id title } } } }", by=ann))["tasks"]["edges"]
    assert edges[1] == edge
    after = "query($after: String) { tasks(after: $after) { nodes { id } } }"
    assert await api.data(after, {"after": edge["cursor"]}, by=ann) == {"tasks": {"nodes": [{"id": old["id"]}]}}


# ---------------------------------------------------------------- updateTask


async def test_update_task_changes_only_the_given_fields(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = await create(api, ann, description="Long", priority="LOW", category="HOME", assigneeId=bob.id)
    for given, changed in (
        ({"title": "  New title "}, {"title": "New title"}),
        ({"description": "Longer"}, {"description": "Longer"}),
        ({"priority": "HIGH", "category": "WORK"}, {"priority": "HIGH", "category": "WORK"}),
        ({"dueDate": "2035-05-05T05:05:05Z"}, {"dueDate": "2035-05-05T05:05:05+00:00"}),
        ({"assigneeId": ann.id}, {"assignee": {"username": "ann"}}),
        ({"status": "IN_PROGRESS"}, {"status": "IN_PROGRESS"}),
    ):
        payload = await change(api, "updateTask", ann, id=task["id"], **given)
        moved = {"version": task["version"] + 1, "updatedAt": payload["task"]["updatedAt"]}
        assert payload == {"task": task | changed | moved, "errors": []}
        assert moved["updatedAt"] > task["updatedAt"]
        task = payload["task"]
    assert await read(api, ann, task["id"]) == task


async def test_update_task_clears_optional_fields_with_null(api: Api) -> None:
    ann = await api.register("ann")
    task = await create(api, ann, description="Long", dueDate="2035-05-05T05:05:05Z", assigneeId=ann.id)
    cleared = {"description": None, "dueDate": None, "assigneeId": None}
    payload = await change(api, "updateTask", ann, id=task["id"], **cleared)
    assert payload["task"] == task | {
        "description": None,
        "dueDate": None,
        "assignee": None,
        "version": 2,
        "updatedAt": payload["task"]["updatedAt"],
    }
    assert await read(api, ann, task["id"]) == payload["task"]


async def test_update_task_refuses_null_for_required_fields(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    task = await create(api, ann)
    nulls = {"title": None, "status": None, "priority": None, "category": None}
    payload = await change(api, "updateTask", ann, id=task["id"], **nulls, description="x" * 10_001)
    assert payload == refused(
        "updateTask",
        bad("Title cannot be null", "title"),
        bad("Status cannot be null", "status"),
        bad("Priority cannot be null", "priority"),
        bad("Category cannot be null", "category"),
        DESCRIPTION_LONG,
    )
    for name in nulls:
        payload = await change(api, "updateTask", ann, id=task["id"], **{name: None})
        assert payload == refused("updateTask", bad(f"{name.title()} cannot be null", name))
    assert await read(api, ann, task["id"]) == task
    assert await count_events(database) == 1


async def test_update_task_reports_everything_that_is_wrong(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    task = await create(api, ann)
    for given, errors in REFUSED:
        # The valid part of a refused update is not applied either.
        payload = await change(api, "updateTask", ann, id=task["id"], priority="HIGH", **given)
        assert payload == refused("updateTask", *errors)
    assert await read(api, ann, task["id"]) == task
    assert await count_events(database) == 1


async def test_an_inactive_user_cannot_be_assigned_but_may_stay_assigned(api: Api, database: Database) -> None:
    ann, bob, boss = await api.register("ann"), await api.register("bob"), await make_boss(api, database)
    old, new = await create(api, ann, assigneeId=bob.id), await create(api, ann)
    await deactivate(api, boss, bob)
    payload = await change(api, "createTask", ann, title="A task", assigneeId=bob.id)
    assert payload == refused("createTask", ASSIGNEE_NOT_FOUND)
    payload = await change(api, "updateTask", ann, id=new["id"], assigneeId=bob.id)
    assert payload == refused("updateTask", ASSIGNEE_NOT_FOUND)
    assert await read(api, ann, new["id"]) == new
    # A form that sends all its values back can still be saved.
    payload = await change(api, "updateTask", ann, id=old["id"], title="Renamed", assigneeId=bob.id)
    assert payload["errors"] == []
    assert (payload["task"]["title"], payload["task"]["assignee"]) == ("Renamed", {"username": "bob"})


async def test_an_update_with_the_same_values_records_no_change(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    task = await create(api, ann, description="Long", dueDate="2035-05-05T05:05:05Z", assigneeId=ann.id)
    same = {
        "title": "  A task ",
        "description": "Long",
        "status": "PENDING",
        "priority": "MEDIUM",
        "category": "OTHER",
        "dueDate": "2035-05-05T07:05:05+02:00",
        "assigneeId": ann.id.upper(),
    }
    for name, given in (
        ("updateTask", {}),
        ("updateTask", same),
        ("updateTask", {"expectedVersion": 1}),
        ("setTaskStatus", {"status": "PENDING"}),
    ):
        assert await change(api, name, ann, id=task["id"], **given) == {"task": task, "errors": []}
    assert await read(api, ann, task["id"]) == task
    assert await count_events(database) == 1


# ---------------------------------------------------------------- status


async def test_completed_at_is_the_last_time_the_status_became_completed(api: Api) -> None:
    ann = await api.register("ann")
    task = await create(api, ann)

    async def step(name: str, **given: Any) -> dict[str, Any]:
        payload = await change(api, name, ann, id=task["id"], **given)
        assert payload["errors"] == []
        changed: dict[str, Any] = payload["task"]
        assert changed["completed"] == (changed["status"] == "COMPLETED") == (changed["completedAt"] is not None)
        return changed

    done = await step("setTaskStatus", status="COMPLETED")
    assert done["completedAt"] == done["updatedAt"] > task["updatedAt"]
    assert await step("setTaskStatus", status="COMPLETED") == done
    renamed = await step("updateTask", title="Renamed")
    assert renamed["completedAt"] == done["completedAt"] < renamed["updatedAt"]
    assert (await step("setTaskStatus", status="IN_PROGRESS"))["completedAt"] is None
    again = await step("updateTask", status="COMPLETED")
    assert again["completedAt"] == again["updatedAt"] > renamed["updatedAt"]
    assert (again["version"], await read(api, ann, task["id"])) == (5, again)


async def test_toggle_turns_completed_into_pending_and_other_statuses_into_completed(api: Api) -> None:
    ann = await api.register("ann")
    task = await create(api, ann)
    for before, after in (("PENDING", "COMPLETED"), ("COMPLETED", "PENDING"), ("IN_PROGRESS", "COMPLETED")):
        await change(api, "setTaskStatus", ann, id=task["id"], status=before)
        toggled = (await change(api, "toggleTaskCompletion", ann, id=task["id"]))["task"]
        assert (toggled["status"], toggled["completed"]) == (after, after == "COMPLETED")
        assert await read(api, ann, task["id"]) == toggled


async def test_an_unknown_status_is_refused(api: Api) -> None:
    ann = await api.register("ann")
    task = await create(api, ann)
    for status in ("DONE", "pending", "", 1, None, ["PENDING"]):
        given = {"input": {"id": task["id"], "status": status}}
        assert await api.codes(mutation("setTaskStatus"), given, by=ann) == ["BAD_USER_INPUT"]
    literal = f'mutation {{ setTaskStatus(input: {{id: "{task["id"]}", status: DONE}}) {{ errors {{ code }} }} }}'
    assert await api.codes(literal, by=ann) == ["GRAPHQL_VALIDATION_FAILED"]
    assert await read(api, ann, task["id"]) == task


async def test_overdue_means_due_in_the_past_and_not_completed(api: Api) -> None:
    ann = await api.register("ann")
    now = datetime.now(UTC)
    past, future = (now - timedelta(days=1)).isoformat(), (now + timedelta(days=1)).isoformat()
    for due_date, status, overdue in (
        (past, "PENDING", True),
        (past, "IN_PROGRESS", True),
        (past, "COMPLETED", False),
        (future, "PENDING", False),
        (None, "PENDING", False),
    ):
        task = await create(api, ann, dueDate=due_date)
        await change(api, "setTaskStatus", ann, id=task["id"], status=status)
        found = await read(api, ann, task["id"])
        assert found is not None
        assert found["overdue"] is overdue, (due_date, status)


# ---------------------------------------------------------------- concurrency


async def test_an_outdated_expected_version_is_refused_with_the_current_task(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    task = (await change(api, "updateTask", ann, id=(await create(api, ann))["id"], title="Newer"))["task"]
    for name, given in CHANGES.items():
        for expected in (1, 3, 0, -1):
            payload = await change(api, name, ann, id=task["id"], expectedVersion=expected, **given)
            conflict = refusal(
                "VERSION_CONFLICT",
                f"The task is at version 2, not {expected}: read it again and repeat the change",
                "expectedVersion",
            )
            assert payload == refused(name, conflict, task=None if name == "deleteTask" else task)
    assert await read(api, ann, task["id"]) == task
    assert await count_events(database) == 2
    for version, (name, given) in enumerate(CHANGES.items(), start=2):
        payload = await change(api, name, ann, id=task["id"], expectedVersion=version, **given)
        assert payload["errors"] == []
    assert await read(api, ann, task["id"]) is None


async def test_concurrent_updates_of_different_fields_are_all_kept(api: Api, database: Database) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = await create(api, ann)
    everything = {
        "title": "Together",
        "description": "Long",
        "status": "IN_PROGRESS",
        "priority": "HIGH",
        "category": "WORK",
        "dueDate": "2035-05-05T05:05:05Z",
        "assigneeId": bob.id,
    }
    # 20 updates at once: each of five fields once, and two fields with a different value from each writer.
    updates = [{name: value} for name, value in everything.items() if name not in ("title", "description")]
    updates += [{"title": f"Title {n}"} for n in range(8)] + [{"description": f"Text {n}"} for n in range(7)]
    payloads = await asyncio.gather(*(change(api, "updateTask", ann, id=task["id"], **given) for given in updates))
    assert [payload["errors"] for payload in payloads] == [[]] * 20
    assert sorted(payload["task"]["version"] for payload in payloads) == list(range(2, 22))

    last = max((payload["task"] for payload in payloads), key=lambda task: int(task["version"]))
    assert await read(api, ann, task["id"]) == last
    assert (last["status"], last["priority"], last["category"]) == ("IN_PROGRESS", "HIGH", "WORK")
    assert (last["dueDate"], last["assignee"]) == ("2035-05-05T05:05:05+00:00", {"username": "bob"})
    # Each change started from the result of the one before.
    rows = await all_events(database)
    assert [event.after for event in rows[:-1]] == [event.before for event in rows[1:]]
    assert {event.after.title for event in rows if event.after} == {"A task", *(f"Title {n}" for n in range(8))}


async def test_of_writers_expecting_the_same_version_exactly_one_wins(api: Api) -> None:
    ann = await api.register("ann")
    task = await create(api, ann)
    for version in (1, 2, 3):
        payloads = await asyncio.gather(
            *(
                change(api, "updateTask", ann, id=task["id"], expectedVersion=version, title=f"{version}, {n}")
                for n in range(20)
            )
        )
        (winner,) = (payload["task"] for payload in payloads if not payload["errors"])
        assert winner["version"] == version + 1
        for payload in payloads:
            if payload["errors"]:
                assert [error["code"] for error in payload["errors"]] == ["VERSION_CONFLICT"]
                assert payload["task"] == winner
        assert await read(api, ann, task["id"]) == winner


@pytest.mark.slow
async def test_increments_that_retry_on_conflict_lose_none(api: Api) -> None:
    ann = await api.register("ann")
    task = await create(api, ann, description="0")

    async def increment() -> None:
        seen = task
        while True:
            payload = await change(
                api,
                "updateTask",
                ann,
                id=task["id"],
                expectedVersion=seen["version"],
                description=str(int(seen["description"]) + 1),
            )
            if not payload["errors"]:
                return
            assert [error["code"] for error in payload["errors"]] == ["VERSION_CONFLICT"]
            seen = payload["task"]

    await asyncio.gather(*(increment() for _ in range(20)))
    found = await read(api, ann, task["id"])
    assert found is not None
    assert (found["description"], found["version"]) == ("20", 21)


async def test_a_delete_concurrent_with_updates_leaves_a_consistent_record(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    task = await create(api, ann)
    deleted, *updated = await asyncio.gather(
        change(api, "deleteTask", ann, id=task["id"]),
        *(change(api, "updateTask", ann, id=task["id"], title=f"Title {n}") for n in range(8)),
    )
    assert deleted == {"deletedTaskId": task["id"], "errors": []}
    done = [payload for payload in updated if not payload["errors"]]
    assert [payload for payload in updated if payload["errors"] not in ([], [NOT_FOUND])] == []
    assert await read(api, ann, task["id"]) is None
    assert [event.kind for event in await all_events(database)] == ["CREATED", *["UPDATED"] * len(done), "DELETED"]


async def all_events(database: Database) -> list[Any]:
    """All events in order of their ids, once every one has a position."""
    async with database.read() as session:
        ids = (await session.execute(select(Event.id).order_by(Event.id))).scalars().all()
        events = await events_after(session, 0, limit=1000)
        while len(events) < len(ids):
            events = await events_after(session, 0, limit=1000)
    return sorted(events, key=lambda event: event.id)


# ---------------------------------------------------------------- dates


async def test_a_due_date_is_kept_in_utc_to_the_microsecond(api: Api) -> None:
    ann = await api.register("ann")
    for given, kept in (
        ("2026-01-31T08:00:00Z", "2026-01-31T08:00:00+00:00"),
        ("2026-01-31t08:00:00z", "2026-01-31T08:00:00+00:00"),
        ("2026-01-31 08:00:00Z", "2026-01-31T08:00:00+00:00"),
        ("2026-01-31T08:00:00+05:30", "2026-01-31T02:30:00+00:00"),
        ("2026-01-31T08:00:00.5Z", "2026-01-31T08:00:00.500000+00:00"),
        ("2026-01-31T08:00:00.123456-08:00", "2026-01-31T16:00:00.123456+00:00"),
        ("2026-01-31T08:00:00.123456789Z", "2026-01-31T08:00:00.123456+00:00"),
        ("0001-01-01T00:00:00.000001Z", "0001-01-01T00:00:00.000001+00:00"),
        ("0001-01-01T00:00:00-00:01", "0001-01-01T00:01:00+00:00"),
        ("9999-12-31T23:59:59.999998Z", "9999-12-31T23:59:59.999998+00:00"),
        ("9999-12-31T23:59:59+14:00", "9999-12-31T09:59:59+00:00"),
    ):
        task = await create(api, ann, dueDate=given)
        assert task["dueDate"] == kept
        assert await read(api, ann, task["id"]) == task


async def test_an_invalid_due_date_is_refused(api: Api) -> None:
    ann = await api.register("ann")
    nonsense: list[Any] = [
        "2026-01-31T08:00:00",  # no offset
        "2026-01-31",
        "2026-01-31T08:00Z",
        "2026-W05-6T08:00:00Z",
        "20260131T080000Z",
        "2026-02-30T08:00:00Z",
        "2026-01-31T24:00:01Z",
        "2026-01-31T08:00:60Z",
        "2026-01-31T08:00:00+24:00",
        "2026-01-31T08:00:00.Z",
        "2026-01-31T08:00:00Z ",
        "٢٠٢٦-٠١-٣١T٠٨:٠٠:٠٠Z",  # digits, but not ASCII digits
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",  # before the first representable moment
        "9999-12-31T23:59:59-00:01",  # after the last
        "12026-01-31T08:00:00Z",
        "tomorrow",
        "",
        0,
        1767225600,
        True,
        {},
        ["2026-01-31"],
    ]
    for value in nonsense:
        given = {"input": {"title": "A task", "dueDate": value}}
        assert await api.codes(mutation("createTask"), given, by=ann) == ["BAD_USER_INPUT"], value
    for literal in ('"2026-01-31"', "1767225600", "TODAY", "{}"):
        document = f'mutation {{ createTask(input: {{title: "A task", dueDate: {literal}}}) {{ errors {{ code }} }} }}'
        assert await api.codes(document, by=ann) == ["GRAPHQL_VALIDATION_FAILED"], literal
    assert (await api.data("{ tasks { totalCount } }", by=ann))["tasks"] == {"totalCount": 0}


NOT_RFC_3339 = "DateTime must be RFC 3339 with an offset, like 2026-01-31T08:00:00Z, not "


@pytest.mark.parametrize(
    ("literal", "message"),
    [
        ('"tomorrow"', f"{NOT_RFC_3339}'tomorrow'"),
        ("1767225600", f"{NOT_RFC_3339}1767225600"),
        ("TOMORROW", f"{NOT_RFC_3339}TOMORROW"),
        ('["2026-01-31"]', f'{NOT_RFC_3339}["2026-01-31"]'),
        ("{at: 1}", f"{NOT_RFC_3339}{{ at: 1 }}"),
        ('"2026-02-30T08:00:00Z"', "DateTime '2026-02-30T08:00:00Z' is no time that exists"),
    ],
)
async def test_an_error_about_a_date_in_a_document_has_its_location(api: Api, literal: str, message: str) -> None:
    ann = await api.register("ann")
    for document in (
        f"{{ tasks(filter: {{dueDate: {{lt:\n  {literal}}}}}) {{ totalCount }} }}",
        f'mutation {{ createTask(input: {{title: "A task", dueDate:\n  {literal}}}) {{ errors {{ code }} }} }}',
        f"query($at: DateTime =\n  {literal}) {{ tasks(filter: {{dueDate: {{lt: $at}}}}) {{ totalCount }} }}",
    ):
        assert await api.post(document, by=ann) == {
            "errors": [
                {
                    "message": message,
                    "locations": [{"line": 2, "column": 3}],
                    "extensions": {"code": "GRAPHQL_VALIDATION_FAILED"},
                }
            ]
        }


LONG: list[Any] = [
    "x" * 50_000,
    ["x" * 50_000] * 9,
    {"x" * 50_000: "x" * 50_000},
    10**4000,
    [[[["x"] * 9] * 9] * 9] * 9,
]


@pytest.mark.parametrize("value", ["tomorrow", "2026-02-30T08:00:00Z", *LONG], ids=lambda value: repr(value)[:20])
async def test_an_error_about_a_date_in_variables_names_the_variable_and_quotes_little(api: Api, value: object) -> None:
    ann = await api.register("ann")
    for document, variables, where in (
        ("query($at: DateTime) { tasks(filter: {dueDate: {lt: $at}}) { totalCount } }", {"at": value}, "'$at' has"),
        (
            "query($filter: TaskFilter) { tasks(filter: $filter) { totalCount } }",
            {"filter": {"not": {"dueDate": {"lt": value}}}},
            "'$filter' has invalid value at .not.dueDate.lt",
        ),
    ):
        (error,) = (await api.post(document, variables, by=ann))["errors"]
        assert error["extensions"] == {"code": "BAD_USER_INPUT"}
        assert error["message"].startswith(f"Variable {where}")
        assert "DateTime" in error["message"]
        assert len(error["message"]) < 200 + 150


async def test_an_error_about_a_long_date_in_a_document_quotes_little(api: Api) -> None:
    ann = await api.register("ann")
    for literal in (f'"{"x" * 20_000}"', "9" * 20_000, f'["{"x" * 20_000}"]', f"X{'x' * 20_000}"):
        document = f"{{ tasks(filter: {{dueDate: {{lt: {literal}}}}}) {{ totalCount }} }}"
        (error,) = (await api.post(document, by=ann))["errors"]
        assert len(error["message"]) <= len(NOT_RFC_3339) + 200
        assert error["locations"] == [{"line": 1, "column": 32}]


@pytest.mark.parametrize(
    "edge",
    [
        "0001-01-01T00:00:00Z",  # "no time" in Go and .NET
        "0001-01-01T14:00:00+14:00",
        "9999-12-31T23:59:59.999999Z",
        "9999-12-31T23:59:59.9999999Z",  # the last moment in .NET
        "9999-12-31T09:59:59.999999-14:00",
    ],
)
async def test_the_first_and_last_representable_moments_are_refused_as_due_dates(api: Api, edge: str) -> None:
    ann = await api.register("ann")
    task = await create(api, ann, dueDate="2026-01-31T08:00:00Z")
    message = "Due date must be after 0001-01-01T00:00:00Z and before 9999-12-31T23:59:59.999999Z"
    refused = {"code": "BAD_USER_INPUT", "message": message, "field": ["dueDate"]}
    given = {"input": {"title": "Another", "dueDate": edge}}
    document = "mutation($input: CreateTaskInput!) { createTask(input: $input) { errors { code message field } } }"
    assert (await api.data(document, given, by=ann))["createTask"]["errors"] == [refused]
    assert (await api.update_task(ann, task["id"], dueDate=edge)) == {"task": None, "errors": [refused]}
    assert await read(api, ann, task["id"]) == task
    assert (await api.data("{ tasks { totalCount } }", by=ann))["tasks"] == {"totalCount": 1}


async def test_tasks_with_extreme_due_dates_are_sorted_filtered_and_counted(api: Api) -> None:
    ann = await api.register("ann")
    dates = ["0001-01-01T00:00:00.000001Z", "2026-01-31T08:00:00Z", "9999-12-31T23:59:59.999998Z", None, None]
    ids = [(await create(api, ann, title=f"Task {n}", dueDate=date))["id"] for n, date in enumerate(dates)]
    query = """query($after: String, $direction: OrderDirection!) {
      tasks(first: 1, after: $after, orderBy: [{field: DUE_DATE, direction: $direction}]) {
        nodes { id } pageInfo { endCursor hasNextPage }
      }
    }"""
    for direction, expected in (("ASC", [0, 1, 2, 3, 4]), ("DESC", [2, 1, 0, 4, 3])):
        found: list[int] = []
        after = None
        while len(found) < len(ids):
            page = (await api.data(query, {"after": after, "direction": direction}, by=ann))["tasks"]
            found += [ids.index(node["id"]) for node in page["nodes"]]
            after = page["pageInfo"]["endCursor"]
            assert page["pageInfo"]["hasNextPage"] == (len(found) < len(ids))
        assert found == expected
    counts = """query($filter: TaskFilter) {
      tasks(filter: $filter) { totalCount } taskStats(filter: $filter) { total overdue }
    }"""
    last, first = "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"
    for compared, total, overdue in (
        ({"lte": last}, 3, 2),
        ({"lt": last}, 3, 2),
        ({"gte": last}, 0, 0),
        ({"eq": last}, 0, 0),
        ({"gte": first}, 3, 2),
        ({"gt": first}, 3, 2),
        ({"lte": first}, 0, 0),
        ({"gte": "9999-12-31T23:59:59.999998Z"}, 1, 0),
        ({"lte": "0001-01-01T00:00:00.000001Z"}, 1, 1),
    ):
        found_counts = await api.data(counts, {"filter": {"dueDate": compared}}, by=ann)
        expected_counts = {"tasks": {"totalCount": total}, "taskStats": {"total": total, "overdue": overdue}}
        assert found_counts == expected_counts, compared
    history = "query($id: ID!) { task(id: $id) { overdue history { nodes { task { dueDate } } } } }"
    for place, kept in ((0, "0001-01-01T00:00:00.000001+00:00"), (2, "9999-12-31T23:59:59.999998+00:00")):
        task = (await api.data(history, {"id": ids[place]}, by=ann))["task"]
        assert task == {"overdue": place == 0, "history": {"nodes": [{"task": {"dueDate": kept}}]}}


# ---------------------------------------------------------------- task


async def test_a_task_is_found_by_its_id_in_either_case(api: Api) -> None:
    ann = await api.register("ann")
    task = await create(api, ann)
    assert await read(api, ann, task["id"].upper()) == task
    assert await read(api, ann, str(make_id())) is None
    for wrong in ("", "1", "urn:uuid:" + task["id"], "{" + task["id"] + "}", task["id"].replace("-", ""), "x" * 5000):
        answer = await api.post("query($id: ID!) { task(id: $id) { id } }", {"id": wrong}, by=ann)
        assert answer["data"] == {"task": None}
        assert [error["extensions"] for error in answer["errors"]] == [{"code": "BAD_USER_INPUT"}]
