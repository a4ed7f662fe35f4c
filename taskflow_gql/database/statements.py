"""Statements that are built once and run for many requests.

SQLAlchemy builds them and knows their types. For PostgreSQL it also compiles them once; from then on they are sent
directly through the driver, because SQLAlchemy's execution costs more than the round trip
(docs/decisions/0007-short-ways.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Dialect, Enum, Executable, SelectBase
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from taskflow_gql.database.private import positional_parameters, result_types

# Each row is a tuple of the columns, or what the statement's `Build` makes of them.
Rows: TypeAlias = list[Any]
Read: TypeAlias = Callable[[Iterable[Any]], Rows]


@dataclass(frozen=True, slots=True)
class Build:
    """How to make a row from a record: a tuple of `row_class` whose parts are columns, by index, or nested rows."""

    row_class: type[tuple[Any, ...]]
    parts: tuple[int | Build, ...]
    # For an outer join: the row is None when its first part is NULL.
    is_optional: bool = False


class Statement:
    """A SQLAlchemy Core statement. All its values are parameters, passed by name to `DatabaseSession.run`."""

    def __init__(self, clause: Executable, build: Build | None = None) -> None:
        self.clause = clause
        self.build = build
        self._compiled: CompiledStatement | None = None
        self._read: Read | None = None

    def compiled_for(self, dialect: Dialect) -> CompiledStatement:
        if self._compiled is None:
            self._compiled = CompiledStatement(self.clause, self.build, dialect)
        return self._compiled

    def read(self, rows: Iterable[Any]) -> Rows:
        """The statement's rows, made from rows that SQLAlchemy has read."""
        if self._read is None:
            width = len(self.clause.selected_columns) if isinstance(self.clause, SelectBase) else 0
            self._read = _reader(self.build, width, {}) if self.build else list
        return self._read(rows)


class CompiledStatement:
    """A statement in the form that asyncpg takes, with the conversions of its parameters and results."""

    def __init__(self, clause: Executable, build: Build | None, dialect: Dialect) -> None:
        compiled: SQLCompiler = clause.compile(dialect=dialect)  # type: ignore[attr-defined]
        self._parameters = [
            (name, parameter, _processor_of_parameter(parameter.type, dialect))
            for name, parameter in positional_parameters(compiled)
        ]
        self.sql = str(compiled)
        columns = result_types(compiled)
        processors = ((place, _processor_of_result(type_, dialect)) for place, type_ in enumerate(columns))
        processes = {place: process for place, process in processors if process is not None}
        self.rows = _reader(build, len(columns), processes)

    def arguments(self, parameters: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the placeholders. Raises KeyError for a missing parameter without a default."""
        values = []
        for name, parameter, process in self._parameters:
            value = parameters[name] if parameter.required else parameters.get(name, parameter.effective_value)
            values.append(value if process is None or value is None else process(value))
        return values


def _reader(build: Build | None, width: int, processes: Mapping[int, Callable[[Any], Any]]) -> Read:
    """A function that makes rows from records with `width` columns.

    `processes` converts the values of a column that are not NULL. The function is generated source, because a loop over
    the columns of each row would be the most expensive part of reading a page.
    """
    names: dict[str, Any] = {"new": tuple.__new__}

    def expression(part: int | Build) -> str:
        if isinstance(part, int):
            if part not in processes:
                return f"c{part}"
            names[f"process_{part}"] = processes[part]
            return f"None if c{part} is None else process_{part}(c{part})"
        made = f"({''.join(f'{expression(inner)}, ' for inner in part.parts)})"
        if part.row_class is not tuple:
            name = f"row_class_{len(names)}"
            names[name] = part.row_class
            made = f"new({name}, {made})"
        return f"None if c{_first_place(part)} is None else {made}" if part.is_optional else made

    columns = "".join(f"c{place}, " for place in range(width))
    row = expression(build or Build(tuple, tuple(range(width))))
    source = f"def read(records): return [{row} for {columns} in records]" if width else "def read(_records): return []"
    # The source is safe: everything in it is written above, except numbers.
    exec(source, names)  # noqa: S102
    read: Read = names["read"]
    return read


def _first_place(part: int | Build) -> int:
    return part if isinstance(part, int) else _first_place(part.parts[0])


def _processor_of_parameter(type_: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    return type_.dialect_impl(dialect).bind_processor(dialect)


def _processor_of_result(type_: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    if isinstance(type_, Enum) and type_.enum_class is not None:
        return {str(name): member for name, member in type_.enum_class.__members__.items()}.__getitem__
    return type_.dialect_impl(dialect).result_processor(dialect, None)
