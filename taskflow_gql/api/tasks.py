"""Tasks: the type, its queries and its mutations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, cast
from uuid import UUID

import strawberry

from taskflow_gql import clock
from taskflow_gql.api.connections import After, Before, First, Last, PageInfo, page_info
from taskflow_gql.api.context import Context, Info
from taskflow_gql.api.mutations import mutation
from taskflow_gql.api.needs import needs
from taskflow_gql.api.nodes import Node
from taskflow_gql.api.payloads import MutationPayload, RepeatableInput
from taskflow_gql.api.task_filters import TaskFilterArgument, filter_of
from taskflow_gql.api.task_lists import TaskList, TaskOrderArgument, columns_of_tasks, stream_place, task_query
from taskflow_gql.api.users import User, users_by_id
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.errors import Refusal
from taskflow_gql.execution import IsInstance
from taskflow_gql.execution.strawberry import Batched
from taskflow_gql.models import TaskCategory, TaskPriority, TaskRow, TaskStatus, UserRow
from taskflow_gql.services import access, task_stats, tasks
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.changes import ChangePage, ChangeRequest, history_page
from taskflow_gql.services.ids import parse_id, parse_optional_id
from taskflow_gql.services.merging import ConflictPolicy
from taskflow_gql.services.paging import PageRequest
from taskflow_gql.services.positions import StreamPlace, encode_cursor
from taskflow_gql.services.task_filters import Filter
from taskflow_gql.services.task_orders import NEWEST_FIRST

# Tasks have a history and changes have a task, so one of the two modules names the other's type lazily.
TASK_CHANGE_CONNECTION: Any = Annotated["TaskChangeConnection", strawberry.lazy("taskflow_gql.api.changes")]  # noqa: F821


@strawberry.type(description="Something to be done, seen by its creator, its assignee and every ADMIN.")
class Task(Node):
    title: str = strawberry.field(description="3 to 255 characters.")
    description: str | None = strawberry.field(description="At most 10,000 characters.")
    status: TaskStatus = strawberry.field(description="How far it is.")
    priority: TaskPriority = strawberry.field(description="How urgent it is.")
    category: TaskCategory = strawberry.field(description="The part of life that it belongs to.")
    due_date: datetime | None = strawberry.field(description="When it should be done.")
    completed: bool = strawberry.field(metadata=needs("status"), description="Whether `status` is COMPLETED.")
    completed_at: datetime | None = strawberry.field(description="When it last became COMPLETED; null while it is not.")
    version: int = strawberry.field(
        description="1 at creation, one more with every change. Give it as `expectedVersion` to refuse lost updates."
    )
    created_at: datetime = strawberry.field(description="When it was created.")
    updated_at: datetime = strawberry.field(description="When it last changed.")

    @strawberry.field(
        metadata=needs("status", "due_date"), description="Whether `dueDate` has passed and it is not COMPLETED."
    )
    @staticmethod
    def overdue(task: strawberry.Parent[TaskRow]) -> bool:
        return not task.completed and task.due_date is not None and task.due_date < clock.now()

    creator: UserRow = strawberry.field(
        graphql_type=User,
        description="Who made it; never changes.",
        extensions=[Batched(users_by_id, key="creator_id", carried_as="creator")],
    )
    assignee: UserRow | None = strawberry.field(
        graphql_type=User | None,
        description="Who should do it; null when nobody is assigned.",
        extensions=[Batched(users_by_id, key="assignee_id", carried_as="assignee")],
    )

    @strawberry.field(
        graphql_type=TASK_CHANGE_CONNECTION,
        metadata=needs(),
        description=(
            "What happened to this task while you could see it, oldest first: from its beginning, or with `last` or "
            "`before` the newest."
        ),
    )
    @staticmethod
    async def history(
        task: strawberry.Parent[TaskRow],
        info: Info,
        first: First = None,
        after: Annotated[
            str | None, strawberry.argument(description="Only what came after this `cursor` of a change.")
        ] = None,
        last: Last = None,
        before: Annotated[
            str | None, strawberry.argument(description="Only what came before this `cursor` of a change.")
        ] = None,
    ) -> ChangePage:
        viewer = await info.context.require_viewer()
        page = PageRequest.of(first=first, after=after, last=last, before=before)
        decode = info.context.parts.fanout.decode
        request = ChangeRequest(
            size=page.size,
            backward=page.backward,
            after=None if after is None else decode(after),
            before=None if before is None else decode(before, argument="before"),
        )
        await info.context.loaders.catch_up(info.context.parts.relay)
        events = await info.context.loaders.history(viewer, request.window_of_history()).load(task.id)
        return history_page(viewer, events, request)

    @strawberry.field(
        metadata=needs("creator_id"), description="Whether `updateTask` would let you: its creator, or an ADMIN."
    )
    @staticmethod
    def viewer_can_update(task: strawberry.Parent[TaskRow], info: Info) -> bool:
        viewer = info.context.known_viewer
        return viewer is not None and access.may_update(viewer, task)

    @strawberry.field(
        metadata=needs("creator_id", "assignee_id"),
        description="Whether `setTaskStatus` would let you: its creator, its assignee, or an ADMIN.",
    )
    @staticmethod
    def viewer_can_change_status(task: strawberry.Parent[TaskRow], info: Info) -> bool:
        viewer = info.context.known_viewer
        return viewer is not None and access.may_change_status(viewer, task)

    @strawberry.field(
        metadata=needs("creator_id"), description="Whether `deleteTask` would let you: its creator, or an ADMIN."
    )
    @staticmethod
    def viewer_can_delete(task: strawberry.Parent[TaskRow], info: Info) -> bool:
        viewer = info.context.known_viewer
        return viewer is not None and access.may_delete(viewer, task)

    is_type_of = IsInstance(TaskRow)

    @staticmethod
    async def by_ids(
        context: Context, session: DatabaseSession, viewer: Viewer, ids: Sequence[UUID]
    ) -> dict[UUID, TaskRow]:
        return await tasks.tasks_by_id(session, viewer, ids, columns_of_tasks(context))


@strawberry.type(description="A task in a list.")
class TaskEdge:
    cursor: str = strawberry.field(description="This task's place in the list, for `after` and `before`.")
    node: TaskRow = strawberry.field(graphql_type=Task, description="The task.")


def edge_of(task: TaskRow | None) -> TaskEdge | None:
    """The task as an edge of `tasks` in its default order."""
    return task and TaskEdge(cursor=NEWEST_FIRST.cursor(task), node=task)


@strawberry.type(description="A page of tasks.")
class TaskConnection:
    """Its fields resolve from a `TaskList`."""

    @strawberry.field(description="The tasks of this page with their cursors.")
    @staticmethod
    def edges(tasks: strawberry.Parent[TaskList]) -> list[TaskEdge]:
        return [TaskEdge(cursor=tasks.page.cursor(task), node=task) for task in tasks.page.rows]

    @strawberry.field(graphql_type=list[Task], description="The tasks of this page without cursors.")
    @staticmethod
    def nodes(tasks: strawberry.Parent[TaskList]) -> list[TaskRow]:
        return tasks.page.rows

    @strawberry.field(description="Where this page lies in the list.")
    @staticmethod
    def page_info(tasks: strawberry.Parent[TaskList]) -> PageInfo:
        return page_info(tasks.page)

    @strawberry.field(
        description=(
            "Where the change stream stood just before the first page of this list was read. Subscribe to "
            "`taskChanged` with `after: changesCursor`, and nothing since is missed. The cursors of a page that "
            "selects it carry it on, so that the pages after and before them have the same."
        )
    )
    @staticmethod
    def changes_cursor(tasks: strawberry.Parent[TaskList]) -> str:
        # This resolver runs only if changesCursor was selected, so the place was read before the page.
        assert tasks.page.begun is not None
        return encode_cursor(*tasks.page.begun)

    @strawberry.field(description="How many tasks the whole list has; counted only when selected.")
    @staticmethod
    async def total_count(tasks: strawberry.Parent[TaskList]) -> int:
        return await tasks.count()


@strawberry.type(description="How many tasks have a priority.")
class TaskPriorityCount:
    priority: TaskPriority = strawberry.field(description="The priority.")
    count: int = strawberry.field(description="How many tasks have it.")


@strawberry.type(description="How many tasks are in a category.")
class TaskCategoryCount:
    category: TaskCategory = strawberry.field(description="The category.")
    count: int = strawberry.field(description="How many tasks are in it.")


@strawberry.type(description="How many tasks have a status.")
class TaskStatusCount:
    status: TaskStatus = strawberry.field(description="The status.")
    count: int = strawberry.field(description="How many tasks have it.")


@strawberry.type(description="How many tasks a person should do.")
class TaskAssigneeCount:
    assignee_id: strawberry.Private[UUID | None]
    count: int = strawberry.field(description="How many tasks are assigned to this person.")
    assignee: UserRow | None = strawberry.field(
        graphql_type=User | None,
        description="The person; null for the tasks that are assigned to nobody.",
        default=None,
        extensions=[Batched(users_by_id, key="assignee_id")],
    )


@strawberry.type(description="Counts over tasks.")
class TaskStats:
    counts: strawberry.Private[task_stats.TaskStats]
    filter: strawberry.Private[Filter]
    # The position of the stream before the counts were read, if `changesCursor` is selected.
    begun: strawberry.Private[StreamPlace | None]

    @strawberry.field(description="How many there are.")
    def total(self) -> int:
        return self.counts.total

    @strawberry.field(description="How many are PENDING.")
    def pending(self) -> int:
        return self.counts.by_status[TaskStatus.PENDING]

    @strawberry.field(description="How many are IN_PROGRESS.")
    def in_progress(self) -> int:
        return self.counts.by_status[TaskStatus.IN_PROGRESS]

    @strawberry.field(description="How many are COMPLETED.")
    def completed(self) -> int:
        return self.counts.by_status[TaskStatus.COMPLETED]

    @strawberry.field(description="How many are due in the past and not COMPLETED.")
    def overdue(self) -> int:
        return self.counts.overdue

    @strawberry.field(description="One entry for each priority, LOW first, zeros included.")
    def by_priority(self) -> list[TaskPriorityCount]:
        return [TaskPriorityCount(priority=key, count=count) for key, count in self.counts.by_priority.items()]

    @strawberry.field(description="One entry for each category, in the order of the enum, zeros included.")
    def by_category(self) -> list[TaskCategoryCount]:
        return [TaskCategoryCount(category=key, count=count) for key, count in self.counts.by_category.items()]

    @strawberry.field(description="One entry for each status, in the order of the enum, zeros included.")
    def by_status(self) -> list[TaskStatusCount]:
        return [TaskStatusCount(status=key, count=count) for key, count in self.counts.by_status.items()]

    @strawberry.field(
        description=(
            "The people with most of these tasks, most first, by id where it is equal; one entry is for the tasks of "
            "nobody. People without such tasks are left out. Counted only when selected."
        )
    )
    async def by_assignee(
        self,
        info: Info,
        first: Annotated[
            int | None, strawberry.argument(description="How many people: 1 to 100, 50 if nothing is said.")
        ] = None,
    ) -> list[TaskAssigneeCount]:
        viewer = await info.context.require_viewer()
        size = PageRequest.of(first=first).size
        async with info.context.read() as session:
            counts = await task_stats.count_by_assignee(session, viewer, self.filter, limit=size)
        return [TaskAssigneeCount(assignee_id=assignee_id, count=count) for assignee_id, count in counts]

    @strawberry.field(
        description=(
            "Where the change stream stood just before the counts were read. Subscribe to `taskChanged` with "
            "`after: changesCursor`, and no change since is missed."
        )
    )
    def changes_cursor(self) -> str:
        # This resolver runs only if changesCursor was selected, so the place was read before the counts.
        assert self.begun is not None
        return encode_cursor(*self.begun)


_AS_OF = (
    "The task as it stood then, also if it is deleted now: at its `updatedAt`, at the `occurredAt` of a change, or at "
    "any other time. Null before its creation and after its deletion. Null also unless you could see it then and can "
    "see it now or, if it is deleted, could see it last. BAD_USER_INPUT if the record does not reach back so far; it "
    "keeps 30 days unless the server is set otherwise. A time to come is as now. `creator`, `assignee` and `history` "
    "are people and changes as they are now. The `id` is the same: do not let it replace the present task in a cache."
)


@strawberry.type
class TaskQueries:
    @strawberry.field(
        graphql_type=Task | None, description="A task by id; null when there is none or it is not visible to you."
    )
    async def task(
        self,
        info: Info,
        id: Annotated[strawberry.ID, strawberry.argument(description="The task's id.")],
        as_of: Annotated[datetime | None, strawberry.argument(description=_AS_OF)] = None,
    ) -> TaskRow | None:
        viewer = await info.context.require_viewer()
        async with info.context.read() as session:
            if as_of is not None and as_of < info.context.begun_at:
                return await tasks.task_as_of(session, viewer, parse_id(id), as_of)
            return await tasks.get_task(session, viewer, parse_id(id), columns_of_tasks(info.context))

    @strawberry.field(
        graphql_type=TaskConnection,
        description="The tasks that you created or that are assigned to you (for an ADMIN all), newest first.",
    )
    async def tasks(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        filter: TaskFilterArgument = None,
        order_by: TaskOrderArgument = None,
    ) -> TaskList:
        viewer = await info.context.require_viewer()
        query = await task_query(info.context, viewer, first, after, last, before, filter, order_by)
        async with info.context.read() as session:
            page = await tasks.list_tasks(session, viewer, query)

        async def count() -> int:
            if page.total is not None:
                return page.total
            async with info.context.read() as session:
                return await tasks.count_tasks(session, viewer, query.filter)

        return TaskList(page, count)

    @strawberry.field(description="Counts over the tasks that you may see, without reading them one by one.")
    async def task_stats(self, info: Info, filter: TaskFilterArgument = None) -> TaskStats:
        viewer = await info.context.require_viewer()
        now = info.context.begun_at
        made = filter_of(filter, viewer, now)
        begun = await stream_place(info.context, "TaskStats")
        async with info.context.read() as session:
            counts = await task_stats.task_stats(session, viewer, made, now)
        return TaskStats(counts=counts, filter=made, begun=begun)


@strawberry.input(description="A new task. You are its creator; it starts PENDING.")
class CreateTaskInput(RepeatableInput):
    id: strawberry.ID | None = strawberry.field(
        default=None,
        description="Your own UUID for the task, best of version 7; without it the server makes one. Taken: ID_TAKEN.",
    )
    title: str = strawberry.field(description="3 to 255 characters; blanks around it are cut off.")
    description: str | None = strawberry.field(default=None, description="At most 10,000 characters.")
    priority: TaskPriority = strawberry.field(default=TaskPriority.MEDIUM, description="How urgent it is.")
    category: TaskCategory = strawberry.field(
        default=TaskCategory.OTHER, description="The part of life that it belongs to."
    )
    due_date: datetime | None = strawberry.field(
        default=None,
        description="When it should be done: any time but the very first and the very last one of years 1 to 9999.",
    )
    assignee_id: strawberry.ID | None = strawberry.field(
        default=None, description="An active person who should do it; you may name yourself."
    )


_EXPECTED_VERSION = (
    "The `version` that you show. If the task is at another one, `onConflict` decides; by default VERSION_CONFLICT."
)
_ON_CONFLICT = "Whether to merge your change with what was changed since `expectedVersion`."


@strawberry.input(
    description=(
        "What to change. Left out: unchanged. Null clears `description`, `dueDate` and `assigneeId`; "
        "null for another field is BAD_USER_INPUT."
    )
)
class UpdateTaskInput(RepeatableInput):
    id: strawberry.ID = strawberry.field(description="The task.")
    expected_version: int | None = strawberry.field(default=None, description=_EXPECTED_VERSION)
    on_conflict: ConflictPolicy = strawberry.field(default=ConflictPolicy.REFUSE, description=_ON_CONFLICT)
    title: str | None = strawberry.field(
        default=strawberry.UNSET, description="3 to 255 characters; blanks around it are cut off."
    )
    description: str | None = strawberry.field(
        default=strawberry.UNSET, description="At most 10,000 characters; null clears it."
    )
    status: TaskStatus | None = strawberry.field(default=strawberry.UNSET, description="How far it is.")
    priority: TaskPriority | None = strawberry.field(default=strawberry.UNSET, description="How urgent it is.")
    category: TaskCategory | None = strawberry.field(
        default=strawberry.UNSET, description="The part of life that it belongs to."
    )
    due_date: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="When it should be done; null clears it."
    )
    assignee_id: strawberry.ID | None = strawberry.field(
        default=strawberry.UNSET, description="An active person who should do it; null for nobody."
    )


@strawberry.input(description="Which task, and how far it is now.")
class SetTaskStatusInput(RepeatableInput):
    id: strawberry.ID = strawberry.field(description="The task.")
    status: TaskStatus = strawberry.field(description="The new status.")
    expected_version: int | None = strawberry.field(default=None, description=_EXPECTED_VERSION)
    on_conflict: ConflictPolicy = strawberry.field(
        default=ConflictPolicy.REFUSE,
        description=(
            f"{_ON_CONFLICT} With MERGE, the status of `expectedVersion` changes nothing: it is not a change of yours."
        ),
    )


@strawberry.input(description="Which task to tick off, or to open again.")
class ToggleTaskCompletionInput(RepeatableInput):
    id: strawberry.ID = strawberry.field(description="The task.")
    expected_version: int | None = strawberry.field(default=None, description=_EXPECTED_VERSION)
    on_conflict: ConflictPolicy = strawberry.field(
        default=ConflictPolicy.REFUSE,
        description=(
            f"{_ON_CONFLICT} MERGE toggles the status of `expectedVersion`, the one that you show; it never undoes the "
            "same toggle of somebody else."
        ),
    )


@strawberry.input(description="Which task to delete.")
class DeleteTaskInput(RepeatableInput):
    id: strawberry.ID = strawberry.field(description="The task.")
    expected_version: int | None = strawberry.field(default=None, description=_EXPECTED_VERSION)
    on_conflict: ConflictPolicy = strawberry.field(
        default=ConflictPolicy.REFUSE,
        description=(
            "Deleting changes all of the task, so it conflicts with every change since `expectedVersion`: MERGE is the "
            "same as REFUSE."
        ),
    )


_TASK = "The task as changed; on VERSION_CONFLICT as it stands now; null on other errors."


@strawberry.type(description="What became of `createTask`.")
class CreateTaskPayload(MutationPayload):
    task: TaskRow | None = strawberry.field(
        graphql_type=Task | None, default=None, description="The new task; null on errors."
    )

    @strawberry.field(description="The new task as an edge of `tasks` in its default order; null on errors.")
    def task_edge(self) -> TaskEdge | None:
        return edge_of(self.task)


@strawberry.type(description="What became of `updateTask`.")
class UpdateTaskPayload(MutationPayload):
    task: TaskRow | None = strawberry.field(graphql_type=Task | None, default=None, description=_TASK)


@strawberry.type(description="What became of `setTaskStatus`.")
class SetTaskStatusPayload(MutationPayload):
    task: TaskRow | None = strawberry.field(graphql_type=Task | None, default=None, description=_TASK)


@strawberry.type(description="What became of `toggleTaskCompletion`.")
class ToggleTaskCompletionPayload(MutationPayload):
    task: TaskRow | None = strawberry.field(graphql_type=Task | None, default=None, description=_TASK)


@strawberry.type(description="What became of `deleteTask`.")
class DeleteTaskPayload(MutationPayload):
    deleted_task_id: strawberry.ID | None = strawberry.field(
        default=None, description="The id to drop from caches; null on errors."
    )


@strawberry.type
class TaskMutations:
    @mutation("Make a task, for yourself or for somebody else.", input="The task.", locks=False)
    @staticmethod
    async def create_task(session: DatabaseSession, viewer: Viewer, input: CreateTaskInput) -> CreateTaskPayload:
        problems: list[Refusal] = []
        task = await tasks.create_task(
            session,
            viewer,
            title=input.title,
            description=input.description,
            priority=input.priority,
            category=input.category,
            due_date=input.due_date,
            assignee_id=parse_optional_id(input.assignee_id, "assignee_id", problems),
            id=parse_optional_id(input.id, "id", problems),
            problems=problems,
        )
        return CreateTaskPayload(task=task)

    @mutation("Change what is given of a task. Its creator, or an ADMIN.", input="The changes.", locks=False)
    @staticmethod
    async def update_task(session: DatabaseSession, viewer: Viewer, input: UpdateTaskInput) -> UpdateTaskPayload:
        id, problems = parse_id(input.id, field="id"), list[Refusal]()
        task = await tasks.update_task(
            session,
            viewer,
            id,
            _given(input, problems),
            expected_version=input.expected_version,
            on_conflict=input.on_conflict,
            problems=problems,
        )
        return UpdateTaskPayload(task=task)

    @mutation(
        "Say how far a task is. Its creator, its assignee, or an ADMIN.", input="Which task, and how far.", locks=False
    )
    @staticmethod
    async def set_task_status(
        session: DatabaseSession, viewer: Viewer, input: SetTaskStatusInput
    ) -> SetTaskStatusPayload:
        task = await tasks.set_task_status(
            session,
            viewer,
            parse_id(input.id, field="id"),
            input.status,
            expected_version=input.expected_version,
            on_conflict=input.on_conflict,
        )
        return SetTaskStatusPayload(task=task)

    @mutation(
        "COMPLETED becomes PENDING, anything else COMPLETED. Its creator, its assignee, or an ADMIN.",
        input="Which task.",
        locks=False,
    )
    @staticmethod
    async def toggle_task_completion(
        session: DatabaseSession, viewer: Viewer, input: ToggleTaskCompletionInput
    ) -> ToggleTaskCompletionPayload:
        task = await tasks.toggle_task_completion(
            session,
            viewer,
            parse_id(input.id, field="id"),
            expected_version=input.expected_version,
            on_conflict=input.on_conflict,
        )
        return ToggleTaskCompletionPayload(task=task)

    @mutation("Delete a task for good. Its creator, or an ADMIN.", input="Which task.", locks=False)
    @staticmethod
    async def delete_task(session: DatabaseSession, viewer: Viewer, input: DeleteTaskInput) -> DeleteTaskPayload:
        task = await tasks.delete_task(
            session, viewer, parse_id(input.id, field="id"), expected_version=input.expected_version
        )
        return DeleteTaskPayload(deleted_task_id=strawberry.ID(str(task.id)))


def _given(input: UpdateTaskInput, problems: list[Refusal]) -> tasks.TaskUpdate:
    given: dict[str, Any] = {
        "title": input.title,
        "description": input.description,
        "status": input.status,
        "priority": input.priority,
        "category": input.category,
        "due_date": input.due_date,
        "assignee_id": input.assignee_id,
    }
    given = {name: value for name, value in given.items() if value is not strawberry.UNSET}
    if "assignee_id" in given:
        given["assignee_id"] = parse_optional_id(given["assignee_id"], "assignee_id", problems)
    return cast("tasks.TaskUpdate", given)
