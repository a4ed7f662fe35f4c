"""One filter, three interpreters: its JSON read by the contract, the Python predicate and the SQL condition."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import select

from taskflow_gql.api.task_filters import MAX_COMPARISONS, MAX_DEPTH, MAX_LIST_LENGTH, MAX_VALUES
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.errors import BadUserInput
from taskflow_gql.models import Task, TaskRow
from taskflow_gql.services.task_filters import AllOf, Filter, Not, Search, cached_for_small_filters, condition, matches
from tests.support.task_filters import (
    IDS,
    NOW,
    WORDS,
    FilterJson,
    examples,
    holding,
    holds,
    make_task,
    random_tasks,
    read_filter,
    task_filters,
)

# ---------------------------------------------------------------- the property


async def chosen(session: DatabaseSession, filter_: Filter) -> set[UUID]:
    return set((await session.execute(select(Task.id).where(condition(filter_)))).scalars())


# Filters that restrict nothing, in every form, and comparisons with empty lists.
NOTHING_SAID: list[FilterJson] = [{}, {"and": []}, {"and": [{}]}, {"or": [{}]}, {"title": {}}, {"creator": {"id": {}}}]
OF_NOTHING: list[FilterJson] = [{"title": {"in": []}}, {"description": {"in": []}}, {"assignee": {"id": {"notIn": []}}}]


@examples(100)
@given(seed=st.integers(0, 2**32 - 1), filters=st.lists(task_filters(), min_size=4, max_size=8))
@example(seed=0, filters=[*NOTHING_SAID, *OF_NOTHING])
@example(seed=0, filters=[{"not": each} for each in [*NOTHING_SAID, *OF_NOTHING]])
async def test_json_predicate_and_sql_condition_choose_the_same_tasks(
    database: Database, seed: int, filters: list[FilterJson]
) -> None:
    tasks = random_tasks(seed)
    async with holding(database, tasks) as session:
        for wanted in filters:
            await check(session, tasks, wanted)


EDGES = ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000001Z", "9999-12-31T23:59:59.999998Z"]
EDGES += ["9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999+14:00", "0001-01-01T00:00:00-14:00"]


@pytest.mark.slow
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", ["eq", "gt", "gte", "lt", "lte"])
@pytest.mark.parametrize("field", ["dueDate", "completedAt", "createdAt", "updatedAt"])
async def test_filters_with_extreme_datetimes_choose_the_same_tasks(
    database: Database, field: str, name: str, edge: str
) -> None:
    tasks = random_tasks(7)
    async with holding(database, tasks) as session:
        await check(session, tasks, {field: {name: edge}})
        await check(session, tasks, {"not": {field: {name: edge}}})


@examples(60)
@given(texts=st.lists(WORDS, min_size=1, max_size=12), terms=st.lists(WORDS, min_size=4, max_size=12))
async def test_search_finds_the_same_words_in_all_interpreters(
    database: Database, texts: list[str], terms: list[str]
) -> None:
    tasks = [make_task(id=id, title="", description=text) for id, text in zip(IDS, texts, strict=False)]
    # Also search for the texts themselves and for their beginnings.
    starts = [text[: 1 + place] for place, text in enumerate(texts)]
    async with holding(database, tasks) as session:
        for term in {*terms, *texts, *starts}:
            await check(session, tasks, {"search": term})


async def check(session: DatabaseSession, tasks: list[TaskRow], wanted: FilterJson) -> None:
    filter_ = read_filter(wanted)
    expected = {task for task in tasks if holds(wanted, task)}
    assert {task for task in tasks if matches(filter_, task, NOW)} == expected, wanted
    ids = await chosen(session, filter_)
    assert {task for task in tasks if task.id in ids} == expected, wanted


# ---------------------------------------------------------------- limits


def nested(depth: int, wrapper: str) -> FilterJson:
    made: FilterJson = {"status": {"eq": "PENDING"}}
    for _ in range(depth - 1):
        made = {wrapper: made if wrapper == "not" else [made]}
    return made


def comparisons(count: int) -> FilterJson:
    return {"or": [{"title": {"ne": str(number)}} for number in range(count)]}


def values(lists: int, length: int) -> FilterJson:
    return {"or": [{"title": {"in": [f"{place} {item}" for item in range(length)]}} for place in range(lists)]}


@pytest.mark.parametrize("wrapper", ["and", "or", "not"])
async def test_filters_may_be_nested_10_deep(database: Database, wrapper: str) -> None:
    async with holding(database, [make_task()]) as session:
        assert len(await chosen(session, read_filter(nested(MAX_DEPTH, wrapper)))) == (wrapper != "not")
    with pytest.raises(BadUserInput, match="at most 10 deep"):
        read_filter(nested(MAX_DEPTH + 1, wrapper))


@pytest.mark.parametrize(
    "largest",
    [
        comparisons(MAX_COMPARISONS),
        {"and": [{"title": {"contains": "a"}, "dueDate": {"isNull": True}}] * (MAX_COMPARISONS // 2)},
        {"or": [{"search": f"a w{number}"} for number in range(MAX_COMPARISONS // 2)]},
        {"search": " ".join(f"a{number} a" for number in range(MAX_COMPARISONS - 1))},
        {"not": {"or": [{"overdue": True}] * (MAX_COMPARISONS - 1)}, "dueDate": {"isNull": True}},
        values(MAX_VALUES // MAX_LIST_LENGTH, MAX_LIST_LENGTH),
    ],
    ids=["or", "and", "searches", "words", "overdue", "values"],
)
async def test_the_largest_filters_work_on_both_databases(database: Database, largest: FilterJson) -> None:
    task = make_task()
    filter_ = read_filter(largest)
    async with holding(database, [task]) as session:
        assert (task.id in await chosen(session, filter_)) == matches(filter_, task, NOW)


@pytest.mark.parametrize(
    ("too_much", "message"),
    [
        (comparisons(MAX_COMPARISONS + 1), "at most 200 comparisons"),
        ({"search": " ".join(f"a{number}" for number in range(MAX_COMPARISONS + 1))}, "at most 200 comparisons"),
        ({"and": [{}] * (MAX_COMPARISONS + 1)}, "at most 200 comparisons"),
        ({"or": [{"not": {"and": [{}] * 100}}] * 3}, "at most 200 comparisons"),
        (values(1, MAX_LIST_LENGTH + 1), "at most 500 values"),
        (values(MAX_VALUES // 100 + 1, 100), "at most 5000 values"),
        ({"id": {"notIn": [str(UUID(int=1))] * (MAX_LIST_LENGTH + 1)}}, "at most 500 values"),
        ({"status": {"in": ["PENDING"] * (MAX_LIST_LENGTH + 1)}}, "at most 500 values"),
        ({"or": []}, "`or` needs at least one filter"),
        ({"not": {"and": [{"or": []}]}}, "`or` needs at least one filter"),
        ({"id": {"eq": "1"}}, "'1' is not an id"),
        ({"creator": {"id": {"in": ["{7b8f3a52-0000-7000-8000-000000000000}"]}}}, "is not an id"),
        ({"title": {"eq": "a\0b"}}, r"U\+0000"),
        ({"description": {"in": ["\ud800"]}}, "half surrogate"),
        ({"search": "\0"}, r"U\+0000"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_filter_over_the_limits_or_with_bad_values_is_refused_with_a_reason(
    too_much: FilterJson, message: str
) -> None:
    with pytest.raises(BadUserInput, match=message):
        read_filter(too_much)


def test_results_of_large_filters_are_not_cached() -> None:
    """A statement of a large filter takes megabytes, and clients can make any number of them."""
    made: list[Filter] = []

    @cached_for_small_filters(maxsize=8)
    def make(filter_: Filter) -> int:
        made.append(filter_)
        return len(made)

    small, large = (AllOf((Search(("a",)),) * count) for count in (20, 190))
    assert [make(small), make(small)] == [1, 1]
    assert [make(large), make(large), make(Not(large))] == [2, 3, 4]
