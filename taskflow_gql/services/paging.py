"""Keyset paging: the order of a list, cursors that name it, and the page around a cursor.

A cursor holds the sort keys of one row, not its number, so a page neither shifts while rows come and go nor costs
more the deeper it lies. It may also hold where the change stream stood when the first page of its list was read.
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
    """One key of an order. The column is never null; where `value` may be, `null_as` is what the column has then."""

    name: str
    type: type
    column: ColumnElement[Any] | InstrumentedAttribute[Any]
    value: Callable[[Row], Any]
    descending: bool = False
    null_as: ColumnElement[Any] | None = None

    def bound(self, value: Any) -> ColumnElement[Any]:
        """The value of a cursor, to compare the column with; a parameter stands for itself."""
        if isinstance(value, ColumnElement):
            return value
        if value is None and self.null_as is not None:
            return self.null_as
        return literal(value, self.column.type)

    @property
    def signature(self) -> str:
        return f"{self.name}:{'desc' if self.descending else 'asc'}"


class Boundary(NamedTuple):
    """What a cursor holds."""

    # The sort keys of its row.
    keys: list[Any]
    # Where the stream stood when the list was begun. None when no page up to this one selected `changesCursor`.
    begun: StreamPlace | None


@dataclass(frozen=True, slots=True, eq=False)
class Order(Generic[Row]):
    """Sort keys, the first decides. The last key is unique, so that every row has one place."""

    keys: tuple[SortKey[Row], ...]
    signature: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "signature", ",".join(key.signature for key in self.keys))

    # Orders are equal when they sort alike: loaders are found by the order among other things.
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
        """Raises BadUserInput for a cursor that is damaged or of another order."""
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
        """The rows after the boundary, or before it, going by this order."""
        directions = {key.descending is not backward for key in self.keys}
        values = [key.bound(value) for key, value in zip(self.keys, boundary, strict=True)]
        if len(directions) == 1:
            # Row-value comparison: one range of one index, on both databases.
            columns = tuple_(*(key.column for key in self.keys))
            bound = tuple_(*values)
            return columns < bound if directions.pop() else columns > bound
        # Mixed directions: the same, written out key by key.
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
    """The value of this sort key; raises ValueError for what no cursor of ours holds."""
    kind = key.type
    if value is None and key.null_as is not None:
        return None
    if kind is datetime and type(value) is int:
        try:
            moment = _EPOCH + value * _MICROSECOND
        except OverflowError as error:
            raise ValueError("no such time") from error
        # PostgreSQL could not tell them from `null_as`, and no row has them.
        if key.null_as is not None and moment in (FIRST_MOMENT, LAST_MOMENT):
            raise ValueError("no such time in a row")
        return moment
    if kind is UUID and type(value) is str:
        return UUID(hex=value)
    # PostgreSQL takes no more for an integer.
    if kind is int and type(value) is int and abs(value) < 2**31:
        return value
    if kind is str and type(value) is str and is_storable(value):
        return value
    raise ValueError(f"{value!r} is not a {kind.__name__}")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The paging arguments of a connection field, checked."""

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
        """Raises BadUserInput for sizes out of 1..100 and for first together with last."""
        if first is not None and last is not None:
            raise BadUserInput("Give first or last, not both")
        for name, size in (("first", first), ("last", last)):
            if size is not None and not 1 <= size <= MAX_PAGE_SIZE:
                raise BadUserInput(f"{name} must be from 1 to {MAX_PAGE_SIZE}, not {size}")
        # `before` alone means the page that ends just before it, as `last` does.
        backward = last is not None or (first is None and before is not None and after is None)
        return cls(size=first or last or DEFAULT_PAGE_SIZE, after=after, before=before, backward=backward)


def list_begun(order: Order[Any], request: PageRequest) -> StreamPlace | None:
    """Where the stream stood when the list of this page was begun, by its cursors; the older one of two.

    Raises BadUserInput for bad cursors, and for those of two databases.
    """
    given = (("after", request.after), ("before", request.before))
    cursors = [order.boundary(cursor, argument=argument) for argument, cursor in given if cursor is not None]
    places = [cursor.begun for cursor in cursors if cursor.begun is not None]
    if len({place.stream_id for place in places}) > 1:
        raise BadUserInput("after and before are cursors of two databases: start again without them")
    return min(places, default=None)


@dataclass(frozen=True, slots=True)
class PageShape:
    """What a page's statement is built by; what changes from request to request are its parameters.

    `after` and `before` say which keys of the boundary are null, and are None without a boundary.
    """

    limit: int
    backward: bool
    after: tuple[bool, ...] | None
    before: tuple[bool, ...] | None


def shape_of(order: Order[Any], request: PageRequest) -> tuple[PageShape, dict[str, Any]]:
    """The shape, and the parameters that its statement wants. Raises BadUserInput for bad cursors."""
    parameters: dict[str, Any] = {}

    def nulls(cursor: str | None, argument: str) -> tuple[bool, ...] | None:
        if cursor is None:
            return None
        keys = order.boundary(cursor, argument=argument).keys
        for place, value in enumerate(keys):
            if value is not None:
                parameters[f"{argument}_{place}"] = value
        return tuple(value is None for value in keys)

    # One row more than the page has: it tells whether the list goes on.
    shape = PageShape(
        limit=request.size + 1,
        backward=request.backward,
        after=nulls(request.after, "after"),
        before=nulls(request.before, "before"),
    )
    return shape, parameters


# Not frozen: a list of people makes one for each, and a frozen one takes three times as long to make.
@dataclass(slots=True)
class Page(Generic[Row]):
    """The rows of one page, in the list's order whichever way it was read."""

    rows: list[Row]
    order: Order[Row]
    has_next: bool
    has_previous: bool
    # How many rows the whole list has, when that was asked for and could be read along.
    total: int | None = None
    # Where the stream stood when the list was begun, when that is known.
    begun: StreamPlace | None = None

    def cursor(self, row: Row) -> str:
        return self.order.cursor(row, self.begun)


def page_of(
    columns: Sequence[InstrumentedAttribute[Any]],
    scopes: Sequence[ColumnElement[bool]],
    order: Order[Any],
    shape: PageShape,
) -> Subquery:
    """The page's rows and one row more, ordered by `sort_columns`.

    `scopes` are conditions of which each row meets at most one. Each is read by itself, from an index that fits it,
    no further than the page is long: an OR of the two would have all rows read and sorted.
    """
    # Not a parameter: PostgreSQL would plan for a tenth of the table, and because that is dear, plan anew each time.
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
    """The same page for each parent of the parameter `parent_ids`, with `parent_id` beside the columns."""
    return top_of_each(
        select(*columns, *_labelled(order)).where(where, *_bounds(order, shape)),
        parent=parent,
        child=child,
        keys=parent_ids,
        order_by=order.clauses(backward=shape.backward),
        limit=shape.limit,
    )


def _bounds(order: Order[Any], shape: PageShape) -> list[ColumnElement[bool]]:
    """The conditions that `after` and `before` make."""
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
    """The order of the rows of a page as it was read: towards the end, or towards the start."""
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
    """The page from its rows and the one row more, in the order in which they were read."""
    goes_on = len(rows) > request.size
    rows = rows[: request.size]
    has_next, has_previous = goes_on, request.after is not None
    if request.backward:
        rows.reverse()
        has_next, has_previous = request.before is not None, goes_on
    return Page(rows, order, has_next, has_previous, total, begun)
