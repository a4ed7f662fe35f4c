"""Finds the columns and relations of rows that a document selects.

Most of the cost of a page is reading, sending and converting columns, so only needed ones are read. A type of the
schema has rows if its `is_type_of` is an `IsInstance` of a row class. Its fields declare what they read of the row:

- a field with the name of a column, without a resolver, reads that column;
- a `Batched` field reads its key, or nothing if the row carries the object (`carried_as`);
- any other field names its columns with `metadata=needs("status", "due_date")`; without that, all columns are read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from graphql import (
    DocumentNode,
    FieldNode,
    GraphQLObjectType,
    GraphQLSchema,
    SelectionSetNode,
    TypeInfo,
    TypeInfoVisitor,
    Visitor,
    get_named_type,
    visit,
)
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.field import StrawberryField

from taskflow_gql.execution import IsInstance
from taskflow_gql.execution.strawberry import DEFINITION, Batched

_NEEDS = "needs"

Derived = TypeVar("Derived")


def needs(*columns: str) -> dict[str, Any]:
    """Metadata of a field that reads these columns of its row. The id is always read."""
    return {_NEEDS: frozenset(columns)}


class FieldNeeds(NamedTuple):
    # None means all columns.
    columns: Set[str] | None
    # The relation whose object the row should carry.
    relation: str | None = None


@dataclass(frozen=True)
class RowType:
    """A type of the schema that has rows: its interfaces, and the needs of its fields by their GraphQL names."""

    row_class: Any
    interfaces: tuple[str, ...]
    fields: Mapping[str, FieldNeeds]


class Needs:
    """The fields, columns and relations that one document selects."""

    def __init__(self, selected: Mapping[str, Set[str]], counted: Set[str], row_types: Mapping[str, RowType]) -> None:
        self._selected = selected
        # Connection types that the document selects exactly once, with an unconditional `totalCount`.
        self.counted = counted
        self._of_rows: dict[Any, set[FieldNeeds]] = defaultdict(set)
        for name, row_type in row_types.items():
            # A field selected on an interface is selected on each type that implements it.
            fields = {field for type_name in (name, *row_type.interfaces) for field in selected.get(type_name, ())}
            for field in fields:
                self._of_rows[row_type.row_class].add(row_type.fields.get(field, FieldNeeds(None)))
        self._derived: dict[Any, Any] = {}

    def selects(self, type_name: str, *fields: str) -> bool:
        """Whether the document selects one of the fields of the type."""
        return not self._selected.get(type_name, frozenset()).isdisjoint(fields)

    def columns(self, row_class: Any) -> tuple[str, ...]:
        """The columns to read for rows of this class, always including the id, in the order of the class."""
        all_columns: tuple[str, ...] = row_class._fields
        needed = {"id"}
        for field in self._of_rows[row_class]:
            needed.update(all_columns if field.columns is None else field.columns)
        return tuple(name for name in all_columns if name in needed)

    def relations(self, row_class: Any) -> set[str]:
        """The relations that the rows of this class should carry."""
        return {field.relation for field in self._of_rows[row_class] if field.relation}

    def derive(self, find: Callable[[Needs], Derived]) -> Derived:
        """`find(self)`, cached for the document."""
        if find not in self._derived:
            self._derived[find] = find(self)
        found: Derived = self._derived[find]
        return found


class Analysis:
    """Finds the needs of the documents of one schema."""

    def __init__(self, schema: GraphQLSchema) -> None:
        self._schema = schema
        self.row_types = {
            name: found
            for name, type_ in schema.type_map.items()
            if isinstance(type_, GraphQLObjectType) and (found := _row_type(type_)) is not None
        }

    def __call__(self, document: DocumentNode) -> Needs:
        types = TypeInfo(self._schema)
        selected: defaultdict[str, set[str]] = defaultdict(set)
        lists: Counter[str] = Counter()
        counted: set[str] = set()

        class Fields(Visitor):
            def enter_field(self, node: FieldNode, *_: Any) -> None:
                parent, type_ = types.get_parent_type(), types.get_type()
                if parent is not None:
                    selected[parent.name].add(node.name.value)
                if node.selection_set and type_ is not None:
                    name = get_named_type(type_).name
                    lists[name] += 1
                    if _surely_counts(node.selection_set):
                        counted.add(name)

        visit(document, TypeInfoVisitor(types, Fields()))
        return Needs(selected, {name for name in counted if lists[name] == 1}, self.row_types)


def _surely_counts(selections: SelectionSetNode) -> bool:
    return any(
        isinstance(selection, FieldNode) and selection.name.value == "totalCount" and not selection.directives
        for selection in selections.selections
    )


def _row_type(type_: GraphQLObjectType) -> RowType | None:
    definition = type_.extensions.get(DEFINITION)
    if not isinstance(definition, StrawberryObjectDefinition) or not isinstance(definition.is_type_of, IsInstance):
        return None
    row_class: Any = definition.is_type_of.classes[0]
    fields = {
        name: _needs_of(field.extensions[DEFINITION], row_class._fields)
        for name, field in type_.fields.items()
        if isinstance(field.extensions.get(DEFINITION), StrawberryField)
    }
    return RowType(
        row_class, tuple(one.name for one in type_.interfaces), {"__typename": FieldNeeds(frozenset()), **fields}
    )


def _needs_of(field: StrawberryField, columns: Iterable[str]) -> FieldNeeds:
    if _NEEDS in field.metadata:
        return FieldNeeds(field.metadata[_NEEDS])
    for extension in field.extensions:
        if isinstance(extension, Batched):
            key, relation = extension.batch.key, extension.batch.carried_as
            return FieldNeeds(frozenset({key}) if isinstance(key, str) and not relation else frozenset(), relation)
    if field.base_resolver is None and field.python_name in columns:
        return FieldNeeds(frozenset({field.python_name}))
    return FieldNeeds(None)
