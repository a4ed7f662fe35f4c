"""A column of ids: an array on PostgreSQL, text on SQLite."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Boolean, ColumnElement, Dialect, Text, TypeDecorator, Uuid
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from taskflow_gql.database.constructs import Condition


class IdList(TypeDecorator[Collection[UUID]]):
    """Ids in no particular order. SQLite has no arrays and stores their hexadecimal digits with a blank between two."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(ARRAY(Uuid()) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Collection[UUID] | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value if value is None else list(value)
        return " ".join(one.hex for one in value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        # asyncpg returns lists of UUIDs already.
        return None if dialect.name == "postgresql" else super().result_processor(dialect, coltype)

    def process_result_value(self, value: Any, dialect: Dialect) -> list[UUID] | None:
        return None if value is None else [UUID(hex=digits) for digits in value.split()]


class _Includes(Condition):
    type = Boolean()
    inherit_cache = True


@compiles(_Includes, "postgresql")
def _includes_on_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    ids, one = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({one} = ANY ({ids}))"


@compiles(_Includes, "sqlite")
def _includes_on_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    ids, one = (compiler.process(clause, **options) for clause in element.clauses)
    # All ids have the same length, and no digit is a blank: a match cannot straddle two of them.
    return f"(instr({ids}, {one}) > 0)"


def includes(ids: Any, one: ColumnElement[UUID]) -> ColumnElement[bool]:
    """Whether the IdList column holds this id."""
    return _Includes(ids, one)
