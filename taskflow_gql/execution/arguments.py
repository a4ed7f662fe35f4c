"""What a field's arguments are, worked out from their literals once.

graphql-core walks the literals of a field and the types of its arguments for every request. Here one walk leaves a tree
of functions of the variables' values. Whatever is out of the ordinary is left to graphql-core, which has the words.
"""

from collections.abc import Callable, Mapping
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
from graphql.utilities.coerce_input_value import coerce_default_value

Variables = Mapping[str, Any]
Read = Callable[[Variables], Any]


class Unusual(Exception):
    """These variables, or these literals, are for graphql-core."""


def arguments_reader(definition: GraphQLField, node: FieldNode) -> Read | None:
    """A function from the variables' coerced values to new argument values, which may raise `Unusual`; None where
    graphql-core has to be asked each time.
    """
    nodes = {argument.name.value: argument.value for argument in node.arguments or ()}
    try:
        entries = [
            (argument.out_name or name, _entry(argument, nodes.get(name))) for name, argument in definition.args.items()
        ]
    except (Unusual, RecursionError):
        return None
    return _dict_reader(entries)


def _dict_reader(entries: list[tuple[str, Read | None]]) -> Read:
    given = [(name, read) for name, read in entries if read is not None]

    def read_dict(variables: Variables) -> dict[str, Any]:
        values = {}
        for name, read in given:
            value = read(variables)
            if value is not Undefined:
                values[name] = value
        return values

    return read_dict


def _entry(definition: GraphQLArgument | GraphQLInputField, node: ValueNode | None) -> Read | None:
    """Of an argument, or a field of an input object. None, or Undefined from the function: there is no value."""
    if isinstance(definition, GraphQLArgument):
        is_required = is_required_argument(definition)
    else:
        is_required = is_required_input_field(definition)
    try:
        # graphql-core gives the same object each time as well.
        default = coerce_default_value(definition)
    except TypeError as error:
        raise Unusual from error
    if node is None:
        if is_required:
            raise Unusual
        return None if default is Undefined else lambda _variables: default
    read = _literal(node, definition.type)
    if not isinstance(node, VariableNode) or is_required:
        return read
    name = node.name.value
    return lambda variables: read(variables) if name in variables else default


def _literal(node: ValueNode, type_: Any) -> Read:
    nullable = not is_non_null_type(type_)
    if not nullable:
        type_ = type_.of_type
    if isinstance(node, VariableNode):
        return _variable(node.name.value, nullable)
    if isinstance(node, NullValueNode):
        if not nullable:
            raise Unusual
        return lambda _variables: None
    if is_list_type(type_):
        items = node.values if isinstance(node, ListValueNode) else [node]
        reads = [_literal(item, type_.of_type) for item in items]
        return lambda variables: [read(variables) for read in reads]
    if is_input_object_type(type_):
        return _input_object(node, type_)
    if isinstance(node, ListValueNode | ObjectValueNode):  # with variables in it, for all we know
        raise Unusual
    value = coerce_input_literal(node, type_)
    if value is Undefined:
        raise Unusual
    if is_specified_scalar_type(type_) or is_enum_type(type_):
        return lambda _variables: value
    # Somebody's own scalar may say something else each time.
    return lambda _variables: _require(coerce_input_literal(node, type_))


def _require(value: Any) -> Any:
    if value is Undefined:
        raise Unusual
    return value


def _variable(name: str, nullable: bool) -> Read:
    def read_variable(variables: Variables) -> Any:
        value = variables.get(name, Undefined)
        if value is Undefined or (value is None and not nullable):
            raise Unusual
        return value

    return read_variable


def _input_object(node: ValueNode, type_: GraphQLInputObjectType) -> Read:
    if not isinstance(node, ObjectValueNode) or type_.is_one_of:
        raise Unusual
    nodes = {field.name.value: field.value for field in node.fields}
    if not nodes.keys() <= type_.fields.keys():
        raise Unusual
    read = _dict_reader(
        [(field.out_name or name, _entry(field, nodes.get(name))) for name, field in type_.fields.items()]
    )
    return lambda variables: type_.out_type(read(variables))
