"""Rows that hold only what was asked for."""

from __future__ import annotations

from collections import namedtuple
from functools import lru_cache
from typing import Any, TypeVar

Row = TypeVar("Row", bound="tuple[Any, ...]")


@lru_cache(maxsize=512)
def row_class_of(whole: type[Row], names: tuple[str, ...]) -> type[Row]:
    """A subclass of a NamedTuple whose rows hold the values of these names in this order, some perhaps of none of its
    fields. To read another field of it raises AttributeError.
    """
    fields: tuple[str, ...] = whole._fields  # type: ignore[attr-defined]
    if names == fields:
        return whole
    # Held until its members are copied: the garbage collector empties a class that nobody holds.
    narrow = namedtuple(whole.__name__, names)  # type: ignore[misc]
    members = dict(vars(narrow))
    members.update({name: property() for name in fields if name not in names})
    return type(whole.__name__, (whole,), members)
