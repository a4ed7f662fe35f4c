"""What may be assumed of a value from its class alone.

graphql-core asks of every value whether it is an exception, awaitable, callable or a mapping. Nearly always the
class tells, so the question is put once per class and the answer remembered.
"""

import sys
from abc import ABCMeta
from collections import namedtuple
from collections.abc import Generator, Mapping
from enum import Enum
from inspect import getattr_static
from types import FunctionType, MemberDescriptorType, SimpleNamespace

from graphql.pyutils import Undefined


class IsInstance:
    """An `is_type_of` that asks for nothing but the class of the value, so that the executor remembers its verdict.
    Any other function is called for each object.
    """

    def __init__(self, *classes: type) -> None:
        self.classes = classes

    def __call__(self, value: object, _info: object) -> bool:
        return isinstance(value, self.classes)


class AsItIs:
    """A scalar's `serialize` for what the encoder of answers can write: it hands on values of these classes, and the
    executor, which sees that, does not call it for them.
    """

    def __init__(self, *classes: type) -> None:
        self.classes = classes

    def __call__(self, value: object) -> object:
        if isinstance(value, self.classes):
            return value
        raise TypeError(f"{value!r} is none of {', '.join(cls.__name__ for cls in self.classes)}")


# Classes of source objects remembered in one place of a plan; the bound is for programs that make classes as they go.
MOST_CLASSES = 64


class Kind(Enum):
    """How much the class of a value says about it."""

    PLAIN = "neither exception nor awaitable nor callable"
    ASK = "the same, but an instance may pretend to have any attribute: ask whether it is awaitable"
    ODD = "none of that is certain: leave the value to graphql-core"


# What reads a place of a tuple under a name; the module that has the class does not show it.
_TupleGetter = type(vars(namedtuple("_Pair", "first second"))["first"])

# Any other metaclass, or way of reading, may have a mind of its own.
_METACLASSES = {type, ABCMeta}
_READS_WHAT_IS_STORED = {object.__getattribute__, tuple.__getattribute__, SimpleNamespace.__getattribute__}

# Enough for any application; the bound is for one that makes classes as it goes.
_MOST_CLASSES = 4096
_kinds: dict[type, Kind] = {}

# The classes known to be plain. The generated code tests `type(value) in PLAIN`.
PLAIN: set[type] = set()


def kind_of(cls: type) -> Kind:
    kind = _kinds.get(cls)
    if kind is None:
        if len(_kinds) >= _MOST_CLASSES:
            _kinds.clear()
            PLAIN.clear()
        kind = _kinds[cls] = _examine(cls)
        if kind is Kind.PLAIN:
            PLAIN.add(cls)
    return kind


def trust(cls: type) -> None:
    """Say that instances of this class are plain, although it has a `__getattr__` (a row of a database library)."""
    _kinds[cls] = Kind.PLAIN
    PLAIN.add(cls)


def is_mapping(cls: type) -> bool:
    return issubclass(cls, Mapping)


def names_in_tuple(cls: type) -> tuple[str, ...] | None:
    """The fields of a class of named tuples whose objects are read as such; None for any other class."""
    names = getattr_static(cls, "_fields", None) if issubclass(cls, tuple) else None
    if not isinstance(names, tuple) or getattr_static(cls, "__iter__") is not tuple.__iter__:
        return None
    return names if all(_place_in_tuple(cls, name) == place for place, name in enumerate(names)) else None


def is_stored(cls: type, name: str) -> bool:
    """Whether objects of a plain class hold what is read of them under this name, so that reading runs no code."""
    if cls is dict:
        return True
    # One with `__getattr__` may be called plain by `trust`.
    if (
        type(cls) not in _METACLASSES
        or getattr_static(cls, "__getattribute__") not in _READS_WHAT_IS_STORED
        or getattr_static(cls, "__getattr__", None) is not None
    ):
        return False
    if issubclass(cls, tuple):
        return name in (names_in_tuple(cls) or ())
    # In the object's own dict, unless the class says how to get it.
    described = getattr_static(cls, name, None)
    return type(described) is MemberDescriptorType or getattr_static(type(described), "__get__", None) is None


def _place_in_tuple(cls: type, name: str) -> int | None:
    getter = getattr_static(cls, name, None)
    return getter.__reduce__()[1][0] if type(getter) is _TupleGetter else None


def _examine(cls: type) -> Kind:
    if cls in {type(None), type(Undefined)} or issubclass(cls, BaseException | Generator | type):
        return Kind.ODD
    kind = Kind.PLAIN
    for base in cls.__mro__[:-1]:
        names = vars(base)
        if not names.keys().isdisjoint({"__await__", "__call__", "__class__"}):
            return Kind.ODD
        if isinstance(names.get("__getattribute__"), FunctionType):
            return Kind.ODD
        if "__getattr__" in names or ("__getattribute__" in names and not _is_standard(base)):
            kind = Kind.ASK
    return kind


def _is_standard(cls: type) -> bool:
    # The built-in classes name object's own lookup as theirs; a foreign extension class may really have another.
    return cls.__module__.partition(".")[0] in sys.stdlib_module_names
