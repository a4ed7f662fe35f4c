"""Events as the record holds them, and the cursors that name a place in it."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow_gql.errors import BadUserInput
from taskflow_gql.models import EventKind, TaskCategory, TaskPriority, TaskRow, TaskStatus
from taskflow_gql.services.events import (
    EVENT_COLUMNS,
    RowCodec,
    TaskChanged,
    TaskField,
    changed_fields,
    decode_cursor,
    encode_cursor,
    event_of_row,
    json_of_task,
)

STREAM = "0123456789abcdef"
NOW = datetime(2026, 1, 31, 8, 0, 0, 1, tzinfo=UTC)
TASK = TaskRow(
    id=UUID(int=1),
    title="A task",
    description=None,
    status=TaskStatus.PENDING,
    priority=TaskPriority.MEDIUM,
    category=TaskCategory.OTHER,
    due_date=None,
    completed_at=None,
    creator_id=UUID(int=2),
    assignee_id=None,
    version=1,
    created_at=NOW,
    updated_at=NOW,
)
moments = st.datetimes(timezones=st.just(UTC))
task_rows = st.builds(
    TaskRow,
    id=st.uuids(),
    title=st.text(),
    description=st.none() | st.text(),
    status=st.sampled_from(TaskStatus),
    priority=st.sampled_from(TaskPriority),
    category=st.sampled_from(TaskCategory),
    due_date=st.none() | moments,
    completed_at=st.none() | moments,
    creator_id=st.uuids(),
    assignee_id=st.none() | st.uuids(),
    version=st.integers(1),
    created_at=moments,
    updated_at=moments,
)


@given(
    st.builds(
        TaskChanged,
        id=st.integers(1),
        position=st.integers(1),
        kind=st.sampled_from(EventKind),
        task_id=st.uuids(),
        actor_id=st.none() | st.uuids(),
        changed_fields=st.lists(st.sampled_from(TaskField), unique=True).map(tuple),
        before=st.none() | task_rows,
        after=st.none() | task_rows,
        occurred_at=moments,
    )
)
def test_an_event_comes_out_of_the_record_as_it_went_in(event: TaskChanged) -> None:
    kept: dict[str, Any] = {
        "id": event.id,
        "position": event.position,
        "kind": event.kind,
        "task_id": event.task_id,
        "actor_id": event.actor_id,
        "changed_fields": ",".join(event.changed_fields),
        # Through JSON, as in the table.
        "before": json.loads(json.dumps(json_of_task(event.before))),
        "after": json.loads(json.dumps(json_of_task(event.after))),
        "occurred_at": event.occurred_at,
    }
    assert event_of_row([kept[column.key] for column in EVENT_COLUMNS]) == event


FROZEN_EVENTS: dict[str, list[dict[str, Any]]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "frozen_events").glob("*.json"))
}
MORNING = datetime(2026, 11, 21, 8, 30, 0, 123456, tzinfo=UTC)
NEW_TASK = TaskRow(
    id=UUID("01939c4e-7c00-7000-8000-000000000001"),
    title="Pay the rent",
    description=None,
    status=TaskStatus.PENDING,
    priority=TaskPriority.MEDIUM,
    category=TaskCategory.HOME,
    due_date=None,
    completed_at=None,
    creator_id=UUID("01939c4e-7c00-7000-8000-00000000000a"),
    assignee_id=None,
    version=1,
    created_at=MORNING,
    updated_at=MORNING,
)
DONE_TASK = NEW_TASK._replace(
    title="Pay the rent – late",
    description="By transfer\n",
    status=TaskStatus.COMPLETED,
    priority=TaskPriority.HIGH,
    due_date=datetime(2026, 11, 30, tzinfo=UTC),
    completed_at=MORNING.replace(hour=9),
    assignee_id=UUID("01939c4e-7c00-7000-8000-00000000000b"),
    version=2,
    updated_at=MORNING.replace(hour=9),
)
ROWS_BY_KIND: dict[str, tuple[TaskRow | None, TaskRow | None]] = {
    "CREATED": (None, NEW_TASK),
    "UPDATED": (NEW_TASK, DONE_TASK),
    "DELETED": (DONE_TASK, None),
}


def stored(**values: Any) -> list[Any]:
    """A row of EVENT_COLUMNS."""
    kept = {
        "id": 1,
        "position": 1,
        "kind": EventKind.UPDATED,
        "task_id": NEW_TASK.id,
        "actor_id": None,
        "changed_fields": "",
        "before": None,
        "after": None,
        "occurred_at": NOW,
    }
    return [(kept | values)[column.key] for column in EVENT_COLUMNS]


@pytest.mark.parametrize("revision", FROZEN_EVENTS)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["created", "updated", "deleted"])
def test_an_event_of_each_released_version_is_read(revision: str, place: int) -> None:
    """The files in `frozen_events` hold JSON as the release with that revision wrote it. They are never changed."""
    event = FROZEN_EVENTS[revision][place]
    made = event_of_row(stored(**event))
    assert (made.before, made.after) == ROWS_BY_KIND[event["kind"]]
    assert ",".join(made.changed_fields) == event["changed_fields"]


def test_every_field_since_the_first_release_has_a_default_or_may_be_null() -> None:
    """The codec has nothing else to put into a field that an event of that release does not have."""
    known = FROZEN_EVENTS["0001"][0]["after"]
    types = get_type_hints(TaskRow)
    added = [name for name in TaskRow._fields if name not in known]
    assert [
        name for name in added if name not in TaskRow._field_defaults and NoneType not in get_args(types[name])
    ] == []


class Colour(StrEnum):
    RED = "red"


class OldRow(NamedTuple):
    id: UUID
    removed: str


class NewRow(NamedTuple):
    id: UUID
    colour: Colour | None
    at: datetime | None
    number: int = 7


def test_a_key_that_did_not_exist_gets_the_declared_default_or_none() -> None:
    assert RowCodec(NewRow).read({"id": str(UUID(int=1))}) == NewRow(UUID(int=1), None, None, 7)


def test_a_key_that_no_longer_exists_is_ignored() -> None:
    written = RowCodec(OldRow).write(OldRow(UUID(int=1), "gone"))
    assert RowCodec(NewRow).read(written) == NewRow(UUID(int=1), None, None, 7)


def test_a_stored_null_is_not_replaced_by_the_default() -> None:
    class Row(NamedTuple):
        number: int | None = 7

    assert RowCodec(Row).read({"number": None}) == Row(None)


@pytest.mark.parametrize("row", [NewRow(UUID(int=1), Colour.RED, NOW, 0), NewRow(UUID(int=1), None, None)])
def test_a_row_is_read_as_it_was_written(row: NewRow) -> None:
    found = RowCodec(NewRow).read(json.loads(json.dumps(RowCodec(NewRow).write(row))))
    assert found == row
    assert type(found.colour) is type(row.colour)


class Bytes(NamedTuple):
    field: bytes


class Numbers(NamedTuple):
    field: list[int]


class Either(NamedTuple):
    field: int | str


@pytest.mark.parametrize("row_class", [Bytes, Numbers, Either])
def test_a_type_without_json_is_refused_when_the_codec_is_made(row_class: type[tuple[Any, ...]]) -> None:
    with pytest.raises(TypeError, match="The record has no JSON for values of"):
        RowCodec(row_class)


def test_a_changed_field_that_no_longer_exists_is_left_out() -> None:
    event = event_of_row(stored(changed_fields="TITLE,COLOUR,STATUS"))
    assert event.changed_fields == (TaskField.TITLE, TaskField.STATUS)


def test_changed_fields_are_those_that_people_change_in_their_order() -> None:
    assert changed_fields(TASK, TASK) == []
    others: dict[TaskField, dict[str, Any]] = {
        TaskField.TITLE: {"title": "Another"},
        TaskField.DESCRIPTION: {"description": ""},
        TaskField.STATUS: {"status": TaskStatus.COMPLETED},
        TaskField.PRIORITY: {"priority": TaskPriority.LOW},
        TaskField.CATEGORY: {"category": TaskCategory.WORK},
        TaskField.DUE_DATE: {"due_date": NOW},
        TaskField.ASSIGNEE: {"assignee_id": UUID(int=3)},
    }
    assert list(others) == list(TaskField)
    everything: dict[str, Any] = {}
    for field, change in others.items():
        assert changed_fields(TASK, TASK._replace(**change)) == [field]
        assert changed_fields(TASK._replace(**change), TASK) == [field]
        everything |= change
    followers: dict[str, Any] = {"version": 2, "updated_at": NOW.replace(year=2027), "completed_at": NOW}
    assert changed_fields(TASK, TASK._replace(**followers)) == []
    assert changed_fields(TASK, TASK._replace(**everything, **followers)) == list(TaskField)


@given(st.integers(0, 10**18 - 1))
def test_a_cursor_names_its_position(position: int) -> None:
    cursor = encode_cursor(STREAM, position)
    assert decode_cursor(cursor, STREAM) == position
    with pytest.raises(BadUserInput) as caught:
        decode_cursor(cursor, "fedcba9876543210")
    assert caught.value.message == "after is a cursor of another server: read again from a query"


def encode(plain: str) -> str:
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "é",
        "\ud800",
        "%%%",
        encode_cursor(STREAM, 7)[:-4],
        encode_cursor(STREAM, 7) + "AAAA",
        encode(STREAM),
        encode(f"{STREAM}:"),
        encode(f"{STREAM}:-1"),
        encode(f"{STREAM}:1.5"),
        encode(f"{STREAM}:7\n"),
        encode(f"{STREAM}:{10**18}"),
        encode(f"{STREAM}:" + "9" * 5000),
        encode(f"{STREAM}:٧"),
        encode(f"{STREAM.upper()}:7"),
        encode(f"{STREAM}:7:7"),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
    ids=ascii,
)
def test_a_damaged_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(BadUserInput) as caught:
        decode_cursor(cursor, STREAM)
    assert caught.value.message == "after is not a cursor of the change stream"
