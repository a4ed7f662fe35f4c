"""The adapter to Strawberry: an executor class for `strawberry.Schema`, and batched fields.

    schema = strawberry.Schema(Query, execution_context_class=BatchingExecutor)

    @strawberry.type
    class Task:
        creator: User = strawberry.field(extensions=[Batched(users_by_id, key="creator_id")])

        @strawberry.field(extensions=[Batched(tags_by_task_id, key="id", many=True)])
        def tags(self, first: int = 10) -> list[Tag]: ...  # only the signature is used

A field without a method is an argument of `Task(...)`, so the first form suits resolvers that return other objects.

`BatchingExecutor` calls `users_by_id(context, ids)` once for all tasks of a level. Other executors resolve the same
fields with a loader that collects the keys of one turn of the event loop.

This is the only file of the package that imports Strawberry. What it uses of Strawberry's private parts is listed
below the imports; `tests/execution/test_libraries.py` names the part that a new version has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, replace
from enum import Enum
from functools import partial, reduce
from inspect import isawaitable
from typing import Any
from weakref import WeakKeyDictionary

import strawberry
from graphql import FieldNode, GraphQLField, GraphQLObjectType, GraphQLResolveInfo, GraphQLSchema
from graphql.pyutils import Path
from strawberry.execution import optimized_is_awaitable
from strawberry.extensions import FieldExtension
from strawberry.extensions.field_extension import build_field_extension_resolvers
from strawberry.relay import GlobalID
from strawberry.scalars import is_scalar
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext, _OperationContextAwareGraphQLResolveInfo
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types import Info
from strawberry.types.arguments import InputContext, StrawberryArgument
from strawberry.types.base import (
    StrawberryList,
    StrawberryMaybe,
    StrawberryObjectDefinition,
    StrawberryOptional,
    has_object_definition,
)
from strawberry.types.enum import StrawberryEnumDefinition, has_enum_definition
from strawberry.types.field import StrawberryField
from strawberry.types.fields.resolver import StrawberryResolver
from strawberry.types.lazy_type import LazyType
from strawberry.types.unset import UNSET

from .batch import Batch, batch_resolver
from .executor import CompilingExecutor

# The private parts of Strawberry.
# The key under which extensions of graphql-core's objects hold Strawberry's.
DEFINITION = GraphQLCoreConverter.DEFINITION_BACKREF
# The names of the closures that `GraphQLCoreConverter.from_resolver` returns: one reads an attribute, the others call a
# resolver.
ATTRIBUTE_READER = "_get_basic_result"
RESOLVER_CALLERS = frozenset({"_resolver", "_async_resolver"})
# graphql-core's info with two changes: the variables are a dict, and `operation_extensions` is one more field.
ResolveInfo: Any = _OperationContextAwareGraphQLResolveInfo
# The base class of executors: what `execution_context_class` of a schema is by default.
StrawberryExecutor = StrawberryGraphQLCoreExecutionContext


def core_schema(schema: strawberry.Schema) -> GraphQLSchema:
    """graphql-core's schema that Strawberry has made."""
    return schema._schema


def enum_definition(enum: type[Enum]) -> StrawberryEnumDefinition:
    """The definition that `strawberry.enum` has stored in the enum."""
    definition: StrawberryEnumDefinition = enum.__strawberry_definition__  # type: ignore[attr-defined]
    return definition


class Batched(FieldExtension):
    """Loads a field's values in batches. It replaces the field's resolver, which is never called."""

    def __init__(
        self,
        load: Callable[..., Any],
        *,
        key: str | Callable[[Any], Any],
        many: bool = False,
        carried_as: str | None = None,
    ) -> None:
        self.batch = Batch(load, key, many, carried_as)
        self._resolve = batch_resolver(self.batch)
        # For fields with arguments: the batch by the schema whose names and types convert the arguments.
        self.converting: WeakKeyDictionary[GraphQLSchema, Batch] = WeakKeyDictionary()

    def resolve(self, next_: Callable[..., Any], source: Any, info: Info[Any, Any], **kwargs: Any) -> Any:
        return self._resolve(source, info._raw_info, **kwargs)


class BatchingExecutor(CompilingExecutor, StrawberryExecutor):
    """The compiling executor for Strawberry's schemas. It knows what Strawberry's resolvers do."""

    awaitable_predicates = (*CompilingExecutor.awaitable_predicates, optimized_is_awaitable)

    def build_resolve_info(
        self, field_def: GraphQLField, field_nodes: list[FieldNode], parent_type: GraphQLObjectType, path: Path
    ) -> GraphQLResolveInfo[Any]:
        # The same as Strawberry's method, without the `__new__` of named tuples, which is a Python function.
        info: GraphQLResolveInfo[Any] = tuple.__new__(
            ResolveInfo,
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
                self.variable_values.coerced,
                self.context_value,
                self.is_awaitable,
                self.abort_signal,
                self._async_helpers or self._make_async_helpers(),
                self.operation_extensions,
            ),
        )
        return info

    @classmethod
    def batch_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Batch | None:
        definition = field.extensions.get(DEFINITION)
        # Other extensions (permissions, say) must run, so a field that has some goes through its resolver.
        if not isinstance(definition, StrawberryField) or len(definition.extensions) != 1:
            return None
        extension = definition.extensions[0]
        if not isinstance(extension, Batched):
            return None
        if not definition.arguments:
            return extension.batch
        if schema not in extension.converting:
            extension.converting[schema] = _with_converted_arguments(extension.batch, definition, schema)
        return extension.converting[schema]

    @classmethod
    def attribute_of(cls, field: GraphQLField) -> str | None:
        definition = field.extensions.get(DEFINITION)
        if (
            isinstance(definition, StrawberryField)
            # A field with exception handlers has another resolver.
            and getattr(field.resolve, "__name__", None) == ATTRIBUTE_READER
            and definition.default_resolver is getattr
            and type(definition).get_result is StrawberryField.get_result
        ):
            return definition.python_name
        return None

    @classmethod
    def function_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Callable[[Any], Any] | None:
        """Return the method itself if it takes neither arguments nor info: Strawberry's resolver does nothing else."""
        definition = field.extensions.get(DEFINITION)
        if (
            not isinstance(definition, StrawberryField)
            or getattr(field.resolve, "__name__", None) not in RESOLVER_CALLERS
            or type(definition).get_result is not StrawberryField.get_result
            or definition.extensions
            or definition.arguments
            or schema.extensions[DEFINITION].exception_handlers
        ):
            return None
        resolver = definition.base_resolver
        if resolver is None or not callable(resolver.wrapped_func) or resolver.info_parameter:
            return None
        function = resolver.wrapped_func
        # The only parameter is the source: `self`, or `strawberry.Parent` of a static method.
        takes = [resolver.self_parameter, resolver.parent_parameter, resolver.root_parameter]
        return function if takes.count(None) == 2 and resolver.root_parameter is None else None

    @classmethod
    def resolver_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Callable[..., Any]:
        """Return a faster equivalent of Strawberry's resolver, or Strawberry's own if the field is unusual."""
        definition = field.extensions.get(DEFINITION)
        resolve = super().resolver_of(schema, field)
        if (
            not isinstance(definition, StrawberryField)
            or getattr(resolve, "__name__", None) not in RESOLVER_CALLERS
            or type(definition).get_result is not StrawberryField.get_result
            or type(definition.base_resolver) is not StrawberryResolver
            or any(type(one).map_arguments is not FieldExtension.map_arguments for one in definition.extensions)
            or schema.extensions[DEFINITION].exception_handlers
        ):
            return resolve
        return _resolver(definition, definition.base_resolver, schema.extensions[DEFINITION]) or resolve

    @classmethod
    def resolver_name(cls, field: GraphQLField) -> str:
        definition = field.extensions.get(DEFINITION)
        if isinstance(definition, StrawberryField) and definition.base_resolver is not None:
            return getattr(definition.base_resolver.wrapped_func, "__qualname__", definition.python_name)
        return super().resolver_name(field)

    @classmethod
    def ignores_info(cls, type_: GraphQLObjectType) -> bool:
        # Strawberry's own `is_type_of` ignores its info. A type that defines one may use it.
        definition = type_.extensions.get(DEFINITION)
        return isinstance(definition, StrawberryObjectDefinition) and definition.is_type_of is None


def _resolver(
    definition: StrawberryField, resolver: StrawberryResolver[Any], schema: strawberry.Schema
) -> Callable[..., Any] | None:
    """Make the equivalent of `GraphQLCoreConverter.from_resolver`, with everything worked out that depends on the field
    alone. None if the field is unusual.
    """
    function: Any = resolver.wrapped_func
    names_of_source = [one.name for one in (resolver.parent_parameter, resolver.root_parameter) if one is not None]
    name_of_info = resolver.info_parameter.name if resolver.info_parameter else None
    takes_self, takes_info = resolver.self_parameter is not None, name_of_info is not None
    names = [*names_of_source, *(argument.python_name for argument in definition.arguments)]
    # Strawberry finds the info among the keyword arguments by this name.
    if "info" in names or name_of_info not in (None, "info") or not callable(function):
        return None
    converted = ArgumentsConverter(definition.arguments, schema.schema_converter)
    make_info = schema.config.info_class
    # The innermost comes first.
    extensions = build_field_extension_resolvers(definition)

    def resolve(_source: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        strawberry_info = make_info(_raw_info=info, _field=definition)
        values = converted(arguments, strawberry_info)
        for name in names_of_source:
            values[name] = _source
        own_source = (_source,) if takes_self else ()
        if not extensions:
            if takes_info:
                values["info"] = strawberry_info
            return function(*own_source, **values)

        def call(_source: Any, info: Any, **values: Any) -> Any:
            if takes_info:
                values["info"] = info
            return function(*own_source, **values)

        return reduce(lambda next_, extension: partial(extension, next_), extensions, call)(
            _source, strawberry_info, **values
        )

    async def resolve_async(_source: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        result = resolve(_source, info, **arguments)
        return await result if isawaitable(result) else result

    return resolve_async if definition.is_async else resolve


def _with_converted_arguments(batch: Batch, definition: StrawberryField, schema: GraphQLSchema) -> Batch:
    """Return the batch with a `load` that takes graphql-core's arguments: GraphQL names, input objects as dicts."""
    converted = ArgumentsConverter(definition.arguments, schema.extensions[DEFINITION].schema_converter)

    async def load(context: Any, keys: list[Any], **arguments: Any) -> Mapping[Any, Any]:
        return await batch.load(context, keys, **converted(arguments, None))

    load.__qualname__ = getattr(batch.load, "__qualname__", load.__qualname__)
    return replace(batch, load=load)


# Arguments and input objects. Strawberry derives the name and the conversion of each value from its type at every
# request. Here both are worked out once per field: a filter has dozens of fields with a dozen comparators each, and a
# request gives two or three.

Convert = Callable[[Any, InputContext], Any]


class ArgumentsConverter:
    """Strawberry's `convert_arguments` for the arguments of one field."""

    def __init__(self, arguments: Iterable[StrawberryArgument], converter: GraphQLCoreConverter) -> None:
        self._config, self._scalars = converter.config, converter.scalar_registry
        self._arguments = [
            (
                self._config.name_converter.from_argument(argument),
                argument.python_name,
                _converter(argument.type, self._scalars),
                argument.is_maybe,
            )
            for argument in arguments
        ]

    def __call__(self, given: Mapping[str, Any], info: Info[Any, Any] | None) -> dict[str, Any]:
        """Convert graphql-core's names and values to those of the resolver."""
        values = {}
        for name, python_name, convert, takes_null in self._arguments:
            if name in given:
                value = given[name]
                if convert is not None and (takes_null or value is not None):
                    value = convert(value, InputContext(info, self._config, self._scalars, path=(name,)))
                values[python_name] = value
        return values


def build_quickly(definition: StrawberryObjectDefinition, config: StrawberryConfig) -> None:
    """Replace the way Strawberry builds an input type's objects. The input type must belong to schemas of one config.

    A schema needs this only for large input objects; everything else works without it.
    """
    if definition.from_input is None:
        definition.from_input = _Builder(definition, config)


class _Builder:
    def __init__(self, definition: StrawberryObjectDefinition, config: StrawberryConfig) -> None:
        self._definition = definition
        self._config = config
        # By GraphQL name: the Python name and the conversion. Input types refer to each other, so this is worked out
        # when the first object is built.
        self._fields: dict[str, tuple[str, Convert | None]] = {}
        self._absent = {
            field.python_name: None
            for field in definition.fields
            if field.default_value is MISSING and field.default_factory is MISSING
        }

    def __call__(self, type_: type, value: Mapping[str, Any], context: InputContext) -> Any:
        if not self._fields:
            self._fields = {
                self._config.name_converter.from_field(field): (
                    field.python_name,
                    _converter(field.resolve_type(type_definition=self._definition), context.scalar_registry),
                )
                for field in self._definition.fields
            }
        values = dict(self._absent)
        for name, given in value.items():
            python_name, convert = self._fields[name]
            values[python_name] = given if convert is None else convert(given, context)
        return type_(**values)


def _converter(type_: Any, scalars: Mapping[object, Any]) -> Convert | None:
    """Return the conversion of values of this type, None if graphql-core's value needs none."""
    if isinstance(type_, StrawberryMaybe):
        return lambda value, context: context.convert(value, type_)
    if isinstance(type_, StrawberryOptional):
        return _converter(type_.of_type, scalars)
    if isinstance(type_, LazyType):
        return _converter(type_.resolve_type(), scalars)
    if isinstance(type_, StrawberryList):
        return _list_converter(type_, scalars)
    if type_ is not GlobalID and (
        is_scalar(type_, scalars) or isinstance(type_, StrawberryEnumDefinition) or has_enum_definition(type_)
    ):
        return None
    build = type_.__strawberry_definition__.from_input if has_object_definition(type_) else None
    if isinstance(build, _Builder):
        return lambda value, context: value if _is_nothing(value) else build(type_, value, context)
    return lambda value, context: context.convert(value, type_)


def _list_converter(type_: StrawberryList, scalars: Mapping[object, Any]) -> Convert:
    convert = _converter(type_.of_type, scalars)
    if convert is None:
        # A copy, because all requests share a default value.
        return lambda value, _: value if _is_nothing(value) else list(value)
    return lambda value, context: value if _is_nothing(value) else [convert(item, context) for item in value]


def _is_nothing(value: object) -> bool:
    return value is None or value is UNSET
