"""Row classes with only the selected columns."""

from __future__ import annotations

from collections import namedtuple
from functools import lru_cache
from typing import Any, TypeVar

Row = TypeVar("Row", bound="tuple[Any, ...]")


@lru_cache(maxsize=512)
def row_class_of(whole: type[Row], names: tuple[str, ...]) -> type[Row]:
    """A subclass of the NamedTuple `whole` whose rows hold the values of `names`, in this order.

    Names that are not fields of `whole` become additional attributes. Reading a field of `whole` that is not in `names`
    raises AttributeError.
    """
    fields: tuple[str, ...] = whole._fields  # type: ignore[attr-defined]
    if names == fields:
        return whole
    # Keep a reference until its members are copied: the garbage collector clears a class without references.
    narrow = namedtuple(whole.__name__, names)  # type: ignore[misc]
    members = dict(vars(narrow))
    members.update({name: property() for name in fields if name not in names})
    return type(whole.__name__, (whole,), members)
