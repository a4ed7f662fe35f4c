"""Changes to tasks: live, since a cursor, and of one task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated

import strawberry

from taskflow_gql.api.connections import Last, PageInfo
from taskflow_gql.api.context import Info
from taskflow_gql.api.task_filters import TaskFilterArgument, filter_of
from taskflow_gql.api.tasks import Task, TaskEdge, edge_of
from taskflow_gql.api.users import User, users_by_id
from taskflow_gql.execution.strawberry import Batched
from taskflow_gql.models import TaskCategory, TaskField, TaskPriority, TaskRow, TaskStatus, UserRow
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.changes import Change, ChangePage, ChangeRequest, TaskChangeKind, change_for, changes_page
from taskflow_gql.services.events import EventRow
from taskflow_gql.services.paging import PageRequest
from taskflow_gql.services.task_filters import Filter


@strawberry.type(description="A task's fields as they stood before a change.")
class TaskSnapshot:
    title: str = strawberry.field(description="The title then.")
    description: str | None = strawberry.field(description="The description then.")
    status: TaskStatus = strawberry.field(description="The status then.")
    priority: TaskPriority = strawberry.field(description="The priority then.")
    category: TaskCategory = strawberry.field(description="The category then.")
    due_date: datetime | None = strawberry.field(description="The due date then.")
    assignee_id: strawberry.ID | None = strawberry.field(description="Who was assigned then.")
    version: int = strawberry.field(description="The version then; the change made it one more.")
    assignee: UserRow | None = strawberry.field(
        graphql_type=User | None,
        description="The person assigned then, as they are now; null when nobody was.",
        default=None,
        extensions=[Batched(users_by_id, key="assignee_id")],
    )


@strawberry.type(description="One change to one task, as it looks to you.")
class TaskChange:
    event: strawberry.Private[EventRow]
    cursor: str = strawberry.field(description="This change's place in the stream, the same for everybody.")
    kind: TaskChangeKind = strawberry.field(description="What happened, as it looks to you.")

    @strawberry.field(
        description=(
            "Names this change among all objects: a key for normalised caches. The same for everybody and every time; "
            "not for `node`."
        )
    )
    def id(self) -> strawberry.ID:
        return strawberry.ID(f"TaskChange:{self.cursor}")

    @strawberry.field(description="The task's id, also when the task is gone.")
    def task_id(self) -> strawberry.ID:
        return strawberry.ID(str(self.event.subject_id))

    @strawberry.field(
        description=(
            "The task's id when this change takes it out of your list (DELETED and LEFT), else null: for Relay's "
            "`@deleteEdge`. A task that LEFT by the filter still exists; `@deleteRecord` is for DELETED only."
        )
    )
    def deleted_task_id(self) -> strawberry.ID | None:
        return None if self._task else strawberry.ID(str(self.event.subject_id))

    @strawberry.field(
        graphql_type=Task | None, description="The task as it stood after this change; null for DELETED and LEFT."
    )
    def task(self) -> TaskRow | None:
        return self._task

    @strawberry.field(description="`task` as an edge of `tasks` in its default order; null where `task` is.")
    def task_edge(self) -> TaskEdge | None:
        return edge_of(self._task)

    @property
    def _task(self) -> TaskRow | None:
        return None if self.kind is TaskChangeKind.LEFT else self.event.after

    @strawberry.field(description="What a person changed; empty for CREATED and DELETED.")
    def changed_fields(self) -> list[TaskField]:
        return list(self.event.changed_fields)

    @strawberry.field(
        graphql_type=TaskSnapshot | None,
        description="The task before this change; null for CREATED and ENTERED.",
    )
    def previous(self) -> TaskRow | None:
        return None if self.kind is TaskChangeKind.ENTERED else self.event.before

    actor: UserRow | None = strawberry.field(
        graphql_type=User | None,
        description="Who did it.",
        default=None,
        extensions=[Batched(users_by_id, key=lambda change: change.event.actor_id)],
    )

    @strawberry.field(description="The `mutationId` of your mutation that did it; null for changes of others.")
    def mutation_id(self, info: Info) -> strawberry.ID | None:
        viewer = info.context.known_viewer
        if viewer is None or viewer.id != self.event.actor_id or self.event.mutation_id is None:
            return None
        return strawberry.ID(self.event.mutation_id)

    @strawberry.field(description="When it happened.")
    def occurred_at(self) -> datetime:
        return self.event.occurred_at


@strawberry.type(description="A change in a list.")
class TaskChangeEdge:
    cursor: str = strawberry.field(description="The change's place in the stream; the same as `node.cursor`.")
    node: TaskChange = strawberry.field(description="The change.")


@strawberry.type(description="A page of changes, oldest first.")
class TaskChangeConnection:
    """Made of a `ChangePage`."""

    @strawberry.field(description="The changes of this page with their cursors.")
    @staticmethod
    def edges(changes: strawberry.Parent[ChangePage], info: Info) -> list[TaskChangeEdge]:
        nodes = [task_change(info, change) for change in changes.changes]
        return [TaskChangeEdge(cursor=node.cursor, node=node) for node in nodes]

    @strawberry.field(description="The changes of this page.")
    @staticmethod
    def nodes(changes: strawberry.Parent[ChangePage], info: Info) -> list[TaskChange]:
        return [task_change(info, change) for change in changes.changes]

    @strawberry.field(
        description=(
            "Where this page lies. `endCursor` is where to go on from, also when the page is empty: everything "
            "up to it has been looked at. So is `startCursor` for going back while `hasPreviousPage`."
        )
    )
    @staticmethod
    def page_info(changes: strawberry.Parent[ChangePage], info: Info) -> PageInfo:
        cursor = info.context.parts.fanout.cursor
        return PageInfo(
            has_next_page=changes.has_next,
            has_previous_page=changes.has_previous,
            start_cursor=None if changes.start is None else cursor(changes.start),
            end_cursor=cursor(changes.end),
        )


def task_change(info: Info, change: Change) -> TaskChange:
    cursor = info.context.parts.fanout.cursor(change.event.position)
    return TaskChange(event=change.event, cursor=cursor, kind=change.kind)


@strawberry.type
class ChangeQueries:
    @strawberry.field(
        graphql_type=TaskChangeConnection,
        description=(
            "What has happened: the pull side of `taskChanged`. With `after` what came since, for catching up after "
            "being offline: go on with `after: pageInfo.endCursor` while `hasNextPage`. Without a cursor the newest "
            "changes, as an activity feed shows them: go back with `before: pageInfo.startCursor` while "
            "`hasPreviousPage`. Each page is oldest first; it may be short or empty and still go on. Going back ends "
            "at the oldest change that is kept. CURSOR_EXPIRED when the changes next to a cursor are no longer kept: "
            "read again from a query."
        ),
    )
    async def task_changes(
        self,
        info: Info,
        after: Annotated[
            str | None,
            strawberry.argument(
                description="Only what came after this `changesCursor`, `cursor` of a change, or `endCursor`."
            ),
        ] = None,
        first: Annotated[
            int | None,
            strawberry.argument(
                description=(
                    "How many after `after`, or without a cursor of the newest: 1 to 100, 50 if nothing is said. Not "
                    "with `last`."
                )
            ),
        ] = None,
        last: Last = None,
        before: Annotated[
            str | None,
            strawberry.argument(description="Only what came before this `cursor` of a change, or `startCursor`."),
        ] = None,
        filter: TaskFilterArgument = None,
    ) -> ChangePage:
        viewer = await info.context.require_viewer()
        page = PageRequest.of(first=first, after=after, last=last, before=before)
        made = filter_of(filter, viewer, info.context.begun_at)
        position_of = info.context.parts.fanout.position_of
        request = ChangeRequest(
            size=page.size,
            # Without a cursor the page is the newest.
            backward=page.backward or (after is None and before is None),
            after=None if after is None else await position_of(after),
            before=None if before is None else await position_of(before, argument="before"),
        )
        await info.context.parts.relay.catch_up()
        async with info.context.read() as session:
            return await changes_page(session, viewer, request, made)


@strawberry.type
class TaskSubscriptions:
    # A coroutine that returns the stream: bad arguments are reported before it begins.
    @strawberry.subscription(
        description=(
            "Changes to tasks that you may see and that the filter finds, before or after the change; per task in "
            "order, none left out, none twice. Without `after`: from now on. With it: first everything since, then "
            "live, with no gap between the two. CURSOR_EXPIRED when the changes since are no longer kept: read again "
            "from a query. The stream ends when your credentials do."
        )
    )
    async def task_changed(
        self,
        info: Info,
        filter: TaskFilterArgument = None,
        after: Annotated[
            str | None,
            strawberry.argument(
                description="A `changesCursor`, the `cursor` of the last change you have seen, or an `endCursor`."
            ),
        ] = None,
    ) -> AsyncIterator[TaskChange]:
        viewer = await info.context.require_viewer()
        info.context.parts.fanout.require_room(viewer)
        made = filter_of(filter, viewer, info.context.begun_at)
        # A browser reconnects with its first request, and so with its first cursor.
        cursor = info.context.last_event_id or after
        position = None if cursor is None else await info.context.parts.fanout.position_of(cursor)
        return _stream(info, viewer, made, position)


async def _stream(info: Info, viewer: Viewer, filter_: Filter, position: int | None) -> AsyncIterator[TaskChange]:
    # Closed with the subscription instead of by the garbage collector.
    async with aclosing(info.context.parts.fanout.events(viewer, TaskRow, after=position)) as events:
        async for viewer_now, event in events:
            change = change_for(viewer_now, event, filter_)
            if change is not None:
                made = task_change(info, change)
                info.context.begin_event(viewer_now, made.cursor)
                yield made
