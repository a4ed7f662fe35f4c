"""Orders of tasks in both databases, compared with sorting the same rows in Python."""

from __future__ import annotations

from itertools import product
from uuid import UUID

import pytest

from taskflow_gql.database.units import Database
from taskflow_gql.models import TaskPriority, TaskStatus
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.paging import PageRequest
from taskflow_gql.services.task_orders import NEWEST_FIRST, TaskOrderField, order_by
from taskflow_gql.services.tasks import TaskQuery, list_tasks
from tests.support.task_filters import ANN, BOSS, TIMES, holding, make_task, random_tasks
from tests.support.task_orders import KEYS, PRIORITIES, STATUSES, in_order


def test_enum_orders_are_not_alphabetical() -> None:
    assert sorted(PRIORITIES) != [priority.name for priority in TaskPriority] == PRIORITIES
    assert sorted(STATUSES) != [status.name for status in TaskStatus] == STATUSES


@pytest.mark.slow
@pytest.mark.parametrize("viewer", [ANN, BOSS], ids=["member", "admin"])
async def test_every_key_and_every_pair_of_keys_sorts_as_in_python(database: Database, viewer: Viewer) -> None:
    tasks = random_tasks(0, count=50)
    mine = [task for task in tasks if viewer.is_admin or viewer.id in (task.creator_id, task.assignee_id)]
    whole = PageRequest.of(first=100)
    async with holding(database, tasks) as session:
        for keys in [[key] for key in KEYS] + [[*pair] for pair in product(KEYS, KEYS)]:
            page = await list_tasks(session, viewer, TaskQuery(whole, order=order_by(keys)))
            assert page.rows == in_order(mine, keys), keys


async def test_all_six_keys_together_sort_as_in_python(database: Database) -> None:
    tasks = random_tasks(1, count=50)
    async with holding(database, tasks) as session:
        for descending in product((False, True), repeat=6):
            keys = list(zip(reversed(TaskOrderField), descending, strict=True))
            page = await list_tasks(session, BOSS, TaskQuery(PageRequest.of(first=100), order=order_by(keys)))
            assert page.rows == in_order(tasks, keys), keys


@pytest.mark.parametrize("descending", [False, True])
async def test_tasks_without_a_due_date_come_last_in_either_direction(database: Database, descending: bool) -> None:
    # Even the first and last representable due dates sort before no due date.
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


def test_a_repeated_sort_field_is_ignored() -> None:
    title, status = TaskOrderField.TITLE, TaskOrderField.STATUS
    assert order_by([(title, True), (status, False), (title, False)]) == order_by([(title, True), (status, False)])
    assert order_by([(title, True)]) != order_by([(title, False)])
    assert order_by([(title, True), (status, True)]) != order_by([(status, True), (title, True)])


def test_the_default_is_newest_first() -> None:
    assert NEWEST_FIRST.signature == "created_at:desc,id:desc"
