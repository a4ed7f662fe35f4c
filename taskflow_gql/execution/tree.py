"""What an operation asks for, worked out once.

A `Plan` is a tree that mirrors the answer. `Selection` is what is selected of one object type at one place, `Field`
one entry of it, `Level` one position a value can have: the field itself, or the items of its list. A selection is
planned when its first object comes, so nothing is spent on what never comes.

Which fields are selected is decided by graphql-core's own `collect_fields`, with the variables of the request. A plan
therefore holds for one set of values of the variables that @skip and @include look at, and for no other.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from graphql import (
    GraphQLField,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLSchema,
    OperationDefinitionNode,
    TypeNameMetaFieldDef,
    get_named_type,
    is_abstract_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
)
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet

from .arguments import ArgumentReaders
from .codegen import generate, generate_quick
from .completion import MOST_CREDIT, EnumNames, completer
from .sources import MOST_CLASSES, IsInstance, Kind, is_mapping, kind_of

if TYPE_CHECKING:
    from .executor import CompilingExecutor
    from .run import Info, Position, Run

Fill = Callable[["Run", dict[str, Any], Any, "Position"], None]
Quick = Callable[[Any], dict[str, Any] | None]
Complete = Callable[["Run", Any, "Position", "Info | None"], Any]
CollectSubfields = Callable[[GraphQLObjectType, FieldDetailsList], GroupedFieldSet]

# Of a selection. A program that makes classes as it goes has no use for more.
_MOST_QUICKS = 8


class Level:
    """A position in the answer and its type. `parent` is the position around it, None at the root."""

    def __init__(self, field: "Field", type_: GraphQLOutputType, parent: "Level | None") -> None:
        self.field = field
        self.type = type_
        self.parent = parent
        self.nullable = not is_non_null_type(type_)
        self.nullable_type: Any = type_.of_type if is_non_null_type(type_) else type_
        self.items = Level(field, self.nullable_type.of_type, self) if is_list_type(self.nullable_type) else None
        self.selections: dict[str, Selection] = {}
        self.enum_names = EnumNames()
        # Whether it is an item of a list, or within one.
        self.is_in_list: bool = parent is not None and (parent.field is field or parent.is_in_list)
        # Functions by the class of the source, for objects whose type needs no check; empty for other types.
        self.fills: dict[type, Fill] = {}
        self.quicks: dict[type, Quick] = {}
        # Whether the `quicks` of a list's items are worth trying, by what came of it lately.
        self.credit = MOST_CREDIT
        self.complete: Complete = completer(self)

    def null(self) -> None:
        if not self.nullable:
            field = self.field
            raise TypeError(f"Cannot return null for non-nullable field {field.parent_type}.{field.field_name}.")

    def settle_credit(self, *, hits: int, misses: int) -> None:
        """After each list. Who has none left rests for some lists: a miss costs more than a hit saves."""
        if self.credit <= 0:
            self.credit += 1
            return
        self.credit = min(MOST_CREDIT, self.credit + hits - 2 * misses)
        if self.credit <= 0:
            self.credit = -MOST_CREDIT

    def selection_of(self, type_: GraphQLObjectType) -> "Selection":
        """What is selected of objects of this type that come at this level."""
        selection = self.selections.get(type_.name)
        if selection is None:
            path = self.field.path
            if is_abstract_type(self.nullable_type):
                path = f"{path}<{type_}>"
            selection = self.selections[type_.name] = Selection(self.field.plan, type_, self, path)
        return selection


class Field:
    """One entry of a selection, under its response name."""

    def __init__(self, selection: "Selection", name: str, details: FieldDetailsList, definition: GraphQLField) -> None:
        self.plan = selection.plan
        self.selection = selection
        self.name = name
        self.details = details
        self.definition = definition
        self.nodes = [detail.node for detail in details]
        self.field_name = self.nodes[0].name.value
        self.parent_type = selection.type
        self.path = f"{selection.path}.{name}"
        self.has_arguments = bool(definition.args or self.nodes[0].arguments)
        self.read_arguments = (
            self.plan.argument_readers.reader(definition, self.nodes[0]) if self.has_arguments else None
        )
        self.is_typename = definition is TypeNameMetaFieldDef
        # How the value is read: loaded in a batch, or from an attribute, or by a function of the source, or by the
        # resolver, or as graphql-core reads by default.
        executor_class, schema = self.plan.executor_class, self.plan.schema
        self.batch = executor_class.batch_of(schema, definition)
        self.attribute: str | None = None
        self.function: Callable[[Any], Any] | None = None
        self.resolve: Callable[..., Any] | None = None
        self.is_read_by_default = False
        if self.batch is None:
            if not self.has_arguments:
                self.attribute = executor_class.attribute_of(definition)
                self.function = executor_class.function_of(schema, definition)
                self.is_read_by_default = definition.resolve is None and self.attribute is None
            if self.attribute is None and self.function is None and not self.is_read_by_default:
                self.resolve = executor_class.resolver_of(schema, definition)

        named_type = get_named_type(definition.type)
        self.needs_info = is_abstract_type(named_type) or (
            isinstance(named_type, GraphQLObjectType)
            and named_type.is_type_of is not None
            and not isinstance(named_type.is_type_of, IsInstance)
            and not executor_class.ignores_info(named_type)
        )
        self.level = Level(self, definition.type, selection.level)
        self.is_leaf = is_leaf_type(self.level.nullable_type)

    def is_carried_by(self, cls: type) -> bool:
        """Whether objects of this class have the related object with them, so that there is nothing to load."""
        return self.batch is not None and not self.has_arguments and self.batch.is_carried_by(cls)


class Selection:
    """The fields selected of one object type at one place, and the functions that fill in its answer."""

    def __init__(
        self,
        plan: "Plan",
        type_: GraphQLObjectType,
        level: Level | None,
        path: str,
        groups: GroupedFieldSet | None = None,
    ) -> None:
        self.plan = plan
        self.type = type_
        self.level = level
        self.path = path
        # By the class of the source; read for every object, so it holds only classes that are plain.
        self.fills: dict[type, Fill] = {}
        # By what of the class matters: whether it is a mapping, and which relations its objects carry with them.
        self._generated: dict[tuple[bool, frozenset[str]], Fill] = {}
        # Likewise by class, for those whose objects hold all that is selected.
        self.quicks: dict[type, Quick] = {}
        self._quicks_to_make = _MOST_QUICKS
        self._groups = groups
        self._fields: list[Field] | None = None

    @property
    def groups(self) -> GroupedFieldSet:
        if self._groups is None:
            assert self.level is not None
            self._groups = self.plan.collect_subfields(self.type, self.level.field.details)
        return self._groups

    @property
    def fields(self) -> list[Field]:
        if self._fields is None:
            get_field = self.plan.schema.get_field
            definitions = {
                name: get_field(self.type, details[0].node.name.value) for name, details in self.groups.items()
            }
            # A field that does not exist is left out, as graphql-core does: validation should have refused it.
            self._fields = [
                Field(self, name, self.groups[name], definition)
                for name, definition in definitions.items()
                if definition is not None
            ]
        return self._fields

    def fill_for(self, cls: type) -> Fill | None:
        """The function for objects of this class. None: the plan is at its bound, graphql-core has to do it."""
        fill = self.function(is_mapping(cls), cls)
        if fill is not None and kind_of(cls) is Kind.PLAIN:
            if len(self.fills) >= MOST_CLASSES:
                self.fills.clear()
                self.quicks.clear()
            self.fills[cls] = fill
            if self._quicks_to_make > 0 and self.may_be_quick:
                self._quicks_to_make -= 1
                quick = generate_quick(self, cls, fill)
                if quick is not None:
                    self.quicks[cls] = quick
        return fill

    @property
    def may_be_quick(self) -> bool:
        """Whether these are objects of lists, of which only the class has to be known."""
        level = self.level
        return (
            level is not None
            and level.is_in_list
            and level.nullable_type is self.type
            and isinstance(self.type.is_type_of, IsInstance | None)
        )

    def function(self, of_mapping: bool, cls: type = object) -> Fill | None:
        # Room first: the fields take it too.
        if not self._generated and not self.plan.admit(len(self.groups)):
            return None
        carried = frozenset([field.name for field in self.fields if field.batch and field.is_carried_by(cls)])
        fill = self._generated.get((of_mapping, carried))
        if fill is None:
            if self._generated and not self.plan.admit(len(self.groups)):
                return None
            fill = self._generated[of_mapping, carried] = generate(self, of_mapping, carried)
        return fill


class Plan:
    """The plan of one operation for one set of @skip and @include values.

    `admit(count)` tells whether so many more fields may be planned. The readers of arguments are those of all plans of
    the document.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        executor_class: "type[CompilingExecutor]",
        operation: OperationDefinitionNode,
        root_type: GraphQLObjectType,
        groups: GroupedFieldSet,
        collect_subfields: CollectSubfields,
        admit: Callable[[int], bool],
        argument_readers: ArgumentReaders,
    ) -> None:
        self.schema = schema
        self.executor_class = executor_class
        # Which the nodes of the fields are of.
        self.operation = operation
        self.collect_subfields = collect_subfields
        self.admit = admit
        self.argument_readers = argument_readers
        self.root = Selection(self, root_type, None, root_type.name, groups)
        # The fields of a mutation run one after the other, so each is a selection of its own.
        self.serial = [
            Selection(self, root_type, None, root_type.name, {name: details}) for name, details in groups.items()
        ]
