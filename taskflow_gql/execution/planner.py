"""Makes plans, and extends them when an object of a new type or class arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from graphql import (
    GraphQLField,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLSchema,
    TypeNameMetaFieldDef,
    get_named_type,
    is_abstract_type,
    is_list_type,
)

from .batch import Batch
from .codegen import generate, generate_quick
from .completion import completer
from .core import FieldDetailsList
from .sources import MAX_CLASSES, IsInstance, Kind, is_mapping, kind_of
from .tree import Field, Fill, Level, Selection

# The number of classes of one selection that get a `quick`: enough unless a program makes classes at run time.
_MAX_QUICKS = 8


class Adapter(Protocol):
    """Knowledge of a schema's fields and types beyond graphql-core. Executor classes implement it."""

    def batch_of(self, schema: GraphQLSchema, field: GraphQLField) -> Batch | None: ...

    def attribute_of(self, field: GraphQLField) -> str | None: ...

    def function_of(self, schema: GraphQLSchema, field: GraphQLField) -> Callable[[Any], Any] | None: ...

    def resolver_of(self, schema: GraphQLSchema, field: GraphQLField) -> Callable[..., Any]: ...

    def resolver_name(self, field: GraphQLField) -> str: ...

    def ignores_info(self, type_: GraphQLObjectType) -> bool: ...


class Planner:
    """Plans the selections of one schema for one adapter."""

    def __init__(self, schema: GraphQLSchema, adapter: Adapter) -> None:
        self.schema = schema
        self.adapter = adapter

    def fields_of(self, selection: Selection) -> list[Field]:
        get_field = self.schema.get_field
        definitions = {
            name: get_field(selection.type, details[0].node.name.value) for name, details in selection.groups.items()
        }
        # Like graphql-core, leave out a field that does not exist: validation should have refused it.
        return [
            self._field(selection, name, selection.groups[name], definition)
            for name, definition in definitions.items()
            if definition is not None
        ]

    def fill_for(self, selection: Selection, cls: type) -> Fill | None:
        fill = self.function(selection, is_mapping(cls), cls)
        if fill is not None and kind_of(cls) is Kind.PLAIN:
            if len(selection.fills) >= MAX_CLASSES:
                selection.fills.clear()
                selection.quicks.clear()
            selection.fills[cls] = fill
            if selection.quicks_made < _MAX_QUICKS and may_be_quick(selection):
                selection.quicks_made += 1
                quick = generate_quick(selection, cls, fill)
                if quick is not None:
                    selection.quicks[cls] = quick
        return fill

    def function(self, selection: Selection, of_mapping: bool, cls: type = object) -> Fill | None:
        admit, count = selection.plan.admit, len(selection.groups)
        # Take the room first: making the fields needs it too.
        if not selection.generated and not admit(count):
            return None
        carried = frozenset([field.name for field in selection.fields if field.batch and field.is_carried_by(cls)])
        fill = selection.generated.get((of_mapping, carried))
        if fill is None:
            if selection.generated and not admit(count):
                return None
            fill = selection.generated[of_mapping, carried] = generate(selection, of_mapping, carried)
        return fill

    def _field(self, selection: Selection, name: str, details: FieldDetailsList, definition: GraphQLField) -> Field:
        field = Field(selection, name, details, definition)
        if field.has_arguments:
            field.read_arguments = selection.plan.argument_readers.reader(definition, field.nodes[0])
        field.is_typename = definition is TypeNameMetaFieldDef
        self._set_reading(field)
        named_type = get_named_type(definition.type)
        field.needs_info = is_abstract_type(named_type) or (
            isinstance(named_type, GraphQLObjectType)
            and named_type.is_type_of is not None
            and not isinstance(named_type.is_type_of, IsInstance)
            and not self.adapter.ignores_info(named_type)
        )
        field.set_level(_level(field, definition.type, selection.level))
        return field

    def _set_reading(self, field: Field) -> None:
        """Decide how the field's value is read."""
        adapter, schema, definition = self.adapter, self.schema, field.definition
        field.batch = adapter.batch_of(schema, definition)
        if field.batch is not None:
            return
        if not field.has_arguments:
            field.attribute = adapter.attribute_of(definition)
            field.function = adapter.function_of(schema, definition)
            field.is_read_by_default = definition.resolve is None and field.attribute is None
        if field.attribute is None and field.function is None and not field.is_read_by_default:
            field.resolve = adapter.resolver_of(schema, definition)


def may_be_quick(selection: Selection) -> bool:
    """Tell whether these objects are within a list and their class alone tells their type."""
    level = selection.level
    return (
        level is not None
        and level.is_in_list
        and level.nullable_type is selection.type
        and isinstance(selection.type.is_type_of, IsInstance | None)
    )


def _level(field: Field, type_: GraphQLOutputType, parent: Level | None) -> Level:
    level = Level(field, type_, parent)
    if is_list_type(level.nullable_type):
        level.items = _level(field, level.nullable_type.of_type, level)
    level.complete = completer(level)
    return level
