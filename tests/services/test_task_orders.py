"""Orders of tasks: what the databases make of them, beside a plain sort of the same rows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, TypeAlias
from uuid import UUID

import pytest

from taskflow_gql.database.sessions import Database
from taskflow_gql.models import TaskPriority, TaskRow, TaskStatus
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.paging import PageRequest
from taskflow_gql.services.task_orders import NEWEST_FIRST, TaskOrderField, order_by
from taskflow_gql.services.tasks import TaskQuery, list_tasks
from tests.services.test_task_filters import ANN, BOSS, TIMES, holding, make_task, random_tasks

# A field, and whether it descends.
Key: TypeAlias = tuple[TaskOrderField, bool]

KEYS: list[Key] = [(field, descending) for field in TaskOrderField for descending in (False, True)]
# LOW < MEDIUM < HIGH and PENDING < IN_PROGRESS < COMPLETED, which is not the alphabet.
PRIORITIES = ["LOW", "MEDIUM", "HIGH"]
STATUSES = ["PENDING", "IN_PROGRESS", "COMPLETED"]
SORTED_BY: dict[TaskOrderField, Callable[[TaskRow], Any]] = {
    TaskOrderField.CREATED_AT: lambda task: task.created_at,
    TaskOrderField.UPDATED_AT: lambda task: task.updated_at,
    TaskOrderField.DUE_DATE: lambda task: task.due_date or TIMES[0],
    TaskOrderField.PRIORITY: lambda task: PRIORITIES.index(task.priority.name),
    TaskOrderField.STATUS: lambda task: STATUSES.index(task.status.name),
    TaskOrderField.TITLE: lambda task: task.title.casefold(),
}


def in_order(tasks: list[TaskRow], keys: list[Key]) -> list[TaskRow]:
    """Sorted by the last key first and by the first key last: each sort keeps the order of what it finds equal."""
    result = sorted(tasks, key=lambda task: task.id, reverse=keys[0][1])
    for field, descending in reversed(keys):
        result.sort(key=SORTED_BY[field], reverse=descending)
        if field is TaskOrderField.DUE_DATE:
            result.sort(key=lambda task: task.due_date is None)
    return result


def test_nothing_is_left_to_the_alphabet() -> None:
    assert sorted(PRIORITIES) != [priority.name for priority in TaskPriority] == PRIORITIES
    assert sorted(STATUSES) != [status.name for status in TaskStatus] == STATUSES


@pytest.mark.parametrize("viewer", [ANN, BOSS], ids=["member", "admin"])
async def test_every_key_and_every_pair_of_keys_sorts_as_python_does(database: Database, viewer: Viewer) -> None:
    tasks = random_tasks(0, count=50)
    mine = [task for task in tasks if viewer.is_admin or viewer.id in (task.creator_id, task.assignee_id)]
    whole = PageRequest.of(first=100)
    async with holding(database, tasks) as session:
        for keys in [[key] for key in KEYS] + [[*pair] for pair in product(KEYS, KEYS)]:
            page = await list_tasks(session, viewer, TaskQuery(whole, order=order_by(keys)))
            assert page.rows == in_order(mine, keys), keys


async def test_the_six_keys_together_sort_as_python_does(database: Database) -> None:
    tasks = random_tasks(1, count=50)
    async with holding(database, tasks) as session:
        for descending in product((False, True), repeat=6):
            keys = list(zip(reversed(TaskOrderField), descending, strict=True))
            page = await list_tasks(session, BOSS, TaskQuery(PageRequest.of(first=100), order=order_by(keys)))
            assert page.rows == in_order(tasks, keys), keys


@pytest.mark.parametrize("descending", [False, True])
async def test_tasks_without_a_due_date_come_last_in_either_direction(database: Database, descending: bool) -> None:
    # The first and the last moment that a task may be due at stand before none at all.
    dates = [TIMES[0], TIMES[-1], None, None]
    tasks = [make_task(id=UUID(int=place), due_date=date) for place, date in enumerate(dates)]
    order = order_by([(TaskOrderField.DUE_DATE, descending)])
    async with holding(database, tasks) as session:
        page = await list_tasks(session, BOSS, TaskQuery(PageRequest.of(), order=order))
    found = [task.id.int for task in page.rows]
    assert found == ([1, 0, 3, 2] if descending else [0, 1, 2, 3])


async def test_titles_sort_by_the_code_points_of_their_casefold(database: Database) -> None:
    titles = [
        "Zebra",
        "apple",
        "Äpfel",
        "STRASSE 2",
        "Straße 1",
        "apple pie",
        "Apple!",
        "日本",
        "🙂",
        "ｆull width",
        "\uffee",
        "_",
        "",
    ]
    tasks = [make_task(id=UUID(int=place), title=title) for place, title in enumerate(titles)]
    async with holding(database, tasks) as session:
        page = await list_tasks(
            session, BOSS, TaskQuery(PageRequest.of(), order=order_by([(TaskOrderField.TITLE, False)]))
        )
    assert [task.title for task in page.rows] == sorted(titles, key=str.casefold)
    assert [task.title for task in page.rows][-3:] == ["ｆull width", "\uffee", "🙂"]


def test_a_field_that_was_named_before_is_left_out() -> None:
    title, status = TaskOrderField.TITLE, TaskOrderField.STATUS
    assert order_by([(title, True), (status, False), (title, False)]) == order_by([(title, True), (status, False)])
    assert order_by([(title, True)]) != order_by([(title, False)])
    assert order_by([(title, True), (status, True)]) != order_by([(status, True), (title, True)])


def test_the_default_is_newest_first() -> None:
    assert NEWEST_FIRST.signature == "created_at:desc,id:desc"
