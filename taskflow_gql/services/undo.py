"""Undo: taking back what a mutation did, field by field, from the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from taskflow_gql.database.sessions import DatabaseSession, Outdated
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


# By the row class of the noun; every recorded noun has one.
REVERTING: dict[type[Any], Reverting] = {TaskRow: tasks.TaskReverting()}

_CHANGED = "It was changed since"


@dataclass
class _Subject:
    """One subject: its present row, and how it would stand without the changes, as far as they can be taken back."""

    id: UUID
    noun: Reverting
    # Of the mutation, the newest first: a batch may have changed a subject several times.
    changes: Sequence[RecordedChange]
    # Those that people change.
    columns: Sequence[str]
    row: Any
    # The id of its newest change, if it is deleted.
    newest: int | None
    wanted: Any = field(init=False)
    # What cannot be taken back and why, by column.
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wanted = self.row

    def take_back(self) -> None:
        for change in self.changes:
            if change.before is None:
                self._take_back_creation(change)
            elif change.after is None:
                self._take_back_deletion(change)
            else:
                self._take_back_update(change)

    def _take_back_creation(self, change: RecordedChange) -> None:
        if self.wanted is None:
            return
        changed = self._differing(self.wanted, change.after)
        self.refused |= dict.fromkeys(changed, _CHANGED)
        if not changed:
            self.wanted = None

    def _take_back_deletion(self, change: RecordedChange) -> None:
        if self.wanted is not None:
            # An undo has brought it back already. What was changed since is no part of the deletion.
            return
        if change.id == self.newest:
            self.wanted = change.before
        else:
            # Brought back since, and deleted again.
            self.refused[WHOLE] = GONE

    def _take_back_update(self, change: RecordedChange) -> None:
        for name in self._differing(change.before, change.after):
            if self.wanted is None:
                self.refused[name] = GONE
                continue
            found, old = getattr(self.wanted, name), getattr(change.before, name)
            if found == getattr(change.after, name):
                followers = {each: getattr(change.before, each) for each in self.noun.derived.get(name, ())}
                self.wanted = self.wanted._replace(**{name: old, **followers})
            elif found != old:
                self.refused[name] = _CHANGED

    async def heed_rights(self, session: DatabaseSession, viewer: Viewer) -> None:
        wanted = self.wanted
        if self.row is None and wanted is None:
            # Those who could not bring it back are not told that it is gone.
            wanted = self.changes[0].after or self.changes[0].before
        refused = await self.noun.why_not(session, viewer, self.row, wanted)
        if WHOLE in refused:
            # Says nothing about the present row, which the viewer may not see.
            theirs = [name for change in self.changes for name in self._differing(change.before, change.after)]
            self.refused = dict.fromkeys(theirs or [WHOLE], refused[WHOLE])
            self.wanted = self.row
        elif refused:
            self.refused |= refused
            kept = [each for name in refused for each in (name, *self.noun.derived.get(name, ()))]
            self.wanted = self.wanted._replace(**{name: getattr(self.row, name) for name in kept})

    def _differing(self, one: Any, other: Any) -> list[str]:
        if one is None or other is None:
            return []
        return [name for name in self.columns if getattr(one, name) != getattr(other, name)]

    @property
    def conflicts(self) -> list[Conflict]:
        """One for each reason."""
        return [
            Conflict(
                self.id,
                tuple(name for name in self.columns if self.refused.get(name) == reason),
                reason,
            )
            for reason in dict.fromkeys(self.refused.values())
        ]


class Undo:
    """What an undo will do, and what it cannot do."""

    def __init__(self, subjects: Sequence[_Subject]) -> None:
        self.conflicts = [conflict for subject in subjects for conflict in subject.conflicts]
        self._subjects = subjects

    async def run(self, session: DatabaseSession, viewer: Viewer) -> None:
        """Raises Outdated if a subject was brought back and deleted again since the undo was planned."""
        for subject in self._subjects:
            if subject.wanted != subject.row:
                await subject.noun.revert(session, viewer, subject.row, subject.wanted)
            if subject.wanted is not None and subject.row is None:
                # There was no row to lock. From the insert on nobody else can make one with this id.
                await session.flush()
                own = session.returned_ids[-1]
                if await newest_change(session, type(subject.wanted), subject.id, before=own) != subject.newest:
                    raise Outdated


async def plan_undo(session: DatabaseSession, viewer: Viewer, receipt: ReceiptRow) -> Undo:
    """Lock what the mutation changed, and find out what can be taken back.

    Raises NotFound if the record no longer keeps all of its changes.
    """
    changes = await changes_by_id(session, receipt.event_ids)
    if len(changes) < len(receipt.event_ids):
        raise NotFound("What this mutation changed is no longer in the record", field="undoes")
    by_subject: dict[tuple[type[Any], UUID], list[RecordedChange]] = {}
    for change in sorted(changes, key=lambda change: change.id, reverse=True):
        by_subject.setdefault((change.row_class, change.subject_id), []).append(change)
    subjects = []
    for row_class, noun in REVERTING.items():
        columns = list(SUBJECT_OF_ROW[row_class].column_by_field.values())
        ids = [id_ for kind, id_ in by_subject if kind is row_class]
        rows = await noun.lock(session, ids)
        for id_ in ids:
            row = rows.get(id_)
            newest = await newest_change(session, row_class, id_) if row is None else None
            subject = _Subject(id_, noun, by_subject[row_class, id_], columns, row, newest)
            subject.take_back()
            await subject.heed_rights(session, viewer)
            subjects.append(subject)
    return Undo(subjects)
