"""Changes that expect a version, with `onConflict: MERGE`."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text, update

from taskflow_gql import clock
from taskflow_gql.database.units import Database
from taskflow_gql.models import Receipt
from taskflow_gql.services.positions import expire_events
from tests.support.client import Api, Person
from tests.support.serving import make_admin

ERRORS = "errors { code field message conflictingFields }"
TASK = "task { id title description status priority category dueDate assignee { id } version }"


def mutation(name: str) -> str:
    input_type = f"{name[0].upper()}{name[1:]}Input"
    entity = "deletedTaskId" if name == "deleteTask" else TASK
    return f"mutation($input: {input_type}!) {{ {name}(input: $input) {{ {entity} replayed {ERRORS} }} }}"


async def ask(api: Api, name: str, by: Person, task: dict[str, Any], **given: Any) -> dict[str, Any]:
    payload: dict[str, Any] = (await api.data(mutation(name), {"input": {"id": task["id"], **given}}, by=by))[name]
    return payload


async def merge(api: Api, by: Person, task: dict[str, Any], version: int = 1, **given: Any) -> dict[str, Any]:
    return await ask(api, "updateTask", by, task, expectedVersion=version, onConflict="MERGE", **given)


async def change(api: Api, by: Person, task: dict[str, Any], **given: Any) -> None:
    assert (await ask(api, "updateTask", by, task, **given))["errors"] == []


def conflicts(payload: dict[str, Any]) -> list[str]:
    (error,) = payload["errors"]
    assert (error["code"], error["field"]) == ("VERSION_CONFLICT", ["expectedVersion"])
    fields: list[str] = error["conflictingFields"]
    return fields


def some(task: dict[str, Any], *names: str) -> list[Any]:
    return [task[name] for name in names]


async def test_changes_of_different_fields_are_merged(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    await change(api, ann, task, title="Theirs", priority="HIGH")
    merged = await merge(api, ann, task, description="Mine", status="IN_PROGRESS")
    assert merged["errors"] == []
    assert some(merged["task"], "title", "priority", "description", "status", "version") == [
        "Theirs",
        "HIGH",
        "Mine",
        "IN_PROGRESS",
        3,
    ]


async def test_a_field_that_both_changed_is_a_conflict_and_nothing_is_changed(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = await api.create_task(ann, "Before", dueDate="2030-01-01T00:00:00Z")
    await change(api, ann, task, title="Theirs", dueDate=None, assigneeId=bob.id, category="HOME")
    payload = await merge(
        api, ann, task, title="Mine", description="Mine", dueDate="2031-01-01T00:00:00Z", assigneeId=ann.id
    )
    assert conflicts(payload) == ["title", "dueDate", "assigneeId"]
    assert payload["errors"][0]["message"] == (
        "The task is at version 2, not 1, and what you change was changed since: read it again and repeat the change"
    )
    now = (await merge(api, ann, task, version=2))["task"]
    assert payload["task"] == now
    assert some(now, "title", "description", "version", "dueDate") == ["Theirs", None, 2, None]


async def test_the_same_change_by_two_people_is_no_conflict(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    await change(api, ann, task, title="Same", priority="LOW")
    merged = await merge(api, ann, task, title="  Same ", category="WORK")
    assert merged["errors"] == []
    assert some(merged["task"], "title", "priority", "category", "version") == ["Same", "LOW", "WORK", 3]
    again = await merge(api, ann, task, title="Same")
    assert (again["errors"], again["task"]["version"]) == ([], 3)


async def test_a_value_left_as_it_was_does_not_undo_what_others_changed(api: Api, database: Database) -> None:
    boss, bob = await api.register("boss"), await api.register("bob")
    await make_admin(database, boss.id)
    form: dict[str, Any] = {
        "title": "Before",
        "description": "Text",
        "status": "PENDING",
        "priority": "MEDIUM",
        "category": "OTHER",
        "dueDate": "2030-01-01T01:00:00+01:00",
        "assigneeId": bob.id,
    }
    given = {name: value for name, value in form.items() if name != "status"}
    task = await api.create_task(boss, **given)
    others = {"title": "Theirs", "status": "COMPLETED", "dueDate": None, "assigneeId": boss.id}
    await change(api, boss, task, **others)
    deactivate = "mutation($id: ID!) { deactivateUser(input: {userId: $id}) { errors { code } } }"
    await api.data(deactivate, {"id": bob.id}, by=boss)
    merged = await merge(api, boss, task, **(form | {"description": None, "priority": "HIGH"}))
    assert merged["errors"] == []
    found = merged["task"]
    assert some(found, "title", "status", "dueDate", "description", "priority", "version") == [
        "Theirs",
        "COMPLETED",
        None,
        None,
        "HIGH",
        3,
    ]
    assert found["assignee"]["id"] == boss.id
    # The whole form with one value that conflicts.
    assert conflicts(await merge(api, boss, task, **(form | {"title": "Mine"}))) == ["title"]


async def test_the_present_version_is_changed_without_reading_the_record(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    await change(api, ann, task, title="Second")
    await forget(database)
    merged = await merge(api, ann, task, version=2, title="Third")
    assert (merged["errors"], merged["task"]["title"]) == ([], "Third")


async def test_other_errors_have_no_conflicting_fields(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    await change(api, ann, task, priority="LOW")
    for given in ({"title": "x"}, {"title": None}, {"assigneeId": "nobody"}):
        (error,) = (await merge(api, ann, task, **given))["errors"]
        assert (error["code"], error["conflictingFields"]) == ("BAD_USER_INPUT", [])
    (error,) = (await ask(api, "updateTask", ann, task, expectedVersion=1, title="Mine"))["errors"]
    assert (error["code"], error["conflictingFields"]) == ("VERSION_CONFLICT", [])


async def forget(database: Database) -> None:
    """Delete all events, once every one has a position."""
    async with asyncio.timeout(10):
        while True:
            async with database.write() as session:
                await expire_events(session, clock.now() + timedelta(days=1), limit=1000)
                if not (await session.execute(text("SELECT 1 FROM events LIMIT 1"))).all():
                    return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("version", [-1, 0, 3, 2**31 - 1, -(2**31)])
async def test_a_version_that_the_task_never_had_is_a_conflict(api: Api, version: int) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    await change(api, ann, task, priority="LOW")
    payload = await merge(api, ann, task, version=version, title="Mine")
    assert conflicts(payload) == []
    assert some(payload["task"], "title", "version") == ["Before", 2]


async def test_a_version_that_the_record_no_longer_has_is_a_conflict(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    await change(api, ann, task, priority="LOW")
    await forget(database)
    await change(api, ann, task, category="HOME")
    payload = await merge(api, ann, task, version=1, title="Mine")
    assert conflicts(payload) == []
    assert some(payload["task"], "title", "version") == ["Before", 3]
    # The change that ended version 2 is kept.
    assert (await merge(api, ann, task, version=2, title="Mine"))["task"]["version"] == 4


async def test_a_version_that_the_viewer_could_not_see_is_a_conflict(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    task = await api.create_task(ann, "Before")
    await change(api, ann, task, assigneeId=bob.id)
    await change(api, ann, task, title="After")
    given = {"status": "COMPLETED", "onConflict": "MERGE"}
    assert conflicts(await ask(api, "setTaskStatus", bob, task, expectedVersion=1, **given)) == []
    assert (await ask(api, "setTaskStatus", bob, task, expectedVersion=2, **given))["errors"] == []


async def test_a_status_is_merged_with_changes_of_other_fields(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    await change(api, ann, task, title="After")
    started = await ask(api, "setTaskStatus", ann, task, status="IN_PROGRESS", expectedVersion=1, onConflict="MERGE")
    assert some(started["task"], "title", "status", "version") == ["After", "IN_PROGRESS", 3]
    payload = await ask(api, "setTaskStatus", ann, task, status="COMPLETED", expectedVersion=1, onConflict="MERGE")
    assert conflicts(payload) == ["status"]
    assert payload["task"] == started["task"]
    unchanged = await ask(api, "setTaskStatus", ann, task, status="PENDING", expectedVersion=1, onConflict="MERGE")
    assert (unchanged["errors"], unchanged["task"]) == ([], started["task"])


async def test_a_toggle_is_merged_by_the_status_that_was_seen(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")

    async def toggle(version: int) -> dict[str, Any]:
        return await ask(api, "toggleTaskCompletion", ann, task, expectedVersion=version, onConflict="MERGE")

    await change(api, ann, task, title="After")
    toggled = await toggle(1)
    assert some(toggled["task"], "title", "status", "version") == ["After", "COMPLETED", 3]
    # A second person who saw it open wanted the same.
    assert await toggle(2) == toggled
    await change(api, ann, task, status="IN_PROGRESS")
    assert conflicts(await toggle(1)) == ["status"]
    assert conflicts(await toggle(3)) == ["status"]
    assert (await toggle(4))["task"]["status"] == "COMPLETED"


async def test_a_delete_conflicts_with_every_change(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    await change(api, ann, task, title="After")
    given = {"onConflict": "MERGE", "expectedVersion": 1}
    payload = await ask(api, "deleteTask", ann, task, **given)
    assert (conflicts(payload), payload["deletedTaskId"]) == ([], None)
    assert (await ask(api, "deleteTask", ann, task, **(given | {"expectedVersion": 2})))["errors"] == []


async def test_a_repeat_gets_the_same_conflict(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    await change(api, ann, task, title="Theirs", dueDate="2030-01-01T00:00:00Z")
    given: dict[str, Any] = {"title": "Mine", "dueDate": "2031-01-01T00:00:00Z", "mutationId": "refused"}
    refused = await merge(api, ann, task, **given)
    assert conflicts(refused) == ["title", "dueDate"]
    merged = await merge(api, ann, task, priority="LOW", mutationId="merged")
    assert merged["errors"] == []
    await change(api, ann, task, title="Later", priority="HIGH")
    assert await merge(api, ann, task, **given) == refused | {"replayed": True}
    assert await merge(api, ann, task, priority="LOW", mutationId="merged") == merged | {"replayed": True}
    # A receipt of the previous release.
    kept = [{name: refused["errors"][0][name] for name in ("code", "message", "field")}]
    async with database.write() as session:
        of_refused = update(Receipt).where(Receipt.mutation_id == "refused")
        await session.execute(of_refused.values(answer={"errors": kept}))
    again = await merge(api, ann, task, **given)
    assert again["errors"] == [kept[0] | {"conflictingFields": []}]


async def test_concurrent_mergers_of_different_fields_lose_nothing(api: Api, database: Database) -> None:
    people = [await api.register(name) for name in ("ann", "bob", "cid", "dan", "eve", "fay", "gus")]
    for person in people:
        await make_admin(database, person.id)
    everything: dict[str, Any] = {
        "title": "Together",
        "description": "Long",
        "status": "IN_PROGRESS",
        "priority": "HIGH",
        "category": "WORK",
        "dueDate": "2035-05-05T05:05:05+00:00",
        "assigneeId": people[1].id,
    }
    unchanged: dict[str, Any] = {
        "title": "Before",
        "description": None,
        "status": "PENDING",
        "priority": "MEDIUM",
        "category": "OTHER",
        "dueDate": None,
        "assigneeId": None,
    }
    for _ in range(3):
        task = await api.create_task(people[0], "Before")
        payloads = await asyncio.gather(
            *(
                # Each sends the whole form with one change.
                merge(api, person, task, **(unchanged | {name: value}))
                for person, (name, value) in zip(people, everything.items(), strict=True)
            )
        )
        assert [payload["errors"] for payload in payloads] == [[]] * 7
        assert sorted(payload["task"]["version"] for payload in payloads) == list(range(2, 9))
        last = max((payload["task"] for payload in payloads), key=lambda task: int(task["version"]))
        found = {name: last[name] for name in everything if name != "assigneeId"}
        assert found == {name: value for name, value in everything.items() if name != "assigneeId"}
        assert last["assignee"]["id"] == people[1].id


async def test_of_concurrent_mergers_of_one_field_one_wins(api: Api) -> None:
    ann = await api.register("ann")
    task = await api.create_task(ann, "Before")
    payloads = await asyncio.gather(*(merge(api, ann, task, title=f"Title {n % 4}") for n in range(12)))
    found = (await merge(api, ann, task, version=2))["task"]
    assert found["version"] == 2
    # Those who wanted the same as the winner have it.
    assert all(payload["task"] == found for payload in payloads)
    assert Counter(bool(payload["errors"]) for payload in payloads) == {True: 9, False: 3}
    assert all(conflicts(payload) == ["title"] for payload in payloads if payload["errors"])
