"""Executes the text of an operation, for every transport.

Replaces Strawberry's `execute`, which runs hooks for every request. Here, work that depends only on the document is
done once for each document (docs/decisions/0007-short-ways.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, nullcontext
from inspect import isawaitable
from typing import Any

import strawberry
from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLInputObjectType,
    GraphQLSchema,
    NoSchemaIntrospectionCustomRule,
    default_field_resolver,
    default_type_resolver,
    subscribe,
)
from graphql import ExecutionResult as CoreResult
from strawberry.exceptions import MissingQueryError
from strawberry.execution import optimized_is_awaitable
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types import ExecutionResult
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.execution import PreExecutionError
from strawberry.types.graphql import OperationType

from taskflow_gql.config import Settings
from taskflow_gql.errors import TaskflowError
from taskflow_gql.execution import CompilingExecutor
from taskflow_gql.execution.strawberry import build_quickly, core_schema
from taskflow_gql.operations.context import OperationContext
from taskflow_gql.operations.cost import Prices, problems_of_request
from taskflow_gql.operations.documents import Document, Documents, DocumentSource, Operation
from taskflow_gql.operations.errors import BAD_USER_INPUT, TOO_COMPLEX, VALIDATION_FAILED, ErrorRenderer
from taskflow_gql.operations.validation import RULES, TooComplex, parse, validate

_ALL_TYPES = frozenset(OperationType)
# The rate limits of operations.
_GROUPS = {
    OperationType.QUERY: "queries",
    OperationType.MUTATION: "mutations",
    OperationType.SUBSCRIPTION: "subscriptions",
}

# Enough for a document with one token on each line, and comments.
MAX_LINES = 10_000
# Characters. Shorter documents are parsed and validated in a few milliseconds.
_LONG_DOCUMENT = 2_000
# Values. Above this cost an operation is planned on its first run: graphql-core takes 6 µs for each value, a plan 0.3,
# and making a plan a few milliseconds.
_LARGE_COST = 3_000
# Field errors in one answer; the rest are only counted.
MAX_FIELD_ERRORS = 100


class Refused(Exception):
    """The operation is not executed. `errors` are already rendered."""

    def __init__(self, errors: list[GraphQLError]) -> None:
        super().__init__(errors)
        self.errors = errors


class Schema(strawberry.Schema):
    """Strawberry's schema with its own `execute` and `stream`, which ignore extensions and middleware."""

    def __init__(
        self,
        *arguments: Any,
        settings: Settings,
        prices: Prices,
        analyse: Callable[[GraphQLSchema], Callable[[DocumentNode], object]] | None = None,
        **options: Any,
    ) -> None:
        """`analyse(schema)` returns a function that is called once for each valid document.

        Its result is stored in `document.needs`, where the contexts of the document's operations find it.
        """
        super().__init__(*arguments, **options)
        self._prices = prices
        self.core = core_schema(self)
        self._analyse = analyse(self.core) if analyse else None
        self._errors = ErrorRenderer(self.core)
        for type_ in self.schema_converter.type_map.values():
            if isinstance(type_.definition, StrawberryObjectDefinition) and type_.definition.is_input:
                build_quickly(type_.definition, self.config)
                assert isinstance(type_.implementation, GraphQLInputObjectType)
                # Strawberry leaves it out, and graphql-core then finds wrong values only when the field is executed.
                type_.implementation.is_one_of = type_.definition.is_one_of
        self._settings = settings
        self._documents = Documents()
        self._hides_schema = not settings.allows_introspection
        self._rules = [*RULES]
        if self._hides_schema:
            self._rules.append(NoSchemaIntrospectionCustomRule)

    async def execute(
        self,
        query: str | None,
        variable_values: dict[str, Any] | None = None,
        context_value: OperationContext | None = None,
        root_value: Any | None = None,
        operation_name: str | None = None,
        allowed_operation_types: Iterable[OperationType] | None = None,
        operation_extensions: dict[str, Any] | None = None,
    ) -> ExecutionResult:
        """Execute a query or mutation. The result is a PreExecutionError if nothing was executed.

        Raises MissingQueryError, CannotGetOperationTypeError and InvalidOperationTypeError. All other errors are in the
        result, rendered.
        """
        try:
            document, operation, cost = await self._prepare(
                query, variable_values, operation_name, allowed_operation_types or _ALL_TYPES
            )
            context = None if context_value is None else context_value.begin(document)
            self._count(document, operation, context)
        except Refused as refused:
            return PreExecutionError(data=None, errors=refused.errors)
        return await self._execute(document, operation, cost, variable_values, context)

    async def stream(
        self,
        query: str | None,
        variable_values: dict[str, Any] | None = None,
        context_value: OperationContext | None = None,
        root_value: Any | None = None,
        operation_name: str | None = None,
        operation_extensions: dict[str, Any] | None = None,
        allowed_operation_types: Iterable[OperationType] | None = None,
    ) -> AsyncGenerator[ExecutionResult]:
        """The results of a subscription, or the single result of another operation. Errors are in them, rendered."""
        return self._results(query, variable_values, context_value, operation_name, allowed_operation_types)

    async def _results(
        self,
        query: str | None,
        variables: dict[str, Any] | None,
        context: OperationContext | None,
        operation_name: str | None,
        allowed_types: Iterable[OperationType] | None,
    ) -> AsyncGenerator[ExecutionResult]:
        try:
            document, operation, cost = await self._prepare(
                query, variables, operation_name, allowed_types or _ALL_TYPES
            )
            # A fresh context: Strawberry passes the WebSocket's own context to each of its operations, and they must
            # not share loaded data.
            if context is not None:
                context = context.for_operation(document)
            self._count(document, operation, context)
        except Refused as refused:
            yield PreExecutionError(data=None, errors=refused.errors)
            return
        except (MissingQueryError, CannotGetOperationTypeError, InvalidOperationTypeError) as error:
            yield PreExecutionError(data=None, errors=[self._errors.render(_as_graphql_error(error))])
            return
        if operation.type is not OperationType.SUBSCRIPTION:
            async with nullcontext() if context is None else context.turns:
                yield await self._execute(document, operation, cost, variables, context)
            return
        try:
            events = subscribe(
                self.core,
                document.node,
                context_value=context,
                variable_values=variables,
                operation_name=operation_name,
                executor_class=self.execution_context_class,
                hide_suggestions=self._hides_schema,
            )
            if isawaitable(events):
                events = await events
            if isinstance(events, CoreResult):
                yield PreExecutionError(data=None, errors=self._rendered(events.errors))
                return
            async with aclosing(events):  # type: ignore[type-var]
                async for result in events:
                    yield ExecutionResult(result.data, self._rendered(result.errors))
        # The stream itself failed.
        except Exception as error:
            yield ExecutionResult(None, [self._errors.render(_as_graphql_error(error))])

    def _count(self, document: Document, operation: Operation, context: OperationContext | None) -> None:
        """Count each field of the root for the rate limit of the operation's type. Raises Refused."""
        try:
            if context is not None:
                context.count(_GROUPS[operation.type], document.root_fields(operation))
        except TaskflowError as error:
            raise Refused([self._errors.render(_as_graphql_error(error))]) from error

    async def _prepare(
        self,
        query: str | None,
        variables: dict[str, Any] | None,
        operation_name: str | None,
        allowed_types: Iterable[OperationType],
    ) -> tuple[Document, Operation, int]:
        """Parse, check and validate. Returns the document, the operation and its cost.

        Raises Refused for problems of the operation, and also for unexpected errors here, so that every transport
        answers them in the same way.
        """
        if not query:
            raise MissingQueryError
        try:
            return await self._checked(query, variables, operation_name, allowed_types)
        except (Refused, CannotGetOperationTypeError, InvalidOperationTypeError):
            raise
        except Exception as error:
            raise Refused([self._errors.render(_as_graphql_error(error))]) from error

    async def _checked(
        self,
        query: str,
        variables: dict[str, Any] | None,
        operation_name: str | None,
        allowed_types: Iterable[OperationType],
    ) -> tuple[Document, Operation, int]:
        # Checked before the text is hashed for the look-up.
        if len(query) > self._settings.max_query_characters:
            raise Refused([_too_long(f"{len(query)} characters", self._settings.max_query_characters)])
        document = self._documents.get(query)
        is_new = document is None
        if document is None:
            document = self._parse(query)
            await _yield_to_others(query)
        operation = document.operation(operation_name)
        if operation is None:
            raise CannotGetOperationTypeError(operation_name)
        if operation.type not in allowed_types:
            raise InvalidOperationTypeError(operation.type)
        problems, cost = problems_of_request(document, operation, variables or {}, self._settings, self._prices)
        if operation_name is None and len(document.operations) > 1:
            message = "Several operations: say in operationName which to run"
            problems.append(GraphQLError(message, extensions={"code": BAD_USER_INPUT}))
        if problems:
            raise Refused(problems)
        if is_new:
            self._validate(document)
            await _yield_to_others(query)
            if self._analyse is not None:
                document.needs = self._analyse(document.node)
            self._documents.keep(query, document)
        return document, operation, cost

    def _validate(self, document: Document) -> None:
        try:
            errors = validate(self.core, document.node, hides_schema=self._hides_schema, rules=self._rules)
        except TooComplex as error:
            message = "The document repeats fields, or nests fragments, too much to be validated"
            raise Refused([GraphQLError(message, extensions={"code": TOO_COMPLEX})]) from error
        if errors:
            raise Refused([self._errors.coded(error, VALIDATION_FAILED) for error in errors])

    def _parse(self, query: str) -> Document:
        lines = query.count("\n") + query.count("\r") - query.count("\r\n")
        if lines > MAX_LINES:
            raise Refused([_too_long(f"{lines} lines", MAX_LINES)])
        try:
            return Document(query, parse(DocumentSource(query), self._settings.max_query_tokens))
        except GraphQLError as error:
            raise Refused([self._errors.render(error)]) from error

    def _rendered(self, errors: list[GraphQLError] | None) -> list[GraphQLError] | None:
        if not errors:
            return errors
        rendered = [self._errors.render(error) for error in errors[:MAX_FIELD_ERRORS]]
        if len(errors) > MAX_FIELD_ERRORS:
            message = f"There are {len(errors) - MAX_FIELD_ERRORS} more errors like these"
            rendered.append(GraphQLError(message, extensions={"code": TOO_COMPLEX}))
        return rendered

    async def _execute(
        self, document: Document, operation: Operation, cost: int, variables: dict[str, Any] | None, context: Any
    ) -> ExecutionResult:
        """As graphql-core's `execute`, which would look up operation, fragments and variable types for each request."""
        try:
            values = operation.variable_values(self.core, variables or {}, hides_schema=self._hides_schema)
            if isinstance(values, list):
                return ExecutionResult(None, self._rendered(values))
            # By position, which takes a microsecond less than by keyword.
            executor = self.execution_context_class(
                self.core,
                document.fragments,
                document.fragment_details,
                None,
                context,
                operation.node,
                values,
                default_field_resolver,
                default_type_resolver,
                default_field_resolver,
                is_awaitable=optimized_is_awaitable,  # type: ignore[arg-type]
                hide_suggestions=self._hides_schema,
            )
            if cost > _LARGE_COST and isinstance(executor, CompilingExecutor):
                executor.plans_at_once = True
            result: Any = executor.execute_operation()
            if not isinstance(result, CoreResult):
                result = await result
        except Exception as error:
            return PreExecutionError(data=None, errors=[self._errors.render(_as_graphql_error(error))])
        return ExecutionResult(result.data, self._rendered(result.errors))


async def _yield_to_others(query: str) -> None:
    """Yield to the event loop after a step of a long new document, which may take tens of milliseconds."""
    if len(query) > _LONG_DOCUMENT:
        await asyncio.sleep(0)


def _too_long(what: str, limit: int) -> GraphQLError:
    return GraphQLError(f"The document has {what}; the limit is {limit}", extensions={"code": TOO_COMPLEX})


def _as_graphql_error(error: Exception) -> GraphQLError:
    match error:
        case GraphQLError():
            return error
        case CannotGetOperationTypeError():
            return GraphQLError(error.as_http_error_reason(), original_error=error)
        case InvalidOperationTypeError():
            return GraphQLError(f"A {error.operation_type.value} is not taken here", original_error=error)
    return GraphQLError(str(error), original_error=error)
