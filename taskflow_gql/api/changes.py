"""The live stream of changes to tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum

import strawberry

from taskflow_gql.api.context import Info
from taskflow_gql.api.enums import describe_enum
from taskflow_gql.api.tasks import Task
from taskflow_gql.api.users import User
from taskflow_gql.events import TaskChanged, TaskField
from taskflow_gql.models import EventKind, TaskCategory, TaskPriority, TaskRow, TaskStatus, UserRow
from taskflow_gql.services.access import Viewer, may_see


class TaskChangeKind(StrEnum):
    CREATED = "CREATED"
    UPDATED = "UPDATED"
    DELETED = "DELETED"
    ENTERED = "ENTERED"
    LEFT = "LEFT"


describe_enum(
    TaskChangeKind,
    "What happened, as it looks to you.",
    CREATED="The task is new.",
    UPDATED="The task changed; you could see it before and you can see it now.",
    DELETED="The task is gone for good.",
    ENTERED="The change brought the task into your view: it was assigned to you.",
    LEFT="The change took the task out of your view: you may no longer see it. Drop it from caches.",
)


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


@strawberry.type(description="One change to one task, as it looks to you.")
class TaskChange:
    event: strawberry.Private[TaskChanged]
    cursor: str = strawberry.field(description="This change's place in the stream, the same for everybody.")
    kind: TaskChangeKind = strawberry.field(description="What happened, as it looks to you.")

    @strawberry.field(description="The task's id, also when the task is gone.")
    def task_id(self) -> strawberry.ID:
        return strawberry.ID(str(self.event.task_id))

    @strawberry.field(
        graphql_type=Task | None, description="The task as it stood after this change; null for DELETED and LEFT."
    )
    def task(self) -> TaskRow | None:
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

    @strawberry.field(graphql_type=User | None, description="Who did it.")
    async def actor(self, info: Info) -> UserRow | None:
        if self.event.actor_id is None:
            return None
        return await info.context.loaders.users_by_id.load(self.event.actor_id)

    @strawberry.field(description="When it happened.")
    def occurred_at(self) -> datetime:
        return self.event.occurred_at


def kind_for(viewer: Viewer, event: TaskChanged) -> TaskChangeKind | None:
    """What the event is to this person; None when it is none of their business."""
    saw = event.before is not None and may_see(viewer, event.before)
    sees = event.after is not None and may_see(viewer, event.after)
    match event.kind, saw, sees:
        case _, False, False:
            return None
        case EventKind.UPDATED, False, True:
            return TaskChangeKind.ENTERED
        case EventKind.UPDATED, True, False:
            return TaskChangeKind.LEFT
    return TaskChangeKind(event.kind)


@strawberry.type(description="What changes while you watch, over `graphql-transport-ws` at this same address.")
class Subscription:
    @strawberry.subscription(
        description=(
            "Every change, from now on, to a task that you may see before or after it. Per task in order, "
            "nothing twice."
        )
    )
    async def task_changed(self, info: Info) -> AsyncIterator[TaskChange]:
        viewer = await info.context.require_viewer()
        async for event in info.context.parts.fanout.changes(viewer):
            kind = kind_for(viewer, event)
            if kind is not None:
                # What the loaders know is from the last event.
                info.context.renew_loaders()
                yield TaskChange(event=event, cursor=info.context.parts.fanout.cursor(event), kind=kind)
