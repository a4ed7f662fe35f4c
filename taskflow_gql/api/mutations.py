"""The decorators of all mutations: they authenticate, run a unit of work, and answer repeats from receipts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_type_hints

import strawberry
from graphql import FieldNode, OperationDefinitionNode
from sqlalchemy.exc import IntegrityError
from strawberry.types.field import StrawberryField
from strawberry.utils.str_converters import to_camel_case

from taskflow_gql.api.context import Context, Info
from taskflow_gql.api.payloads import REFUSED, ErrorCode, PayloadCodec, refused_payload
from taskflow_gql.database.sessions import DatabaseSession, Deadlock, Outdated
from taskflow_gql.errors import BadUserInput
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.receipts import (
    Request,
    check_mutation_id,
    find_receipt,
    hash_of_input,
    owner_of_anonymous,
    write_receipt,
)

Payload = TypeVar("Payload")
# The part of a prepared mutation that runs in its unit of work.
Write: TypeAlias = Callable[[DatabaseSession], Awaitable[Payload]]
_Prepare: TypeAlias = Callable[[Context, Any], Awaitable[Write[Any]]]
_Function: TypeAlias = Callable[[DatabaseSession, Viewer, Any], Awaitable[Any]]


def mutation(description: str, *, input: str, locks: bool = True) -> Callable[[Any], Any]:
    """Decorate a static method `(session, viewer, input) -> payload` of a class of mutations.

    The method runs in one unit of work, for the signed-in viewer. The unit is committed when the method returns, and
    rolled back when it raises. A `Refusal` becomes the payload's `errors`. `description` and `input` describe the field
    and its argument for client authors.

    The method may run a second time: if another unit took the same unique value, and without `locks` if the row that it
    read has changed (`Database.write` says what such a method may do).
    """

    def decorate(method: Any) -> StrawberryField:
        made = mutation_of(method.__func__, locks=locks)
        MUTATIONS[made.name] = made
        return mutation_field(made, description, input)

    return decorate


def mutation_of(function: _Function, *, locks: bool = True, kind: type[Mutation] | None = None) -> Mutation:
    """The mutation that a function `(session, viewer, input) -> payload` is, for a field or as a part of a batch."""

    async def prepare(context: Context, given: Any) -> Write[Any]:
        viewer = await context.require_viewer()

        async def write(session: DatabaseSession) -> Any:
            return await function(session, viewer, given)

        return write

    types = get_type_hints(function)
    return (kind or Mutation)(
        function.__name__, prepare, types["input"], types["return"], function=function, locks=locks
    )


def prepared_mutation(
    description: str,
    *,
    input: str | None = None,
    is_public: bool = False,
    has_secrets: bool = False,
    keeps_receipts: bool = True,
    rate: str | None = None,
    account_of: Callable[[Context, Any], str] | None = None,
) -> Callable[[Any], Any]:
    """Decorate a static method `(context, input) -> Write[payload]`, for mutations with slow work such as hashing.

    The method runs before the unit of work begins, and the function that it returns runs inside it. The method
    authenticates by itself if it needs the viewer. If the input `has_secrets`, its hash is made with a key, so
    that nobody can guess them from the database. A mutation that can be repeated by itself needs no receipts, and
    without `input` it has none: its method is `(context) -> Write[payload]`.

    `rate` is the rate limit that counts it, such as `auth`, in addition to `mutations`. If the input tells the
    password of an account, `account_of(context, input)` names the account, and only wrong passwords are counted.
    """

    def decorate(method: Any) -> StrawberryField:
        function = method.__func__
        types = get_type_hints(function)
        _, awaitable = get_args(types["return"])
        (payload_type,) = get_args(awaitable)
        made = Mutation(
            function.__name__,
            function if input is not None else lambda context, _: function(context),
            types.get("input"),
            payload_type,
            is_prepared=True,
            is_public=is_public,
            has_secrets=has_secrets,
            keeps_receipts=keeps_receipts and input is not None,
            rate=rate,
            account_of=account_of,
        )
        return mutation_field(made, description, input)

    return decorate


@dataclass(frozen=True)
class Mutation:
    """How a mutation runs: on its own, once, or again for a request that repeats it."""

    name: str
    prepare: _Prepare
    input_type: Any
    payload_type: Any
    # What runs in the unit of work, if nothing runs before it.
    function: _Function | None = None
    # Whether the first attempt locks what it reads.
    locks: bool = True
    # Whether `prepare` does slow work.
    is_prepared: bool = False
    is_public: bool = False
    has_secrets: bool = False
    keeps_receipts: bool = True
    # The rate limit in addition to `mutations`, and the account whose password the input tells.
    rate: str | None = None
    account_of: Callable[[Context, Any], str] | None = None

    @cached_property
    def codec(self) -> PayloadCodec:
        return PayloadCodec(self.payload_type)

    async def run(self, info: Info, given: Any) -> Any:
        if self.rate is None:
            return await self._answer(info, given)
        if self.account_of is None:
            await info.context.attempt(self.rate)
            return await self._answer(info, given)
        async with info.context.guess(self.rate, self.account_of(info.context, given)) as attempt:
            payload = await self._answer(info, given)
            if all(error.code is not ErrorCode.INVALID_CREDENTIALS for error in payload.errors):
                await attempt.give_back()
        return payload

    async def _answer(self, info: Info, given: Any) -> Any:
        context = info.context
        try:
            mutation_id = self._mutation_id(info, given) if self.keeps_receipts else None
            request = None if mutation_id is None else await self._request(context, given, mutation_id)
        except REFUSED as refused:
            return refused_payload(refused, self.payload_type)
        payload = await self.run_as(context, given, request)
        payload.on_committed(context)
        return payload

    @staticmethod
    def _mutation_id(info: Info, given: Any) -> str | None:
        mutation_id: str | None = given.mutation_id
        return mutation_id if mutation_id is not None else _idempotency_key(info)

    async def run_as(self, context: Context, given: Any, request: Request | None) -> Any:
        """The payload, also of a refusal. Without a request, the mutation cannot be repeated."""
        try:
            if request is None:
                return await self._run_unnamed(context, given)
            return await self._run_once(context, given, request)
        except REFUSED as refused:
            return refused_payload(refused, self.payload_type)

    async def _run_unnamed(self, context: Context, given: Any) -> Any:
        async def attempt(number: int) -> Any:
            write = await self.prepare(context, given)
            async with context.write(locks=number > 0 or self.locks) as session:
                payload = await write(session)
            payload.event_ids = session.returned_ids
            return payload

        return await _try(attempt)

    async def _request(self, context: Context, given: Any, mutation_id: str) -> Request:
        # Without a viewer, a request is refused before its input is looked at.
        viewer = None if self.is_public else await context.require_viewer()
        mutation_id = check_mutation_id(mutation_id)
        key = context.parts.receipt_key
        field = to_camel_case(self.name)
        input_hash = hash_of_input(field, _given_values(given), key=key if self.has_secrets else b"")
        owner_id = viewer.id if viewer else owner_of_anonymous(context.address, input_hash, key=key)
        return Request(owner_id, mutation_id, field, input_hash)

    async def _run_once(self, context: Context, given: Any, request: Request) -> Any:
        """Do it, unless a receipt says that it was done.

        The first attempt does not look for a receipt, because there is none for nearly all requests.
        """

        async def attempt(number: int) -> Any:
            if (number or self.is_prepared) and (payload := await self._replay(context, given, request)):
                return payload
            return await self._attempt(context, given, request, locks=number > 0 or self.locks)

        return await _try(attempt)

    async def _attempt(self, context: Context, given: Any, request: Request, *, locks: bool) -> Any:
        try:
            write = await self.prepare(context, given)
            async with context.write(request.shown_id, locks=locks) as session:
                payload = await write(session)
                write_receipt(session, request, self.codec.write(payload))
        except REFUSED as refused:
            payload = refused_payload(refused, self.payload_type)
            if self.is_public:
                # Not kept: anybody could fill the table. The same request may have been done at the same time, and be
                # the reason for this refusal; then its answer counts.
                return await self._replay(context, given, request) or payload
            async with context.write() as session:
                write_receipt(session, request, self.codec.write(payload))
        payload.event_ids = session.returned_ids
        return payload

    async def _replay(self, context: Context, given: Any, request: Request) -> Any:
        async with context.read() as session:
            receipt = await find_receipt(session, request)
        if receipt is None:
            return None
        payload = self.codec.read(receipt.answer)
        payload.event_ids = receipt.event_ids
        await payload.on_replay(context, given)
        return payload


# By name, those that a batch may hold.
MUTATIONS: dict[str, Mutation] = {}

# The first attempt fails if the same mutation, or another one that took the same unique value, runs at the same time.
# The second one finds what they have committed. The third one is for the rare case that they were rolled back then.
_MAX_ATTEMPTS = 3
# After a deadlock. The other transaction should be committed by then, or they may lock each other out again.
_PAUSE_SECONDS = (0.1, 0.3)


async def _try(attempt: Callable[[int], Awaitable[Any]]) -> Any:
    """What the attempt returns. It gets its number, from 0."""
    for number in range(_MAX_ATTEMPTS):
        try:
            return await attempt(number)
        except (IntegrityError, Outdated) as lost:
            if number == _MAX_ATTEMPTS - 1:
                raise
            if isinstance(lost, Deadlock):
                await asyncio.sleep(random.uniform(*_PAUSE_SECONDS))  # noqa: S311
    raise AssertionError("The last attempt returns or raises")


def mutation_field(made: Mutation, description: str, input_description: str | None) -> StrawberryField:
    async def resolve(self: Any, info: Info, input: Any) -> Any:
        return await made.run(info, input)

    async def resolve_without_input(self: Any, info: Info) -> Any:
        return await made.run(info, None)

    resolver: Any = resolve if input_description is not None else resolve_without_input
    resolver.__annotations__ = {"info": Info, "return": made.payload_type}
    if input_description is not None:
        argument = strawberry.argument(description=input_description)
        resolver.__annotations__["input"] = Annotated[made.input_type, argument]
    resolver.__name__ = resolver.__qualname__ = made.name
    field: StrawberryField = strawberry.mutation(resolver=resolver, description=description)
    return field


def _idempotency_key(info: Info) -> str | None:
    """The request's header `Idempotency-Key`, for an operation with one mutation."""
    key = info.context.idempotency_key
    if key is not None and not _has_one_field(info.operation):
        raise BadUserInput(
            "Idempotency-Key names one mutation, and this operation has several fields or fragments: give each input a "
            "mutationId",
            field="mutation_id",
        )
    return key


def _has_one_field(operation: OperationDefinitionNode) -> bool:
    selections = operation.selection_set.selections
    return len(selections) == 1 and isinstance(selections[0], FieldNode)


def _given_values(given: Any) -> dict[str, Any]:
    """The values of an input that are not the default, so that a field that a later release adds changes no hash."""
    values = {field.name: (getattr(given, field.name), field.default) for field in fields(given)}
    return {
        name: _given(value)
        for name, (value, default) in values.items()
        if name != "mutation_id" and value is not default and value != default
    }


def _given(value: Any) -> Any:
    # Inputs in inputs and lists of them, as deep as the schema nests them.
    if isinstance(value, list):
        return [_given(each) for each in value]
    return _given_values(value) if is_dataclass(value) else value
