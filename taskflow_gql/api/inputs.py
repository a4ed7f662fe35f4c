"""Input objects, built quickly: what Strawberry finds out of a field's name and type for every value is found out once.

A filter has some dozen fields with a dozen comparators each, of which a request gives two or three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING
from typing import Any

from strawberry.schema.config import StrawberryConfig
from strawberry.types.base import (
    StrawberryList,
    StrawberryMaybe,
    StrawberryObjectDefinition,
    StrawberryOptional,
    has_object_definition,
)
from strawberry.types.lazy_type import LazyType

Convert = Callable[[Any, Any], Any]


def build_quickly(definition: StrawberryObjectDefinition, config: StrawberryConfig) -> None:
    """Have Strawberry leave the building of these input objects to us."""
    if definition.from_input is None:
        definition.from_input = _Builder(definition, config)


class _Builder:
    def __init__(self, definition: StrawberryObjectDefinition, config: StrawberryConfig) -> None:
        self._definition = definition
        self._config = config
        # By GraphQL name: the Python name, and what is to be done to a value other than null. Input types name one
        # another, so this is found out when the first object is built.
        self._fields: dict[str, tuple[str, Convert | None]] = {}
        self._absent = {
            field.python_name: None
            for field in definition.fields
            if field.default_value is MISSING and field.default_factory is MISSING
        }

    def __call__(self, type_: type, value: Mapping[str, Any], context: Any) -> Any:
        if not self._fields:
            self._fields = {
                self._config.name_converter.from_field(field): (
                    field.python_name,
                    _converter(field.resolve_type(type_definition=self._definition)),
                )
                for field in self._definition.fields
            }
        values = dict(self._absent)
        for name, given in value.items():
            python_name, convert = self._fields[name]
            values[python_name] = given if convert is None or given is None else convert(given, context)
        return type_(**values)


def _converter(type_: Any) -> Convert | None:
    """None where graphql-core's value is the value."""
    if isinstance(type_, StrawberryMaybe):
        raise NotImplementedError("Input fields of this server are optional, not Maybe")
    if isinstance(type_, StrawberryOptional):
        return _converter(type_.of_type)
    if isinstance(type_, LazyType):
        return _converter(type_.resolve_type())
    if isinstance(type_, StrawberryList):
        convert = _converter(type_.of_type)
        if convert is None:
            # A copy: a default is shared by all requests.
            return lambda value, _: list(value)
        return lambda value, context: [None if item is None else convert(item, context) for item in value]
    if has_object_definition(type_):
        definition = type_.__strawberry_definition__
        return lambda value, context: definition.from_input(type_, value, context)  # type: ignore[misc]
    return None
