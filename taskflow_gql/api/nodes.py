"""What the server says about itself, and the queries that go over all types."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import strawberry

from taskflow_gql import __version__
from taskflow_gql.api.context import Info
from taskflow_gql.api.node import Node
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.errors import BadUserInput
from taskflow_gql.models import TaskRow, UserRow
from taskflow_gql.services import tasks, users
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.ids import parse_id

SERVER_NAME = "TaskFlow GQL"
MAX_NODES = 100


@strawberry.type(description="The server.")
class ServerInfo:
    name: str = strawberry.field(description="Always the same.")
    version: str = strawberry.field(description="The release, by semantic versioning.")


@strawberry.type
class NodeQueries:
    @strawberry.field(description="Which server this is. Public.")
    def server_info(self) -> ServerInfo:
        return ServerInfo(name=SERVER_NAME, version=__version__)

    @strawberry.field(
        graphql_type=Node | None, description="Anything by its id; null when there is none or it is not visible to you."
    )
    async def node(
        self, info: Info, id: Annotated[strawberry.ID, strawberry.argument(description="The id of any object.")]
    ) -> TaskRow | UserRow | None:
        viewer = await info.context.require_viewer()
        key = parse_id(id)
        async with info.context.read() as session:
            return (await _nodes_by_id(session, viewer, [key], info.context.task_columns)).get(key)

    @strawberry.field(
        graphql_type=list[Node | None],
        description="Several things by their ids, at most 100, in the order of the ids; null as in `node`.",
    )
    async def nodes(
        self,
        info: Info,
        ids: Annotated[list[strawberry.ID], strawberry.argument(description="Ids of any objects, mixed.")],
    ) -> list[TaskRow | UserRow | None]:
        viewer = await info.context.require_viewer()
        if len(ids) > MAX_NODES:
            raise BadUserInput(f"nodes takes at most {MAX_NODES} ids, not {len(ids)}")
        keys = [parse_id(id) for id in ids]
        async with info.context.read() as session:
            found = await _nodes_by_id(session, viewer, keys, info.context.task_columns)
        return [found.get(key) for key in keys]


async def _nodes_by_id(
    session: DatabaseSession, viewer: Viewer, keys: list[UUID], columns: tasks.TaskColumns
) -> dict[UUID, TaskRow | UserRow]:
    found: dict[UUID, TaskRow | UserRow] = {**await tasks.tasks_by_id(session, viewer, keys, columns)}
    missing = [key for key in keys if key not in found]
    if missing:
        found.update(await users.users_by_id(session, missing))
    return found
