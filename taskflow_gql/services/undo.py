"""Undo: taking back what a mutation did, field by field, from the record."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.errors import NotFound
from taskflow_gql.models import TaskRow
from taskflow_gql.services import tasks
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.events import SUBJECT_OF_ROW
from taskflow_gql.services.receipts import ReceiptRow
from taskflow_gql.services.record import RecordedChange, changes_by_id, newest_change
from taskflow_gql.services.reverting import GONE, WHOLE, Reverting


class UndoPolicy(StrEnum):
    SKIP = "SKIP"
    REFUSE = "REFUSE"


class Conflict(NamedTuple):
    """What could not be taken back of one subject."""

    subject_id: UUID
    # Columns of its row; empty if it is about the whole subject.
    columns: tuple[str, ...]
    message: str


_NOUNS: dict[type[Any], Reverting] = {TaskRow: tasks.TaskReverting()}

_CHANGED = "It was changed since"


@dataclass
class _Undoing:
    """One subject: its present row, and how it would stand without the changes taken back so far."""

    row: Any
    # The id of its newest change, if it is deleted.
    newest: int | None = None
    wanted: Any = field(init=False)
    # By column.
    conflicts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wanted = self.row

    def take_back(self, change: RecordedChange, columns: Collection[str], derived: Mapping[str, Sequence[str]]) -> None:
        before, after = change.before, change.after
        if before is None:
            self._take_back_creation(after, columns)
        elif after is None:
            self._take_back_deletion(change)
        else:
            self._take_back_update(before, after, columns, derived)

    def _take_back_creation(self, after: Any, columns: Collection[str]) -> None:
        if self.wanted is None:
            return
        changed = [name for name in columns if getattr(self.wanted, name) != getattr(after, name)]
        if changed:
            self.conflicts |= dict.fromkeys(changed, _CHANGED)
        else:
            self.wanted = None

    def _take_back_deletion(self, change: RecordedChange) -> None:
        if self.wanted is not None:
            # Somebody has brought it back already. What was changed since is no part of the deletion.
            return
        if change.id == self.newest:
            self.wanted = change.before
        else:
            # Brought back since, and deleted again.
            self.conflicts[WHOLE] = GONE

    def _take_back_update(
        self, before: Any, after: Any, columns: Collection[str], derived: Mapping[str, Sequence[str]]
    ) -> None:
        changed = [name for name in columns if getattr(before, name) != getattr(after, name)]
        if self.wanted is None:
            self.conflicts |= dict.fromkeys(changed, GONE)
            return
        for name in changed:
            found, old = getattr(self.wanted, name), getattr(before, name)
            if found == getattr(after, name):
                followers = {each: getattr(before, each) for each in derived.get(name, ())}
                self.wanted = self.wanted._replace(**{name: old, **followers})
            elif found != old:
                self.conflicts[name] = _CHANGED


async def plan_undo(session: DatabaseSession, viewer: Viewer, receipt: ReceiptRow) -> Undo:
    """Lock what the mutation changed, and find out what can be taken back.

    Raises NotFound if the record no longer keeps all of its changes.
    """
    changes = await changes_by_id(session, receipt.event_ids)
    if len(changes) < len(receipt.event_ids):
        raise NotFound("What this mutation changed is no longer in the record", field="undoes")
    by_subject: dict[tuple[type[Any], UUID], list[RecordedChange]] = {}
    # The newest first, for a batch may have changed a subject several times.
    for change in sorted(changes, key=lambda change: change.id, reverse=True):
        by_subject.setdefault((change.row_class, change.subject_id), []).append(change)
    plan = Undo(viewer)
    for row_class, noun in _NOUNS.items():
        ids = [subject_id for kind, subject_id in by_subject if kind is row_class]
        rows = await noun.lock(session, ids)
        columns = list(SUBJECT_OF_ROW[row_class].column_by_field.values())
        for subject_id in ids:
            undoing = _Undoing(rows.get(subject_id))
            if undoing.row is None:
                undoing.newest = await newest_change(session, row_class, subject_id)
            for change in by_subject[row_class, subject_id]:
                undoing.take_back(change, columns, noun.derived)
            await plan.add(session, noun, subject_id, undoing, by_subject[row_class, subject_id], columns)
    return plan


class Undo:
    """What an undo will do, and what it cannot do."""

    def __init__(self, viewer: Viewer) -> None:
        self.conflicts: list[Conflict] = []
        self._viewer = viewer
        self._reverts: list[tuple[Reverting, Any, Any]] = []

    async def add(
        self,
        session: DatabaseSession,
        noun: Reverting,
        subject_id: UUID,
        undoing: _Undoing,
        changes: Sequence[RecordedChange],
        columns: Sequence[str],
    ) -> None:
        row, wanted, conflicts = undoing.row, undoing.wanted, undoing.conflicts
        refused = await noun.why_not(session, self._viewer, row, wanted)
        if WHOLE in refused:
            # Says nothing about the present row, which the viewer may not see.
            theirs = [name for name in columns if any(_has_changed(change, name) for change in changes)]
            conflicts = dict.fromkeys(theirs or [WHOLE], refused[WHOLE])
            wanted = row
        elif refused:
            conflicts |= refused
            kept = [each for name in refused for each in (name, *noun.derived.get(name, ()))]
            wanted = wanted._replace(**{name: getattr(row, name) for name in kept})
        if wanted != row:
            self._reverts.append((noun, row, wanted))
        # One conflict for each reason.
        for message in dict.fromkeys(conflicts.values()):
            named = tuple(name for name, reason in conflicts.items() if reason == message and name != WHOLE)
            self.conflicts.append(Conflict(subject_id, named, message))

    async def run(self, session: DatabaseSession) -> None:
        for noun, row, wanted in self._reverts:
            await noun.revert(session, self._viewer, row, wanted)


def _has_changed(change: RecordedChange, column: str) -> bool:
    if change.before is None or change.after is None:
        return False
    return bool(getattr(change.before, column) != getattr(change.after, column))
