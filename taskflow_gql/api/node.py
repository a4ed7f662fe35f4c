"""The Node interface: every object that can be read again by its id."""

from __future__ import annotations

import strawberry


@strawberry.interface(description="Anything that `node(id:)` can read again.")
class Node:
    id: strawberry.ID = strawberry.field(
        description="A version 7 UUID, unique over all types; use it as the cache key."
    )
