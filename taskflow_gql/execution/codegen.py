"""Generates the functions that make the answer for one object of a selection.

`fill` does the same for each field as graphql-core's `execute_field`, in the same order, without the tests whose
results are known beforehand. Where it has no shortcut it calls `completion`. Its source is registered under a name
like `<plan Query.tasks.nodes>`, so a traceback shows the field.

`quick` is for objects that store everything that is selected. It returns the answer, or None when anything about the
object is unusual, and then `fill` does it. `quick` only reads stored values, so a failed try has no side effects.
"""

from __future__ import annotations

import itertools
import keyword
import linecache
import math
import textwrap
import weakref
from typing import Any

from graphql import GraphQLBoolean, GraphQLFloat, GraphQLID, GraphQLInt, GraphQLString, is_enum_type, is_object_type
from graphql.type import GRAPHQL_MAX_INT, GRAPHQL_MIN_INT

from .completion import PRINTED, SERIALISED, place_serialised, unusual_leaf
from .sources import PLAIN, AsItIs, IsInstance, is_stored, names_in_tuple
from .tree import Field, Fill, Quick, Selection, Wait

# Conditions under which a value of a built-in scalar has to go through the type's own serialisation.
_UNUSUAL = {
    GraphQLString: "type({0}) is not str",
    GraphQLID: "type({0}) is not str",
    GraphQLInt: f"(type({{0}}) is not int or not {GRAPHQL_MIN_INT} <= {{0}} <= {GRAPHQL_MAX_INT})",
    GraphQLFloat: "(type({0}) is not float or not isfinite({0}))",
    GraphQLBoolean: "type({0}) is not bool",
}

_serial = itertools.count(1)


def generate(selection: Selection, of_mapping: bool, carried: frozenset[str] = frozenset()) -> Fill:
    source = source_of(selection, of_mapping, carried)
    fill: Fill = _compile(selection, "fill", source, _names_used(selection))
    return fill


def generate_quick(selection: Selection, cls: type, fill: Fill) -> Quick | None:
    """Make `quick` for objects of this class, whose `fill` exists. None if a field needs more than stored values."""
    source = quick_source_of(selection, cls)
    if source is None:
        return None
    # Both functions share one namespace, which is most of the memory of a function.
    quick: Quick = _compile(selection, "quick", source, fill.__globals__)
    return quick


def _compile(selection: Selection, name: str, source: str, names: dict[str, Any]) -> Any:
    filename = f"<plan {selection.path}>"
    if filename in linecache.cache:
        filename = f"<plan {selection.path} #{next(_serial)}>"
    # The source is generated here. Names from the client appear in it only as string literals and GraphQL names.
    exec(compile(source, filename, "exec"), names)  # noqa: S102
    function = names.pop(name)
    # An entry without a modification time is never checked against the disk.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    weakref.finalize(function, linecache.cache.pop, filename, None)
    return function


def source_of(selection: Selection, of_mapping: bool, carried: frozenset[str] = frozenset()) -> str:
    """Return the source of `fill`. It reads mappings by key and other objects by attribute, also for the relations that
    the object carries.
    """
    body = "\n".join(_field_source(field, of_mapping, field.name in carried) for field in selection.fields) or "pass"
    return "def fill(run, answer, source, position):\n" + textwrap.indent(body, "    ")


def quick_source_of(selection: Selection, cls: type) -> str | None:
    """Return the source of `quick` for objects of this class, None if a field needs more than their stored values."""
    reads, checks, entries = [], [], []
    # Variables by the name of the stored value: fields with different aliases may read the same one.
    variables: dict[str, str] = {}
    of_tuple = names_in_tuple(cls)
    for number, field in enumerate(selection.fields):
        if field.is_typename:
            entries.append(f"{field.name!r}: {field.parent_type.name!r}")
            continue
        variable, stored = f"v{number}", _stored_as(field, cls)
        check = _quick_check(field, variable)
        if stored is None or check is None:
            return None
        if stored in variables:
            reads.append(f"{variable} = {variables[stored]}")
        else:
            variables[stored] = variable
            if of_tuple is None:
                reads.append(f"{variable} = {f'source[{stored!r}]' if cls is dict else _attribute(stored)}")
        checks.append(check)
        entries.append(f"{field.name!r}: {variable}")
    if of_tuple is not None and variables:
        # Unpacking the tuple is cheaper than reading each place.
        reads.insert(0, f"{' '.join(variables.get(name, '_') + ',' for name in of_tuple)} = source")
    body = "\n".join([*reads, *checks, f"return {{{', '.join(entries)}}}"])
    return (
        f"def quick(source):\n    try:\n{textwrap.indent(body, '        ')}\n    except Exception:\n        return None"
    )


def _stored_as(field: Field, cls: type) -> str | None:
    """Return the name under which objects of the class store the field's value, None if it is not just read."""
    if field.is_read_by_default:
        name: str | None = field.field_name
    elif cls is dict:
        return None
    elif field.batch is None:
        name = field.attribute
    else:
        name = field.batch.carried_as if field.is_carried_by(cls) else None
    return name if name is not None and is_stored(cls, name) else None


def _quick_check(field: Field, value: str) -> str | None:
    """Return the source that turns this variable into the answer's value or returns None from `quick`; None if that
    takes more than `quick` may do.
    """
    name, level = field.name, field.level
    type_ = level.nullable_type
    but_null = f" and {value} is not None" if level.nullable else ""
    if type_ is GraphQLID:
        return (
            f"if type({value}) in PRINTED:\n"
            f"    {value} = str({value})\n"
            f"elif type({value}) is not str{but_null}:\n"
            f"    return None"
        )
    if is_enum_type(type_):
        return (
            f"known = names_{name}.get({value} if type({value}) is str else id({value}))\n"
            f"if known is None{but_null}:\n"
            f"    return None\n"
            f"{value} = known"
        )
    if field.is_leaf:
        unusual = _unusual(field, value)
        return unusual and f"if {unusual}{but_null}:\n    return None"
    if not is_object_type(type_) or not isinstance(type_.is_type_of, IsInstance | None):
        return None
    check = (
        f"quick = quicks_{name}.get(type({value}))\n"
        f"if quick is None:\n"
        f"    return None\n"
        f"{value} = quick({value})\n"
        f"if {value} is None:\n"
        f"    return None"
    )
    return f"if {value} is not None:\n{textwrap.indent(check, '    ')}" if level.nullable else check


def _names_used(selection: Selection) -> dict[str, Any]:
    names: dict[str, Any] = {
        "PLAIN": PLAIN,
        "PRINTED": PRINTED,
        "SERIALISED": SERIALISED,
        "Wait": Wait,
        "unusual_leaf": unusual_leaf,
        "isfinite": math.isfinite,
        "place_serialised": place_serialised,
    }
    for field in selection.fields:
        names[f"field_{field.name}"] = field
        names[f"complete_{field.name}"] = field.level.complete
        if field.function is not None:
            names[f"function_{field.name}"] = field.function
        if field.resolve is not None:
            names[f"resolve_{field.name}"] = field.resolve
        if field.batch is not None:
            names[f"key_{field.name}"] = field.batch.key
        if field.is_leaf:
            names[f"coerce_{field.name}"] = field.level.nullable_type.coerce_output_value
        if _is_as_it_is(field.level.nullable_type):
            names[f"as_they_are_{field.name}"] = frozenset(field.level.nullable_type.coerce_output_value.classes)
        if is_enum_type(field.level.nullable_type):
            names[f"names_{field.name}"] = field.level.enum_names
        if field.level.items is None:
            names[f"fills_{field.name}"] = field.level.fills
            names[f"quicks_{field.name}"] = field.level.quicks
    return names


def _field_source(field: Field, of_mapping: bool, is_carried: bool) -> str:
    title = f"# {field.name}: {field.definition.type}"
    if field.is_typename:
        return f"{title}\nanswer[{field.name!r}] = {field.parent_type.name!r}"
    if field.batch is not None and not is_carried:
        body = _batch_source(field, of_mapping)
    elif field.is_leaf:
        body = _leaf_source(field, of_mapping)
    else:
        body = _composite_source(field, of_mapping)
    return (
        f"{title}\n"
        f"try:\n"
        f"{textwrap.indent(body, '    ')}\n"
        f"except Exception as error:\n"
        f"    value = run.field_failed(field_{field.name}, error, position)\n"
        f"answer[{field.name!r}] = value"
    )


def _batch_source(field: Field, of_mapping: bool) -> str:
    assert field.batch is not None
    if not isinstance(field.batch.key, str):
        key = f"key_{field.name}(source)"
    else:
        key = f"source[{field.batch.key!r}]" if of_mapping else _attribute(field.batch.key)
    # `load` uses the arguments later, but wrong arguments are an error of each object, even of one without a key.
    arguments = f"run.arguments(field_{field.name})\n" if field.has_arguments else ""
    return (
        f"{arguments}"
        f"key = {key}\n"
        f"value = None\n"
        f"if key is not None:\n"
        f"    run.asked[field_{field.name}].append((answer, key, position))"
    ) + ("" if field.level.nullable else f"\nelse:\n    field_{field.name}.level.null()")


def _unusual(field: Field, value: str) -> str | None:
    """Return the condition under which this variable needs the type's serialisation, None if it always does."""
    if _is_as_it_is(field.level.nullable_type):
        return f"type({value}) not in as_they_are_{field.name}"
    condition = _UNUSUAL.get(field.level.nullable_type)
    return condition and condition.format(value)


def _is_as_it_is(type_: Any) -> bool:
    # Other classes may be awaitable or null, so their values have to be tested.
    coerce = getattr(type_, "coerce_output_value", None)
    return isinstance(coerce, AsItIs) and SERIALISED.issuperset(coerce.classes)


def _leaf_source(field: Field, of_mapping: bool) -> str:
    name, type_ = field.name, field.level.nullable_type
    info = ", info" if field.resolve is not None else ""
    lines = [_read_source(field, of_mapping)]
    unusual = f"value = unusual_leaf(run, field_{name}, value, answer, position{info})"
    is_unusual = _unusual(field, "value")
    if is_unusual is not None:
        lines.append(f"if {is_unusual}{' and value is not None' if field.level.nullable else ''}:")
        if type_ is GraphQLID:
            # IDs are often UUIDs or numbers.
            lines.append("    if type(value) in PRINTED:\n        value = str(value)\n    else:")
            unusual = f"    {unusual}"
        lines.append(f"    {unusual}")
        return "\n".join(lines)
    other = f"{'elif value is not None' if field.level.nullable else 'else'}:\n    {unusual}"
    if is_enum_type(type_):
        lines.append(
            f"known = names_{name}.get(value if type(value) is str else id(value))\n"
            f"if known is not None:\n"
            f"    value = known\n"
            f"{other}"
        )
    else:
        lines.append(
            f"if type(value) in PLAIN:\n"
            f"    serialised = coerce_{name}(value)\n"
            f"    if type(serialised) in SERIALISED:\n"
            f"        value = serialised\n"
            f"    else:\n"
            f"        value = place_serialised(run, field_{name}, value, serialised, answer, position)\n"
            f"{other}"
        )
    return "\n".join(lines)


def _composite_source(field: Field, of_mapping: bool) -> str:
    name = field.name
    complete = []
    if field.resolve is None:
        if field.is_read_by_default:
            complete.append(f"if callable(value):\n    value = value(run.info(field_{name}, at))")
        if field.needs_info:
            complete.append(f"info = run.info(field_{name}, at)")
    info = "info" if field.resolve is not None or field.needs_info else "None"
    complete.append(f"value = complete_{name}(run, value, at, {info})")
    complete.append(f"if type(value) is Wait:\n    value.place(answer, {name!r})")

    lines = [_read_source(field, of_mapping)]
    if field.resolve is None:
        lines.append(f"at = (position, {name!r}, {field.parent_type.name!r})")
    if field.level.items is None:
        # Nearly always the function of the value's class exists already.
        lines.append(
            f"fill = fills_{name}.get(type(value))\n"
            f"if fill is not None:\n"
            f"    completed = {{}}\n"
            f"    fill(run, completed, value, at)\n"
            f"    value = completed"
        )
        lines.append("elif value is not None:" if field.level.nullable else "else:")
    elif field.level.nullable:
        lines.append("if value is not None:")
    else:
        return "\n".join([*lines, *complete])
    return "\n".join([*lines, textwrap.indent("\n".join(complete), "    ")])


def _read_source(field: Field, of_mapping: bool) -> str:
    if field.batch is not None:
        return f"value = {_attribute(field.batch.carried_as or '')}"
    if field.attribute is not None:
        return f"value = {_attribute(field.attribute)}"
    if field.function is not None:
        return f"value = function_{field.name}(source)"
    if field.is_read_by_default:
        read = "source.get({!r})" if of_mapping else "getattr(source, {!r}, None)"
        return f"value = {read.format(field.field_name)}"
    arguments = f", **run.arguments(field_{field.name})" if field.has_arguments else ""
    return (
        f"at = (position, {field.name!r}, {field.parent_type.name!r})\n"
        f"info = run.info(field_{field.name}, at)\n"
        f"value = resolve_{field.name}(source, info{arguments})"
    )


def _attribute(name: str) -> str:
    # Not every attribute name can follow a dot.
    plain = name.isidentifier() and not keyword.iskeyword(name)
    return f"source.{name}" if plain else f"getattr(source, {name!r})"
