"""What undo needs of the service of a noun."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.services.access import Viewer

# Stands for all columns where a reason is given for one.
WHOLE = ""
# One reason for both, so that it does not tell which.
GONE = "It is gone, or you may no longer change it"


class Reverting(Protocol):
    """What a noun's service does for undo."""

    # The columns that follow from others, and are taken back with them.
    derived: Mapping[str, Sequence[str]]

    async def lock(self, session: DatabaseSession, ids: Collection[UUID], /) -> dict[UUID, Any]:
        """The present rows by id, also those that the viewer may not see."""

    async def why_not(self, session: DatabaseSession, viewer: Viewer, row: Any, wanted: Any, /) -> dict[str, str]:
        """Why the viewer may not make the row as wanted: messages by column, or one for `WHOLE`.

        Either row may be None: it does not exist, or shall not.
        """

    async def revert(self, session: DatabaseSession, viewer: Viewer, row: Any, wanted: Any, /) -> None:
        """Make the row as wanted, and record it."""
