"""What the record says of one task: random programs of changes against a list of all states."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.errors import VersionConflict
from taskflow_gql.models import Event, TaskCategory, TaskPriority, TaskRow, TaskStatus
from taskflow_gql.services import record, tasks
from taskflow_gql.services.merging import ConflictPolicy
from taskflow_gql.services.record import row_of_version
from taskflow_gql.services.tasks import TaskUpdate
from tests.support.factories import make_task, noting_statements
from tests.support.task_filters import ANN, BOSS, examples, holding

SOME_DAY = datetime(2030, 1, 1, tzinfo=UTC)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "title": st.sampled_from(["One", "Two", "Three"]),
    "description": st.sampled_from([None, "", "Text"]),
    "status": st.sampled_from(TaskStatus),
    "priority": st.sampled_from(TaskPriority),
    "category": st.sampled_from([TaskCategory.HOME, TaskCategory.OTHER]),
    "due_date": st.sampled_from([None, SOME_DAY]),
    "assignee_id": st.sampled_from([None, ANN.id, BOSS.id]),
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
