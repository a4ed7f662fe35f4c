"""The name and version of the server."""

from __future__ import annotations

import strawberry

from taskflow_gql import __version__

SERVER_NAME = "TaskFlow GQL"


@strawberry.type(description="The server.")
class ServerInfo:
    name: str = strawberry.field(description="Always the same.")
    version: str = strawberry.field(description="The release, by semantic versioning.")


@strawberry.type
class ServerQueries:
    @strawberry.field(description="Which server this is. Public.")
    def server_info(self) -> ServerInfo:
        return ServerInfo(name=SERVER_NAME, version=__version__)
