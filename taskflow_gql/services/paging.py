"""Keyset paging: orders of lists, cursors, and pages before or after a cursor.

A cursor holds the sort keys of one row and not an offset. So pages do not shift when rows are inserted or deleted, and
later pages do not cost more. It may also hold the position of the change stream when the first page of its list was
read.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import orjson
from sqlalchemy import ColumnElement, Subquery, and_, bindparam, literal, literal_column, or_, select, tuple_, union_all
from sqlalchemy.orm import InstrumentedAttribute

from taskflow_gql.database.constructs import top_of_each
from taskflow_gql.database.texts import is_storable
from taskflow_gql.database.types import FIRST_MOMENT, LAST_MOMENT
from taskflow_gql.errors import BadUserInput
from taskflow_gql.services.positions import StreamPlace

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 100

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class SortKey(Generic[Row]):
    """One key of an order. The column is never null; if `value` can be None, `null_as` is the column's value then."""

    name: str
    type: type
    column: ColumnElement[Any] | InstrumentedAttribute[Any]
    value: Callable[[Row], Any]
    descending: bool = False
    null_as: ColumnElement[Any] | None = None

    def bound(self, value: Any) -> ColumnElement[Any]:
        """A cursor's value as an expression to compare the column with. A parameter is returned unchanged."""
        if isinstance(value, ColumnElement):
            return value
        if value is None and self.null_as is not None:
            return self.null_as
        return literal(value, self.column.type)

    @property
    def signature(self) -> str:
        return f"{self.name}:{'desc' if self.descending else 'asc'}"


class Boundary(NamedTuple):
    """The content of a cursor."""

    # The sort keys of the cursor's row.
    keys: list[Any]
    # The position of the stream when the list was begun. None if no page up to this one selected `changesCursor`.
    begun: StreamPlace | None


@dataclass(frozen=True, slots=True, eq=False)
class Order(Generic[Row]):
    """Sort keys, in decreasing significance. The last key is unique, so the order is total."""

    keys: tuple[SortKey[Row], ...]
    signature: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "signature", ",".join(key.signature for key in self.keys))

    # Orders with the same signature are equal, because caches use orders as part of their keys.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Order) and self.signature == other.signature

    def __hash__(self) -> int:
        return hash(self.signature)

    def cursor(self, row: Row, begun: StreamPlace | None = None) -> str:
        values = [self.signature, *[_encode(key.value(row)) for key in self.keys]]
        if begun is not None:
            values.append(str(begun))
        return base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")

    def boundary(self, cursor: str, *, argument: str) -> Boundary:
        """Decode a cursor. Raises BadUserInput if it is damaged or of another order."""
        try:
            padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
            signature, *encoded = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
            if signature == self.signature:
                begun = StreamPlace.parse(encoded.pop()) if len(encoded) > len(self.keys) else None
                keys = [_decode(value, key) for value, key in zip(encoded, self.keys, strict=True)]
                return Boundary(keys, begun)
        except (ValueError, TypeError) as error:
            raise BadUserInput(f"{argument} is not a cursor of this server") from error
        raise BadUserInput(f"{argument} is a cursor of another ordering: start again without it")

    def clauses(self, *, backward: bool) -> list[ColumnElement[Any]]:
        return [key.column.desc() if key.descending is not backward else key.column.asc() for key in self.keys]

    def beyond(self, boundary: Sequence[Any], *, backward: bool) -> ColumnElement[bool]:
        """The condition for rows after the boundary in this order, or before it if `backward`."""
        directions = {key.descending is not backward for key in self.keys}
        values = [key.bound(value) for key, value in zip(self.keys, boundary, strict=True)]
        if len(directions) == 1:
            # A row-value comparison, which is one range of one index on both databases.
            columns = tuple_(*(key.column for key in self.keys))
            bound = tuple_(*values)
            return columns < bound if directions.pop() else columns > bound
        # Mixed directions: the same comparison, written out for each key.
        alternatives = []
        for place, key in enumerate(self.keys):
            equal = [other.column == value for other, value in zip(self.keys[:place], values, strict=False)]
            falls = key.descending is not backward
            further = key.column < values[place] if falls else key.column > values[place]
            alternatives.append(and_(*equal, further))
        return or_(*alternatives)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _encode(value: Any) -> str | int | None:
    match value:
        case datetime():
            # Microseconds since the epoch: exact, and shorter than text.
            return (value - _EPOCH) // _MICROSECOND
        case UUID():
            return value.hex
        case str() | int() | None:
            return value
        case _:
            raise TypeError(f"no sort key is a {type(value).__name__}")


def _decode(value: object, key: SortKey[Any]) -> Any:
    """The value of this sort key. Raises ValueError for a value that no cursor of this server contains."""
    kind = key.type
    if value is None and key.null_as is not None:
        return None
    if kind is datetime and type(value) is int:
        try:
            moment = _EPOCH + value * _MICROSECOND
        except OverflowError as error:
            raise ValueError("no such time") from error
        # PostgreSQL could not distinguish these two from `null_as`, and no row contains them.
        if key.null_as is not None and moment in (FIRST_MOMENT, LAST_MOMENT):
            raise ValueError("no such time in a row")
        return moment
    if kind is UUID and type(value) is str:
        return UUID(hex=value)
    # The range of a PostgreSQL integer.
    if kind is int and type(value) is int and abs(value) < 2**31:
        return value
    if kind is str and type(value) is str and is_storable(value):
        return value
    raise ValueError(f"{value!r} is not a {kind.__name__}")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The checked paging arguments of a connection field."""

    size: int
    after: str | None
    before: str | None
    backward: bool

    @classmethod
    def of(
        cls,
        *,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> PageRequest:
        """Raises BadUserInput for sizes outside 1..100, and if both first and last are given."""
        if first is not None and last is not None:
            raise BadUserInput("Give first or last, not both")
        for name, size in (("first", first), ("last", last)):
            if size is not None and not 1 <= size <= MAX_PAGE_SIZE:
                raise BadUserInput(f"{name} must be from 1 to {MAX_PAGE_SIZE}, not {size}")
        # `before` alone means the page that ends just before the cursor, as it does with `last`.
        backward = last is not None or (first is None and before is not None and after is None)
        return cls(size=first or last or DEFAULT_PAGE_SIZE, after=after, before=before, backward=backward)


def list_begun(order: Order[Any], request: PageRequest) -> StreamPlace | None:
    """The position of the stream when the list of this page was begun, from its cursors; the older one of two.

    Raises BadUserInput for invalid cursors, and for cursors of two different databases.
    """
    given = (("after", request.after), ("before", request.before))
    cursors = [order.boundary(cursor, argument=argument) for argument, cursor in given if cursor is not None]
    places = [cursor.begun for cursor in cursors if cursor.begun is not None]
    if len({place.stream_id for place in places}) > 1:
        raise BadUserInput("after and before are cursors of two databases: start again without them")
    return min(places, default=None)


@dataclass(frozen=True, slots=True)
class PageShape:
    """Everything that a page's statement depends on, apart from its parameters.

    `after` and `before` say which keys of the boundary are null. They are None without a boundary.
    """

    limit: int
    backward: bool
    after: tuple[bool, ...] | None
    before: tuple[bool, ...] | None


def shape_of(order: Order[Any], request: PageRequest) -> tuple[PageShape, dict[str, Any]]:
    """The shape, and the parameters that its statement takes. Raises BadUserInput for invalid cursors."""
    parameters: dict[str, Any] = {}

    def nulls(cursor: str | None, argument: str) -> tuple[bool, ...] | None:
        if cursor is None:
            return None
        keys = order.boundary(cursor, argument=argument).keys
        for place, value in enumerate(keys):
            if value is not None:
                parameters[f"{argument}_{place}"] = value
        return tuple(value is None for value in keys)

    # One row more than the page, to learn whether the list continues.
    shape = PageShape(
        limit=request.size + 1,
        backward=request.backward,
        after=nulls(request.after, "after"),
        before=nulls(request.before, "before"),
    )
    return shape, parameters


# Not frozen, because creating a frozen one takes three times as long, and a list of people creates one for each.
@dataclass(slots=True)
class Page(Generic[Row]):
    """The rows of one page, in the list's order also when read backward."""

    rows: list[Row]
    order: Order[Row]
    has_next: bool
    has_previous: bool
    # The number of rows of the whole list, if the page's statement counted it.
    total: int | None = None
    # The position of the stream when the list was begun, if known.
    begun: StreamPlace | None = None

    def cursor(self, row: Row) -> str:
        return self.order.cursor(row, self.begun)


def page_of(
    columns: Sequence[InstrumentedAttribute[Any]],
    scopes: Sequence[ColumnElement[bool]],
    order: Order[Any],
    shape: PageShape,
) -> Subquery:
    """The page's rows and one more. Sort them by `sort_columns`.

    `scopes` are disjoint conditions. Each one is a separate SELECT with its own index and limit, because an OR of them
    would read and sort all rows.
    """
    # A literal. For a parameter PostgreSQL assumes a tenth of the table, so the generic plan looks too expensive and it
    # re-plans every execution.
    limit: ColumnElement[int] = literal_column(str(shape.limit))
    parts = [
        select(*columns, *_labelled(order))
        .where(scope, *_bounds(order, shape))
        .order_by(*order.clauses(backward=shape.backward))
        .limit(limit)
        for scope in scopes
    ]
    if len(parts) == 1:
        return parts[0].subquery("page")
    both = union_all(*(select(part.subquery()) for part in parts)).subquery("scopes")
    return select(both).order_by(*sort_columns(both, order, shape)).limit(limit).subquery("page")


def page_of_each(
    columns: Sequence[InstrumentedAttribute[Any]],
    parent: InstrumentedAttribute[UUID],
    child: InstrumentedAttribute[Any],
    parent_ids: str,
    where: ColumnElement[bool],
    order: Order[Any],
    shape: PageShape,
) -> Subquery:
    """The same page for each parent in the parameter named `parent_ids`. Has an additional column `parent_id`."""
    return top_of_each(
        select(*columns, *_labelled(order)).where(where, *_bounds(order, shape)),
        parent=parent,
        child=child,
        keys=parent_ids,
        order_by=order.clauses(backward=shape.backward),
        limit=shape.limit,
    )


def _bounds(order: Order[Any], shape: PageShape) -> list[ColumnElement[bool]]:
    """The conditions for `after` and `before`."""
    conditions = []
    for argument, nulls in (("after", shape.after), ("before", shape.before)):
        if nulls is not None:
            boundary = [
                None if is_null else bindparam(f"{argument}_{place}", type_=key.column.type)
                for place, (key, is_null) in enumerate(zip(order.keys, nulls, strict=True))
            ]
            conditions.append(order.beyond(boundary, backward=argument == "before"))
    return conditions


def _labelled(order: Order[Any]) -> list[ColumnElement[Any]]:
    return [key.column.label(f"sort_{place}") for place, key in enumerate(order.keys)]


def sort_columns(page: Subquery, order: Order[Any], shape: PageShape) -> list[ColumnElement[Any]]:
    """The ORDER BY for the rows of a page, in the direction of reading."""
    return [
        page.c[f"sort_{place}"].desc() if key.descending is not shape.backward else page.c[f"sort_{place}"].asc()
        for place, key in enumerate(order.keys)
    ]


def make_page(
    rows: list[Row],
    order: Order[Row],
    request: PageRequest,
    total: int | None = None,
    begun: StreamPlace | None = None,
) -> Page[Row]:
    """The page, from its rows and the additional one, in the direction of reading."""
    goes_on = len(rows) > request.size
    rows = rows[: request.size]
    has_next, has_previous = goes_on, request.after is not None
    if request.backward:
        rows.reverse()
        has_next, has_previous = request.before is not None, goes_on
    return Page(rows, order, has_next, has_previous, total, begun)
