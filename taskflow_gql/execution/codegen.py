"""Generates the function that fills in the answer for one object of a selection.

The function does for each field what graphql-core's `execute_field` does, in the same order, with what is known
beforehand left out. Where it has no shortcut it calls into `completion`. Its source is registered under a name like
`<plan Query.tasks.nodes>`, so a traceback shows the field.
"""

import itertools
import keyword
import linecache
import math
import textwrap
import weakref
from typing import TYPE_CHECKING, Any

from graphql import GraphQLBoolean, GraphQLFloat, GraphQLID, GraphQLInt, GraphQLString, is_enum_type
from graphql.type import GRAPHQL_MAX_INT, GRAPHQL_MIN_INT

from .completion import PRINTED, SERIALISED, place_serialised, unusual_leaf
from .sources import PLAIN, AsItIs
from .wait import Wait

if TYPE_CHECKING:
    from .plan import Field, Fill, Selection

# When a value of a built-in scalar may not be taken as it is, but has to go through the type's own serialisation.
_UNUSUAL = {
    GraphQLString: "type(value) is not str",
    GraphQLID: "type(value) is not str",
    GraphQLInt: f"(type(value) is not int or not {GRAPHQL_MIN_INT} <= value <= {GRAPHQL_MAX_INT})",
    GraphQLFloat: "(type(value) is not float or not isfinite(value))",
    GraphQLBoolean: "type(value) is not bool",
}

_serial = itertools.count(1)


def generate(selection: "Selection", of_mapping: bool, carried: frozenset[str] = frozenset()) -> "Fill":
    source = source_of(selection, of_mapping, carried)
    filename = f"<plan {selection.path}>"
    if filename in linecache.cache:
        filename = f"<plan {selection.path} #{next(_serial)}>"
    names = _names_used(selection)
    # Source of our own making: the client's names appear in it only as string literals and counted variables.
    exec(compile(source, filename, "exec"), names)  # noqa: S102
    fill: Fill = names["fill"]
    # An entry without a modification time is never checked against the disk.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    weakref.finalize(fill, linecache.cache.pop, filename, None)
    return fill


def source_of(selection: "Selection", of_mapping: bool, carried: frozenset[str] = frozenset()) -> str:
    """The source of `fill`; read mappings by key or other objects by attribute. Relations that the object carries with
    it are read as well.
    """
    body = "\n".join(_field_source(field, of_mapping, field.name in carried) for field in selection.fields) or "pass"
    return "def fill(run, answer, source, position):\n" + textwrap.indent(body, "    ")


def _names_used(selection: "Selection") -> dict[str, Any]:
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
    return names


def _field_source(field: "Field", of_mapping: bool, is_carried: bool) -> str:
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


def _batch_source(field: "Field", of_mapping: bool) -> str:
    assert field.batch is not None
    if not isinstance(field.batch.key, str):
        key = f"key_{field.name}(source)"
    else:
        key = f"source[{field.batch.key!r}]" if of_mapping else _attribute(field.batch.key)
    # The arguments count when the objects are loaded, but they are wrong for each object, loaded or not.
    arguments = f"run.arguments(field_{field.name})\n" if field.has_arguments else ""
    return (
        f"{arguments}"
        f"key = {key}\n"
        f"value = None\n"
        f"if key is not None:\n"
        f"    run.asked[field_{field.name}].append((answer, key, position))"
    ) + ("" if field.level.nullable else f"\nelse:\n    field_{field.name}.level.null()")


def _is_as_it_is(type_: Any) -> bool:
    # What may be awaited, or null, has to be looked at.
    coerce = getattr(type_, "coerce_output_value", None)
    return isinstance(coerce, AsItIs) and SERIALISED.issuperset(coerce.classes)


def _leaf_source(field: "Field", of_mapping: bool) -> str:
    name, type_ = field.name, field.level.nullable_type
    info = ", info" if field.resolve is not None else ""
    lines = [_read_source(field, of_mapping)]
    unusual = f"value = unusual_leaf(run, field_{name}, value, answer, position{info})"
    is_unusual = f"type(value) not in as_they_are_{name}" if _is_as_it_is(type_) else _UNUSUAL.get(type_)
    if is_unusual is not None:
        lines.append(f"if {is_unusual}{' and value is not None' if field.level.nullable else ''}:")
        if type_ is GraphQLID:
            # Often a UUID or the like.
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


def _composite_source(field: "Field", of_mapping: bool) -> str:
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
        # Nearly always of a class whose function is there.
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


def _read_source(field: "Field", of_mapping: bool) -> str:
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
    # Not every attribute can be written with a dot.
    plain = name.isidentifier() and not keyword.iskeyword(name)
    return f"source.{name}" if plain else f"getattr(source, {name!r})"
