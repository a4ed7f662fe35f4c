"""Parsing and validation in linear time, without reference cycles that wait for the garbage collector.

graphql-core compares each pair of fields of the same name: 600 fields need 180,000 comparisons, which leave reference
cycles that include the document. The rule here compares groups instead of pairs. Cycles that graphql-core's parser and
rules create are broken when they are done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from graphql import (
    ArgumentNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLField,
    GraphQLSchema,
    InlineFragmentNode,
    Lexer,
    NonNullTypeNode,
    OperationDefinitionNode,
    OverlappingFieldsCanBeMergedRule,
    ParallelVisitor,
    SelectionSetNode,
    Source,
    TypeInfo,
    TypeInfoVisitor,
    ValidationContext,
    ValidationRule,
    get_named_type,
    get_nullable_type,
    is_input_object_type,
    is_interface_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    is_object_type,
    print_ast,
    specified_rules,
    visit,
)
from graphql.utilities import type_from_ast

from taskflow_gql.operations.private import (
    NodeWithSelectionSet,
    Parser,
    ValidationAbortedError,
    VariableUsage,
    VariableUsageVisitor,
    query_document_keys_to_validate,
    sort_value_node,
)

# Further errors of one document are of no use, and each costs time.
MAX_VALIDATION_ERRORS = 20
# Fields that FieldsCanMergeRule may visit. A document of 4,000 tokens has at most 2,000 fields, but those of a fragment
# are visited once for each spread.
_MAX_FIELDS = 60_000

Rules = Sequence[type[ValidationRule]]


class TooComplex(Exception):
    """The document takes too long to validate."""


class _EnoughErrors(Exception):
    pass


def parse(source: Source, max_tokens: int) -> DocumentNode:
    """Raises GraphQLSyntaxError."""
    lexer = Lexer(source)
    try:
        return Parser(source, max_tokens=max_tokens, lexer=lexer).parse_document()
    finally:
        # Tokens are a doubly linked list, full of reference cycles. Break them.
        token: Any = lexer.token
        while token is not None:
            token.prev, token = None, token.prev


def validate(schema: GraphQLSchema, document: DocumentNode, *, hides_schema: bool, rules: Rules) -> list[GraphQLError]:
    """As graphql-core's `validate`, for a schema that is known to be valid. Stops after MAX_VALIDATION_ERRORS.

    Raises TooComplex if the document takes too long.
    """
    errors: list[GraphQLError] = []

    def on_error(error: GraphQLError) -> None:
        errors.append(error)
        if len(errors) >= MAX_VALIDATION_ERRORS:
            raise _EnoughErrors

    types = TypeInfo(schema)
    context = _Context(schema, document, types, on_error, hides_schema)
    visitors = [rule(context) for rule in rules]
    parallel = ParallelVisitor(visitors)
    outermost = TypeInfoVisitor(types, parallel)
    try:
        visit(document, outermost, query_document_keys_to_validate)
    except _EnoughErrors:
        errors.append(GraphQLError(f"Validation stopped after {MAX_VALIDATION_ERRORS} errors"))
    except (ValidationAbortedError, RecursionError) as error:
        raise TooComplex from error
    finally:
        _break_cycles(*visitors, parallel, outermost, context, types)
    return errors


def _break_cycles(*visitors: object) -> None:
    """Break reference cycles: visitors refer to their own bound methods, and so to everything they have visited."""
    for each in visitors:
        vars(each).clear()


class _Context(ValidationContext):
    """graphql-core's context. It also breaks the reference cycles of the visitors that it creates."""

    def __init__(self, schema: GraphQLSchema, document: DocumentNode, types: TypeInfo, *options: Any) -> None:
        super().__init__(schema, document, types, *options)
        self._types = types
        self._usages: dict[int, list[VariableUsage]] = {}

    def get_variable_usages(self, node: NodeWithSelectionSet) -> list[VariableUsage]:
        usages = self._usages.get(id(node))
        if usages is None:
            visitor = VariableUsageVisitor(self._types, node if isinstance(node, FragmentDefinitionNode) else None)
            outer = TypeInfoVisitor(self._types, visitor)
            visit(node, outer)
            usages = self._usages[id(node)] = visitor.usages
            _break_cycles(visitor, outer)
        return usages


class _Selected(NamedTuple):
    """A field of the document, and the type that it is selected on."""

    node: FieldNode
    parent: Any
    definition: GraphQLField | None


class _Sets(NamedTuple):
    """Selection sets whose fields are merged in the answer, each with its type.

    `shapes` is whether fields of one response name must have one shape, `same` whether they must be the same field.
    """

    sets: tuple[tuple[SelectionSetNode, Any], ...]
    shapes: bool
    same: bool

    @property
    def key(self) -> tuple[Any, ...]:
        return frozenset((id(node), id(type_)) for node, type_ in self.sets), self.shapes, self.same


class FieldsCanMergeRule(ValidationRule):
    """https://spec.graphql.org/September2025/#sec-Field-Selection-Merging, with groups instead of pairs.

    Fields of one response name must have the same shape. Those that may be selected on one object must also be the same
    field with the same arguments. Both relations are transitive, so it is enough to compare each field of a group with
    the first one and to continue with the selection sets of the whole group. The algorithm is by Simon Adameit, for
    Sangria.
    """

    def __init__(self, context: ValidationContext) -> None:
        super().__init__(context)
        self._seen: set[tuple[Any, ...]] = set()
        self._arguments: dict[int, str] = {}
        self._remaining = _MAX_FIELDS

    def enter_operation_definition(self, node: OperationDefinitionNode, *_: Any) -> None:
        stack = [_Sets(((node.selection_set, self.context.get_type()),), shapes=True, same=True)]
        while stack:
            merged = stack.pop()
            key = merged.key
            if key not in self._seen:
                self._seen.add(key)
                for group in self._by_response_name(merged).values():
                    stack += self._checked(group, merged)

    def _by_response_name(self, merged: _Sets) -> dict[str, list[_Selected]]:
        groups: dict[str, list[_Selected]] = {}
        spread: set[str] = set()
        sets = list(merged.sets)
        for selection_set, type_ in sets:
            self._remaining -= len(selection_set.selections)
            if self._remaining < 0:
                raise TooComplex
            for selection in selection_set.selections:
                if isinstance(selection, FieldNode):
                    definition = self._definition(type_, selection.name.value)
                    name = selection.alias.value if selection.alias else selection.name.value
                    groups.setdefault(name, []).append(_Selected(selection, type_, definition))
                elif isinstance(selection, InlineFragmentNode):
                    condition = selection.type_condition
                    inner = type_from_ast(self.context.schema, condition) if condition else type_
                    sets.append((selection.selection_set, inner))
                elif isinstance(selection, FragmentSpreadNode) and selection.name.value not in spread:
                    spread.add(selection.name.value)
                    fragment = self.context.get_fragment(selection.name.value)
                    if fragment is not None:
                        inner = type_from_ast(self.context.schema, fragment.type_condition)
                        sets.append((fragment.selection_set, inner))
        return groups

    def _definition(self, type_: Any, name: str) -> GraphQLField | None:
        # Meta-fields such as `__typename` have no definition here: graphql-core does not compare their types either.
        return type_.fields.get(name) if is_object_type(type_) or is_interface_type(type_) else None

    def _checked(self, group: list[_Selected], merged: _Sets) -> Iterator[_Sets]:
        """Compare the fields of a group. Yields the selection sets below them, which must be compared next."""
        parts = _may_be_of_one_object(group) if merged.same else []
        if merged.shapes:
            self._check_shapes(group)
            if len(parts) != 1:
                yield from _below(group, shapes=True, same=False)
        for part in parts:
            self._check_sameness(part)
            yield from _below(part, shapes=merged.shapes and len(parts) == 1, same=True)

    def _check_shapes(self, group: list[_Selected]) -> None:
        first = next((one for one in group if one.definition), None)
        for other in group:
            if first and first.definition and other.definition:
                type_, other_type = first.definition.type, other.definition.type
                if type_ is not other_type and not _have_one_shape(type_, other_type):
                    self._report(first, other, f"they return conflicting types '{type_}' and '{other_type}'")
                    return

    def _check_sameness(self, group: list[_Selected]) -> None:
        first = group[0]
        for other in group[1:]:
            name, other_name = first.node.name.value, other.node.name.value
            if name != other_name:
                self._report(first, other, f"'{name}' and '{other_name}' are different fields")
                return
            if self._arguments_of(first.node) != self._arguments_of(other.node):
                self._report(first, other, "they have differing arguments")
                return

    def _arguments_of(self, node: FieldNode) -> str:
        if not node.arguments:
            return ""
        text = self._arguments.get(id(node))
        if text is None:
            text = self._arguments[id(node)] = "\n".join(sorted(map(_argument_text, node.arguments)))
        return text

    def _report(self, first: _Selected, other: _Selected, reason: str) -> None:
        name = (first.node.alias or first.node.name).value
        message = (
            f"Fields '{name}' conflict because {reason}. Use different aliases on the fields to fetch both if this "
            "was intentional."
        )
        self.report_error(GraphQLError(message, [first.node, other.node]))


def _may_be_of_one_object(group: list[_Selected]) -> list[list[_Selected]]:
    """Group the fields by object type. Fields of interfaces and unions are in every group: any object may have them."""
    of_any = [one for one in group if not is_object_type(one.parent)]
    by_type: dict[int, list[_Selected]] = {}
    for one in group:
        if is_object_type(one.parent):
            by_type.setdefault(id(one.parent), []).append(one)
    return [[*fields, *of_any] for fields in by_type.values()] or [of_any]


def _below(group: list[_Selected], *, shapes: bool, same: bool) -> Iterator[_Sets]:
    sets: dict[int, tuple[SelectionSetNode, Any]] = {}
    for one in group:
        if one.node.selection_set:
            type_ = get_named_type(one.definition.type) if one.definition else None
            sets[id(one.node.selection_set)] = one.node.selection_set, type_
    if sets:
        yield _Sets(tuple(sets.values()), shapes, same)


def _have_one_shape(type_: Any, other: Any) -> bool:
    while True:
        if is_list_type(type_) or is_list_type(other):
            if not (is_list_type(type_) and is_list_type(other)):
                return False
        elif is_non_null_type(type_) or is_non_null_type(other):
            if not (is_non_null_type(type_) and is_non_null_type(other)):
                return False
        else:
            return type_ is other or not (is_leaf_type(type_) or is_leaf_type(other))
        type_, other = type_.of_type, other.of_type


def _argument_text(argument: ArgumentNode) -> str:
    return f"{argument.name.value}:{print_ast(sort_value_node(argument.value))}"


class OneOfVariablesRule(ValidationRule):
    """A field of a oneOf input takes no nullable variable. graphql-core's rule overlooks inputs that are non-null."""

    def leave_operation_definition(self, operation: OperationDefinitionNode, *_: Any) -> None:
        nullable = {
            definition.variable.name.value: definition
            for definition in operation.variable_definitions or ()
            if not isinstance(definition.type, NonNullTypeNode)
        }
        for usage in self.context.get_recursive_variable_usages(operation):
            definition = nullable.get(usage.node.name.value)
            parent = get_nullable_type(usage.parent_type)
            if definition and parent is not usage.parent_type and is_input_object_type(parent) and parent.is_one_of:
                name = usage.node.name.value
                message = (
                    f"Variable '${name}' must be non-nullable to be used for a field of the oneOf input '{parent}'."
                )
                self.report_error(GraphQLError(message, [definition, usage.node]))


# graphql-core declares them as rules for any document, and has only rules for operations among them.
_SPECIFIED_RULES = cast("Rules", specified_rules)
RULES: Rules = (
    *(FieldsCanMergeRule if rule is OverlappingFieldsCanBeMergedRule else rule for rule in _SPECIFIED_RULES),
    OneOfVariablesRule,
)
