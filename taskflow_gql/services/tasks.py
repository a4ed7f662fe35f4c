"""Tasks: reading them, and every change to them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypedDict
from uuid import UUID

from sqlalchemy import Select, and_, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from taskflow_gql import clock
from taskflow_gql.database import dialect_of
from taskflow_gql.errors import (
    AssigneeNotFound,
    BadUserInput,
    Forbidden,
    NotFound,
    Refusal,
    VersionConflict,
    refuse_if_any,
)
from taskflow_gql.models import TASK_COLUMNS, Task, TaskCategory, TaskPriority, TaskRow, TaskStatus, User, UserRow
from taskflow_gql.services.access import (
    Viewer,
    may_change_status,
    may_delete,
    may_update,
    visible,
    visible_scopes,
    visible_to,
)
from taskflow_gql.services.changes import record_task_event
from taskflow_gql.services.filters import EVERYTHING, Filter, condition, search_scopes
from taskflow_gql.services.ids import make_id, parse_id
from taskflow_gql.services.paging import (
    Order,
    Page,
    PageRequest,
    PageShape,
    make_page,
    page_of,
    page_of_each,
    shape_of,
    sort_columns,
)
from taskflow_gql.services.task_order import NEWEST_FIRST
from taskflow_gql.services.text import check_description, check_title
from taskflow_gql.services.words import text_keys


class TaskChanges(TypedDict, total=False):
    """What a client gave of an update; left out is unchanged, None clears where that is allowed."""

    title: str | None
    description: str | None
    status: TaskStatus | None
    priority: TaskPriority | None
    category: TaskCategory | None
    due_date: datetime | None
    assignee_id: str | None


# Fields of TaskChanges that cannot be cleared, with the names that people see.
_REQUIRED = {"title": "Title", "status": "Status", "priority": "Priority", "category": "Category"}


async def get_task(session: AsyncSession, viewer: Viewer, task_id: str) -> TaskRow | None:
    return (await tasks_by_id(session, viewer, [parse_id(task_id)])).get(UUID(task_id))


async def tasks_by_id(session: AsyncSession, viewer: Viewer, task_ids: Collection[UUID]) -> dict[UUID, TaskRow]:
    """Those of the tasks that the viewer may see."""
    rows = await session.execute(select(*TASK_COLUMNS).where(Task.id.in_(task_ids), visible_to(viewer)))
    return {task.id: task for task in map(TaskRow._make, rows)}


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """Which tasks, in which order, and which page of them."""

    request: PageRequest
    filter: Filter = EVERYTHING
    order: Order[TaskRow] = NEWEST_FIRST


class Relation(StrEnum):
    """How a task belongs to a person."""

    CREATED = "created"
    ASSIGNED = "assigned"


_COLUMN_OF_RELATION = {Relation.CREATED: Task.creator_id, Relation.ASSIGNED: Task.assignee_id}


async def list_tasks(
    session: AsyncSession, viewer: Viewer, query: TaskQuery, *, with_people: bool = False
) -> tuple[Page[TaskRow], dict[UUID, UserRow]]:
    """A page, and with `with_people` the creators and assignees of its tasks: one statement either way."""
    shape, parameters = shape_of(query.order, query.request)
    statement = _page_statement(viewer.is_admin, query.filter, query.order, shape, with_people)
    rows = (await session.execute(statement, {**parameters, "viewer_id": viewer.id})).all()
    tasks = [TaskRow._make(row[:_TASK_WIDTH]) for row in rows]
    people = {
        row[start]: UserRow._make(row[start : start + _USER_WIDTH])
        for row in (rows if with_people else ())
        for start in (_TASK_WIDTH, _TASK_WIDTH + _USER_WIDTH)
        if row[start] is not None
    }
    return make_page(tasks, query.order, query.request), people


_TASK_WIDTH, _USER_WIDTH = len(TaskRow._fields), len(UserRow._fields)


# Building a statement costs more than running it. The filter's values are part of what a statement is kept under, so
# there may be many; each holds some hundred kilobytes of SQLAlchemy's objects.
@lru_cache(maxsize=128)
def _page_statement(
    is_admin: bool, filter_: Filter, order: Order[TaskRow], shape: PageShape, with_people: bool
) -> Select[Any]:
    """Wants `viewer_id` and the parameters of the shape."""
    # Somebody's own tasks are few enough to be searched as they come.
    filters = search_scopes(filter_) if is_admin else [condition(filter_)]
    scopes = [and_(scope, one) for scope in visible_scopes(is_admin=is_admin) for one in filters]
    page = page_of(TASK_COLUMNS, scopes, order, shape)
    columns = [page.c[column.key] for column in TASK_COLUMNS]
    sorted_by = sort_columns(page, order, shape)
    if not with_people:
        return select(*columns).order_by(*sorted_by)
    creator, assignee = aliased(User), aliased(User)
    people = [getattr(user, name) for user in (creator, assignee) for name in UserRow._fields]
    return (
        select(*columns, *people)
        .join(creator, creator.id == page.c.creator_id)
        .outerjoin(assignee, assignee.id == page.c.assignee_id)
        .order_by(*sorted_by)
    )


async def list_tasks_of_users(
    session: AsyncSession, viewer: Viewer, relation: Relation, user_ids: Collection[UUID], query: TaskQuery
) -> dict[UUID, Page[TaskRow]]:
    """The same page for each person, of those of their tasks that the viewer may see: one statement for all."""
    shape, parameters = shape_of(query.order, query.request)
    statement = _pages_statement(dialect_of(session), viewer.is_admin, relation, query.filter, query.order, shape)
    parameters |= {"viewer_id": viewer.id, "user_ids": list(user_ids)}
    rows_by_user: dict[UUID, list[TaskRow]] = {user_id: [] for user_id in user_ids}
    for user_id, *columns in await session.execute(statement, parameters):
        rows_by_user[user_id].append(TaskRow._make(columns))
    return {user_id: make_page(rows, query.order, query.request) for user_id, rows in rows_by_user.items()}


@lru_cache(maxsize=128)
def _pages_statement(
    dialect_name: str, is_admin: bool, relation: Relation, filter_: Filter, order: Order[TaskRow], shape: PageShape
) -> Select[Any]:
    """Wants `viewer_id`, `user_ids` and the parameters of the shape."""
    return page_of_each(
        dialect_name,
        TASK_COLUMNS,
        User.id,
        _COLUMN_OF_RELATION[relation],
        bindparam("user_ids", expanding=True),
        and_(visible(is_admin=is_admin), condition(filter_)),
        order,
        shape,
    )


async def count_tasks(session: AsyncSession, viewer: Viewer, filter_: Filter) -> int:
    statement = select(func.count()).select_from(Task).where(visible_to(viewer), condition(filter_))
    return (await session.execute(statement)).scalar_one()


async def count_tasks_of_users(
    session: AsyncSession, viewer: Viewer, relation: Relation, user_ids: Collection[UUID], filter_: Filter
) -> dict[UUID, int]:
    column = _COLUMN_OF_RELATION[relation]
    statement = (
        select(column, func.count())
        .where(column.in_(user_ids), visible_to(viewer), condition(filter_))
        .group_by(column)
    )
    counts = dict.fromkeys(user_ids, 0)
    for user_id, count in await session.execute(statement):
        if user_id is not None:
            counts[user_id] = count
    return counts


async def create_task(
    session: AsyncSession,
    viewer: Viewer,
    *,
    title: str,
    description: str | None,
    priority: TaskPriority,
    category: TaskCategory,
    due_date: datetime | None,
    assignee_id: str | None,
) -> TaskRow:
    problems: list[Refusal] = []
    title = check_title(title, problems)
    description = check_description(description, problems)
    assignee = await _check_assignee(session, assignee_id, problems)
    refuse_if_any(problems)

    now = clock.now()
    task = TaskRow(
        id=make_id(),
        title=title,
        description=description,
        status=TaskStatus.PENDING,
        priority=priority,
        category=category,
        due_date=due_date,
        completed_at=None,
        creator_id=viewer.id,
        assignee_id=assignee,
        version=1,
        created_at=now,
        updated_at=now,
    )
    await session.execute(insert(Task).values(**task._asdict(), **text_keys(task.title, task.description)))
    await record_task_event(session, viewer, before=None, after=task)
    return task


async def update_task(
    session: AsyncSession,
    viewer: Viewer,
    task_id: str,
    changes: TaskChanges,
    *,
    expected_version: int | None = None,
) -> TaskRow:
    task = await _require_task_for_update(session, viewer, task_id)
    if not may_update(viewer, task):
        raise Forbidden("Only task creator can update task")
    _require_version(task, expected_version)

    problems: list[Refusal] = []
    values: dict[str, Any] = {**changes}
    for field, name in _REQUIRED.items():
        if field in values and values[field] is None:
            problems.append(BadUserInput(f"{name} cannot be null", field=field))
    if values.get("title") is not None:
        values["title"] = check_title(values["title"], problems)
    check_description(values.get("description"), problems)
    # Only a new assignee is looked up: who was assigned and then deactivated does not block other changes.
    if values.get("assignee_id") not in (None, str(task.assignee_id)):
        values["assignee_id"] = await _check_assignee(session, values["assignee_id"], problems)
    elif "assignee_id" in values:
        values["assignee_id"] = task.assignee_id if values["assignee_id"] else None
    refuse_if_any(problems)
    return await _change_task(session, viewer, task, values)


async def set_task_status(
    session: AsyncSession,
    viewer: Viewer,
    task_id: str,
    status: TaskStatus,
    *,
    expected_version: int | None = None,
) -> TaskRow:
    task = await _require_task_for_update(session, viewer, task_id)
    if not may_change_status(viewer, task):
        raise Forbidden("Not enough permissions")
    _require_version(task, expected_version)
    return await _change_task(session, viewer, task, {"status": status})


async def toggle_task_completion(
    session: AsyncSession, viewer: Viewer, task_id: str, *, expected_version: int | None = None
) -> TaskRow:
    """COMPLETED becomes PENDING; anything else becomes COMPLETED."""
    task = await _require_task_for_update(session, viewer, task_id)
    if not may_change_status(viewer, task):
        raise Forbidden("Not enough permissions")
    _require_version(task, expected_version)
    status = TaskStatus.PENDING if task.completed else TaskStatus.COMPLETED
    return await _change_task(session, viewer, task, {"status": status})


async def delete_task(
    session: AsyncSession, viewer: Viewer, task_id: str, *, expected_version: int | None = None
) -> TaskRow:
    """The task as it last stood."""
    task = await _require_task_for_update(session, viewer, task_id)
    if not may_delete(viewer, task):
        raise Forbidden("Only task creator can delete task")
    _require_version(task, expected_version)
    await session.execute(delete(Task).where(Task.id == task.id))
    await record_task_event(session, viewer, before=task, after=None)
    return task


async def _require_task_for_update(session: AsyncSession, viewer: Viewer, task_id: str) -> TaskRow:
    """Locked until the transaction ends, so that what is checked is what is changed."""
    statement = select(*TASK_COLUMNS).where(Task.id == parse_id(task_id, field="id"), visible_to(viewer))
    row = (await session.execute(statement.with_for_update())).first()
    if row is None:
        raise NotFound("There is no such task, or you may not see it", field="id")
    return TaskRow._make(row)


def _require_version(task: TaskRow, expected_version: int | None) -> None:
    if expected_version is not None and expected_version != task.version:
        raise VersionConflict(task, expected_version)


async def _check_assignee(session: AsyncSession, assignee_id: str | None, problems: list[Refusal]) -> UUID | None:
    if assignee_id is None:
        return None
    try:
        key = parse_id(assignee_id, field="assigneeId")
    except BadUserInput as problem:
        problems.append(problem)
        return None
    # FOR SHARE: the person cannot be deactivated between this check and the commit.
    statement = select(User.id).where(User.id == key, User.is_active).with_for_update(read=True)
    if (await session.execute(statement)).first() is None:
        problems.append(AssigneeNotFound())
    return key


async def _change_task(session: AsyncSession, viewer: Viewer, task: TaskRow, values: dict[str, Any]) -> TaskRow:
    """Write what differs and record it. A change that changes nothing is no change: no version, no event."""
    values = {name: value for name, value in values.items() if getattr(task, name) != value}
    if not values:
        return task
    now = clock.now()
    if "status" in values:
        values["completed_at"] = now if values["status"] is TaskStatus.COMPLETED else None
    changed = task._replace(**values, version=task.version + 1, updated_at=now)
    written = {**values, "version": changed.version, "updated_at": now}
    if "title" in values or "description" in values:
        written |= text_keys(changed.title, changed.description)
    await session.execute(update(Task).where(Task.id == task.id).values(written))
    await record_task_event(session, viewer, before=task, after=changed)
    return changed
