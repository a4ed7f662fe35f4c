"""The executor: finds or makes the plan of an operation, runs it, and leaves the rest to graphql-core."""

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
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet, collect_fields, collect_subfields
from graphql.execution.execute import assume_not_awaitable
from graphql.execution.executor import CollectedErrors
from graphql.execution.incremental import IncrementalExecutor
from graphql.execution.middleware import MiddlewareManager
from graphql.execution.values import VariableValues
from graphql.pyutils import AwaitableOrValue, Path, Undefined, is_awaitable

from .batch import BATCH, Batch
from .cache import MOST_PLANS_OF_DOCUMENT, Document, document_for_once, plans_of
from .run import Run
from .tree import Fill, Plan

Response = ExecutionResult | ExperimentalIncrementalExecutionResults


class CompilingExecutor(IncrementalExecutor):
    """An executor that compiles operations it sees again.

    Pass it as `executor_class` to graphql-core's `execute` and `subscribe`. What makes an operation unfit for a plan
    is listed in `_may_plan`; graphql-core then executes it as ever.

    The class methods below are for adapters to libraries that build schemas on graphql-core.
    """

    # At which sight of a document it is planned.
    seen_before_planned: ClassVar[int] = 2
    # Set on the executor of one operation whose answer is so large that a plan pays off at first sight.
    plans_at_once = False

    # Predicates that hold no surprise: they take for awaitable what Python takes for awaitable, or nothing.
    awaitable_predicates: ClassVar[tuple[Callable[[Any], bool], ...]] = (is_awaitable, assume_not_awaitable)

    # Apart from the other attributes, which a twin shares: see `_make_async_helpers`.
    __slots__ = ("_async_helpers",)
    _async_helpers: GraphQLResolveInfoHelpers | None

    @property
    def async_helpers(self) -> GraphQLResolveInfoHelpers:
        return self._async_helpers or self._make_async_helpers()

    @async_helpers.setter
    def async_helpers(self, helpers: GraphQLResolveInfoHelpers) -> None:
        # graphql-core's, which are bound to the executor. It must not keep them: see `_make_async_helpers`.
        self._async_helpers = None

    def _make_async_helpers(self) -> GraphQLResolveInfoHelpers:
        """Helpers that the executor may keep, made when the first info needs them.

        Bound to the executor, they would close a reference cycle, and all that the request has made would stay until
        the garbage collector runs. They are bound to a twin, which has the same attributes but not the helpers.
        """
        twin = object.__new__(type(self))
        twin.__dict__ = self.__dict__
        twin._async_helpers = None
        self._async_helpers = GraphQLResolveInfoHelpers(gather=twin.gather_async_work, track=twin.track_async_work)
        return self._async_helpers

    def build_resolve_info(
        self, field_def: GraphQLField, field_nodes: list[FieldNode], parent_type: GraphQLObjectType, path: Path
    ) -> GraphQLResolveInfo[Any]:
        # As graphql-core makes it, but past the `__new__` of named tuples, which is a function in Python.
        return tuple.__new__(
            GraphQLResolveInfo,
            (
                field_nodes[0].name.value,
                field_nodes,
                field_def.type,
                parent_type,
                path,
                self.schema,
                self.fragment_definitions,
                self.root_value,
                self.operation,
                self.variable_values,
                self.context_value,
                self.is_awaitable,
                self.abort_signal,
                self._async_helpers or self._make_async_helpers(),
            ),
        )

    def handle_field_error(
        self, raw_error: Exception, return_type: GraphQLOutputType, field_details_list: FieldDetailsList, path: Path
    ) -> None:
        traceback = raw_error.__traceback__
        try:
            super().handle_field_error(raw_error, return_type, field_details_list, path)
        except GraphQLError as error:
            # Without the frame of graphql-core's function, which has the error as a variable: a cycle.
            located_error = error.with_traceback(traceback)
        else:
            return
        try:
            raise located_error
        finally:
            del raw_error, located_error

    @classmethod
    def batch_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Batch | None:
        """How the field's values are loaded for many objects at once, if they are."""
        batch = field.extensions.get(BATCH)
        return batch if isinstance(batch, Batch) else None

    @classmethod
    def attribute_of(cls, field: GraphQLField) -> str | None:
        """The attribute of the source that the field's resolver returns, if that is all it does."""
        return None

    @classmethod
    def function_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Callable[[Any], Any] | None:
        """A function of the source that does all that the field's resolver does, if there is one."""
        return None

    @classmethod
    def resolver_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Callable[..., Any]:
        """What resolves the field: its resolver, or another one that does the same."""
        return field.resolve or default_field_resolver

    @classmethod
    def resolver_name(cls, field: GraphQLField) -> str:
        """What resolves the field, for people."""
        resolve = field.resolve or default_field_resolver
        return getattr(resolve, "__qualname__", repr(resolve))

    @classmethod
    def ignores_info(cls, type_: GraphQLObjectType) -> bool:
        """Whether the type's `is_type_of` has no use for its info, and may be given None."""
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
            # The frames in the errors' tracebacks have the executor as a variable: it must not keep the errors.
            self.collected_errors = CollectedErrors()
        return response

    def _fills(self, serially: bool | None) -> list[Fill] | None:
        """The functions that fill in the answer to the operation, or None if graphql-core is to execute it."""
        try:
            plan = self._plan() if self._may_plan() else None
        except RecursionError:  # a document nested as deep as that gets its error from graphql-core
            return None
        if plan is None:
            return None
        if serially is None:
            serially = self.operation.operation is OperationType.MUTATION
        # Of the object, not of its class: it may be a proxy that claims another one.
        of_mapping = self.root_value is not None and isinstance(self.root_value, Mapping)
        cls = type(self.root_value)
        fills = [selection.function(of_mapping, cls) for selection in (plan.serial if serially else [plan.root])]
        return None if None in fills else fills  # type: ignore[return-value]

    def _may_plan(self) -> bool:
        middleware = self.middleware_manager
        return (
            self.abort_signal is None
            # A class of its own may wrap resolvers without keeping anything in the list.
            and (middleware is None or (type(middleware) is MiddlewareManager and not middleware.middlewares))
            and self.field_resolver is default_field_resolver
            and self.error_propagation
            and self.is_awaitable in self.awaitable_predicates
        )

    def _plan(self) -> Plan | None:
        location = self.operation.loc
        # Without its text a document is known by its identity; the cache keeps the node, so the id stays taken.
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
        if variant not in document.plans and len(document.plans) < MOST_PLANS_OF_DOCUMENT:
            document.plans[variant] = self.make_plan(document)
        return document.plans.get(variant)

    def make_plan(self, document: Document) -> Plan | None:
        """A plan for the variables of this request. None: graphql-core will say what is wrong."""
        schema, fragments, operation = self.schema, self.fragments, self.operation
        hide_suggestions = self.hide_suggestions
        root_type = schema.get_root_type(operation.operation)
        if root_type is None:
            return None
        # The plan outlives the request, so it keeps no variables but those its shape depends on.
        sources, coerced = self.variable_values
        variables = VariableValues(
            {name: sources[name] for name in document.conditions},
            {name: coerced[name] for name in document.conditions},
        )

        def subfields(type_: GraphQLObjectType, details: FieldDetailsList) -> GroupedFieldSet:
            return collect_subfields(
                schema, fragments, variables, operation, type_, details, hide_suggestions
            ).grouped_field_set

        try:
            root = collect_fields(schema, fragments, variables, root_type, operation, hide_suggestions)
        except GraphQLError:
            return None
        return Plan(
            schema,
            type(self),
            operation,
            root_type,
            root.grouped_field_set,
            subfields,
            document.admit,
            document.argument_readers,
        )
