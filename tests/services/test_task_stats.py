"""Statistics from one statement, compared with counting the same tasks in Python."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskflow_gql.database.units import Database
from taskflow_gql.models import TaskCategory, TaskPriority, TaskStatus
from taskflow_gql.services.access import Viewer, may_see
from taskflow_gql.services.task_filters import EVERYTHING
from taskflow_gql.services.task_stats import TaskStats, count_by_assignee, task_stats
from tests.support.factories import noting_statements
from tests.support.task_filters import (
    ANN,
    BOSS,
    NOW,
    FilterJson,
    examples,
    holding,
    holds,
    random_tasks,
    read_filter,
    task_filters,
)


@pytest.mark.slow
@examples(30)
@given(seed=st.integers(0, 2**32 - 1), filters=st.lists(task_filters(), min_size=2, max_size=4))
async def test_statistics_count_the_visible_tasks_that_a_filter_finds(
    database: Database, seed: int, filters: list[FilterJson]
) -> None:
    tasks = random_tasks(seed)
    async with holding(database, tasks) as session:
        for wanted in [{}, *filters]:
            # `holds` evaluates `isMe` for Ann, so both viewers have her id.
            for viewer in (ANN, Viewer(ANN.id, BOSS.role, ANN.session_id, ANN.expires_at)):
                found = [task for task in tasks if may_see(viewer, task) and holds(wanted, task)]
                status = Counter(task.status for task in found)
                priority = Counter(task.priority for task in found)
                category = Counter(task.category for task in found)
                assert await task_stats(session, viewer, read_filter(wanted, viewer), NOW) == TaskStats(
                    total=len(found),
                    by_status={each: status[each] for each in TaskStatus},
                    by_priority={each: priority[each] for each in TaskPriority},
                    by_category={each: category[each] for each in TaskCategory},
                    overdue=sum(holds({"overdue": True}, task) for task in found),
                ), wanted
                assignees = Counter(task.assignee_id for task in found)
                most_first = sorted(
                    assignees.items(), key=lambda pair: (-pair[1], pair[0] is None, pair[0] or UUID(int=0))
                )
                for limit in (1, 2, 100):
                    counts = await count_by_assignee(session, viewer, read_filter(wanted, viewer), limit=limit)
                    assert counts == most_first[:limit], (wanted, limit)


async def test_statistics_take_one_statement_and_list_all_values_in_enum_order(database: Database) -> None:
    statements: list[str] = []
    async with holding(database, []) as session:
        with noting_statements(statements.append):
            found = await task_stats(session, ANN, EVERYTHING, NOW)
    assert len(statements) == 1
    assert found == TaskStats(
        0, dict.fromkeys(TaskStatus, 0), dict.fromkeys(TaskPriority, 0), dict.fromkeys(TaskCategory, 0), 0
    )
    assert list(found.by_priority) == [TaskPriority.LOW, TaskPriority.MEDIUM, TaskPriority.HIGH]
    assert list(found.by_category) == list(TaskCategory)
