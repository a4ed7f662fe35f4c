"""Arguments and input objects, built quickly: what Strawberry finds out of a name and a type for every value is found
out once.

A filter has some dozen fields with a dozen comparators each, of which a request gives two or three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING
from typing import Any

from strawberry.relay import GlobalID
from strawberry.scalars import is_scalar
from strawberry.schema.config import StrawberryConfig
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
from strawberry.types.lazy_type import LazyType
from strawberry.types.unset import UNSET

Convert = Callable[[Any, InputContext], Any]


class ArgumentsConverter:
    """Strawberry's `convert_arguments`, for the arguments of one field."""

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
        """From graphql-core's names and values to those of the resolver."""
        values = {}
        for name, python_name, convert, takes_null in self._arguments:
            if name in given:
                value = given[name]
                if convert is not None and (takes_null or value is not None):
                    value = convert(value, InputContext(info, self._config, self._scalars, path=(name,)))
                values[python_name] = value
        return values


def build_quickly(definition: StrawberryObjectDefinition, config: StrawberryConfig) -> None:
    """Have Strawberry leave the building of these input objects to us."""
    if definition.from_input is None:
        definition.from_input = _Builder(definition, config)


class _Builder:
    def __init__(self, definition: StrawberryObjectDefinition, config: StrawberryConfig) -> None:
        self._definition = definition
        self._config = config
        # By GraphQL name: the Python name, and what is to be done to a value. Input types name one another, so this is
        # found out when the first object is built.
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
    """None where graphql-core's value is the value."""
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
        # A copy: a default is shared by all requests.
        return lambda value, _: value if _is_nothing(value) else list(value)
    return lambda value, context: value if _is_nothing(value) else [convert(item, context) for item in value]


def _is_nothing(value: object) -> bool:
    return value is None or value is UNSET
