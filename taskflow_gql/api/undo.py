"""Undo of mutations by their `mutationId`."""

from __future__ import annotations

import strawberry
from strawberry.utils.str_converters import to_camel_case

from taskflow_gql.api.batches import BATCHED
from taskflow_gql.api.changes import TaskChange, task_change
from taskflow_gql.api.context import Info
from taskflow_gql.api.enums import describe_enum
from taskflow_gql.api.mutations import mutation
from taskflow_gql.api.payloads import ErrorCode, MutationPayload, RepeatableInput, UserError, Withdrawn
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.errors import BadUserInput, NotFound
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.changes import change_for
from taskflow_gql.services.events import placed_events
from taskflow_gql.services.receipts import check_mutation_id, receipt_of
from taskflow_gql.services.undo import Conflict, UndoPolicy, plan_undo

describe_enum(
    UndoPolicy,
    "What to do about changes that cannot be taken back.",
    SKIP="Leave them, name them in `conflicts`, and take back the rest.",
    REFUSE="Name them in `conflicts`, and change nothing.",
)

# The mutations whose changes the record has.
_UNDOABLE = {*map(to_camel_case, BATCHED), "applyMutations", "undo"}


@strawberry.input(
    description=(
        "Which mutation of yours to take back. A later undo with this `mutationId` as `undoes` takes back the undo."
    )
)
class UndoInput(RepeatableInput):
    undoes: strawberry.ID = strawberry.field(description="The `mutationId` of that mutation; of a batch for all of it.")
    on_conflict: UndoPolicy = strawberry.field(
        default=UndoPolicy.SKIP, description="What to do about changes that cannot be taken back."
    )


@strawberry.type(description="A change that cannot be taken back.")
class UndoConflict:
    subject_id: strawberry.ID = strawberry.field(description="The id of what was changed, such as a task.")
    fields: list[str] = strawberry.field(
        description='Its fields that stay as they are, like `["dueDate"]`; empty when it is about all of it.'
    )
    message: str = strawberry.field(description="Why, in English, for people.")


@strawberry.type(description="What became of `undo`.")
class UndoPayload(MutationPayload):
    conflicts: list[UndoConflict] = strawberry.field(
        default_factory=list,
        description="What could not be taken back, because somebody has changed it since, or because you may not.",
    )

    @strawberry.field(
        description=(
            "What the undo changed, in the order of the stream, as it looks to you. In a repeated answer only "
            "what the record still keeps."
        )
    )
    async def undone(self, info: Info) -> list[TaskChange]:
        if not self.event_ids:
            return []
        viewer = await info.context.require_viewer()
        await info.context.parts.relay.catch_up()
        async with info.context.read() as session:
            events = await placed_events(session, self.event_ids)
        return [task_change(info, change) for event in events if (change := change_for(viewer, event))]


@strawberry.type
class UndoMutations:
    @mutation(
        "Take back what one of your mutations did, field by field: what it made is deleted, what it deleted comes back "
        "with its `id` and history, and changed fields get their old values unless they were changed again since. "
        "Possible for as long as the record keeps the changes, 30 days unless the server is set otherwise.",
        input="Which mutation.",
    )
    @staticmethod
    async def undo(session: DatabaseSession, viewer: Viewer, input: UndoInput) -> UndoPayload:
        receipt = await receipt_of(session, viewer.id, check_mutation_id(input.undoes, field="undoes"))
        if receipt is None:
            raise NotFound("You have made no mutation with this mutationId, or it is too long ago", field="undoes")
        if receipt.field not in _UNDOABLE:
            raise BadUserInput(f"{receipt.field} cannot be undone, only mutations of tasks can", field="undoes")
        plan = await plan_undo(session, viewer, receipt)
        conflicts = [_shown(conflict) for conflict in plan.conflicts]
        if conflicts and input.on_conflict is UndoPolicy.REFUSE:
            error = UserError(
                code=ErrorCode.VERSION_CONFLICT,
                message="Not everything can be taken back: `conflicts` says what; with `onConflict: SKIP` the rest is",
                field=["undoes"],
            )
            raise Withdrawn(UndoPayload(conflicts=conflicts, errors=[error]))
        await plan.run(session, viewer)
        return UndoPayload(conflicts=conflicts)


def _shown(conflict: Conflict) -> UndoConflict:
    return UndoConflict(
        subject_id=strawberry.ID(str(conflict.subject_id)),
        fields=[to_camel_case(name) for name in conflict.columns],
        message=conflict.message,
    )
