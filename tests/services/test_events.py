"""Events as the record holds them, and the cursors that name a place in it."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow_gql.errors import BadUserInput
from taskflow_gql.models import EventKind, TaskCategory, TaskPriority, TaskRow, TaskStatus
from taskflow_gql.services.events import (
    EVENT_COLUMNS,
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
