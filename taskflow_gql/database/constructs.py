"""SQL constructs that compile differently for PostgreSQL and SQLite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Alias,
    Boolean,
    ColumnElement,
    Integer,
    Select,
    Subquery,
    bindparam,
    func,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.base import ReadOnlyColumnCollection
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import OperatorType

from taskflow_gql.database.private import alias_of_class
from taskflow_gql.database.types import Model, UtcDateTime, ValueList


class Condition(FunctionElement[bool]):
    """The base class of conditions."""

    type = Boolean()
    inherit_cache = True

    def self_group(self, against: OperatorType | None = None) -> Any:
        # SQLAlchemy would append `= 1` on SQLite, which then scans the table instead of using the index.
        return self


class _DatabaseNow(FunctionElement[datetime]):
    type = UtcDateTime()
    inherit_cache = True


@compiles(_DatabaseNow, "postgresql")
def _database_now_on_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    return "now()"


@compiles(_DatabaseNow, "sqlite")
def _database_now_on_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    # In the form in which SQLAlchemy stores times.
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


def database_now() -> ColumnElement[datetime]:
    """The start of the transaction by the clock of the database, which all servers share."""
    return _DatabaseNow()


class _MatchesWords(Condition):
    inherit_cache = True


@compiles(_MatchesWords, "postgresql")
def _matches_words_on_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    _, words, query = (compiler.process(clause, **options) for clause in element.clauses)
    # From an array, not from text: a text search parser would split the words again.
    return f"(array_to_tsvector(string_to_array({words}, ' ')) @@ CAST({query} AS tsquery))"


@compiles(_MatchesWords, "sqlite")
def _matches_words_on_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    key, _, query = (compiler.process(clause, **options) for clause in element.clauses)
    found = (
        "SELECT task_search_ids.task_id FROM task_search"
        " JOIN task_search_ids ON task_search_ids.id = task_search.rowid WHERE task_search MATCH"
    )
    return f"({key} IN ({found} {query}))"


def matches_words(
    task_id: ColumnElement[UUID] | InstrumentedAttribute[UUID],
    words: ColumnElement[str] | InstrumentedAttribute[str],
    query: ColumnElement[tuple[str, ...]],
) -> ColumnElement[bool]:
    """Whether each word of the query, a WordsQuery, is the prefix of a word of the task. Uses the index on words."""
    return _MatchesWords(task_id, words, query)


class _PositionOf(FunctionElement[int]):
    type = Integer()
    inherit_cache = True


@compiles(_PositionOf, "postgresql")
def _position_on_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **options)})"


@compiles(_PositionOf, "sqlite")
def _position_on_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    return f"instr({compiler.process(element.clauses, **options)})"


def position_of(text: Any, part: ColumnElement[str] | str) -> ColumnElement[int]:
    """The position of the part in the text, counted from 1; 0 when it is absent. Case-sensitive."""
    return _PositionOf(text, literal(part) if isinstance(part, str) else part)


class AfterAllTimes(ColumnElement[datetime]):
    """Later than every time. A literal, so that the databases recognise indexes on expressions that contain it."""

    type = UtcDateTime()
    inherit_cache = True


class BeforeAllTimes(ColumnElement[datetime]):
    """Earlier than every time."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(AfterAllTimes, "postgresql")
def _after_all_times_on_postgresql(_: Any, _compiler: SQLCompiler, **_options: Any) -> str:
    return "'infinity'::timestamptz"


@compiles(BeforeAllTimes, "postgresql")
def _before_all_times_on_postgresql(_: Any, _compiler: SQLCompiler, **_options: Any) -> str:
    return "'-infinity'::timestamptz"


@compiles(AfterAllTimes, "sqlite")
def _after_all_times_on_sqlite(_: Any, _compiler: SQLCompiler, **_options: Any) -> str:
    # SQLite stores times as text, and no minute has a 60th second.
    return "'9999-12-31 23:59:60'"


@compiles(BeforeAllTimes, "sqlite")
def _before_all_times_on_sqlite(_: Any, _compiler: SQLCompiler, **_options: Any) -> str:
    return "''"


class _Among(Condition):
    inherit_cache = True


@compiles(_Among, "postgresql")
def _among_on_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({column} = ANY ({values}))"


@compiles(_Among, "sqlite")
def _among_on_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({column} IN (SELECT value FROM json_each({values})))"  # noqa: S608


def among(column: Any, values: ColumnElement[Any] | str) -> ColumnElement[bool]:
    """Whether the column is one of `values`: a parameter of type ValueList, or the name of one."""
    return _Among(column, bindparam(values, type_=ValueList(column.type)) if isinstance(values, str) else values)


class _AmongFew(_Among):
    inherit_cache = True


@compiles(_AmongFew, "postgresql")
def _among_few_on_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({column} = ANY (ARRAY(SELECT unnest({values}))))"


def among_few(column: Any, values: str) -> ColumnElement[bool]:
    """As `among`, for frequent statements whose list is usually short.

    PostgreSQL assumes ten values for an array parameter. With fewer, the generic plan looks too expensive and it
    re-plans every execution, which costs more than the look-up. The subquery hides the length of the list, so both
    plans cost the same.
    """
    return _AmongFew(column, bindparam(values, type_=ValueList(column.type)))


class _TopOfEach(Select[Any]):
    """Compiles on SQLite as the statement of `on_sqlite`, which has the same columns and parameters."""

    inherit_cache = True

    on_sqlite: Callable[[], Select[Any]]


@compiles(_TopOfEach, "sqlite")
def _top_of_each_on_sqlite(element: _TopOfEach, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.on_sqlite(), **options)


def top_of_each(
    rows: Select[Any],
    *,
    parent: InstrumentedAttribute[UUID] | None,
    child: InstrumentedAttribute[Any],
    keys: str,
    order_by: Sequence[ColumnElement[Any]],
    limit: int,
) -> Subquery:
    """The first `limit` rows for each key in the parameter `keys`: rows whose `child` column equals the key.

    The subquery has the columns of `rows` and the key as `parent_id`. `parent` is the column that `child` refers to, or
    None if the object of a key may be gone.

    PostgreSQL looks each key up in the index and stops at the limit. SQLite has no LATERAL and numbers all rows of
    every key.
    """
    # A literal, because a generic plan is good only if PostgreSQL knows the limit.
    most: ColumnElement[int] = literal_column(str(limit))

    def numbered() -> Select[Any]:
        number = func.row_number().over(partition_by=child, order_by=list(order_by)).label("number")
        inner = rows.add_columns(child.label("parent_id"), number).where(among(child, keys)).subquery("numbered")
        return select(inner).where(inner.c.number <= most)

    if parent is None:
        # Twice, to hide the length of the list as in `among_few`.
        values = select(func.unnest(bindparam(keys, type_=ValueList(child.type)))).scalar_subquery()
        parents = select(func.unnest(func.array(values), type_=child.type).label("parent_id")).subquery("parents")
    else:
        parents = select(parent.label("parent_id")).where(among_few(parent, keys)).subquery("parents")
    top = rows.where(child == parents.c.parent_id).order_by(*order_by).limit(most).lateral("top")
    both = _TopOfEach(parents.c.parent_id, top).join(top, true())
    both.on_sqlite = numbered
    return both.subquery("page")


class _LookedUp(Alias):
    """A table joined by its id. On PostgreSQL it is a LATERAL subquery that contains the join condition."""

    inherit_cache = True

    key: ColumnElement[Any] | InstrumentedAttribute[Any]


@compiles(_LookedUp, "postgresql")
def _looked_up_on_postgresql(element: _LookedUp, compiler: SQLCompiler, **options: Any) -> str:
    table = element.element
    row = select(table).where(table.c.id == element.key).limit(literal_column("1"))
    return compiler.process(row.lateral(element.name), **options)


class _HasId(Condition):
    """The join condition of `_LookedUp`: `true` on PostgreSQL, whose subquery contains it."""

    inherit_cache = True


@compiles(_HasId, "postgresql")
def _has_id_on_postgresql(_: Any, _compiler: SQLCompiler, **_options: Any) -> str:
    return "true"


@compiles(_HasId, "sqlite")
def _has_id_on_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    id_, key = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{id_} = {key}"


def look_up(
    statement: Select[Any], model: type[Model], key: ColumnElement[Any] | InstrumentedAttribute[Any], name: str
) -> tuple[Select[Any], ReadOnlyColumnCollection[str, Any]]:
    """The statement joined to the row of the model whose id is `key`, and the columns of that row.

    It is an outer join: the columns are NULL when there is no such row. The subquery makes PostgreSQL look each row up
    in the index. For a plain join its estimates prefer to scan a table of some thousand rows.
    """
    table = model.__table__
    row = alias_of_class(_LookedUp, table, name)
    row.key = key
    return statement.outerjoin(row, _HasId(row.c.id, key)), row.c
