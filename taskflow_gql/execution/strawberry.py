"""The compiling executor under Strawberry, and how a Strawberry field declares that it is loaded in batches.

    schema = strawberry.Schema(Query, execution_context_class=BatchingExecutor)

    @strawberry.type
    class Task:
        creator: User = strawberry.field(extensions=[Batched(users_by_id, key="creator_id")])

        @strawberry.field(extensions=[Batched(tags_by_task_id, key="id", many=True)])
        def tags(self, first: int = 10) -> list[Tag]: ...  # only the signature counts

`BatchingExecutor` calls `users_by_id(context, ids)` once for all tasks of a level. Under any other executor the same
fields go through a loader, kept in `context["loaders"]` or `context.batch_loaders`, a dict of each operation.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, reduce
from inspect import isawaitable
from typing import Any
from weakref import WeakKeyDictionary

import strawberry
from graphql import GraphQLField, GraphQLObjectType, GraphQLResolveInfo, GraphQLSchema
from strawberry.execution import optimized_is_awaitable
from strawberry.extensions import FieldExtension
from strawberry.extensions.field_extension import build_field_extension_resolvers
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types import Info
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.field import StrawberryField
from strawberry.types.fields.resolver import StrawberryResolver

from taskflow_gql.execution import Batch, CompilingExecutor, batch_resolver
from taskflow_gql.operations.inputs import ArgumentsConverter

DEFINITION = GraphQLCoreConverter.DEFINITION_BACKREF


class Batched(FieldExtension):
    """Takes the place of the field's resolver, which is never called."""

    def __init__(
        self,
        load: Callable[..., Any],
        *,
        key: str | Callable[[Any], Any],
        many: bool = False,
        carried_as: str | None = None,
    ) -> None:
        self.batch = Batch(load, key, many, carried_as)
        self._resolve = batch_resolver(self.batch, _loaders_of)
        # The same batch for the compiled operations of a schema, when the field has arguments.
        self.converting: WeakKeyDictionary[GraphQLSchema, Batch] = WeakKeyDictionary()

    def resolve(self, next_: Callable[..., Any], source: Any, info: Info[Any, Any], **kwargs: Any) -> Any:
        return self._resolve(source, info._raw_info, **kwargs)


def _loaders_of(context: Any) -> dict[Any, Any]:
    loaders = context.setdefault("loaders", {}) if isinstance(context, dict) else context.batch_loaders
    assert isinstance(loaders, dict)
    return loaders


class BatchingExecutor(CompilingExecutor, StrawberryGraphQLCoreExecutionContext):
    """The compiling executor, told what Strawberry's resolvers do."""

    awaitable_predicates = (*CompilingExecutor.awaitable_predicates, optimized_is_awaitable)

    @classmethod
    def batch_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Batch | None:
        definition = field.extensions.get(DEFINITION)
        # With further extensions (permissions, say) the field has to go through its resolver.
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
            # The name of the resolver that reads an attribute; with exception handlers it is another.
            and getattr(field.resolve, "__name__", None) == "_get_basic_result"
            and definition.default_resolver is getattr
            and type(definition).get_result is StrawberryField.get_result
        ):
            return definition.python_name
        return None

    @classmethod
    def function_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Callable[[Any], Any] | None:
        """The method itself, where it wants neither arguments nor info: most of Strawberry's call is about those."""
        definition = field.extensions.get(DEFINITION)
        if (
            not isinstance(definition, StrawberryField)
            or getattr(field.resolve, "__name__", None) not in {"_resolver", "_async_resolver"}
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
        # One parameter, which is the source: `self`, or `strawberry.Parent` of a static method.
        takes = [resolver.self_parameter, resolver.parent_parameter, resolver.root_parameter]
        return function if takes.count(None) == 2 and resolver.root_parameter is None else None

    @classmethod
    def resolver_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Callable[..., Any]:
        """One of our own in the place of Strawberry's, unless something about the field is unusual."""
        definition = field.extensions.get(DEFINITION)
        resolve = super().resolver_of(schema, field)
        if (
            not isinstance(definition, StrawberryField)
            or getattr(resolve, "__name__", None) not in {"_resolver", "_async_resolver"}
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
        # The function is Strawberry's own unless the type defines one.
        definition = type_.extensions.get(DEFINITION)
        return isinstance(definition, StrawberryObjectDefinition) and definition.is_type_of is None


def _resolver(
    definition: StrawberryField, resolver: StrawberryResolver[Any], schema: strawberry.Schema
) -> Callable[..., Any] | None:
    """What `GraphQLCoreConverter.from_resolver` makes, but that what depends on the field alone is found out here."""
    function: Any = resolver.wrapped_func
    names_of_source = [one.name for one in (resolver.parent_parameter, resolver.root_parameter) if one is not None]
    name_of_info = resolver.info_parameter.name if resolver.info_parameter else None
    takes_self, takes_info = resolver.self_parameter is not None, name_of_info is not None
    names = [*names_of_source, *(argument.python_name for argument in definition.arguments)]
    # Among what it passes by name, Strawberry knows the info by this one.
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
    """The same batch, for arguments as graphql-core has them: camel case, input objects as dicts."""
    converted = ArgumentsConverter(definition.arguments, schema.extensions[DEFINITION].schema_converter)

    async def load(context: Any, keys: list[Any], **arguments: Any) -> Mapping[Any, Any]:
        return await batch.load(context, keys, **converted(arguments, None))

    load.__qualname__ = getattr(batch.load, "__qualname__", load.__qualname__)
    return replace(batch, load=load)
