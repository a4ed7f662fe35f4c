"""The executor: finds or makes the plan of an operation and runs it, or leaves the operation to graphql-core."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

from graphql import (
    ExecutionResult,
    ExperimentalIncrementalExecutionResults,
    FieldNode,
    GraphQLError,
    GraphQLField,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLResolveInfo,
    GraphQLResolveInfoHelpers,
    GraphQLSchema,
    OperationType,
    default_field_resolver,
)
from graphql.pyutils import AwaitableOrValue, Path, Undefined, is_awaitable

from .batch import BATCH, Batch
from .cache import MAX_PLANS_OF_DOCUMENT, Document, document_for_once, plans_of
from .core import (
    CollectedErrors,
    FieldDetailsList,
    GroupedFieldSet,
    IncrementalExecutor,
    MiddlewareManager,
    VariableValues,
    assume_not_awaitable,
    make_helpers,
    make_info,
    root_fields,
    subfields,
)
from .planner import Planner
from .run import Run
from .tree import Fill, Plan

Response = ExecutionResult | ExperimentalIncrementalExecutionResults


class CompilingExecutor(IncrementalExecutor):
    """An executor that compiles operations which it sees repeatedly.

    Pass it as `executor_class` to graphql-core's `execute` and `subscribe`. `_may_plan` lists what makes an operation
    unfit for a plan; graphql-core then executes it.

    Adapters to libraries that build schemas on graphql-core override the class methods below (`planner.Adapter`).
    """

    # A document is planned when it is seen for this time.
    seen_before_planned: ClassVar[int] = 2
    # Set on the executor of one operation whose answer is so large that a plan pays off the first time.
    plans_at_once = False

    # Known predicates. They call awaitable what Python calls awaitable, or nothing.
    awaitable_predicates: ClassVar[tuple[Callable[[Any], bool], ...]] = (is_awaitable, assume_not_awaitable)

    # Separate from the other attributes, which a twin shares: see `_make_async_helpers`.
    __slots__ = ("_async_helpers",)
    _async_helpers: GraphQLResolveInfoHelpers | None

    @property
    def async_helpers(self) -> GraphQLResolveInfoHelpers:
        return self._async_helpers or self._make_async_helpers()

    @async_helpers.setter
    def async_helpers(self, helpers: GraphQLResolveInfoHelpers) -> None:
        # graphql-core's helpers are bound to the executor, which must not keep them: see `_make_async_helpers`.
        self._async_helpers = None

    def _make_async_helpers(self) -> GraphQLResolveInfoHelpers:
        """Make helpers that the executor may keep, when the first info needs them.

        Helpers bound to the executor would close a reference cycle, and everything that the request has made would stay
        until the garbage collector runs. So they are bound to a twin with the same attributes but without the helpers.
        """
        twin = object.__new__(type(self))
        twin.__dict__ = self.__dict__
        twin._async_helpers = None
        self._async_helpers = make_helpers(twin)
        return self._async_helpers

    def build_resolve_info(
        self, field_def: GraphQLField, field_nodes: list[FieldNode], parent_type: GraphQLObjectType, path: Path
    ) -> GraphQLResolveInfo[Any]:
        helpers = self._async_helpers or self._make_async_helpers()
        return make_info(self, helpers, field_def, field_nodes, parent_type, path)

    def handle_field_error(
        self, raw_error: Exception, return_type: GraphQLOutputType, field_details_list: FieldDetailsList, path: Path
    ) -> None:
        traceback = raw_error.__traceback__
        try:
            super().handle_field_error(raw_error, return_type, field_details_list, path)
        except GraphQLError as error:
            # Drop the frame of graphql-core's function: it has the error as a variable, which is a reference cycle.
            located_error = error.with_traceback(traceback)
        else:
            return
        try:
            raise located_error
        finally:
            del raw_error, located_error

    @classmethod
    def batch_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Batch | None:
        """Return how the field's values are loaded for many objects at once, None if they are not."""
        batch = field.extensions.get(BATCH)
        return batch if isinstance(batch, Batch) else None

    @classmethod
    def attribute_of(cls, field: GraphQLField) -> str | None:
        """Return the attribute of the source that the field's resolver returns, if it does nothing else."""
        return None

    @classmethod
    def function_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Callable[[Any], Any] | None:
        """Return a function of the source that does the same as the field's resolver, if there is one."""
        return None

    @classmethod
    def resolver_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Callable[..., Any]:
        """Return the field's resolver, or another one that does the same."""
        return field.resolve or default_field_resolver

    @classmethod
    def resolver_name(cls, field: GraphQLField) -> str:
        """Return the resolver's name for people."""
        resolve = field.resolve or default_field_resolver
        return getattr(resolve, "__qualname__", repr(resolve))

    @classmethod
    def ignores_info(cls, type_: GraphQLObjectType) -> bool:
        """Tell whether the type's `is_type_of` ignores its info, so that it may get None."""
        return False

    def execute_operation(self, serially: bool | None = None) -> AwaitableOrValue[Response]:
        fills = self._fills(serially)
        if fills is None:
            return super().execute_operation(serially)
        try:
            answer = Run(self).fill(fills)
        except GraphQLError as error:
            return self._respond_without_data(error)
        if isinstance(answer, dict):
            return self._respond(answer)
        return self._await_response(answer)

    async def _await_response(self, answer: Awaitable[dict[str, Any]]) -> Response:
        try:
            data = await answer
        except GraphQLError as error:
            return self._respond_without_data(error)
        return self._respond(data)

    def _respond_without_data(self, error: GraphQLError) -> Response:
        self.collected_errors.add(error, None)
        return self._respond(None)

    def _respond(self, data: dict[str, Any] | None) -> Response:
        response = self.build_response(data)
        if self.collected_errors.errors and self.hooks is None:
            # Frames in the tracebacks of the errors have the executor as a variable, so it must not keep the errors.
            self.collected_errors = CollectedErrors()
        return response

    def _fills(self, serially: bool | None) -> list[Fill] | None:
        """Return the functions that fill in the answer, or None if graphql-core has to execute the operation."""
        try:
            plan = self._plan() if self._may_plan() else None
        except RecursionError:  # graphql-core raises the error of a document that is nested too deep
            return None
        if plan is None:
            return None
        if serially is None:
            serially = self.operation.operation is OperationType.MUTATION
        # Test the object, not its class: it may be a proxy that claims another class.
        of_mapping = self.root_value is not None and isinstance(self.root_value, Mapping)
        cls = type(self.root_value)
        function = plan.planner.function
        fills = [function(selection, of_mapping, cls) for selection in (plan.serial if serially else [plan.root])]
        return None if None in fills else fills  # type: ignore[return-value]

    def _may_plan(self) -> bool:
        middleware = self.middleware_manager
        return (
            self.abort_signal is None
            # A subclass may wrap resolvers with an empty list of middlewares.
            and (middleware is None or (type(middleware) is MiddlewareManager and not middleware.middlewares))
            and self.field_resolver is default_field_resolver
            and self.error_propagation
            and self.is_awaitable in self.awaitable_predicates
        )

    def _plan(self) -> Plan | None:
        location = self.operation.loc
        # A document without text is identified by its node; the cache keeps the node, so its id is not reused.
        key = (location.source.body, location.start) if location else (id(self.operation), -1)
        plans = plans_of(self.schema, type(self), self.seen_before_planned)
        document = plans.get(key, self.operation, self.fragment_definitions)
        if document is None and self.plans_at_once:
            document = document_for_once(key, self.operation, self.fragment_definitions)
        if document is None:
            return None
        variant: tuple[bool, ...] = (self.hide_suggestions,)
        if document.conditions:
            values = [self.variable_values.coerced.get(name, Undefined) for name in document.conditions]
            if not all(type(value) is bool for value in values):
                return None
            variant += tuple(values)
        if variant not in document.plans and len(document.plans) < MAX_PLANS_OF_DOCUMENT:
            document.plans[variant] = self.make_plan(document)
        return document.plans.get(variant)

    def make_plan(self, document: Document) -> Plan | None:
        """Make a plan for the variables of this request. None if graphql-core has to report an error."""
        schema, fragments, operation = self.schema, self.fragments, self.operation
        hide_suggestions = self.hide_suggestions
        root_type = schema.get_root_type(operation.operation)
        if root_type is None:
            return None
        # The plan outlives the request, so it keeps only the variables that decide its shape.
        sources, coerced = self.variable_values
        variables = VariableValues(
            {name: sources[name] for name in document.conditions},
            {name: coerced[name] for name in document.conditions},
        )

        def collect(type_: GraphQLObjectType, details: FieldDetailsList) -> GroupedFieldSet:
            return subfields(schema, fragments, variables, operation, type_, details, hide_suggestions)

        try:
            root = root_fields(schema, fragments, variables, root_type, operation, hide_suggestions)
        except GraphQLError:
            return None
        return Plan(
            schema,
            Planner(schema, type(self)),
            operation,
            root_type,
            root,
            collect,
            document.admit,
            document.argument_readers,
        )
