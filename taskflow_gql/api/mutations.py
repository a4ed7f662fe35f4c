"""The decorators of all mutations: they authenticate, run a unit of work and put refusals into the payload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_type_hints

import strawberry
from strawberry.types.field import StrawberryField
from strawberry.utils.str_converters import to_camel_case

from taskflow_gql.api.context import Context, Info
from taskflow_gql.api.enums import describe_enum
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.errors import Refusal, Refusals


class ErrorCode(StrEnum):
    BAD_USER_INPUT = "BAD_USER_INPUT"
    NOT_FOUND = "NOT_FOUND"
    FORBIDDEN = "FORBIDDEN"
    VERSION_CONFLICT = "VERSION_CONFLICT"
    EMAIL_TAKEN = "EMAIL_TAKEN"
    USERNAME_TAKEN = "USERNAME_TAKEN"
    ASSIGNEE_NOT_FOUND = "ASSIGNEE_NOT_FOUND"
    INVALID_CREDENTIALS = "INVALID_CREDENTIALS"


describe_enum(
    ErrorCode,
    "What is wrong with a mutation's input, for programs.",
    BAD_USER_INPUT="A value that cannot be taken; `field` and `message` say which and why.",
    NOT_FOUND="No such thing, or it is not visible to you.",
    FORBIDDEN="You may see it, but not change it like this.",
    VERSION_CONFLICT="Somebody changed the task since the version you expected; `task` is how it stands now.",
    EMAIL_TAKEN="Another account has this email address.",
    USERNAME_TAKEN="Another account has this username.",
    ASSIGNEE_NOT_FOUND="The assignee does not exist or is deactivated.",
    INVALID_CREDENTIALS="The name and the password do not belong together.",
)


@strawberry.type(description="One thing that is wrong with a mutation's input. Nothing was changed.")
class UserError:
    code: ErrorCode = strawberry.field(description="What is wrong, for programs.")
    message: str = strawberry.field(description="What is wrong and what to do, in English, for people.")
    field: list[str] | None = strawberry.field(
        description='Path inside the input, like `["title"]`; null when it is about the whole request.'
    )


def payload_errors() -> Any:
    """The field `errors: list[UserError]`, the last one of every payload. All other fields must have defaults."""
    return strawberry.field(
        default_factory=list, description="Empty, or everything that is wrong; then nothing was changed."
    )


Payload = TypeVar("Payload")
# The part of a prepared mutation that runs in its unit of work.
Write: TypeAlias = Callable[[DatabaseSession], Awaitable[Payload]]


def mutation(description: str, *, input: str) -> Callable[[Any], Any]:
    """Decorate a static method `(session, viewer, input) -> payload` of a class of mutations.

    The method runs in one unit of work, for the signed-in viewer. The unit is committed when the method returns, and
    rolled back when it raises. A `Refusal` becomes the payload's `errors`. `description` and `input` describe the field
    and its argument for client authors.
    """

    def decorate(method: Any) -> StrawberryField:
        function = method.__func__

        async def run(context: Context, given: Any) -> Any:
            viewer = await context.require_viewer()
            async with context.write() as session:
                return await function(session, viewer, given)

        return _field(function, run, get_type_hints(function)["return"], description, input)

    return decorate


def prepared_mutation(description: str, *, input: str) -> Callable[[Any], Any]:
    """Decorate a static method `(context, input) -> Write[payload]`, for mutations with slow work such as hashing.

    The method runs before the unit of work begins, and the function that it returns runs inside it. The method
    authenticates by itself if it needs the viewer.
    """

    def decorate(method: Any) -> StrawberryField:
        function = method.__func__

        async def run(context: Context, given: Any) -> Any:
            write = await function(context, given)
            async with context.write() as session:
                return await write(session)

        _, awaitable = get_args(get_type_hints(function)["return"])
        (payload_type,) = get_args(awaitable)
        return _field(function, run, payload_type, description, input)

    return decorate


def _field(
    function: Callable[..., Any],
    run: Callable[[Context, Any], Awaitable[Any]],
    payload_type: Any,
    description: str,
    input_description: str,
) -> StrawberryField:
    async def resolve(self: Any, info: Info, input: Any) -> Any:
        try:
            return await run(info.context, input)
        except (Refusal, Refusals) as refused:
            return _refused(refused, payload_type)

    input_type = get_type_hints(function)["input"]
    resolve.__annotations__ = {
        "info": Info,
        "input": Annotated[input_type, strawberry.argument(description=input_description)],
        "return": payload_type,
    }
    resolve.__name__, resolve.__qualname__ = function.__name__, function.__qualname__
    field: StrawberryField = strawberry.mutation(resolver=resolve, description=description)
    return field


def _refused(refused: Refusal | Refusals, payload_type: Any) -> Any:
    refusals = refused.refusals if isinstance(refused, Refusals) else [refused]
    errors = [
        UserError(
            code=ErrorCode(refusal.code),
            message=refusal.message,
            # Services name the fields of inputs as Python does.
            field=refusal.field and [to_camel_case(name) for name in refusal.field],
        )
        for refusal in refusals
    ]
    shown = {name: value for one in refusals for name, value in one.payload.items()}
    return payload_type(errors=errors, **{name: shown[name] for name in shown.keys() & payload_type.__annotations__})
