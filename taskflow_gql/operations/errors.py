"""How errors reach clients: the codes of request errors, and the rendering of every exception.

Refusals of mutations are part of the payload, and `api/payloads.py` renders them.
"""

from __future__ import annotations

import logging
import re
from uuid import uuid4

from graphql import (
    GraphQLError,
    GraphQLInputObjectType,
    GraphQLNamedType,
    GraphQLSchema,
    GraphQLSyntaxError,
    get_named_type,
)
from strawberry.exceptions import MissingQueryError
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError

from taskflow_gql.database.connections import is_unreachable
from taskflow_gql.errors import Refusals, TaskflowError

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

# Characters. Longer messages of graphql-core are cut. Their fixed part has about 40 characters.
_MAX_MESSAGE = 240
# The part of a field's name that marks its value as a secret.
_SECRET = "password"  # noqa: S105  (a part of a name)
# The words of graphql-core that come before a quoted value.
_QUOTING = re.compile(r"(cannot represent [\w -]{0,40}value): .*|[,;] found:? .*", re.DOTALL)


class ErrorRenderer:
    """Renders errors for the clients of one schema."""

    def __init__(self, schema: GraphQLSchema) -> None:
        self._secret_words = (_SECRET, *_fields_that_take_secrets(schema))

    def render(self, error: GraphQLError) -> GraphQLError:
        """Return the error with a code in its extensions. It reveals nothing of the server's internals."""
        if "code" in (error.extensions or {}):
            return error
        cause = error.original_error
        while isinstance(cause, GraphQLError):
            cause = cause.original_error
        match error, cause:
            case GraphQLSyntaxError(), _:
                return self.coded(error, PARSE_FAILED)
            case _, Refusals():
                return self.coded(error, cause.refusals[0].code, message=cause.message)
            case _, RecursionError():
                return self.coded(error, TOO_COMPLEX, message="The document is nested too deeply")
            case _, CannotGetOperationTypeError() | InvalidOperationTypeError() | MissingQueryError():
                rendered = self.coded(error, BAD_USER_INPUT)
                # If Strawberry saw the cause, it would close a WebSocket with all its other operations.
                rendered.original_error = None
                return rendered
            case _, TaskflowError():
                return self.coded(error, cause.code, message=cause.message, **cause.extensions)
            case _, None:
                # A message of graphql-core about variables or arguments. It reveals nothing of the server.
                return self.coded(error, BAD_USER_INPUT)
        return self._internal(error)

    def coded(self, error: GraphQLError, code: str, *, message: str | None = None, **more: object) -> GraphQLError:
        """Return the error with this code, and with this message or else its own."""
        return GraphQLError(
            message or shortened(self._without_secrets(error)),
            nodes=error.nodes,
            source=error.source,
            positions=error.positions,
            path=error.path,
            original_error=error.original_error,
            extensions={"code": code, **more},
        )

    def _without_secrets(self, error: GraphQLError) -> str:
        """The message without the values that it quotes, if one may be a password: front ends log messages."""
        if error.source is not None and not self._may_hold_secrets(error.source.body):
            return error.message
        # An error without a source may belong to any document.
        return _QUOTING.sub(r"\1", error.message)

    def _may_hold_secrets(self, document: str) -> bool:
        document = document.casefold()
        return any(word in document for word in self._secret_words)

    def _internal(self, error: GraphQLError) -> GraphQLError:
        error_id = uuid4().hex
        cause = error.original_error
        # While the database is unreachable, every request would log the same stack.
        stack = None if cause is not None and is_unreachable(cause) else cause
        log.error(
            "Internal error %s at %s: %r", error_id, error.path, cause, exc_info=stack, extra={"error_id": error_id}
        )
        hidden = self.coded(error, INTERNAL, message=f"Internal server error; the log has it under id {error_id}")
        hidden.extensions = {"code": INTERNAL, "id": error_id}
        hidden.original_error = None
        return hidden


def _fields_that_take_secrets(schema: GraphQLSchema) -> list[str]:
    """The casefolded names of root fields that have a password in their arguments, at any depth."""

    def holds_secret(type_: GraphQLNamedType, above: tuple[GraphQLNamedType, ...] = ()) -> bool:
        if not isinstance(type_, GraphQLInputObjectType) or type_ in above:
            return False
        return any(
            _SECRET in name.casefold() or holds_secret(get_named_type(field.type), (*above, type_))
            for name, field in type_.fields.items()
        )

    roots = (schema.query_type, schema.mutation_type, schema.subscription_type)
    return [
        name.casefold()
        for root in roots
        if root is not None
        for name, field in root.fields.items()
        if any(
            _SECRET in argument.casefold() or holds_secret(get_named_type(of.type))
            for argument, of in field.args.items()
        )
    ]


def is_persisted_query(extensions: object) -> bool:
    """Whether a request names its document by a hash, as Apollo and urql do before they send the text."""
    return isinstance(extensions, dict) and isinstance(extensions.get("persistedQuery"), dict)


def shortened(message: str) -> str:
    """Cut a long message of graphql-core, which may quote the whole input, to its first 150 and last 50 characters."""
    return message if len(message) <= _MAX_MESSAGE else f"{message[:150]}…{message[-50:]}"
