"""Statements that are built once and run with every request.

SQLAlchemy builds them and knows their types. On PostgreSQL it also compiles them, once, and from then on they go
straight to the driver: its own way there costs more than the round trip (docs/decisions/0007-short-ways.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from sqlalchemy import Dialect, Enum, Executable
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

# Each a sequence of the columns.
Rows: TypeAlias = list[Any]


class Statement:
    """A statement of SQLAlchemy's Core whose values are parameters, given by name to `DatabaseSession.run`."""

    def __init__(self, clause: Executable) -> None:
        self.clause = clause
        self._compiled: CompiledStatement | None = None

    def compiled_for(self, dialect: Dialect) -> CompiledStatement:
        if self._compiled is None:
            self._compiled = CompiledStatement(self.clause, dialect)
        return self._compiled


class CompiledStatement:
    """A statement as PostgreSQL's driver takes it, and what is to be done to values on their way in and out."""

    def __init__(self, clause: Executable, dialect: Dialect) -> None:
        compiled: SQLCompiler = clause.compile(dialect=dialect)  # type: ignore[attr-defined]
        if compiled.post_compile_params:
            raise TypeError("A parameter that expands has no place in what is compiled once; see `database.among`")
        self.sql = str(compiled)
        self._parameters = [
            (name, compiled.binds[name], _processor_of_parameter(compiled.binds[name].type, dialect))
            for name in compiled.positiontup or ()
        ]
        columns = compiled._result_columns
        processors = ((place, _processor_of_result(column.type, dialect)) for place, column in enumerate(columns))
        self._results = [(place, process) for place, process in processors if process is not None]

    def arguments(self, parameters: Mapping[str, Any]) -> list[Any]:
        """Raises KeyError when a parameter without a value of its own is left out."""
        values = []
        for name, parameter, process in self._parameters:
            value = parameters[name] if parameter.required else parameters.get(name, parameter.effective_value)
            values.append(value if process is None or value is None else process(value))
        return values

    def rows(self, records: Iterable[Iterable[Any]]) -> Rows:
        rows: Rows = []
        results = self._results
        for record in records:
            row = list(record)
            for place, process in results:
                value = row[place]
                if value is not None:
                    row[place] = process(value)
            rows.append(row)
        return rows


def _processor_of_parameter(type_: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    return type_.dialect_impl(dialect).bind_processor(dialect)


def _processor_of_result(type_: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    if isinstance(type_, Enum) and type_.enum_class is not None:
        return {str(name): member for name, member in type_.enum_class.__members__.items()}.__getitem__
    return type_.dialect_impl(dialect).result_processor(dialect, None)
