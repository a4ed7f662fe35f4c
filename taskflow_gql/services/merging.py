"""Changes that expect a version: refused if the row has another one, or merged with what others changed since."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from taskflow_gql.errors import VersionConflict


class ConflictPolicy(StrEnum):
    REFUSE = "REFUSE"
    MERGE = "MERGE"


def merged(noun: str, row: Any, seen: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a client changes, which saw the row as `seen`.

    A value that equals the one seen is no change, so it does not overwrite what somebody else has changed since.
    Raises VersionConflict if somebody else has changed one of the fields to another value.
    """
    changed = {name: value for name, value in values.items() if value != getattr(seen, name)}
    conflicting = [name for name, value in changed.items() if getattr(row, name) not in (getattr(seen, name), value)]
    if conflicting:
        raise VersionConflict(noun, row, seen.version, conflicting_fields=conflicting)
    return changed
