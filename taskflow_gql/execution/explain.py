"""Shows the plan of an operation as a tree, and the functions generated for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from graphql import (
    DocumentNode,
    GraphQLSchema,
    OperationType,
    get_named_type,
    is_abstract_type,
    is_object_type,
    parse,
)

from .cache import Document
from .codegen import quick_source_of, source_of
from .executor import CompilingExecutor
from .planner import may_be_quick
from .tree import Field, Selection


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan and its generated source, which is empty if there is no plan."""

    plan: str
    source: str

    def __str__(self) -> str:
        return f"{self.plan}\n\n{self.source}" if self.source else self.plan


def explain(
    schema: GraphQLSchema,
    document: DocumentNode | str,
    *,
    operation_name: str | None = None,
    variables: dict[str, Any] | None = None,
    executor_class: type[CompilingExecutor] = CompilingExecutor,
) -> Explanation:
    """Return the plan of a valid operation and its source for objects with attributes.

    The source has `fill`, and `quick` for objects that store everything that is selected. Raises the first
    GraphQLError. Only the variables that @skip and @include use make a difference.
    """
    if isinstance(document, str):
        document = parse(document)
    executor = executor_class.build(schema, document, None, None, variables, operation_name)
    if isinstance(executor, list):
        raise executor[0]
    assert isinstance(executor, CompilingExecutor)
    examined = Document(("", 0), executor.operation, executor.fragment_definitions, take_room=lambda *_: True)
    plan = executor.make_plan(examined) if examined.can_be_planned else None
    if plan is None:
        return Explanation("Not planned: graphql-core executes this operation.", "")

    operation = executor.operation
    is_serial = operation.operation is OperationType.MUTATION
    name = operation.name.value if operation.name else ""
    lines = [f"{operation.operation.value} {name}".rstrip() + (", one field after the other" if is_serial else "")]
    sources: list[str] = []
    for selection in plan.serial if is_serial else [plan.root]:
        _explain(selection, executor_class, "  ", lines, sources)
    return Explanation("\n".join(lines), "\n".join(sources))


def _explain(
    selection: Selection, executor_class: type[CompilingExecutor], indent: str, lines: list[str], sources: list[str]
) -> None:
    sources.append(f"# <plan {selection.path}>\n{source_of(selection, of_mapping=False)}\n")
    quick = quick_source_of(selection, _class_that_holds(selection)) if may_be_quick(selection) else None
    if quick is not None:
        sources.append(f"# <plan {selection.path}>, in lists, of objects that store all of it\n{quick}\n")
    for field in selection.fields:
        lines.append(f"{indent}{field.name}: {field.definition.type}  {_reading(field, executor_class)}")
        named_type = get_named_type(field.definition.type)
        for inner in _selections_of(field):
            if inner.type is named_type:
                _explain(inner, executor_class, f"{indent}  ", lines, sources)
            else:
                lines.append(f"{indent}  on {inner.type}")
                _explain(inner, executor_class, f"{indent}    ", lines, sources)


def _class_that_holds(selection: Selection) -> type:
    """Make a class whose objects carry all relations that can be carried."""
    carried = [field.batch.carried_as for field in selection.fields if field.batch and field.batch.carried_as]
    return type("Row", (), dict.fromkeys(carried))


def _reading(field: Field, executor_class: type[CompilingExecutor]) -> str:
    if field.is_typename:
        return "is known"
    if field.batch is not None:
        load = getattr(field.batch.load, "__qualname__", repr(field.batch.load))
        key = field.batch.key if isinstance(field.batch.key, str) else field.batch.key.__qualname__
        carried = f", unless they carry {field.batch.carried_as}" if field.batch.carried_as else ""
        return f"loaded for all objects by {load}, key {key}{carried}"
    if field.attribute is not None:
        return f"read from .{field.attribute}"
    if field.function is not None:
        return f"by {getattr(field.function, '__qualname__', repr(field.function))}, called directly"
    if field.is_read_by_default:
        return f"read from .{field.field_name}"
    return f"resolved by {executor_class.resolver_name(field.definition)}"


def _selections_of(field: Field) -> Iterator[Selection]:
    level = field.level
    while level.items is not None:
        level = level.items
    named_type = level.nullable_type
    if is_abstract_type(named_type):
        for type_ in field.plan.schema.get_possible_types(named_type):
            yield level.selection_of(type_)
    elif is_object_type(named_type):
        yield level.selection_of(named_type)
