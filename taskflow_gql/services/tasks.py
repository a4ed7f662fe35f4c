"""Reading tasks, and all changes to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import cache, lru_cache
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypedDict, cast
from uuid import UUID

from sqlalchemy import Select, Update, and_, bindparam, delete, func, insert, select, update

from taskflow_gql import clock
from taskflow_gql.database.constructs import among, among_few, look_up
from taskflow_gql.database.rows import row_class_of
from taskflow_gql.database.sessions import DatabaseSession, Outdated
from taskflow_gql.database.statements import Build, Statement
from taskflow_gql.errors import (
    BadUserInput,
    Forbidden,
    NotFound,
    Refusal,
    VersionConflict,
    refuse_if_any,
)
from taskflow_gql.models import (
    COLUMN_BY_FIELD,
    TASK_COLUMNS,
    EventKind,
    Task,
    TaskCategory,
    TaskPriority,
    TaskRow,
    TaskStatus,
    User,
    UserRow,
)
from taskflow_gql.services.access import (
    Viewer,
    may_change_status,
    may_delete,
    may_see,
    may_update,
    visible,
    visible_scopes,
)
from taskflow_gql.services.checks import check_description, check_due_date, check_title
from taskflow_gql.services.events import write_with_event
from taskflow_gql.services.ids import check_free_id, make_id
from taskflow_gql.services.merging import ConflictPolicy, merged
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
from taskflow_gql.services.positions import StreamPlace
from taskflow_gql.services.record import entries_around, row_at, row_of_version
from taskflow_gql.services.reverting import GONE, WHOLE
from taskflow_gql.services.search_words import text_keys
from taskflow_gql.services.task_filters import (
    EVERYTHING,
    Filter,
    cached_for_small_filters,
    condition,
    search_scopes,
    without_values,
)
from taskflow_gql.services.task_orders import NEWEST_FIRST

if TYPE_CHECKING:
    from sqlalchemy import Table


class TaskUpdate(TypedDict, total=False):
    """The fields of an update. Absent fields stay unchanged; None clears a field that can be cleared."""

    title: str | None
    description: str | None
    status: TaskStatus | None
    priority: TaskPriority | None
    category: TaskCategory | None
    due_date: datetime | None
    assignee_id: UUID | None


# Fields of TaskUpdate that cannot be cleared, and their names in messages.
_REQUIRED = {"title": "Title", "status": "Status", "priority": "Priority", "category": "Category"}


class AssigneeNotFound(Refusal):
    code = "ASSIGNEE_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("Assignee not found", field="assignee_id")


@dataclass(frozen=True, slots=True)
class TaskColumns:
    """The columns to read of a task, and of its creator and assignee.

    The rows have only these columns. If `creator` or `assignee` is given, they also have an attribute of that name: the
    person's row with those columns, or None.
    """

    task: tuple[str, ...] = TaskRow._fields
    creator: tuple[str, ...] | None = None
    assignee: tuple[str, ...] | None = None

    def with_keys(self, order: Order[TaskRow]) -> TaskColumns:
        """These columns, and those that cursors in this order consist of."""
        missing = [key.name for key in order.keys if key.name not in self.task]
        return replace(self, task=(*self.task, *missing)) if missing else self

    @property
    def people(self) -> dict[str, tuple[str, ...]]:
        people = {"creator": self.creator, "assignee": self.assignee}
        return {relation: columns for relation, columns in people.items() if columns is not None}


ALL_COLUMNS = TaskColumns()


async def get_task(
    session: DatabaseSession, viewer: Viewer, task_id: UUID, columns: TaskColumns = ALL_COLUMNS
) -> TaskRow | None:
    return (await tasks_by_id(session, viewer, [task_id], columns)).get(task_id)


async def task_as_of(session: DatabaseSession, viewer: Viewer, task_id: UUID, time: datetime) -> TaskRow | None:
    """The task as it stood at a time in the past. None unless the viewer could see it then and can see it now.

    "Now" is its last state if it was deleted. Raises NotKept if the record does not reach back to the time.
    """
    # Read before the record, which therefore has all changes that this row lacks.
    task = await get_task(session, viewer, task_id)
    entries = await entries_around(session, TaskRow, task_id, time)
    if task is None:
        is_deleted = bool(entries) and entries[-1].after is None
        if not is_deleted or not may_see(viewer, entries[-1].before):
            return None
    then = row_at(time, entries, task)
    return then if then is not None and may_see(viewer, then) else None


async def tasks_by_id(
    session: DatabaseSession, viewer: Viewer, task_ids: Collection[UUID], columns: TaskColumns = ALL_COLUMNS
) -> dict[UUID, TaskRow]:
    """The tasks with these ids, by id, without those that the viewer may not see."""
    statement = _tasks_by_id(viewer.is_admin, columns)
    found: list[TaskRow] = await session.run(statement, {"task_ids": task_ids, "viewer_id": viewer.id})
    return {task.id: task for task in found}


@lru_cache(maxsize=128)
def _tasks_by_id(is_admin: bool, columns: TaskColumns) -> Statement:
    found, build = _select(Task, columns)
    return Statement(found.where(among_few(Task.id, "task_ids"), visible(is_admin=is_admin)), build)


def _select(tasks: Any, columns: TaskColumns) -> tuple[Select[Any], Build]:
    """A SELECT of these columns of the tasks and their people, and how to build a row from them."""
    selected = [getattr(tasks, name) for name in columns.task]
    parts: list[int | Build] = [*range(len(selected))]
    statement: Select[Any] = select(*selected)
    for relation, names in columns.people.items():
        key = getattr(tasks, f"{relation}_id")
        statement, person = look_up(statement, User, key, relation)
        places = range(len(selected), len(selected) + len(names))
        selected += [getattr(person, name) for name in names]
        parts.append(Build(row_class_of(UserRow, names), tuple(places), is_optional=True))
    row_class = row_class_of(TaskRow, (*columns.task, *columns.people))
    return statement.with_only_columns(*selected), Build(row_class, tuple(parts))


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """A list of tasks: its filter and order, and the page to read."""

    request: PageRequest
    filter: Filter = EVERYTHING
    order: Order[TaskRow] = NEWEST_FIRST
    columns: TaskColumns = ALL_COLUMNS
    # Whether `list_tasks` also counts the whole list.
    with_total: bool = False
    # The position of the stream when the list was begun, for the page's cursors.
    begun: StreamPlace | None = None


class Relation(StrEnum):
    """How a task relates to a person."""

    CREATED = "created"
    ASSIGNED = "assigned"


_COLUMN_OF_RELATION = {Relation.CREATED: Task.creator_id, Relation.ASSIGNED: Task.assignee_id}


async def list_tasks(session: DatabaseSession, viewer: Viewer, query: TaskQuery) -> Page[TaskRow]:
    """One page. Its total is None on an empty page, because the total is a column of the rows."""
    shape, parameters = shape_of(query.order, query.request)
    filter_, values = without_values(query.filter)
    statement = _page_statement(filter_, viewer.is_admin, query.order, shape, query.columns, query.with_total)
    rows = await session.run(statement, {**parameters, **values, "viewer_id": viewer.id})
    total = None
    if query.with_total and rows:
        total = rows[0][1]
        rows = [row for row, _ in rows]
    return make_page(rows, query.order, query.request, total, query.begun)


# Cached, because building a statement costs more than running it. There is one for each combination of filter shape,
# columns and so on, and each holds some hundred kilobytes of SQLAlchemy objects.
@cached_for_small_filters(maxsize=128)
def _page_statement(
    filter_: Filter,
    is_admin: bool,
    order: Order[TaskRow],
    shape: PageShape,
    columns: TaskColumns,
    with_total: bool,
) -> Statement:
    """Parameters: `viewer_id`, the filter's values and those of the shape.

    Rows: tasks, or pairs of a task and the total.
    """
    # One person's tasks are few enough to search without the two scopes of `search_scopes`.
    filters = search_scopes(filter_) if is_admin else [condition(filter_)]
    scopes = [and_(scope, one) for scope in visible_scopes(is_admin=is_admin) for one in filters]
    page = page_of(_columns_of_page(columns), scopes, order, shape)
    found, build = _select(page.c, columns)
    if with_total:
        build = Build(tuple, (build, len(found.selected_columns)))
        found = found.add_columns(_count(is_admin, filter_).scalar_subquery())
    return Statement(found.order_by(*sort_columns(page, order, shape)), build)


def _columns_of_page(columns: TaskColumns) -> list[Any]:
    """The columns to read, and the foreign keys to look up people by."""
    names = dict.fromkeys([*columns.task, *(f"{relation}_id" for relation in columns.people)])
    return [getattr(Task, name) for name in names]


async def list_tasks_of_users(
    session: DatabaseSession, viewer: Viewer, relation: Relation, user_ids: Collection[UUID], query: TaskQuery
) -> dict[UUID, Page[TaskRow]]:
    """The same page for each person, of their tasks that the viewer may see. One statement reads all pages."""
    shape, parameters = shape_of(query.order, query.request)
    filter_, values = without_values(query.filter)
    statement = _pages_statement(filter_, viewer.is_admin, relation, query.order, shape, query.columns)
    parameters |= {**values, "viewer_id": viewer.id, "user_ids": user_ids}
    rows_by_user: dict[UUID, list[TaskRow]] = {user_id: [] for user_id in user_ids}
    for user_id, pairs in groupby(await session.run(statement, parameters), key=itemgetter(0)):
        rows_by_user[user_id] = [row for _, row in pairs]
    return {
        user_id: make_page(rows, query.order, query.request, begun=query.begun)
        for user_id, rows in rows_by_user.items()
    }


@cached_for_small_filters(maxsize=128)
def _pages_statement(
    filter_: Filter,
    is_admin: bool,
    relation: Relation,
    order: Order[TaskRow],
    shape: PageShape,
    columns: TaskColumns,
) -> Statement:
    """Parameters: `viewer_id`, `user_ids`, the filter's values and those of the shape.

    Rows: pairs of the id of the person whose page it is, and a task.
    """
    page = page_of_each(
        _columns_of_page(columns),
        User.id,
        _COLUMN_OF_RELATION[relation],
        "user_ids",
        and_(visible(is_admin=is_admin), condition(filter_)),
        order,
        shape,
    )
    found, build = _select(page.c, columns)
    pair = Build(tuple, (len(found.selected_columns), build))
    found = found.add_columns(page.c.parent_id).order_by(page.c.parent_id, *sort_columns(page, order, shape))
    return Statement(found, pair)


async def count_tasks(session: DatabaseSession, viewer: Viewer, filter_: Filter) -> int:
    filter_, values = without_values(filter_)
    ((count,),) = await session.run(_count_statement(filter_, viewer.is_admin), {**values, "viewer_id": viewer.id})
    return int(count)


@cached_for_small_filters(maxsize=128)
def _count_statement(filter_: Filter, is_admin: bool) -> Statement:
    """Parameters: `viewer_id` and the filter's values."""
    return Statement(_count(is_admin, filter_))


def _count(is_admin: bool, filter_: Filter) -> Select[Any]:
    return select(func.count()).select_from(Task).where(visible(is_admin=is_admin), condition(filter_))


async def count_tasks_of_users(
    session: DatabaseSession, viewer: Viewer, relation: Relation, user_ids: Collection[UUID], filter_: Filter
) -> dict[UUID, int]:
    filter_, values = without_values(filter_)
    parameters = {**values, "viewer_id": viewer.id, "user_ids": user_ids}
    counted = await session.run(_counts_statement(filter_, viewer.is_admin, relation), parameters)
    return {**dict.fromkeys(user_ids, 0), **dict(counted)}


@cached_for_small_filters(maxsize=128)
def _counts_statement(filter_: Filter, is_admin: bool, relation: Relation) -> Statement:
    """Parameters: `viewer_id`, `user_ids` and the filter's values. Rows: pairs of a user id and a count."""
    column = _COLUMN_OF_RELATION[relation]
    found = and_(among(column, "user_ids"), visible(is_admin=is_admin), condition(filter_))
    return Statement(select(column, func.count()).where(found).group_by(column))


async def create_task(
    session: DatabaseSession,
    viewer: Viewer,
    *,
    title: str,
    description: str | None,
    priority: TaskPriority,
    category: TaskCategory,
    due_date: datetime | None,
    assignee_id: UUID | None,
    id: UUID | None = None,
    problems: Sequence[Refusal] = (),
) -> TaskRow:
    """`id` is the client's; without one the server makes it. `problems` are those already found in the input. They are
    reported together with those found here.

    If another unit of work takes the same id at the same time, the commit raises IntegrityError.
    """
    found: list[Refusal] = []
    title = check_title(title, found)
    description = check_description(description, found)
    due_date = check_due_date(due_date, found)
    if assignee_id is not None:
        await _check_assignee(session, assignee_id, found)
    if id is not None:
        await check_free_id(session, id, found)
    refuse_if_any([*found, *problems])

    now = clock.now()
    task = TaskRow(
        id=id or make_id(),
        title=title,
        description=description,
        status=TaskStatus.PENDING,
        priority=priority,
        category=category,
        due_date=due_date,
        completed_at=None,
        creator_id=viewer.id,
        assignee_id=assignee_id,
        version=1,
        created_at=now,
        updated_at=now,
    )
    await _insert_task(session, viewer, task)
    return task


async def _insert_task(session: DatabaseSession, viewer: Viewer, task: TaskRow) -> None:
    values = {**task._asdict(), **text_keys(task.title, task.description)}
    await write_with_event(
        session, viewer, _INSERT, values, kind=EventKind.CREATED, before=None, after=task, occurred_at=task.updated_at
    )


async def update_task(
    session: DatabaseSession,
    viewer: Viewer,
    task_id: UUID,
    changes: TaskUpdate,
    *,
    expected_version: int | None = None,
    on_conflict: ConflictPolicy = ConflictPolicy.REFUSE,
    problems: Sequence[Refusal] = (),
) -> TaskRow:
    """`problems` are those already found in the input. They are reported together with those found here."""
    task = await _require_task_for_update(session, viewer, task_id)
    if not may_update(viewer, task):
        raise Forbidden("Only its creator or an admin can update a task")
    seen = await _as_seen(session, viewer, task, expected_version, on_conflict)

    found: list[Refusal] = []
    values: dict[str, Any] = {**changes}
    for field, name in _REQUIRED.items():
        if field in values and values[field] is None:
            found.append(BadUserInput(f"{name} cannot be null", field=field))
    if values.get("title") is not None:
        values["title"] = check_title(values["title"], found)
    check_description(values.get("description"), found)
    check_due_date(values.get("due_date"), found)
    values = merged("task", task, seen, values)
    # Check only a new assignee: a present one who was deactivated does not block other changes.
    if values.get("assignee_id") not in (None, task.assignee_id):
        await _check_assignee(session, values["assignee_id"], found)
    refuse_if_any([*found, *problems])
    return await _change_task(session, viewer, task, values)


async def set_task_status(
    session: DatabaseSession,
    viewer: Viewer,
    task_id: UUID,
    status: TaskStatus,
    *,
    expected_version: int | None = None,
    on_conflict: ConflictPolicy = ConflictPolicy.REFUSE,
) -> TaskRow:
    task = await _require_task_for_update(session, viewer, task_id)
    if not may_change_status(viewer, task):
        raise Forbidden("Not enough permissions")
    seen = await _as_seen(session, viewer, task, expected_version, on_conflict)
    return await _change_task(session, viewer, task, merged("task", task, seen, {"status": status}))


async def toggle_task_completion(
    session: DatabaseSession,
    viewer: Viewer,
    task_id: UUID,
    *,
    expected_version: int | None = None,
    on_conflict: ConflictPolicy = ConflictPolicy.REFUSE,
) -> TaskRow:
    """COMPLETED becomes PENDING; anything else becomes COMPLETED. What counts is the status that the viewer saw."""
    task = await _require_task_for_update(session, viewer, task_id)
    if not may_change_status(viewer, task):
        raise Forbidden("Not enough permissions")
    seen = await _as_seen(session, viewer, task, expected_version, on_conflict)
    status = TaskStatus.PENDING if seen.completed else TaskStatus.COMPLETED
    return await _change_task(session, viewer, task, merged("task", task, seen, {"status": status}))


async def delete_task(
    session: DatabaseSession, viewer: Viewer, task_id: UUID, *, expected_version: int | None = None
) -> TaskRow:
    """Delete the task and return its last state. Deleting changes the whole task, so it cannot be merged."""
    task = await _require_task_for_update(session, viewer, task_id)
    if not may_delete(viewer, task):
        raise Forbidden("Only its creator or an admin can delete a task")
    await _as_seen(session, viewer, task, expected_version, ConflictPolicy.REFUSE)
    await _delete_task(session, viewer, task)
    return task


async def _delete_task(session: DatabaseSession, viewer: Viewer, task: TaskRow) -> None:
    await write_with_event(
        session,
        viewer,
        _DELETE,
        {"task_id": task.id, "task_version": task.version},
        kind=EventKind.DELETED,
        before=task,
        after=None,
    )


async def _require_task_for_update(session: DatabaseSession, viewer: Viewer, task_id: UUID) -> TaskRow:
    """The task, locked if the session locks. If not, the write refuses a task that has changed since."""
    parameters = {"task_id": task_id, "viewer_id": viewer.id}
    for row in await session.run(_task_for_update(viewer.is_admin, session.locks), parameters):
        return TaskRow._make(row)
    raise NotFound("There is no such task, or you may not see it", field="id")


@cache
def _task_for_update(is_admin: bool, locks: bool) -> Statement:
    found = select(*TASK_COLUMNS).where(Task.id == bindparam("task_id"), visible(is_admin=is_admin))
    return Statement(found.with_for_update() if locks else found)


async def lock_tasks(
    session: DatabaseSession, viewer: Viewer | None, task_ids: Collection[UUID]
) -> dict[UUID, TaskRow]:
    """These tasks by id, locked in the order of their ids; with a viewer, those that this person may see."""
    if not task_ids:
        return {}
    statement = _tasks_for_update(is_admin=viewer is None or viewer.is_admin)
    rows = await session.run(statement, {"task_ids": task_ids, "viewer_id": viewer and viewer.id})
    return {row.id: row for row in map(TaskRow._make, rows)}


@cache
def _tasks_for_update(*, is_admin: bool) -> Statement:
    found = select(*TASK_COLUMNS).where(among(Task.id, "task_ids"), visible(is_admin=is_admin))
    return Statement(found.order_by(Task.id).with_for_update())


async def _as_seen(
    session: DatabaseSession, viewer: Viewer, task: TaskRow, expected_version: int | None, on_conflict: ConflictPolicy
) -> TaskRow:
    """The task at the version that the viewer saw, which is the present one unless changes may be merged.

    Raises VersionConflict for any other version, and for one that the record does not have or the viewer did not see.
    """
    if expected_version is None or expected_version == task.version:
        return task
    seen = await row_of_version(session, task, expected_version) if on_conflict is ConflictPolicy.MERGE else None
    if seen is None and on_conflict is ConflictPolicy.MERGE and not session.locks:
        # The record may have grown since the task was read.
        raise Outdated
    if seen is None or not may_see(viewer, seen):
        raise VersionConflict("task", task, expected_version)
    return cast("TaskRow", seen)


async def _check_assignee(session: DatabaseSession, assignee_id: UUID, problems: list[Refusal]) -> None:
    # FOR SHARE, so that the person cannot be deactivated between this check and the commit.
    if not await session.run_locking(_ACTIVE_USER, {"user_id": assignee_id}):
        problems.append(AssigneeNotFound())


_ACTIVE_USER = Statement(
    select(User.id).where(User.id == bindparam("user_id"), User.is_active).with_for_update(read=True)
)


async def _change_task(session: DatabaseSession, viewer: Viewer, task: TaskRow, values: dict[str, Any]) -> TaskRow:
    """Write the values that differ and record an event. If none differ, there is no new version and no event."""
    values = {name: value for name, value in values.items() if getattr(task, name) != value}
    if not values:
        return task
    now = clock.now()
    if "status" in values:
        # Undo gives the old time.
        values.setdefault("completed_at", now if values["status"] is TaskStatus.COMPLETED else None)
    changed = task._replace(**values, version=task.version + 1, updated_at=now)
    written = {**values, "version": changed.version, "updated_at": now}
    if "title" in values or "description" in values:
        written |= text_keys(changed.title, changed.description)
    parameters = {
        "task_id": task.id,
        "task_version": task.version,
        **{f"new_{name}": value for name, value in written.items()},
    }
    await write_with_event(
        session,
        viewer,
        _update(frozenset(written)),
        parameters,
        kind=EventKind.UPDATED,
        before=task,
        after=changed,
        occurred_at=now,
    )
    return changed


class TaskReverting:
    """How undo changes tasks."""

    derived: Mapping[str, Sequence[str]] = {"status": ("completed_at",)}

    async def lock(self, session: DatabaseSession, ids: Collection[UUID], /) -> dict[UUID, TaskRow]:
        return await lock_tasks(session, None, ids)

    async def why_not(
        self, session: DatabaseSession, viewer: Viewer, row: TaskRow | None, wanted: TaskRow | None, /
    ) -> dict[str, str]:
        if row is None:
            return {} if wanted is None or may_delete(viewer, wanted) else {WHOLE: GONE}
        if not may_see(viewer, row):
            return {WHOLE: GONE}
        if wanted is None:
            return {} if may_delete(viewer, row) else {WHOLE: "You may no longer delete it"}
        refused: dict[str, str] = {}
        for name in COLUMN_BY_FIELD.values():
            is_allowed = may_change_status(viewer, row) if name == "status" else may_update(viewer, row)
            if getattr(row, name) != getattr(wanted, name) and not is_allowed:
                refused[name] = "You may no longer change it"
        if wanted.assignee_id not in (None, row.assignee_id) and "assignee_id" not in refused:
            problems: list[Refusal] = []
            await _check_assignee(session, wanted.assignee_id, problems)
            refused |= dict.fromkeys(("assignee_id",) if problems else (), "The previous assignee is deactivated")
        return refused

    async def revert(
        self, session: DatabaseSession, viewer: Viewer, row: TaskRow | None, wanted: TaskRow | None, /
    ) -> None:
        if row is not None and wanted is not None:
            await _change_task(session, viewer, row, wanted._asdict())
        elif row is not None:
            await _delete_task(session, viewer, row)
        elif wanted is not None:
            # The deletion was a version too.
            restored = wanted._replace(version=wanted.version + 2, updated_at=clock.now())
            await _insert_task(session, viewer, restored)


_TASKS = cast("Table", Task.__table__)
_INSERT = insert(_TASKS).values({column.name: bindparam(column.name) for column in _TASKS.columns}).inline()
_THIS_VERSION = and_(Task.id == bindparam("task_id"), Task.version == bindparam("task_version"))
_DELETE = delete(Task).where(_THIS_VERSION)


@cache
def _update(columns: frozenset[str]) -> Update:
    """An UPDATE of these columns. Cached without a limit: there are few combinations."""
    values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in sorted(columns)}
    return update(Task).where(_THIS_VERSION).values(values)
