"""`applyMutations`: several mutations in one request."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from taskflow_gql.api.batches import BATCHED, MAX_MUTATIONS
from taskflow_gql.api.context import Context
from taskflow_gql.api.tasks import TaskMutations
from tests.support.client import Api, Person
from tests.support.factories import noting_statements

ERRORS = "errors { code field message conflictingFields }"
APPLY = f"""
mutation($input: ApplyMutationsInput!) {{
  applyMutations(input: $input) {{
    results {{
      __typename
      ... on CreateTaskPayload {{ task {{ id title version }} replayed changeCursor {ERRORS} }}
      ... on UpdateTaskPayload {{ task {{ id title version }} replayed changeCursor {ERRORS} }}
      ... on SetTaskStatusPayload {{ task {{ id status version }} replayed changeCursor {ERRORS} }}
      ... on ToggleTaskCompletionPayload {{ task {{ id status version }} replayed changeCursor {ERRORS} }}
      ... on DeleteTaskPayload {{ deletedTaskId replayed changeCursor {ERRORS} }}
    }}
    replayed changeCursor {ERRORS}
  }}
}}
"""
TITLES = "{ tasks { nodes { title } } }"
FEED = "{ taskChanges(first: 100) { nodes { cursor kind mutationId task { title } } } }"
MODES = pytest.mark.parametrize("mode", ["ALL_OR_NOTHING", "EACH"])


async def apply(api: Api, by: Person, *mutations: dict[str, Any], **given: Any) -> dict[str, Any]:
    found = await api.data(APPLY, {"input": {"mutations": list(mutations), **given}}, by=by)
    payload: dict[str, Any] = found["applyMutations"]
    return payload


async def titles(api: Api, by: Person) -> list[str]:
    return sorted(task["title"] for task in (await api.data(TITLES, by=by))["tasks"]["nodes"])


def create(title: str, **given: Any) -> dict[str, Any]:
    return {"createTask": {"title": title, **given}}


def codes(payload: dict[str, Any]) -> list[str]:
    return [error["code"] for error in payload["errors"]]


def replayed(payload: dict[str, Any]) -> dict[str, Any]:
    results = [each | {"replayed": True} for each in payload["results"]]
    return payload | {"results": results, "replayed": True}


def test_a_batch_can_hold_every_mutation_of_tasks() -> None:
    fields = TaskMutations.__strawberry_definition__.fields  # type: ignore[attr-defined]
    assert sorted(BATCHED) == sorted(field.python_name for field in fields)


@MODES
async def test_mutations_run_in_order_and_answer_as_on_their_own(api: Api, mode: str) -> None:
    ann = await api.register("ann")
    id_, other = str(uuid4()), await api.create_task(ann, "Other")
    payload = await apply(
        api,
        ann,
        create("New", id=id_),
        {"updateTask": {"id": id_, "title": "Newer", "expectedVersion": 1}},
        {"setTaskStatus": {"id": id_, "status": "IN_PROGRESS"}},
        {"toggleTaskCompletion": {"id": id_}},
        {"deleteTask": {"id": other["id"]}},
        mode=mode,
    )
    assert (payload["errors"], payload["replayed"]) == ([], False)
    shown = [
        (each["__typename"], each.get("deletedTaskId") or (each["task"]["version"], each["errors"]))
        for each in payload["results"]
    ]
    assert shown == [
        ("CreateTaskPayload", (1, [])),
        ("UpdateTaskPayload", (2, [])),
        ("SetTaskStatusPayload", (3, [])),
        ("ToggleTaskCompletionPayload", (4, [])),
        ("DeleteTaskPayload", other["id"]),
    ]
    assert payload["results"][3]["task"]["status"] == "COMPLETED"
    assert await titles(api, ann) == ["Newer"]
    # Each result has its own place in the stream, in order, and the batch has the last one.
    changes = (await api.data(FEED, by=ann))["taskChanges"]["nodes"][1:]
    assert [each["changeCursor"] for each in payload["results"]] == [change["cursor"] for change in changes]
    assert payload["changeCursor"] == changes[-1]["cursor"]


async def test_all_or_nothing_changes_nothing_when_one_is_refused(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    payload = await apply(
        api,
        ann,
        create("First"),
        {"updateTask": {"id": task["id"], "title": "x"}},
        {"deleteTask": {"id": task["id"]}},
        mutationId="batch",
    )
    assert [codes(each) for each in payload["results"]] == [["NOT_APPLIED"], ["BAD_USER_INPUT"], ["NOT_APPLIED"]]
    assert [each["errors"][0]["field"] for each in payload["results"]] == [None, ["title"], None]
    assert [(error["code"], error["field"]) for error in payload["errors"]] == [("NOT_APPLIED", ["mutations", "1"])]
    assert [payload["results"][0]["task"], payload["results"][2]["deletedTaskId"]] == [None, None]
    assert {each["changeCursor"] for each in [payload, *payload["results"]]} == {None}
    assert await titles(api, ann) == ["Before"]
    assert len((await api.data(FEED, by=ann))["taskChanges"]["nodes"]) == 1
    # The refusal is kept too.
    repeated = await apply(
        api,
        ann,
        create("First"),
        {"updateTask": {"id": task["id"], "title": "x"}},
        {"deleteTask": {"id": task["id"]}},
        mutationId="batch",
    )
    assert repeated == replayed(payload)


async def test_each_goes_on_after_a_refusal(api: Api) -> None:
    ann = await api.register("ann")
    payload = await apply(
        api, ann, create("First"), create("x"), {"deleteTask": {"id": str(uuid4())}}, create("Last"), mode="EACH"
    )
    assert [codes(each) for each in payload["results"]] == [[], ["BAD_USER_INPUT"], ["NOT_FOUND"], []]
    assert payload["errors"] == []
    assert await titles(api, ann) == ["First", "Last"]


@MODES
async def test_a_repeated_batch_gets_the_first_answer(api: Api, mode: str) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann)
    batch = [create("Once"), {"toggleTaskCompletion": {"id": task["id"]}}]
    first = await apply(api, ann, *batch, mode=mode, mutationId="batch")
    await api.update_task(ann, task["id"], title="Later")
    assert await apply(api, ann, *batch, mode=mode, mutationId="batch") == replayed(first)
    assert await titles(api, ann) == ["Later", "Once"]
    changes = (await api.data(FEED, by=ann))["taskChanges"]["nodes"]
    assert [change["mutationId"] for change in changes] == [None, "batch", "batch", None]


@MODES
async def test_of_concurrent_batches_with_one_id_one_is_done(api: Api, mode: str) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    batch = [create("Once"), {"toggleTaskCompletion": {"id": task["id"]}}]
    answers = await asyncio.gather(*(apply(api, ann, *batch, mode=mode, mutationId="same") for _ in range(6)))
    assert len({str(replayed(answer)) for answer in answers}) == 1
    assert await titles(api, ann) == ["Before", "Once"]
    assert len((await api.data(FEED, by=ann))["taskChanges"]["nodes"]) == 3


async def test_an_interrupted_batch_of_each_goes_on_where_it_stopped(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await api.register("ann")
    batch = [create(f"Number {number}") for number in range(4)]
    write, count = Context.write, 0

    def fail_at_third(self: Context, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise ConnectionError("The server dies here")
        return write(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Context, "write", fail_at_third)
        assert await api.codes(APPLY, {"input": {"mutations": batch, "mode": "EACH", "mutationId": "m"}}, by=ann)
    assert await titles(api, ann) == ["Number 0", "Number 1"]
    payload = await apply(api, ann, *batch, mode="EACH", mutationId="m")
    assert [each["replayed"] for each in payload["results"]] == [True, True, False, False]
    assert payload["replayed"] is False
    assert await titles(api, ann) == ["Number 0", "Number 1", "Number 2", "Number 3"]
    assert await apply(api, ann, *batch, mode="EACH", mutationId="m") == replayed(payload)


async def test_other_input_under_the_id_of_an_interrupted_batch_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await api.register("ann")
    batch = [create("One"), create("Two")]
    write, count = Context.write, 0

    def fail_at_second(self: Context, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise ConnectionError("The server dies here")
        return write(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Context, "write", fail_at_second)
        assert await api.codes(APPLY, {"input": {"mutations": batch, "mode": "EACH", "mutationId": "m"}}, by=ann)
    other = await apply(api, ann, create("One"), create("Two"), create("Three"), mode="EACH", mutationId="m")
    assert (codes(other), other["results"]) == (["MUTATION_ID_REUSED"], [])
    payload = await apply(api, ann, *batch, mode="EACH", mutationId="m")
    assert [codes(each) for each in payload["results"]] == [[], []]
    assert await titles(api, ann) == ["One", "Two"]


async def test_a_refused_batch_shows_no_state_that_was_rolled_back(api: Api) -> None:
    ann, id_ = await api.register("ann"), str(uuid4())
    task = await api.create_task(ann, "Before")
    change = {"updateTask": {"id": task["id"], "title": "Never committed"}}
    payload = await apply(api, ann, change, {"updateTask": {"id": task["id"], "title": "New", "expectedVersion": 1}})
    assert codes(payload["results"][1]) == ["VERSION_CONFLICT"]
    assert payload["results"][1]["task"] == task | {"title": "Before", "version": 1}
    ghost = {"updateTask": {"id": id_, "title": "New", "expectedVersion": 7}}
    payload = await apply(api, ann, create("Ghost", id=id_), ghost)
    assert (codes(payload["results"][1]), payload["results"][1]["task"]) == (["VERSION_CONFLICT"], None)


@MODES
async def test_a_batch_itself_can_be_refused(api: Api, mode: str) -> None:
    ann = await api.register("ann")
    for batch, field in (
        ([], ["mutations"]),
        ([create("Many")] * (MAX_MUTATIONS + 1), ["mutations"]),
        ([create("Fine"), create("Named", mutationId="inner")], ["mutations", "1", "createTask", "mutationId"]),
    ):
        payload = await apply(api, ann, *batch, mode=mode)
        assert [(error["code"], error["field"]) for error in payload["errors"]] == [("BAD_USER_INPUT", field)]
        assert payload["results"] == []
    await apply(api, ann, create("First"), mode=mode, mutationId="same")
    reused = await apply(api, ann, create("Second"), mode=mode, mutationId="same")
    assert (codes(reused), reused["results"]) == (["MUTATION_ID_REUSED"], [])
    assert await titles(api, ann) == ["First"]


async def test_a_full_batch_is_allowed(api: Api) -> None:
    ann = await api.register("ann")
    payload = await apply(api, ann, *(create(f"Number {number:03}") for number in range(MAX_MUTATIONS)))
    assert [each["task"]["title"] for each in payload["results"]] == await titles_of_all(api, ann)


async def titles_of_all(api: Api, by: Person) -> list[str]:
    nodes = (await api.data("{ tasks(first: 100) { nodes { title } } }", by=by))["tasks"]["nodes"]
    return sorted(task["title"] for task in nodes)


async def test_an_input_names_exactly_one_mutation(api: Api) -> None:
    ann = await api.register("ann")
    for wrong in ({}, {"createTask": None}, {**create("Two"), "deleteTask": {"id": str(uuid4())}}):
        assert await api.codes(APPLY, {"input": {"mutations": [wrong]}}, by=ann) == ["BAD_USER_INPUT"]
    assert await titles(api, ann) == []


@pytest.mark.parametrize(
    ("variables", "mutation"),
    [
        ("", "{}"),
        ("", "{ createTask: null }"),
        ("", '{ createTask: { title: "Two" }, deleteTask: { id: "x" } }'),
        ("($task: CreateTaskInput)", "{ createTask: $task }"),
    ],
)
async def test_a_wrong_input_in_the_document_is_found_before_anything_is_done(
    api: Api, variables: str, mutation: str
) -> None:
    ann = await api.register("ann")
    document = f"""mutation Both{variables} {{
      createTask(input: {{ title: "One" }}) {{ task {{ id }} }}
      applyMutations(input: {{ mutations: [{mutation}] }}) {{ replayed }}
    }}"""
    given = {"task": {"title": "Two"}} if variables else None
    assert await api.codes(document, given, by=ann) == ["GRAPHQL_VALIDATION_FAILED"]
    assert await titles(api, ann) == []


async def test_the_cursors_of_all_results_are_read_at_once(api: Api) -> None:
    ann = await api.register("ann")
    statements: list[str] = []
    with noting_statements(statements.append):
        payload = await apply(api, ann, *(create(f"Task {number}") for number in range(50)))
    cursors = [each["changeCursor"] for each in payload["results"]]
    assert (None in cursors, len(set(cursors))) == (False, 50)
    assert len([sql for sql in statements if "events.position IS NOT NULL" in sql]) == 1


async def test_a_batch_needs_a_person(api: Api) -> None:
    for mode in ("ALL_OR_NOTHING", "EACH"):
        for given in ({}, {"mutationId": "m"}):
            variables = {"input": {"mutations": [create("Nobody's")], "mode": mode, **given}}
            assert await api.codes(APPLY, variables) == ["UNAUTHENTICATED"]


async def test_the_rights_of_each_mutation_count(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    shared = await api.create_task(ann, "Shared", assigneeId=bob.id)
    payload = await apply(
        api,
        bob,
        {"setTaskStatus": {"id": shared["id"], "status": "IN_PROGRESS"}},
        {"updateTask": {"id": shared["id"], "title": "Bob's"}},
        {"deleteTask": {"id": (await api.create_task(ann, "Hidden"))["id"]}},
        mode="EACH",
    )
    assert [codes(each) for each in payload["results"]] == [[], ["FORBIDDEN"], ["NOT_FOUND"]]


async def test_an_id_is_free_once_in_a_batch(api: Api) -> None:
    ann, id_ = await api.register("ann"), str(uuid4())
    payload = await apply(api, ann, create("First", id=id_), create("Second", id=id_))
    assert [codes(each) for each in payload["results"]] == [["NOT_APPLIED"], ["ID_TAKEN"]]
    assert await titles(api, ann) == []


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
async def test_batches_that_lock_the_same_tasks_do_not_wait_for_each_other(api: Api) -> None:
    ann = await api.register("ann")
    ids = [(await api.create_task(ann))["id"] for _ in range(4)]
    toggles = [{"toggleTaskCompletion": {"id": id_}} for id_ in ids]
    orders = [toggles, toggles[::-1], toggles[2:] + toggles[:2]] * 4
    payloads = await asyncio.gather(*(apply(api, ann, *order) for order in orders))
    assert all(payload["errors"] == [] for payload in payloads)


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
async def test_batches_that_make_the_same_tasks_in_another_order_are_refused_not_broken(api: Api) -> None:
    """Each would wait for the other; PostgreSQL ends one, which is tried again."""
    ann = await api.register("ann")
    for _ in range(5):
        ids = [str(uuid4()) for _ in range(6)]
        one = [create("Mine", id=id_) for id_ in ids]
        payloads = await asyncio.gather(*(apply(api, ann, *order) for order in (one, one[::-1])))
        assert sorted(codes(payload) for payload in payloads) == [[], ["NOT_APPLIED"]]


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
async def test_all_or_nothing_is_one_transaction(api: Api) -> None:
    ann = await api.register("ann")
    seen: list[str] = []
    with noting_statements(seen.append):
        await apply(api, ann, *(create(f"Number {number}") for number in range(5)))
    assert len([sql for sql in seen if "INSERT INTO tasks" in sql]) == 5


MANY = """
mutation($input: ApplyMutationsInput!) {
  a: applyMutations(input: $input) { errors { code } } b: applyMutations(input: $input) { errors { code } }
  c: applyMutations(input: $input) { errors { code } } d: applyMutations(input: $input) { errors { code } }
  e: applyMutations(input: $input) { errors { code } } f: applyMutations(input: $input) { errors { code } }
}
"""


async def test_the_limits_of_an_operation_count_what_is_inside(api: Api) -> None:
    ann = await api.register("ann")
    # A list in a variable counts as the longest.
    assert await api.codes(MANY, {"input": {"mutations": [create("One")]}}, by=ann) == ["QUERY_TOO_COMPLEX"]
    literal = 'applyMutations(input: {mutations: [{createTask: {title: "One"}}]}) { errors { code } }'
    few = "mutation {" + " ".join(f"a{number}: {literal}" for number in range(6)) + "}"
    assert await api.codes(few, by=ann) == []
    assert await titles(api, ann) == ["One"] * 6
