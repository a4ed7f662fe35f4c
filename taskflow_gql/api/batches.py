"""Batches: several mutations in one request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from enum import StrEnum
from typing import Annotated, Any, TypeAlias
from uuid import UUID

import strawberry
from strawberry.utils.str_converters import to_camel_case

from taskflow_gql.api.context import Context
from taskflow_gql.api.enums import describe_enum
from taskflow_gql.api.mutations import MUTATIONS, Mutation, mutation_field, mutation_of
from taskflow_gql.api.payloads import (
    REFUSED,
    ErrorCode,
    MutationPayload,
    RepeatableInput,
    UserError,
    Withdrawn,
    refused_payload,
)
from taskflow_gql.api.tasks import (
    CreateTaskInput,
    CreateTaskPayload,
    DeleteTaskInput,
    DeleteTaskPayload,
    SetTaskStatusInput,
    SetTaskStatusPayload,
    ToggleTaskCompletionInput,
    ToggleTaskCompletionPayload,
    UpdateTaskInput,
    UpdateTaskPayload,
)
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.errors import BadUserInput, refuse_if_any
from taskflow_gql.services import tasks
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.ids import parse_optional_id
from taskflow_gql.services.receipts import MutationIdReused, Request, write_receipt

MAX_MUTATIONS = 100


class BatchMode(StrEnum):
    ALL_OR_NOTHING = "ALL_OR_NOTHING"
    EACH = "EACH"


describe_enum(
    BatchMode,
    "What becomes of a batch when one of its mutations is refused.",
    ALL_OR_NOTHING="Nothing is changed: the mutations are one transaction, and the others answer NOT_APPLIED.",
    EACH="The others are applied: each mutation is a transaction of its own.",
)


@strawberry.input(
    one_of=True, description="One mutation of a batch: exactly one of these, with the input that it has on its own."
)
class MutationInput:
    create_task: CreateTaskInput | None = strawberry.field(default=strawberry.UNSET, description="As `createTask`.")
    update_task: UpdateTaskInput | None = strawberry.field(default=strawberry.UNSET, description="As `updateTask`.")
    set_task_status: SetTaskStatusInput | None = strawberry.field(
        default=strawberry.UNSET, description="As `setTaskStatus`."
    )
    toggle_task_completion: ToggleTaskCompletionInput | None = strawberry.field(
        default=strawberry.UNSET, description="As `toggleTaskCompletion`."
    )
    delete_task: DeleteTaskInput | None = strawberry.field(default=strawberry.UNSET, description="As `deleteTask`.")


# The names of the mutations that a batch can hold.
BATCHED = tuple(field.name for field in fields(MutationInput))

MutationResult: TypeAlias = Annotated[
    CreateTaskPayload | UpdateTaskPayload | SetTaskStatusPayload | ToggleTaskCompletionPayload | DeleteTaskPayload,
    strawberry.union("MutationResult", description="What became of one mutation of a batch: its own payload."),
]


@strawberry.input(
    description=(
        "The mutations, in order. A later one may name a task that an earlier one makes, by the `id` that you gave it. "
        "They have no `mutationId` of their own: that of the batch stands for all."
    )
)
class ApplyMutationsInput(RepeatableInput):
    mutations: list[MutationInput] = strawberry.field(description=f"1 to {MAX_MUTATIONS}.")
    mode: BatchMode = strawberry.field(
        default=BatchMode.ALL_OR_NOTHING, description="What to do when one of them is refused."
    )


@strawberry.type(description="What became of `applyMutations`.")
class ApplyMutationsPayload(MutationPayload):
    results: list[MutationResult] = strawberry.field(
        default_factory=list,
        description="One for each mutation, in order; empty when the batch itself was refused, see `errors`.",
    )


class _Part:
    """One mutation of a batch."""

    def __init__(self, index: int, given: MutationInput) -> None:
        # The schema lets exactly one through.
        ((name, self.given),) = (
            (field.name, value)
            for field in fields(given)
            if (value := getattr(given, field.name)) is not strawberry.UNSET
        )
        self.index = index
        self.mutation = MUTATIONS[name]
        self.path = ["mutations", str(index), name]

    def request(self, whole: Request | None) -> Request | None:
        return whole and whole.part(self.index, to_camel_case(self.mutation.name))

    def refused(self, error: UserError) -> Any:
        return self.mutation.payload_type(errors=[error])


def _parts(batch: ApplyMutationsInput) -> list[_Part]:
    """Raises a Refusal if the batch cannot be tried."""
    if not 1 <= len(batch.mutations) <= MAX_MUTATIONS:
        raise BadUserInput(f"A batch has 1 to {MAX_MUTATIONS} mutations", field="mutations")
    parts = [_Part(index, given) for index, given in enumerate(batch.mutations)]
    refuse_if_any(
        [
            BadUserInput(
                "A mutation of a batch has no mutationId of its own: give one to the batch",
                field=[*part.path, "mutation_id"],
            )
            for part in parts
            if part.given.mutation_id is not None
        ]
    )
    return parts


async def apply_mutations(
    session: DatabaseSession, viewer: Viewer, input: ApplyMutationsInput
) -> ApplyMutationsPayload:
    """All of them in one unit of work. Raises Withdrawn if one is refused."""
    parts = _parts(input)
    # In one order, so that two batches do not wait for each other.
    present = await tasks.lock_tasks(session, viewer, set(_task_ids(parts)))
    payloads: list[Any] = []
    for part in parts:
        assert part.mutation.function is not None
        done = len(session.returned_ids)
        try:
            payload = await part.mutation.function(session, viewer, part.given)
        except REFUSED as refused:
            payload = refused_payload(refused, part.mutation.payload_type)
            if getattr(payload, "task", None) is not None:
                # Earlier parts may have changed it, and they are rolled back.
                payload.task = present.get(payload.task.id)
            raise Withdrawn(_not_applied(parts, part, payload)) from None
        await session.flush()
        payload.event_ids = session.returned_ids[done:]
        payloads.append(payload)
    return ApplyMutationsPayload(results=payloads)


def _task_ids(parts: Sequence[_Part]) -> Iterator[UUID]:
    for part in parts:
        # A bad id is reported by its mutation.
        if id_ := parse_optional_id(part.given.id, "id", []):
            yield id_


def _not_applied(parts: Sequence[_Part], refused: _Part, payload: Any) -> ApplyMutationsPayload:
    where = refused.path[:2]
    other = UserError(
        code=ErrorCode.NOT_APPLIED, message=f"Not applied, because mutations[{refused.index}] was refused", field=None
    )
    whole = UserError(
        code=ErrorCode.NOT_APPLIED,
        message=f"Nothing was changed, because mutations[{refused.index}] was refused: its result says why",
        field=where,
    )
    results = [payload if part is refused else part.refused(other) for part in parts]
    return ApplyMutationsPayload(results=results, errors=[whole])


class _Batch(Mutation):
    """ALL_OR_NOTHING runs as any mutation. EACH has a receipt for each part, and then one for the whole.

    So a batch that is repeated after the server died in it goes on behind the last part that was done.
    """

    async def run_as(self, context: Context, given: ApplyMutationsInput, request: Request | None) -> Any:
        # The batch itself was counted with the operation.
        context.count("mutations", len(given.mutations) - 1)
        return await super().run_as(context, given, request)

    async def _run_unnamed(self, context: Context, given: ApplyMutationsInput) -> Any:
        if given.mode is BatchMode.EACH:
            return await self._apply_each(context, given, None)
        return await super()._run_unnamed(context, given)

    async def _attempt(self, context: Context, given: ApplyMutationsInput, request: Request, *, locks: bool) -> Any:
        if given.mode is not BatchMode.EACH:
            return await super()._attempt(context, given, request, locks=locks)
        try:
            payload = await self._apply_each(context, given, request)
        except MutationIdReused:
            # Not kept: the id belongs to the other batch.
            raise
        except REFUSED as refused:
            payload = refused_payload(refused, self.payload_type)
        async with context.write() as session:
            session.returned_ids += payload.event_ids
            write_receipt(session, request, self.codec.write(payload))
        return payload

    async def _apply_each(
        self, context: Context, given: ApplyMutationsInput, request: Request | None
    ) -> ApplyMutationsPayload:
        await context.require_viewer()
        payloads: list[Any] = []
        for part in _parts(given):
            payloads.append(await part.mutation.run_as(context, part.given, part.request(request)))
            if part.index == 0 and any(error.code is ErrorCode.MUTATION_ID_REUSED for error in payloads[0].errors):
                # A batch with other input has begun under this id.
                raise MutationIdReused
        payload = ApplyMutationsPayload(results=payloads)
        payload.event_ids = [id_ for each in payloads for id_ in each.event_ids]
        return payload


@strawberry.type
class BatchMutations:
    apply_mutations = mutation_field(
        mutation_of(apply_mutations, kind=_Batch),
        (
            f"Up to {MAX_MUTATIONS} mutations of tasks in order, all of them or each for itself. `undo` takes back the "
            "whole batch by its `mutationId`. If EACH is interrupted, repeat it with the same `mutationId`: it goes on "
            "where it stopped."
        ),
        "The mutations.",
    )
