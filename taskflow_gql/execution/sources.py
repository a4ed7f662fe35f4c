"""Tells what a value's class says about the value.

graphql-core tests every value: is it an exception, awaitable, callable, a mapping? Nearly always the class decides, so
each class is examined once and the result is cached.
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
    """An `is_type_of` that tests nothing but the class of the value, so the executor caches its result per class.

    Any other function is called for each object.
    """

    def __init__(self, *classes: type) -> None:
        self.classes = classes

    def __call__(self, value: object, _info: object) -> bool:
        return isinstance(value, self.classes)


class AsItIs:
    """A scalar's `serialize` that returns values of these classes unchanged, for encoders that can write them. The
    executor recognises it and does not call it for them.
    """

    def __init__(self, *classes: type) -> None:
        self.classes = classes

    def __call__(self, value: object) -> object:
        if isinstance(value, self.classes):
            return value
        raise TypeError(f"{value!r} is none of {', '.join(cls.__name__ for cls in self.classes)}")


# The number of source classes cached at one place of a plan: enough unless a program makes classes at run time.
MAX_CLASSES = 64


class Kind(Enum):
    """How much the class of a value says about it."""

    PLAIN = "neither exception nor awaitable nor callable"
    ASK = "the same, but an instance may claim any attribute: test whether it is awaitable"
    ODD = "nothing is certain: leave the value to graphql-core"


# The class of the descriptors that read a field of a named tuple. No module exports it.
_TupleGetter = type(vars(namedtuple("_Pair", "first second"))["first"])

# Any other metaclass, or `__getattribute__`, may run code.
_METACLASSES = {type, ABCMeta}
_READS_WHAT_IS_STORED = {object.__getattribute__, tuple.__getattribute__, SimpleNamespace.__getattribute__}

# The number of examined classes to cache: enough unless a program makes classes at run time.
_MAX_CLASSES = 4096
_kinds: dict[type, Kind] = {}

# Classes known to be plain. The generated code tests `type(value) in PLAIN`.
PLAIN: set[type] = set()


def kind_of(cls: type) -> Kind:
    kind = _kinds.get(cls)
    if kind is None:
        if len(_kinds) >= _MAX_CLASSES:
            _kinds.clear()
            PLAIN.clear()
        kind = _kinds[cls] = _examine(cls)
        if kind is Kind.PLAIN:
            PLAIN.add(cls)
    return kind


def trust(cls: type) -> None:
    """Declare that instances of this class are plain although it has a `__getattr__` (a database library's row)."""
    _kinds[cls] = Kind.PLAIN
    PLAIN.add(cls)


def is_mapping(cls: type) -> bool:
    return issubclass(cls, Mapping)


def names_in_tuple(cls: type) -> tuple[str, ...] | None:
    """Return the fields of a named tuple's class if it reads them in the standard way, None for any other class."""
    names = getattr_static(cls, "_fields", None) if issubclass(cls, tuple) else None
    if not isinstance(names, tuple) or getattr_static(cls, "__iter__") is not tuple.__iter__:
        return None
    return names if all(_place_in_tuple(cls, name) == place for place, name in enumerate(names)) else None


def is_stored(cls: type, name: str) -> bool:
    """Tell whether objects of a plain class store the value of this attribute, so that reading it runs no code."""
    if cls is dict:
        return True
    # A class with `__getattr__` may be plain because of `trust`.
    if (
        type(cls) not in _METACLASSES
        or getattr_static(cls, "__getattribute__") not in _READS_WHAT_IS_STORED
        or getattr_static(cls, "__getattr__", None) is not None
    ):
        return False
    if issubclass(cls, tuple):
        return name in (names_in_tuple(cls) or ())
    # Stored in a slot, or in the object's own dict unless the class has a descriptor for it.
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
    # Built-in classes list object's own look-up as theirs; an extension class may have another.
    return cls.__module__.partition(".")[0] in sys.stdlib_module_names
