"""Paging during concurrent changes: every untouched row is found exactly once and in order, in both directions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from random import Random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, insert, update

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.models import Task, TaskCategory, TaskPriority, TaskRow, TaskStatus, User, UserRow
from taskflow_gql.services.access import Viewer, may_see
from taskflow_gql.services.events import Row
from taskflow_gql.services.paging import Page, PageRequest
from taskflow_gql.services.search_words import text_keys
from taskflow_gql.services.task_filters import matches
from taskflow_gql.services.task_orders import NEWEST_FIRST, order_by
from taskflow_gql.services.tasks import Relation, TaskQuery, list_tasks, list_tasks_of_users
from taskflow_gql.services.users import list_users
from tests.support.task_filters import (
    ANN,
    BOSS,
    COMPARISONS,
    NOW,
    PEOPLE,
    FilterJson,
    examples,
    holding,
    insert_tasks,
    make_user,
    random_tasks,
    read_filter,
    some_of,
)
from tests.support.task_orders import KEYS, Key, in_order

# No filter on the columns that Colleagues changes in tasks that count as untouched.
FILTERS = some_of(
    {name: made for name, made in COMPARISONS.items() if name not in ("description", "search", "category")}
)


async def walk(
    read: Callable[[PageRequest], Awaitable[Page[Row]]],
    meanwhile: Callable[[Page[Row]], Awaitable[None]],
    *,
    size: int,
    backward: bool,
) -> list[Row]:
    """All rows that a client gets by following `pageInfo`, in the order of the list."""
    rows: list[Row] = []
    cursor: str | None = None
    while True:
        request = PageRequest.of(last=size, before=cursor) if backward else PageRequest.of(first=size, after=cursor)
        page = await read(request)
        assert len(page.rows) <= size
        rows = page.rows + rows if backward else rows + page.rows
        if not (page.has_previous if backward else page.has_next):
            return rows
        cursor = page.order.cursor(page.rows[0 if backward else -1])
        await meanwhile(page)


class Colleagues:
    """Writers that change tasks between pages. `touched` has the tasks whose place in the list may have changed."""

    def __init__(self, session: DatabaseSession, seed: int, tasks: list[TaskRow]) -> None:
        self._session = session
        self._random = Random(seed)
        self._tasks = {task.id: task for task in tasks}
        # The ids of the new tasks lie between those of the others.
        self._new = [task._replace(id=UUID(int=task.id.int + 1)) for task in random_tasks(seed + 1)]
        self.touched: set[UUID] = {task.id for task in self._new}

    async def work(self, page: Page[TaskRow]) -> None:
        await insert_tasks(self._session, self._new[:2])
        del self._new[:2]
        # Also change tasks that the client has just seen, and sometimes delete the one that its cursor names.
        shown = [task.id for task in page.rows if task.id in self._tasks]
        for task_id in self._random.sample(sorted(self._tasks), min(2, len(self._tasks))):
            await self._delete(task_id)
        if shown and self._random.random() < 0.3 and shown[-1] in self._tasks:
            await self._delete(shown[-1])
        for task_id in self._random.sample(sorted(self._tasks), min(3, len(self._tasks))):
            await self._change_what_nobody_looks_at(self._tasks[task_id])
        for task_id in self._random.sample(sorted(self._tasks), min(1, len(self._tasks))):
            await self._move(self._tasks[task_id])

    async def _delete(self, task_id: UUID) -> None:
        await self._session.execute(delete(Task).where(Task.id == task_id))
        del self._tasks[task_id]
        self.touched.add(task_id)

    async def _change_what_nobody_looks_at(self, task: TaskRow) -> None:
        description = self._random.choice([None, "plan", "Straße"])
        values = {
            "version": task.version + 1,
            "category": self._random.choice(list(TaskCategory)),
            "description": description,
            **text_keys(task.title, description),
        }
        await self._session.execute(update(Task).where(Task.id == task.id).values(values))

    async def _move(self, task: TaskRow) -> None:
        self.touched.add(task.id)
        status = self._random.choice(list(TaskStatus))
        values = {
            "title_key": self._random.choice(["", "plan", "zzz"]),
            "status": status,
            "completed_at": NOW if status is TaskStatus.COMPLETED else None,
            "priority": self._random.choice(list(TaskPriority)),
            "due_date": self._random.choice([None, NOW]),
            "created_at": NOW + timedelta(days=self._random.randrange(-9, 9)),
            "updated_at": NOW + timedelta(days=self._random.randrange(-9, 9)),
        }
        await self._session.execute(update(Task).where(Task.id == task.id).values(values))


@examples(60)
@given(
    seed=st.integers(0, 2**32 - 1),
    viewer=st.sampled_from([ANN, BOSS]),
    relation=st.sampled_from([None, *Relation]),
    filter_json=st.one_of(st.just({}), FILTERS),
    keys=st.lists(st.sampled_from(KEYS), max_size=3),
    size=st.integers(1, 7),
    backward=st.booleans(),
)
async def test_paging_through_tasks_during_changes_finds_every_untouched_task_once(
    database: Database,
    seed: int,
    viewer: Viewer,
    relation: Relation | None,
    filter_json: FilterJson,
    keys: list[Key],
    size: int,
    backward: bool,
) -> None:
    tasks = random_tasks(seed)
    filter_ = read_filter(filter_json, viewer)
    order = order_by(keys) if keys else NEWEST_FIRST
    # The owner, if it is the list of a user. The lists of all users are read at once.
    owner = PEOPLE["Bob"]

    def is_listed(task: TaskRow) -> bool:
        owners = {None: owner, Relation.CREATED: task.creator_id, Relation.ASSIGNED: task.assignee_id}
        return owners[relation] == owner and may_see(viewer, task) and matches(filter_, task, NOW)

    async with holding(database, tasks) as session:

        async def read(request: PageRequest) -> Page[TaskRow]:
            query = TaskQuery(request, filter_, order)
            if relation is None:
                return await list_tasks(session, viewer, query)
            return (await list_tasks_of_users(session, viewer, relation, list(PEOPLE.values()), query))[owner]

        colleagues = Colleagues(session, seed, tasks)
        found = [task.id for task in await walk(read, colleagues.work, size=size, backward=backward)]

    expected = in_order([task for task in tasks if is_listed(task)], keys or [KEYS[1]])
    untouched = [task.id for task in expected if task.id not in colleagues.touched]
    assert [task_id for task_id in found if task_id not in colleagues.touched] == untouched


@examples(30)
@given(
    seed=st.integers(0, 2**32 - 1),
    viewer=st.sampled_from([ANN, BOSS]),
    search=st.sampled_from([None, "", "u", "ö"]),
    size=st.integers(1, 7),
    backward=st.booleans(),
)
async def test_paging_through_users_during_changes_finds_every_remaining_user_once(
    database: Database, seed: int, viewer: Viewer, search: str | None, size: int, backward: bool
) -> None:
    random = Random(seed)
    names = [f"{random.choice('uUvV_')}{random.randrange(10**6)}" for _ in range(60)]
    rows = [
        make_user(name, UUID(int=place), full_name=random.choice(["Max Öhm", "Ute", "-"]))
        for place, name in enumerate(names)
    ]
    staying, leaving, coming = rows[:20], rows[20:40], rows[40:]
    for row in random.sample(rows, 10):
        row["is_active"] = False

    async with holding(database, []) as session:

        async def come_and_go(_: Page[UserRow]) -> None:
            if leaving:
                await session.execute(delete(User).where(User.id == leaving.pop()["id"]))
                await session.execute(insert(User), [coming.pop()])
            someone = random.choice(staying)
            await session.execute(update(User).where(User.id == someone["id"]).values(email="new", updated_at=NOW))

        await session.execute(insert(User), staying + leaving)
        found = await walk(
            lambda request: list_users(session, viewer, request, search=search),
            come_and_go,
            size=size,
            backward=backward,
        )

    def is_listed(row: dict[str, object]) -> bool:
        names = f" {row['username']} {row['full_name']}".casefold()
        return (viewer.is_admin or bool(row["is_active"])) and (not search or f" {search}" in names)

    expected = sorted(str(row["username"]) for row in staying if is_listed(row))
    expected.sort(key=str.casefold)
    stayed = {row["id"] for row in staying}
    assert [user.username for user in found if user.id in stayed] == expected
    assert len({user.id for user in found}) == len(found)


@pytest.mark.parametrize("backward", [False, True])
async def test_a_page_continues_after_a_deleted_task(database: Database, backward: bool) -> None:
    tasks = in_order(random_tasks(0, count=9), [KEYS[1]])
    async with holding(database, tasks) as session:

        async def read(request: PageRequest) -> Page[TaskRow]:
            return await list_tasks(session, BOSS, TaskQuery(request))

        async def delete_what_was_shown(page: Page[TaskRow]) -> None:
            await session.execute(delete(Task).where(Task.id.in_([task.id for task in page.rows])))

        assert await walk(read, delete_what_was_shown, size=2, backward=backward) == tasks
