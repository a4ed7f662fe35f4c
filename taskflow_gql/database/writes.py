"""Writes that run together: on PostgreSQL as one statement, in one round trip."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Insert, Table, UpdateBase, bindparam, func, insert, select
from sqlalchemy.sql.dml import ReturningInsert

from taskflow_gql.database.statements import Statement


class WritePair(NamedTuple):
    """A write, and an insert that returns the ids of its rows.

    They do not read each other's rows, and their parameters have different names. Both are cached, so callers pass the
    same objects every time.
    """

    first: UpdateBase
    first_values: Mapping[str, Any]
    second: ReturningInsert[int]
    second_values: Mapping[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        return {**self.first_values, **self.second_values}


class InsertWithIds(NamedTuple):
    """An insert whose row lists the ids that all pairs of its transaction returned."""

    table: Table
    # The column of the list.
    ids: str
    # The other columns.
    values: Mapping[str, Any]

    def parameters(self, earlier_ids: list[int]) -> dict[str, Any]:
        return {f"last_{name}": value for name, value in {**self.values, self.ids: earlier_ids}.items()}


@cache
def alone(write: UpdateBase) -> Statement:
    return Statement(write)


@cache
def together(first: UpdateBase, second: ReturningInsert[int]) -> Statement:
    return Statement(second.add_cte(first.cte("first")))


@cache
def insert_alone(table: Table, ids: str) -> Statement:
    return Statement(_insert(table, ids).values({ids: bindparam(f"last_{ids}", type_=table.c[ids].type)}))


@cache
def all_together(first: UpdateBase, second: ReturningInsert[int], table: Table, ids: str) -> Statement:
    """Returns one row with the list of ids."""
    returned = second.cte("second")
    earlier = bindparam(f"last_{ids}", type_=table.c[ids].type)
    listed = func.array_cat(earlier, func.array(select(returned.c.id).scalar_subquery()), type_=table.c[ids].type)
    return Statement(_insert(table, ids).values({ids: listed}).returning(table.c[ids]).add_cte(first.cte("first")))


def _insert(table: Table, ids: str) -> Insert:
    return (
        insert(table)
        .values({column.name: bindparam(f"last_{column.name}") for column in table.c if column.name != ids})
        .inline()
    )
