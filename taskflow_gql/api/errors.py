"""The errors that a mutation answers in its payload, and the extension that puts them there."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import strawberry
from strawberry.extensions import FieldExtension
from strawberry.extensions.field_extension import AsyncExtensionResolver
from strawberry.types.field import StrawberryField

from taskflow_gql.api.context import Info
from taskflow_gql.api.enums import describe_enum
from taskflow_gql.errors import Refusal, Refusals, VersionConflict


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


class AnswersRefusals(FieldExtension):
    """Turns what a service refuses into the mutation's payload: the entity null, `errors` filled."""

    def apply(self, field: StrawberryField) -> None:
        self._payload_type: Any = field.type

    async def resolve_async(self, next_: AsyncExtensionResolver, source: Any, info: Info, **arguments: Any) -> Any:
        try:
            return await next_(source, info, **arguments)
        except (Refusal, Refusals) as refused:
            refusals = refused.refusals if isinstance(refused, Refusals) else [refused]
            errors = [
                UserError(code=ErrorCode(refusal.code), message=refusal.message, field=refusal.field)
                for refusal in refusals
            ]
            if isinstance(refused, VersionConflict) and "task" in self._payload_type.__annotations__:
                return self._payload_type(task=refused.task, errors=errors)
            return self._payload_type(errors=errors)
