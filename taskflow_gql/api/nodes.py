"""The Node interface, and the queries that read any object by its id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any
from uuid import UUID

import strawberry
from graphql import GraphQLInterfaceType

from taskflow_gql.api.context import Context, Info
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.errors import BadUserInput
from taskflow_gql.execution.strawberry import DEFINITION, core_schema
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.ids import parse_id

MAX_NODES = 100


@strawberry.interface(description="Anything that `node(id:)` can read again.")
class Node:
    id: strawberry.ID = strawberry.field(
        description="A version 7 UUID, unique over all types; use it as the cache key."
    )

    @staticmethod
    async def by_ids(
        context: Context, session: DatabaseSession, viewer: Viewer, ids: Sequence[UUID]
    ) -> Mapping[UUID, Any]:
        """The objects of this type with these ids that the viewer may see, by id. Every type implements it."""
        raise NotImplementedError


@strawberry.type
class NodeQueries:
    @strawberry.field(
        graphql_type=Node | None, description="Anything by its id; null when there is none or it is not visible to you."
    )
    async def node(
        self, info: Info, id: Annotated[strawberry.ID, strawberry.argument(description="The id of any object.")]
    ) -> Any:
        viewer = await info.context.require_viewer()
        key = parse_id(id)
        return (await _read(info, viewer, [key])).get(key)

    @strawberry.field(
        graphql_type=list[Node | None],
        description="Several things by their ids, at most 100, in the order of the ids; null as in `node`.",
    )
    async def nodes(
        self,
        info: Info,
        ids: Annotated[list[strawberry.ID], strawberry.argument(description="Ids of any objects, mixed.")],
    ) -> list[Any]:
        viewer = await info.context.require_viewer()
        if len(ids) > MAX_NODES:
            raise BadUserInput(f"nodes takes at most {MAX_NODES} ids, not {len(ids)}")
        keys = [parse_id(id) for id in ids]
        found = await _read(info, viewer, keys)
        return [found.get(key) for key in keys]


async def _read(info: Info, viewer: Viewer, ids: list[UUID]) -> dict[UUID, Any]:
    found: dict[UUID, Any] = {}
    async with info.context.read() as session:
        for type_ in _node_types(info.schema):
            missing = [key for key in ids if key not in found]
            if missing:
                found.update(await type_.by_ids(info.context, session, viewer, missing))
    return found


# A server has one schema.
@lru_cache(maxsize=1)
def _node_types(schema: strawberry.Schema) -> list[type[Node]]:
    """The types of the schema that implement Node."""
    core = core_schema(schema)
    interface = core.type_map[Node.__name__]
    assert isinstance(interface, GraphQLInterfaceType)
    return [type_.extensions[DEFINITION].origin for type_ in core.get_implementations(interface).objects]
