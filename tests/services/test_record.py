"""The record of one task: random programs of changes against a list of all states."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from taskflow_gql import clock
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.errors import VersionConflict
from taskflow_gql.models import Event, TaskCategory, TaskPriority, TaskRow, TaskStatus, UserRole
from taskflow_gql.services import record, tasks
from taskflow_gql.services.access import Viewer, may_see
from taskflow_gql.services.merging import ConflictPolicy
from taskflow_gql.services.record import NotKept, row_of_version
from taskflow_gql.services.tasks import TaskUpdate
from tests.support.factories import make_task, noting_statements
from tests.support.task_filters import ANN, BOSS, PEOPLE, examples, holding

BOB = Viewer(PEOPLE["Bob"], UserRole.MEMBER, ANN.session_id, ANN.expires_at)
SOME_DAY = datetime(2030, 1, 1, tzinfo=UTC)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "title": st.sampled_from(["One", "Two", "Three"]),
    "description": st.sampled_from([None, "", "Text"]),
    "status": st.sampled_from(TaskStatus),
    "priority": st.sampled_from(TaskPriority),
    "category": st.sampled_from([TaskCategory.HOME, TaskCategory.OTHER]),
    "due_date": st.sampled_from([None, SOME_DAY]),
    "assignee_id": st.sampled_from([None, ANN.id, BOB.id]),
}
updates = st.fixed_dictionaries({}, optional=VALUES)


async def place(session: DatabaseSession) -> None:
    """Give every event a position, as the relay does."""
    await session.flush()
    await session.execute(update(Event).where(Event.position.is_(None)).values(position=Event.id))


@pytest.mark.slow
@examples(40)
@given(
    program=st.lists(st.tuples(updates, st.integers(0, 4), st.booleans()), min_size=1, max_size=12),
    placed_after=st.integers(0, 12),
)
async def test_a_merge_applies_what_was_changed_and_nobody_else_has_changed(
    database: Database, program: list[tuple[TaskUpdate, int, bool]], placed_after: int
) -> None:
    async with holding(database, []) as session:
        states = [await make_task(session, ANN, "One")]
        for number, (given_values, age, is_whole_form) in enumerate(program):
            now, seen = states[-1], states[max(0, len(states) - 1 - age)]
            form = {name: getattr(seen, name) for name in VALUES} if is_whole_form else {}
            form |= given_values
            conflicting = [
                name
                for name, value in form.items()
                if value != getattr(seen, name) and getattr(now, name) not in (value, getattr(seen, name))
            ]
            merging = tasks.update_task(
                session,
                ANN,
                now.id,
                form,  # type: ignore[arg-type]
                expected_version=seen.version,
                on_conflict=ConflictPolicy.MERGE,
            )
            if conflicting:
                with pytest.raises(VersionConflict) as caught:
                    await merging
                assert list(caught.value.conflicting_fields) == conflicting
                assert caught.value.payload == {"task": now}
                continue
            merged = await merging
            assert {name: getattr(merged, name) for name in VALUES} == {
                name: form[name] if name in form and form[name] != getattr(seen, name) else getattr(now, name)
                for name in VALUES
            }
            if merged != now:
                states.append(merged)
            if number == placed_after:
                await place(session)
        for state in states[:-1]:
            assert await row_of_version(session, states[-1], state.version) == state


async def make_versions(session: DatabaseSession, count: int) -> list[TaskRow]:
    task = await make_task(session, ANN, "Version 1")
    changed = [
        await tasks.update_task(session, ANN, task.id, {"title": f"Version {number}"}) for number in range(2, count + 1)
    ]
    return [task, *changed]


@pytest.mark.parametrize("placed", [0, 2, 5])
async def test_a_version_is_found_among_events_with_and_without_positions(database: Database, placed: int) -> None:
    async with holding(database, []) as session:
        states = await make_versions(session, 5)
        other = await make_task(session, ANN)
        await tasks.update_task(session, ANN, other.id, {"title": "Other"})
        await place(session)
        ids = (await session.execute(select(Event.id).order_by(Event.id))).scalars().all()
        await session.execute(update(Event).where(Event.id.in_(ids[placed:])).values(position=None))
        for state in states[:-1]:
            assert await row_of_version(session, states[-1], state.version) == state
        for version in (-1, 0, 5, 6):
            assert await row_of_version(session, states[-1], version) is None


async def test_a_version_costs_one_statement_and_is_searched_among_the_newest_events(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "MAX_VERSIONS", 2)
    statements: list[str] = []
    async with holding(database, []) as session:
        states = await make_versions(session, 5)
        await place(session)
        with noting_statements(statements.append):
            found = [await row_of_version(session, states[-1], state.version) for state in states]
    assert found == [None, None, states[2], states[3], None]
    assert len(statements) == 2


class Program(NamedTuple):
    """Changes of a task, each some seconds after the one before."""

    changes: list[tuple[TaskUpdate, int]]
    is_deleted: bool
    # How many of the oldest events have expired, and how many of the others have positions.
    expired: int
    placed: int


programs = st.builds(
    Program,
    st.lists(st.tuples(updates, st.integers(0, 2)), max_size=6),
    st.booleans(),
    st.integers(0, 8),
    st.integers(0, 8),
)


@pytest.mark.slow
@examples(60)
@given(program=programs)
async def test_a_task_is_read_as_it_stood_or_its_record_does_not_reach_back(
    database: Database, program: Program
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with holding(database, []) as session:
            states = await run(program, session, patch)
            task_id = cast("TaskRow", states[0][1]).id
            last = next(state for _, state in reversed(states) if state is not None)
            is_forgotten = program.is_deleted and program.expired >= len(states)
            for seconds in range(-1, 2 * len(states) + 1):
                time = SOME_DAY + timedelta(seconds=seconds, microseconds=1)
                number = sum(since <= time for since, _ in states) - 1
                stood = states[number][1] if number >= 0 else None
                is_unknown = 0 <= number < min(program.expired, len(states)) - 1
                for viewer in (ANN, BOB, BOSS):
                    if is_forgotten or not may_see(viewer, last):
                        expected: TaskRow | type[Exception] | None = None
                    elif is_unknown:
                        expected = NotKept
                    else:
                        expected = stood if stood is not None and may_see(viewer, stood) else None
                    assert await found_at(session, viewer, task_id, time) == expected, (seconds, viewer)


async def run(
    program: Program, session: DatabaseSession, patch: pytest.MonkeyPatch
) -> list[tuple[datetime, TaskRow | None]]:
    """All states of the task, the last one None if it was deleted, and since when it was in them."""
    now = SOME_DAY
    patch.setattr(clock, "now", lambda: now)
    task = await make_task(session, ANN, "One")
    states: list[tuple[datetime, TaskRow | None]] = [(now, task)]
    for changes, seconds in program.changes:
        now += timedelta(seconds=seconds)
        changed = await tasks.update_task(session, ANN, task.id, changes)
        if changed != task:
            states.append((now, changed))
        task = changed
    if program.is_deleted:
        now += timedelta(seconds=1)
        await tasks.delete_task(session, ANN, task.id)
        states.append((now, None))
    await place(session)
    ids = (await session.execute(select(Event.id).order_by(Event.id))).scalars().all()
    assert len(ids) == len(states)
    await session.execute(delete(Event).where(Event.id.in_(ids[: program.expired])))
    unplaced = ids[program.expired :][program.placed :]
    await session.execute(update(Event).where(Event.id.in_(unplaced)).values(position=None))
    return states


async def found_at(
    session: DatabaseSession, viewer: Viewer, task_id: UUID, time: datetime
) -> TaskRow | type[Exception] | None:
    try:
        return await tasks.task_as_of(session, viewer, task_id, time)
    except NotKept:
        return NotKept
