"""Events as the record stores and reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow_gql.models import (
    EventKind,
    TaskCategory,
    TaskField,
    TaskPriority,
    TaskRow,
    TaskStatus,
)
from taskflow_gql.services.events import EVENT_COLUMNS, SUBJECT_OF_ROW, EventRow, RowCodec, event_of_row

TASKS = SUBJECT_OF_ROW[TaskRow]

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


events = st.builds(
    EventRow,
    id=st.integers(1),
    position=st.integers(1),
    row_class=st.just(TaskRow),
    subject_id=st.uuids(),
    kind=st.sampled_from(EventKind),
    actor_id=st.none() | st.uuids(),
    audience=st.frozensets(st.uuids(), min_size=1),
    changed_fields=st.lists(st.sampled_from(TaskField), unique=True).map(tuple),
    before=st.none() | task_rows,
    after=st.none() | task_rows,
    mutation_id=st.none() | st.text(min_size=1, max_size=64),
    occurred_at=moments,
)


@given(events)
def test_an_event_is_read_as_it_was_written(event: EventRow) -> None:
    kept: dict[str, Any] = {
        **{name: getattr(event, name) for name in EventRow.__slots__},
        "subject_type": "TASK",
        "audience": list(event.audience),
        "changed_fields": ",".join(event.changed_fields),
        # Through JSON, as in the table.
        "before": json.loads(json.dumps(TASKS.write(event.before))),
        "after": json.loads(json.dumps(TASKS.write(event.after))),
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
        "subject_type": "TASK",
        "subject_id": NEW_TASK.id,
        "kind": EventKind.UPDATED,
        "actor_id": None,
        "audience": [],
        "changed_fields": "",
        "before": None,
        "after": None,
        "mutation_id": None,
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


def test_an_event_without_an_audience_has_the_people_of_its_rows() -> None:
    """Events stored before revision 0003."""
    before, after = (TASKS.write(row) for row in ROWS_BY_KIND["UPDATED"])
    event = event_of_row(stored(before=before, after=after))
    assert event.audience == {NEW_TASK.creator_id, DONE_TASK.assignee_id}
    assert event_of_row(stored(audience=[UUID(int=9)], before=before, after=after)).audience == {UUID(int=9)}


def test_a_changed_field_that_no_longer_exists_is_left_out() -> None:
    event = event_of_row(stored(changed_fields="TITLE,COLOUR,STATUS"))
    assert event.changed_fields == (TaskField.TITLE, TaskField.STATUS)


def test_changed_fields_are_those_that_people_change_in_their_order() -> None:
    assert TASKS.changed_fields(None, TASK) == TASKS.changed_fields(TASK, None) == []
    assert TASKS.changed_fields(TASK, TASK) == []
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
        assert TASKS.changed_fields(TASK, TASK._replace(**change)) == [field]
        assert TASKS.changed_fields(TASK._replace(**change), TASK) == [field]
        everything |= change
    followers: dict[str, Any] = {"version": 2, "updated_at": NOW.replace(year=2027), "completed_at": NOW}
    assert TASKS.changed_fields(TASK, TASK._replace(**followers)) == []
    assert TASKS.changed_fields(TASK, TASK._replace(**everything, **followers)) == list(TaskField)


def test_a_noun_without_people_in_its_rows_is_recorded_with_an_audience() -> None:
    others = replace(TASKS, name="OTHER", audience=None)
    with pytest.raises(TypeError, match="Events of OTHER are written with their audience"):
        others.audience_of(None, TASK)
