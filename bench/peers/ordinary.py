"""The ordinary stack: Strawberry on graphql-core's executor, ORM entities, and a DataLoader for each relation.

It follows Strawberry's documentation of DataLoaders, deployment and extensions. Entities and tokens are this
project's own, so that the servers differ only in how they serve GraphQL.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Self
from uuid import UUID

import strawberry
from sqlalchemy import ColumnElement, Select, func, make_url, or_, select, true, tuple_
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import InstrumentedAttribute, aliased
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.dataloader import DataLoader
from strawberry.extensions import (
    AddValidationRules,
    MaxAliasesLimiter,
    MaxTokensLimiter,
    ParserCache,
    QueryDepthLimiter,
    ValidationCache,
)

from taskflow_gql import clock, models
from taskflow_gql.errors import Unauthenticated
from taskflow_gql.models import TaskPriority, TaskStatus, UserRole
from taskflow_gql.security.tokens import TokenSigner

_POOL_SIZE = int(os.environ["POOL_SIZE"])
_engine = create_async_engine(
    make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg"), pool_size=_POOL_SIZE, max_overflow=0
)
_sessions = async_sessionmaker(_engine, expire_on_commit=False)
_tokens = TokenSigner(os.environ["SECRET_KEY"], timedelta(minutes=30))

strawberry.enum(TaskStatus)
strawberry.enum(TaskPriority)


class Context:
    """The context of one request, with the loaders that batch what its resolvers read."""

    def __init__(self, viewer: models.User) -> None:
        self.viewer = viewer
        self.user_by_id: DataLoader[UUID, User | None] = DataLoader(self._load_users)
        self._first_tasks: dict[tuple[str, int], DataLoader[UUID, list[Task]]] = {}

    def first_tasks(self, relation: InstrumentedAttribute[Any], first: int) -> DataLoader[UUID, list[Task]]:
        """A loader of the newest tasks of each user."""

        async def load(user_ids: list[UUID]) -> list[list[Task]]:
            return await self._load_first_tasks(relation, first, user_ids)

        return self._first_tasks.setdefault((relation.key, first), DataLoader(load))

    async def _load_users(self, ids: list[UUID]) -> list[User | None]:
        async with _sessions() as session:
            users = {
                user.id: user for user in await session.scalars(select(models.User).where(models.User.id.in_(ids)))
            }
        return [User.of(users[id_]) if id_ in users else None for id_ in ids]

    async def _load_first_tasks(
        self, relation: InstrumentedAttribute[Any], first: int, user_ids: list[UUID]
    ) -> list[list[Task]]:
        newest = (models.Task.created_at.desc(), models.Task.id.desc())
        place = func.row_number().over(partition_by=relation, order_by=newest).label("place")
        ranked = select(models.Task, place).where(relation.in_(user_ids), visible_to(self.viewer)).subquery()
        task = aliased(models.Task, ranked)
        statement = select(task).where(ranked.c.place <= first).order_by(ranked.c.place)
        tasks: dict[UUID, list[Task]] = {user_id: [] for user_id in user_ids}
        async with _sessions() as session:
            for row in await session.scalars(statement):
                tasks[getattr(row, relation.key)].append(Task.of(row))
        return list(tasks.values())


Info = strawberry.Info[Context, None]


@strawberry.type
class PageInfo:
    end_cursor: str | None


@strawberry.type
class User:
    id: strawberry.ID
    username: str
    full_name: str
    key: strawberry.Private[UUID]

    @classmethod
    def of(cls, user: models.User) -> Self:
        return cls(id=strawberry.ID(str(user.id)), username=user.username, full_name=user.full_name, key=user.id)

    @strawberry.field
    async def created_tasks(self, info: Info, first: int) -> TaskConnection:
        return TaskConnection(nodes=await info.context.first_tasks(models.Task.creator_id, first).load(self.key))

    @strawberry.field
    async def assigned_tasks(self, info: Info, first: int) -> TaskConnection:
        return TaskConnection(nodes=await info.context.first_tasks(models.Task.assignee_id, first).load(self.key))


@strawberry.type
class Task:
    id: strawberry.ID
    title: str
    description: str | None
    status: TaskStatus
    priority: TaskPriority
    due_date: datetime | None
    created_at: datetime
    updated_at: datetime
    creator_id: strawberry.Private[UUID]
    assignee_id: strawberry.Private[UUID | None]

    @classmethod
    def of(cls, task: models.Task) -> Self:
        return cls(
            id=strawberry.ID(str(task.id)),
            title=task.title,
            description=task.description,
            status=task.status,
            priority=task.priority,
            due_date=task.due_date,
            created_at=task.created_at,
            updated_at=task.updated_at,
            creator_id=task.creator_id,
            assignee_id=task.assignee_id,
        )

    @strawberry.field
    async def creator(self, info: Info) -> User:
        creator = await info.context.user_by_id.load(self.creator_id)
        assert creator is not None
        return creator

    @strawberry.field
    async def assignee(self, info: Info) -> User | None:
        return None if self.assignee_id is None else await info.context.user_by_id.load(self.assignee_id)


@strawberry.type
class TaskConnection:
    nodes: list[Task]
    matching: strawberry.Private[Select[Any] | None] = None

    @strawberry.field
    async def total_count(self) -> int:
        assert self.matching is not None
        async with _sessions() as session:
            return await session.scalar(select(func.count()).select_from(self.matching.subquery())) or 0

    @strawberry.field
    def page_info(self) -> PageInfo:
        return PageInfo(end_cursor=_cursor(self.nodes[-1].created_at, self.nodes[-1].id) if self.nodes else None)


@strawberry.type
class UserConnection:
    nodes: list[User]

    @strawberry.field
    def page_info(self) -> PageInfo:
        return PageInfo(end_cursor=self.nodes[-1].username if self.nodes else None)


@strawberry.input
class IDFilter:
    eq: strawberry.ID


@strawberry.input
class UserFilter:
    id: IDFilter


@strawberry.input
class TaskStatusFilter:
    eq: TaskStatus


@strawberry.input
class TaskFilter:
    assignee: UserFilter | None = None
    status: TaskStatusFilter | None = None

    def conditions(self) -> list[Any]:
        found = []
        if self.assignee is not None:
            found.append(models.Task.assignee_id == UUID(self.assignee.id.eq))
        if self.status is not None:
            found.append(models.Task.status == self.status.eq)
        return found


@strawberry.enum
class TaskOrderField(Enum):
    CREATED_AT = "created_at"
    UPDATED_AT = "updated_at"


@strawberry.enum
class OrderDirection(Enum):
    ASC = "asc"
    DESC = "desc"


@strawberry.input
class TaskOrder:
    field: TaskOrderField
    direction: OrderDirection = OrderDirection.ASC

    def sort_keys(self) -> list[Any]:
        column = getattr(models.Task, self.field.value)
        return [getattr(key, self.direction.value)() for key in (column, models.Task.id)]


NEWEST_FIRST = TaskOrder(field=TaskOrderField.CREATED_AT, direction=OrderDirection.DESC)


@strawberry.type
class Query:
    @strawberry.field
    async def me(self, info: Info) -> User:
        me = await info.context.user_by_id.load(info.context.viewer.id)
        assert me is not None
        return me

    @strawberry.field
    async def task(self, info: Info, id: strawberry.ID) -> Task | None:
        statement = select(models.Task).where(models.Task.id == UUID(id), visible_to(info.context.viewer))
        async with _sessions() as session:
            task = await session.scalar(statement)
        return None if task is None else Task.of(task)

    @strawberry.field
    async def tasks(
        self,
        info: Info,
        first: int,
        after: str | None = None,
        filter: TaskFilter | None = None,
        order_by: list[TaskOrder] | None = None,
    ) -> TaskConnection:
        matching = select(models.Task).where(visible_to(info.context.viewer))
        if filter is not None:
            matching = matching.where(*filter.conditions())
        sort_keys = (order_by[0] if order_by else NEWEST_FIRST).sort_keys()
        page = matching.order_by(*sort_keys).limit(first)
        if after is not None:
            page = page.where(tuple_(models.Task.created_at, models.Task.id) < tuple_(*_place(after)))
        async with _sessions() as session:
            tasks = [Task.of(task) for task in await session.scalars(page)]
        return TaskConnection(nodes=tasks, matching=matching)

    @strawberry.field
    async def users(self, first: int, after: str | None = None) -> UserConnection:
        page = select(models.User).order_by(models.User.username_key).limit(first)
        if after is not None:
            page = page.where(models.User.username_key > after)
        async with _sessions() as session:
            return UserConnection(nodes=[User.of(user) for user in await session.scalars(page)])


@strawberry.input
class SetTaskStatusInput:
    id: strawberry.ID
    status: TaskStatus


@strawberry.type
class UserError:
    code: str
    message: str


@strawberry.type
class SetTaskStatusPayload:
    task: Task | None
    errors: list[UserError]


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def set_task_status(self, info: Info, input: SetTaskStatusInput) -> SetTaskStatusPayload:
        statement = select(models.Task).where(models.Task.id == UUID(input.id), visible_to(info.context.viewer))
        async with _sessions() as session, session.begin():
            task = await session.scalar(statement.with_for_update())
            if task is None:
                return SetTaskStatusPayload(task=None, errors=[UserError(code="NOT_FOUND", message="No such task")])
            now = clock.now()
            task.status = input.status
            task.completed_at = now if input.status is TaskStatus.COMPLETED else None
            task.version += 1
            task.updated_at = now
            await session.flush()
            return SetTaskStatusPayload(task=Task.of(task), errors=[])


def _cursor(created_at: datetime, id_: str) -> str:
    return f"{created_at.isoformat()} {id_}"


def _place(cursor: str) -> tuple[datetime, UUID]:
    created_at, id_ = cursor.split()
    return datetime.fromisoformat(created_at), UUID(id_)


def visible_to(viewer: models.User) -> ColumnElement[bool]:
    if viewer.role is UserRole.ADMIN:
        return true()
    return or_(models.Task.creator_id == viewer.id, models.Task.assignee_id == viewer.id)


async def require_viewer(token: str) -> models.User:
    try:
        claims = _tokens.read(token)
    except Unauthenticated as error:
        raise HTTPException(401, str(error)) from error
    statement = select(models.User).join(models.Session, models.Session.user_id == models.User.id)
    statement = statement.where(models.User.is_active, models.Session.id == claims.session_id)
    async with _sessions() as session:
        viewer = await session.scalar(statement)
    if viewer is None:
        raise HTTPException(401, "Could not validate credentials")
    return viewer


class GraphQLView(GraphQL[Context, None]):
    async def get_context(self, request: Request | WebSocket, response: Response | WebSocket) -> Context:
        return Context(await require_viewer(request.headers.get("authorization", "").removeprefix("Bearer ")))


# Made once: a factory would make different rules for each request, and the validation cache would never hit.
_limits = [*QueryDepthLimiter(max_depth=15).validation_rules, *MaxAliasesLimiter(max_alias_count=60).validation_rules]

schema = strawberry.Schema(
    Query,
    Mutation,
    extensions=[
        ParserCache,
        ValidationCache,
        lambda: MaxTokensLimiter(max_token_count=4000),
        lambda: AddValidationRules(_limits),
    ],
)
app = Starlette(routes=[Route("/graphql", GraphQLView(schema, graphql_ide=None))])
