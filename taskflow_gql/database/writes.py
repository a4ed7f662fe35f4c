"""Writes that run together: on PostgreSQL as one statement, in one round trip."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Table, UpdateBase, bindparam, func, insert, literal_column, select
from sqlalchemy.sql.dml import ReturningInsert

from taskflow_gql.database.statements import Statement


class WritePair(NamedTuple):
    """A write of one row, and an insert that records it in a table with a generated `id`.

    The write is cached, so callers pass the same object every time. Its parameters do not begin with `second_`.
    """

    first: UpdateBase
    first_values: Mapping[str, Any]
    table: Table
    values: Mapping[str, Any]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.values)

    @property
    def second_parameters(self) -> dict[str, Any]:
        return {f"second_{name}": value for name, value in self.values.items()}

    @property
    def parameters(self) -> dict[str, Any]:
        return {**self.first_values, **self.second_parameters}


class InsertWithIds(NamedTuple):
    """An insert whose row lists the ids that all pairs of its transaction made."""

    table: Table
    # The column of the list.
    ids: str
    # The other columns.
    values: Mapping[str, Any]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.values)

    def parameters(self, earlier_ids: list[int]) -> dict[str, Any]:
        return {f"last_{name}": value for name, value in {**self.values, self.ids: earlier_ids}.items()}


@cache
def write_alone(write: UpdateBase) -> Statement:
    return Statement(write)


@cache
def second_alone(table: Table, columns: tuple[str, ...]) -> Statement:
    values = {name: _parameter(table, name, "second") for name in columns}
    return Statement(insert(table).values(values).inline().returning(table.c.id))


@cache
def last_alone(table: Table, columns: tuple[str, ...], ids: str) -> Statement:
    values = {name: _parameter(table, name, "last") for name in (*columns, ids)}
    return Statement(insert(table).values(values).inline())


@cache
def pair_together(first: UpdateBase, table: Table, columns: tuple[str, ...]) -> Statement:
    """Returns the new id; nothing, and inserts nothing, if the first write wrote no row."""
    return Statement(_pair(first, table, columns))


@cache
def all_together(
    first: UpdateBase, table: Table, columns: tuple[str, ...], last: Table, last_columns: tuple[str, ...], ids: str
) -> Statement:
    """Returns the list of ids; nothing, and inserts nothing, if the first write wrote no row."""
    made = _pair(first, table, columns).cte("second")
    values: list[ColumnElement[Any]] = [_parameter(last, name, "last") for name in last_columns]
    listed = func.array_append(_parameter(last, ids, "last"), made.c.id, type_=last.c[ids].type)
    rows = select(*values, listed).select_from(made)
    return Statement(insert(last).from_select([*last_columns, ids], rows).returning(last.c[ids]))


def _pair(first: UpdateBase, table: Table, columns: tuple[str, ...]) -> ReturningInsert[int]:
    # The id is generated for a row of `written`, so after the first write has locked its row.
    written = first.returning(literal_column("1").label("one")).cte("first")
    rows = select(*(_parameter(table, name, "second") for name in columns)).select_from(written)
    return insert(table).from_select(columns, rows).returning(table.c.id)


def _parameter(table: Table, name: str, prefix: str) -> ColumnElement[Any]:
    return bindparam(f"{prefix}_{name}", type_=table.c[name].type)
