"""How errors reach clients: the only place that turns them into payload errors and `extensions.code`."""

from __future__ import annotations

import logging
import re
from enum import StrEnum
from typing import Any
from uuid import uuid4

import strawberry
from graphql import GraphQLError, GraphQLSyntaxError
from strawberry.exceptions import MissingQueryError
from strawberry.extensions import FieldExtension
from strawberry.extensions.field_extension import AsyncExtensionResolver
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types.field import StrawberryField

from taskflow_gql.api.context import Info
from taskflow_gql.api.enums import describe_enum
from taskflow_gql.database.sessions import is_unreachable
from taskflow_gql.errors import (
    RETRY_AFTER_SECONDS,
    Refusal,
    Refusals,
    TaskflowError,
    TooManySubscriptions,
    VersionConflict,
)

log = logging.getLogger("taskflow_gql.errors")

PARSE_FAILED = "GRAPHQL_PARSE_FAILED"
VALIDATION_FAILED = "GRAPHQL_VALIDATION_FAILED"
BAD_USER_INPUT = "BAD_USER_INPUT"
TOO_COMPLEX = "QUERY_TOO_COMPLEX"
INTERNAL = "INTERNAL_SERVER_ERROR"
RATE_LIMITED = "RATE_LIMITED"
PERSISTED_QUERY_NOT_SUPPORTED = "PERSISTED_QUERY_NOT_SUPPORTED"
# Apollo Client looks at the code, urql at the message. Both then send the text, and no more hashes.
PERSISTED_QUERY_NOT_SUPPORTED_MESSAGE = "PersistedQueryNotSupported"

# The characters of a message of graphql-core's. Its own words are some 40 of them.
_MAX_MESSAGE = 240


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


def render_error(error: GraphQLError) -> GraphQLError:
    """The error as clients see it: a code in its extensions, and no word of what is inside the server."""
    if "code" in (error.extensions or {}):
        return error
    cause = error.original_error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    match error, cause:
        case GraphQLSyntaxError(), _:
            return coded(error, PARSE_FAILED)
        case _, Refusals():
            return coded(error, cause.refusals[0].code, message=cause.message)
        case _, RecursionError():
            return coded(error, TOO_COMPLEX, message="The document is nested too deeply")
        case _, CannotGetOperationTypeError() | InvalidOperationTypeError() | MissingQueryError():
            rendered = coded(error, BAD_USER_INPUT)
            # Seeing the cause, Strawberry would close a WebSocket with all its other operations.
            rendered.original_error = None
            return rendered
        case _, TooManySubscriptions():
            return coded(error, cause.code, message=cause.message, retryAfter=RETRY_AFTER_SECONDS)
        case _, TaskflowError():
            return coded(error, cause.code, message=cause.message)
        case _, None:
            # graphql-core's own words about variables and arguments; they name nothing of ours.
            return coded(error, BAD_USER_INPUT)
    return _internal(error)


def coded(error: GraphQLError, code: str, *, message: str | None = None, **more: object) -> GraphQLError:
    """The error with a code, and with a message of ours or its own."""
    return GraphQLError(
        message or shortened(_without_secrets(error)),
        nodes=error.nodes,
        source=error.source,
        positions=error.positions,
        path=error.path,
        original_error=error.original_error,
        extensions={"code": code, **more},
    )


def is_persisted_query(extensions: object) -> bool:
    """Whether a request names its document by a hash, as Apollo and urql do before they send the text."""
    return isinstance(extensions, dict) and isinstance(extensions.get("persistedQuery"), dict)


def shortened(message: str) -> str:
    """A message of graphql-core's, which may quote all that was sent. 200 characters of it are enough."""
    return message if len(message) <= _MAX_MESSAGE else f"{message[:150]}…{message[-50:]}"


# Parts of the names of the mutations that take a password, and of the fields that hold one.
_SECRETS = ("login", "register", "assword")
# What graphql-core says before it quotes what was sent.
_QUOTING = re.compile(r"(cannot represent [\w -]{0,40}value): .*|[,;] found:? .*", re.DOTALL)


def _without_secrets(error: GraphQLError) -> str:
    """The message, without what it quotes where that may be a password: front ends log messages."""
    if error.source is not None and not any(word in error.source.body for word in _SECRETS):
        return error.message
    # An error without a source may be about any document.
    return _QUOTING.sub(r"\1", error.message)


def _internal(error: GraphQLError) -> GraphQLError:
    error_id = uuid4().hex
    cause = error.original_error
    # While the database is away every request would log the same stack.
    stack = None if cause is not None and is_unreachable(cause) else cause
    log.error("Internal error %s at %s: %r", error_id, error.path, cause, exc_info=stack, extra={"error_id": error_id})
    hidden = coded(error, INTERNAL, message=f"Internal server error; the log has it under id {error_id}")
    hidden.extensions = {"code": INTERNAL, "id": error_id}
    hidden.original_error = None
    return hidden
