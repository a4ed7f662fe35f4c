"""Compiles a field's arguments into functions of the variables.

graphql-core walks the literals of a field and the types of its arguments for every request. Here one walk makes a tree
of functions of the variables' values. Unusual arguments are left to graphql-core, which has the error messages.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from graphql import (
    FieldNode,
    GraphQLArgument,
    GraphQLField,
    GraphQLInputField,
    GraphQLInputObjectType,
    ListValueNode,
    NullValueNode,
    ObjectValueNode,
    ValueNode,
    VariableNode,
    is_enum_type,
    is_input_object_type,
    is_list_type,
    is_non_null_type,
    is_required_argument,
    is_required_input_field,
    is_specified_scalar_type,
)
from graphql.pyutils import Undefined
from graphql.utilities import coerce_input_literal

from .core import coerce_default_value

Variables = Mapping[str, Any]
Read = Callable[[Variables], Any]
Definition = GraphQLArgument | GraphQLInputField
# The Python name and the function that reads the value.
Entry = tuple[str, Read]

# Literals of one field. With more of them, the walk is not what takes the time.
MAX_LITERALS = 250


class Unusual(Exception):
    """Leaves these variables, or these literals, to graphql-core."""


class ArgumentReaders:
    """The functions of one document. A field that is planned in many places, like those of fragments, has one."""

    def __init__(self) -> None:
        # By the identities of the field and its node. The node is kept so that no other one gets its identity.
        self._readers: dict[tuple[int, int], tuple[FieldNode, Read | None]] = {}
        # For arguments and input fields that are left out: one entry for each definition.
        self._defaults: dict[int, Entry | None] = {}

    def reader(self, definition: GraphQLField, node: FieldNode) -> Read | None:
        """Return a function from the variables' coerced values to fresh argument values. It may raise `Unusual`.

        None if graphql-core has to read the arguments each time.
        """
        key = (id(definition), id(node))
        known = self._readers.get(key)
        if known is None:
            known = self._readers[key] = (node, self._make(definition, node))
        return known[1]

    def _make(self, definition: GraphQLField, node: FieldNode) -> Read | None:
        nodes = {argument.name.value: argument.value for argument in node.arguments or ()}
        try:
            return self._dict(definition.args, nodes) if _are_few(nodes.values()) else None
        except Unusual:
            return None

    def _dict(self, definitions: Mapping[str, Any], nodes: Mapping[str, ValueNode]) -> Read:
        entries = tuple(
            entry
            for name, definition in definitions.items()
            if (entry := self._entry(name, definition, nodes.get(name))) is not None
        )

        def read_dict(variables: Variables) -> dict[str, Any]:
            values = {}
            for name, read in entries:
                value = read(variables)
                if value is not Undefined:
                    values[name] = value
            return values

        return read_dict

    def _entry(self, name: str, definition: Definition, node: ValueNode | None) -> Entry | None:
        """Return the entry of an argument or input field. No value is None, or Undefined from the function."""
        if node is None:
            if id(definition) not in self._defaults:
                self._defaults[id(definition)] = _default_entry(name, definition)
            return self._defaults[id(definition)]
        read = self._literal(node, definition.type)
        if isinstance(node, VariableNode) and not _is_required(definition):
            read = _or_default(node.name.value, read, _default_of(definition))
        return definition.out_name or name, read

    def _literal(self, node: ValueNode, type_: Any) -> Read:
        nullable = not is_non_null_type(type_)
        if not nullable:
            type_ = type_.of_type
        if isinstance(node, VariableNode):
            return _variable(node.name.value, nullable)
        if isinstance(node, NullValueNode):
            if not nullable:
                raise Unusual
            return _null
        if is_list_type(type_):
            items = node.values if isinstance(node, ListValueNode) else [node]
            reads = [self._literal(item, type_.of_type) for item in items]
            return lambda variables: [read(variables) for read in reads]
        if is_input_object_type(type_):
            return self._input_object(node, type_)
        if isinstance(node, ListValueNode | ObjectValueNode):  # it may contain variables
            raise Unusual
        return _leaf(node, type_)

    def _input_object(self, node: ValueNode, type_: GraphQLInputObjectType) -> Read:
        if not isinstance(node, ObjectValueNode) or type_.is_one_of:
            raise Unusual
        nodes = {field.name.value: field.value for field in node.fields}
        if not nodes.keys() <= type_.fields.keys():
            raise Unusual
        read = self._dict(type_.fields, nodes)
        return lambda variables: type_.out_type(read(variables))


def _are_few(nodes: Iterable[ValueNode]) -> bool:
    stack, count = [*nodes], 0
    while stack:
        node = stack.pop()
        count += 1
        if count > MAX_LITERALS:
            return False
        if isinstance(node, ListValueNode):
            stack += node.values
        elif isinstance(node, ObjectValueNode):
            stack += [field.value for field in node.fields]
    return True


def _is_required(definition: Definition) -> bool:
    if isinstance(definition, GraphQLArgument):
        return is_required_argument(definition)
    return is_required_input_field(definition)


def _default_of(definition: Definition) -> Any:
    try:
        # graphql-core returns the same object each time, too.
        return coerce_default_value(definition)
    except TypeError as error:
        raise Unusual from error


def _default_entry(name: str, definition: Definition) -> Entry | None:
    if _is_required(definition):
        raise Unusual
    default = _default_of(definition)
    return None if default is Undefined else (definition.out_name or name, lambda _variables: default)


def _or_default(name: str, read: Read, default: Any) -> Read:
    return lambda variables: read(variables) if name in variables else default


def _null(_variables: Variables) -> None:
    return None


def _variable(name: str, nullable: bool) -> Read:
    def read_variable(variables: Variables) -> Any:
        value = variables.get(name, Undefined)
        if value is Undefined or (value is None and not nullable):
            raise Unusual
        return value

    return read_variable


def _leaf(node: ValueNode, type_: Any) -> Read:
    value = coerce_input_literal(node, type_)
    if value is Undefined:
        raise Unusual
    if is_specified_scalar_type(type_) or is_enum_type(type_):
        return lambda _variables: value

    def read_again(_variables: Variables) -> Any:
        # A custom scalar may return another value each time.
        value = coerce_input_literal(node, type_)
        if value is Undefined:
            raise Unusual
        return value

    return read_again
