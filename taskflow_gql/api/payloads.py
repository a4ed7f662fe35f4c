"""The common part of all inputs and payloads of mutations: errors, receipts as JSON, and the place in the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol, get_args, get_origin, get_type_hints

import strawberry
from strawberry.utils.str_converters import to_camel_case

from taskflow_gql.api.context import Context, Info
from taskflow_gql.api.enums import describe_enum
from taskflow_gql.errors import Refusal, Refusals
from taskflow_gql.services.events import codec_of


class ErrorCode(StrEnum):
    BAD_USER_INPUT = "BAD_USER_INPUT"
    NOT_FOUND = "NOT_FOUND"
    FORBIDDEN = "FORBIDDEN"
    VERSION_CONFLICT = "VERSION_CONFLICT"
    EMAIL_TAKEN = "EMAIL_TAKEN"
    USERNAME_TAKEN = "USERNAME_TAKEN"
    ASSIGNEE_NOT_FOUND = "ASSIGNEE_NOT_FOUND"
    INVALID_CREDENTIALS = "INVALID_CREDENTIALS"
    INVALID_TOKEN = "INVALID_TOKEN"  # noqa: S105  (a code, not a secret)
    MUTATION_ID_REUSED = "MUTATION_ID_REUSED"
    ID_TAKEN = "ID_TAKEN"
    NOT_APPLIED = "NOT_APPLIED"
    LAST_ADMIN = "LAST_ADMIN"


describe_enum(
    ErrorCode,
    "What is wrong with a mutation's input, for programs.",
    BAD_USER_INPUT="A value that cannot be taken; `field` and `message` say which and why.",
    NOT_FOUND="No such thing, or it is not visible to you.",
    FORBIDDEN="You may see it, but not change it like this.",
    VERSION_CONFLICT=(
        "Somebody changed it since the version you expected; the payload has it as it stands now. With `onConflict: "
        "MERGE`, `conflictingFields` says what you both changed."
    ),
    EMAIL_TAKEN="Another account has this email address.",
    USERNAME_TAKEN="Another account has this username.",
    ASSIGNEE_NOT_FOUND="The assignee does not exist or is deactivated.",
    INVALID_CREDENTIALS="The name and the password do not belong together.",
    INVALID_TOKEN="The token is unknown, used up or expired, or its session has ended.",  # noqa: S106
    MUTATION_ID_REUSED="The `mutationId` was used for another mutation or other input. Nothing was changed.",
    ID_TAKEN="The `id` of the new object is taken: make another one.",
    NOT_APPLIED="Another mutation of the same ALL_OR_NOTHING batch was refused, so this one was not applied either.",
    LAST_ADMIN="This person is the last active ADMIN: make somebody else one first.",
)


@strawberry.type(description="One thing that is wrong with a mutation's input. Nothing was changed.")
class UserError:
    code: ErrorCode = strawberry.field(description="What is wrong, for programs.")
    message: str = strawberry.field(description="What is wrong and what to do, in English, for people.")
    field: list[str] | None = strawberry.field(
        description='Path inside the input, like `["title"]`; null when it is about the whole request.'
    )
    conflicting_fields: list[str] = strawberry.field(
        default_factory=list,
        description=(
            "With VERSION_CONFLICT under `onConflict: MERGE`: the fields of the input that you and somebody else "
            'changed to different values, like `["dueDate"]`. Empty with every other error, and if the record does not '
            "have the version that you expected."
        ),
    )


@strawberry.input
class RepeatableInput:
    """The fields that every mutation's input has."""

    mutation_id: strawberry.ID | None = strawberry.field(
        default=None,
        description=(
            "Your name for this change: 1 to 64 characters, such as a random UUID, new for each change. A request that "
            "repeats it gets the answer of the first one and changes nothing. So send it again whenever you do not "
            "know whether it arrived. Answers are kept for 30 days, unless the server is set otherwise."
        ),
    )


@strawberry.type
class MutationPayload:
    """The fields that every mutation's payload has. All fields of payloads must have defaults."""

    errors: list[UserError] = strawberry.field(
        default_factory=list, description="Empty, or everything that is wrong; then nothing was changed."
    )
    replayed: bool = strawberry.field(
        default=False,
        description="Whether this is the answer of an earlier request with the same `mutationId`.",
    )
    event_ids: strawberry.Private[Sequence[int]] = ()
    # The fields that receipts do not keep.
    not_kept: ClassVar[frozenset[str]] = frozenset()

    @strawberry.field(
        description=(
            "The place of this change in the stream, as `TaskChange.cursor`; null when nothing was changed, for "
            "changes that the stream does not show, and for those that it no longer keeps."
        )
    )
    async def change_cursor(self, info: Info) -> str | None:
        if not self.event_ids:
            return None
        parts = info.context.parts
        position = await info.context.loaders.positions(parts.relay).load(max(self.event_ids))
        return None if position is None else parts.fanout.cursor(position)

    def on_committed(self, context: Context) -> None:
        """Change the connection or the answer's headers, once what the payload says is true."""

    async def on_replay(self, context: Context, given: Any) -> None:
        """Restore what the receipt does not keep. May raise a Refusal."""


class Withdrawn(Exception):
    """Rolls back the unit of work of a mutation that answers with this payload."""

    def __init__(self, payload: MutationPayload) -> None:
        super().__init__("Nothing is changed")
        self.payload = payload


# What a mutation raises to change nothing. `refused_payload` makes the answer.
REFUSED = (Refusal, Refusals, Withdrawn)


class _Codec(Protocol):
    """Values of one field as JSON, and back."""

    def write(self, value: Any, /) -> Any: ...

    def read(self, value: Any, /) -> Any: ...


class PayloadCodec:
    """Payloads as JSON for receipts, and back."""

    def __init__(self, payload_type: Any) -> None:
        types = get_type_hints(payload_type)
        common = {field.name for field in fields(MutationPayload)} | payload_type.not_kept
        names = [field.name for field in fields(payload_type) if field.init and field.name not in common]
        self._payload_type = payload_type
        self._codecs = {name: _codec_of(types[name]) for name in names}

    def write(self, payload: Any) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for name, codec in self._codecs.items():
            value = getattr(payload, name)
            if value is not None:
                answer[name] = codec.write(value) if codec else value
        if payload.errors:
            answer["errors"] = [_json_of_error(error) for error in payload.errors]
        return answer

    def read(self, answer: Mapping[str, Any]) -> Any:
        values = {
            name: codec.read(answer[name]) if codec else answer[name]
            for name, codec in self._codecs.items()
            if name in answer
        }
        errors = [_error_of_json(error) for error in answer.get("errors", ())]
        return self._payload_type(errors=errors, replayed=True, **values)


class _PayloadsCodec:
    """A list of payloads of several types, with the ids of their events."""

    def __init__(self, payload_types: Sequence[type[Any]]) -> None:
        self._codecs = {type_.__name__: PayloadCodec(type_) for type_ in payload_types}

    def write(self, payloads: Sequence[Any]) -> list[Any]:
        return [
            [type(payload).__name__, self._codecs[type(payload).__name__].write(payload), list(payload.event_ids)]
            for payload in payloads
        ]

    def read(self, values: Sequence[Any]) -> list[Any]:
        payloads = []
        for name, answer, event_ids in values:
            payload = self._codecs[name].read(answer)
            payload.event_ids = event_ids
            payloads.append(payload)
        return payloads


class _PlainsCodec:
    """A list of objects whose values are the same in JSON."""

    def __init__(self, type_: type[Any]) -> None:
        self._type = type_

    def write(self, found: Sequence[Any]) -> list[Any]:
        return [asdict(each) for each in found]

    def read(self, values: Sequence[Any]) -> list[Any]:
        return [self._type(**value) for value in values]


def _json_of_error(error: UserError) -> dict[str, Any]:
    values = {"code": error.code, "message": error.message, "field": error.field}
    return values | ({"conflictingFields": error.conflicting_fields} if error.conflicting_fields else {})


def _error_of_json(values: Mapping[str, Any]) -> UserError:
    return UserError(
        # A newer release may have written a code that this one does not know.
        code=ErrorCode.__members__.get(values["code"], ErrorCode.BAD_USER_INPUT),
        message=values["message"],
        field=values["field"],
        conflicting_fields=values.get("conflictingFields", []),
    )


def _codec_of(type_: Any) -> _Codec | None:
    """None for a type whose values are the same in JSON. A row may be optional."""
    if get_origin(type_) is list:
        (item,) = get_args(type_)
        options = get_args(item) or (item,)
        if issubclass(options[0], MutationPayload):
            return _PayloadsCodec(options)
        return _PlainsCodec(item) if isinstance(item, type) and is_dataclass(item) else None
    for option in get_args(type_) or (type_,):
        if hasattr(option, "_fields"):
            return codec_of(option)
    return None


def refused_payload(refused: Refusal | Refusals | Withdrawn, payload_type: Any) -> Any:
    """The payload of a mutation that was refused."""
    if isinstance(refused, Withdrawn):
        return refused.payload
    refusals = refused.refusals if isinstance(refused, Refusals) else [refused]
    errors = [
        UserError(
            code=ErrorCode(refusal.code),
            message=refusal.message,
            # Services name the fields of inputs as Python does.
            field=refusal.field and [to_camel_case(name) for name in refusal.field],
            conflicting_fields=[to_camel_case(name) for name in refusal.conflicting_fields],
        )
        for refusal in refusals
    ]
    shown = {name: value for one in refusals for name, value in one.payload.items()}
    return payload_type(errors=errors, **{name: shown[name] for name in shown.keys() & payload_type.__annotations__})
