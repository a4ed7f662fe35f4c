"""Cursors and page requests, without a database."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import DateTime, Integer, String, Uuid, column

from taskflow_gql.database.texts import is_storable
from taskflow_gql.errors import BadUserInput
from taskflow_gql.services.paging import Order, PageRequest, SortKey, list_begun
from taskflow_gql.services.positions import StreamPlace
from taskflow_gql.services.task_orders import TaskOrderField, order_by


class Row(NamedTuple):
    name: str
    rank: int
    moment: datetime
    id: UUID


NAME: SortKey[Row] = SortKey("name", str, column("name", String()), lambda row: row.name)
RANK: SortKey[Row] = SortKey("rank", int, column("rank", Integer()), lambda row: row.rank, descending=True)
MOMENT: SortKey[Row] = SortKey("moment", datetime, column("moment", DateTime(timezone=True)), lambda row: row.moment)
ID: SortKey[Row] = SortKey("id", UUID, column("id", Uuid()), lambda row: row.id)
ALL_KEYS: Order[Row] = Order(keys=(NAME, RANK, MOMENT, ID))
ROW = Row("ann", 7, datetime(2026, 1, 31, 8, tzinfo=UTC), UUID(int=1))

rows = st.builds(
    Row,
    st.text().filter(is_storable),
    st.integers(-(2**31) + 1, 2**31 - 1),
    st.datetimes(timezones=st.just(UTC)),
    st.uuids(),
)


def encode(value: object) -> str:
    plain = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(plain).decode().rstrip("=")


@given(rows)
def test_a_cursor_round_trips_the_sort_keys_of_its_row(row: Row) -> None:
    cursor = ALL_KEYS.cursor(row)
    assert ALL_KEYS.boundary(cursor, argument="after") == (list(row), None)
    # The cursor needs no escaping in a URL.
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(rows, st.from_regex("[0-9a-f]{16}", fullmatch=True), st.integers(0, 10**18 - 1))
def test_a_cursor_round_trips_the_stream_position_of_its_list(row: Row, stream_id: str, position: int) -> None:
    begun = StreamPlace(stream_id, position)
    cursor = ALL_KEYS.cursor(row, begun)
    assert ALL_KEYS.boundary(cursor, argument="after") == (list(row), begun)
    assert len(cursor) <= len(ALL_KEYS.cursor(row)) + 52


@pytest.mark.parametrize(
    "place",
    [
        *("", "x", ":1", f"{'a' * 16}:", f"{'a' * 15}:1", f"{'A' * 16}:1", f"{'a' * 16}:-1", f"{'a' * 16}:{'1' * 19}"),
        *(f"{'a' * 16}:1\n", f" {'a' * 16}:1", None, 1, True, [], ["a" * 16, 1], {}),
    ],
    ids=repr,
)
def test_a_cursor_with_a_malformed_stream_position_is_refused(place: object) -> None:
    with pytest.raises(BadUserInput) as caught:
        ALL_KEYS.boundary(encode([ALL_KEYS.signature, *KEYS, place]), argument="after")
    assert caught.value.message == "after is not a cursor of this server"


A, B = "a" * 16, "b" * 16


@pytest.mark.parametrize(
    ("after", "before", "begun"),
    [
        (None, None, None),
        (StreamPlace(A, 7), None, StreamPlace(A, 7)),
        (None, StreamPlace(A, 7), StreamPlace(A, 7)),
        (StreamPlace(A, 9), StreamPlace(A, 10), StreamPlace(A, 9)),
        (StreamPlace(A, 10), StreamPlace(A, 9), StreamPlace(A, 9)),
    ],
)
def test_a_list_began_at_the_older_of_the_two_stream_positions(
    after: StreamPlace | None, before: StreamPlace | None, begun: StreamPlace | None
) -> None:
    with_both = PageRequest.of(after=ALL_KEYS.cursor(ROW, after), before=ALL_KEYS.cursor(ROW, before))
    assert list_begun(ALL_KEYS, with_both) == begun
    assert list_begun(ALL_KEYS, PageRequest.of(after=ALL_KEYS.cursor(ROW, after))) == after
    assert list_begun(ALL_KEYS, PageRequest.of(before=ALL_KEYS.cursor(ROW, before))) == before
    assert list_begun(ALL_KEYS, PageRequest.of()) is None


def test_cursors_of_two_databases_are_refused_together() -> None:
    after, before = ALL_KEYS.cursor(ROW, StreamPlace(A, 7)), ALL_KEYS.cursor(ROW, StreamPlace(B, 7))
    with pytest.raises(BadUserInput) as caught:
        list_begun(ALL_KEYS, PageRequest.of(after=after, before=before))
    assert caught.value.message == "after and before are cursors of two databases: start again without them"


@given(st.one_of(st.text(), st.binary().map(encode), st.recursive(st.none() | st.booleans() | st.floats(), st.lists)))
def test_any_other_text_is_refused_as_a_cursor_and_nothing_else_is_raised(thing: object) -> None:
    cursor = thing if isinstance(thing, str) else encode(thing)
    with pytest.raises(BadUserInput):
        ALL_KEYS.boundary(cursor, argument="after")


@given(st.lists(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([]), max_size=6))
def test_a_forged_cursor_that_is_accepted_holds_only_storable_values(values: list[object]) -> None:
    try:
        found = ALL_KEYS.boundary(encode([ALL_KEYS.signature, *values]), argument="after")
    except BadUserInput:
        return
    name, rank, moment, id_ = found.keys
    assert found.begun is None or found.begun == StreamPlace.parse(str(found.begun))
    assert is_storable(name)
    assert abs(rank) < 2**31
    assert isinstance(moment, datetime)
    assert isinstance(id_, UUID)


_, *KEYS = json.loads(base64.urlsafe_b64decode(ALL_KEYS.cursor(ROW) + "=="))
GOOD = ALL_KEYS.cursor(ROW)
NO_VALUES: dict[str, list[Any]] = {
    "name": [None, True, 1, 1.5, [], {}, "\x00", "a\x00b", "\ud800", "\udfff"],
    "rank": [None, True, "7", 1.5, [], 2**31, -(2**31), 2**63, 10**400],
    "moment": [None, True, "2026-01-31T08:00:00Z", 1.5, 10**30, -(10**400), 253402300800 * 10**6, []],
    "id": [None, True, 1, "", "zz", "0" * 31, "0" * 33, [], {}, "\x00" * 32],
}


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        " ",
        "x",
        "%%%",
        "é",
        "\N{GRINNING FACE}",
        "\x00",
        "\ud800",
        GOOD[:-3],
        GOOD[3:],
        GOOD[::-1],
        f"{GOOD}AAAA",
        f"{GOOD} ",
        f"{GOOD}\n",
        f"{GOOD[:8]}*{GOOD[9:]}",
        "A" * 50_000,
        *map(encode, (None, 1, [], {}, [ALL_KEYS.signature], [ALL_KEYS.signature, *KEYS, 1])),
        *map(encode, (b"not json", b"\xff\xfe", b"[" * 5000, b"[" * 5000 + b"]" * 5000, b'{"":' * 5000, b"9" * 5000)),
        encode(b'["' + ALL_KEYS.signature.encode() + b'",' + b"9" * 5000 + b"]"),
        encode(b'["' + ALL_KEYS.signature.encode() + b'",NaN,Infinity,-Infinity,NaN]'),
        *(
            encode([ALL_KEYS.signature, *KEYS[:place], value, *KEYS[place + 1 :]])
            for place, key in enumerate(NO_VALUES)
            for value in NO_VALUES[key]
        ),
    ],
    ids=lambda cursor: ascii(cursor[:40]),
)
def test_a_damaged_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(BadUserInput) as caught:
        ALL_KEYS.boundary(cursor, argument="before")
    assert caught.value.message == "before is not a cursor of this server"


@pytest.mark.parametrize("direction", [False, True])
@pytest.mark.parametrize("moment", [datetime.min, datetime.max])
def test_a_due_date_outside_the_allowed_range_is_refused_in_a_cursor(moment: datetime, direction: bool) -> None:
    order = order_by([(TaskOrderField.DUE_DATE, direction)])
    microseconds = (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    inside = microseconds + (1 if microseconds < 0 else -1)
    order.boundary(encode([order.signature, inside, "0" * 32]), argument="after")
    with pytest.raises(BadUserInput) as caught:
        order.boundary(encode([order.signature, microseconds, "0" * 32]), argument="after")
    assert caught.value.message == "after is not a cursor of this server"


@pytest.mark.parametrize(
    "order",
    [
        Order(keys=(NAME, RANK, ID)),
        Order(keys=(NAME, RANK, ID, MOMENT)),
        Order(keys=(NAME, SortKey("rank", int, RANK.column, RANK.value), MOMENT, ID)),
        Order(keys=(SortKey("title", str, NAME.column, NAME.value), RANK, MOMENT, ID)),
    ],
    ids=lambda order: str(order.signature),
)
def test_a_cursor_of_another_order_is_refused_with_its_own_message(order: Order[Row]) -> None:
    with pytest.raises(BadUserInput) as caught:
        ALL_KEYS.boundary(order.cursor(ROW), argument="after")
    assert caught.value.message == "after is a cursor of another ordering: start again without it"


def test_keys_of_the_same_direction_compare_as_a_row_value() -> None:
    order: Order[Row] = Order(keys=(NAME, ID))
    assert str(order.beyond(["ann", UUID(int=1)], backward=False)).startswith("(name, id) > (")
    assert str(order.beyond(["ann", UUID(int=1)], backward=True)).startswith("(name, id) < (")


def test_keys_of_mixed_directions_compare_one_after_the_other() -> None:
    order: Order[Row] = Order(keys=(NAME, RANK))
    literal = {"literal_binds": True}
    after = str(order.beyond(["ann", 7], backward=False).compile(compile_kwargs=literal))
    before = str(order.beyond(["ann", 7], backward=True).compile(compile_kwargs=literal))
    assert after == "name > 'ann' OR name = 'ann' AND rank < 7"
    assert before == "name < 'ann' OR name = 'ann' AND rank > 7"
    assert [str(clause) for clause in order.clauses(backward=False)] == ["name ASC", "rank DESC"]
    assert [str(clause) for clause in order.clauses(backward=True)] == ["name DESC", "rank ASC"]


@pytest.mark.parametrize(
    ("arguments", "size", "backward"),
    [
        ({}, 50, False),
        ({"first": 1}, 1, False),
        ({"first": 100}, 100, False),
        ({"last": 7}, 7, True),
        ({"after": "a"}, 50, False),
        ({"before": "b"}, 50, True),
        ({"after": "a", "before": "b"}, 50, False),
        ({"first": 3, "before": "b"}, 3, False),
        ({"last": 3, "after": "a"}, 3, True),
    ],
)
def test_a_page_request_has_the_size_and_direction_of_its_arguments(
    arguments: dict[str, Any], size: int, backward: bool
) -> None:
    request = PageRequest.of(**arguments)
    assert (request.size, request.backward) == (size, backward)
    assert (request.after, request.before) == (arguments.get("after"), arguments.get("before"))


@pytest.mark.parametrize("name", ["first", "last"])
@pytest.mark.parametrize("size", [0, -1, 101, 10**9])
def test_a_page_size_out_of_range_is_refused(name: str, size: int) -> None:
    with pytest.raises(BadUserInput) as caught:
        PageRequest.of(first=size) if name == "first" else PageRequest.of(last=size)
    assert caught.value.message == f"{name} must be from 1 to 100, not {size}"


def test_first_and_last_together_are_refused() -> None:
    with pytest.raises(BadUserInput) as caught:
        PageRequest.of(first=1, last=1)
    assert caught.value.message == "Give first or last, not both"
