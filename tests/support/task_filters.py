"""Users, tasks and filters for the tests of lists, and the filter language implemented from its contract."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import groupby
from random import Random
from typing import Any, TypeAlias
from uuid import UUID

from graphql import Undefined, coerce_input_value
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from sqlalchemy import insert
from strawberry.types.arguments import convert_argument

from taskflow_gql.api.schema import make_schema
from taskflow_gql.api.task_filters import MAX_DEPTH, TaskFilter, filter_of
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.units import Database
from taskflow_gql.models import Task, TaskCategory, TaskPriority, TaskRow, TaskStatus, User, UserRole
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.search_words import name_words, text_keys
from taskflow_gql.services.task_filters import Filter
from tests.support.serving import make_settings

# A filter as a client sends it.
FilterJson: TypeAlias = dict[str, Any]


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


TIMES = [
    # The first and last representable due dates.
    datetime.min.replace(microsecond=1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    NOW - timedelta(days=1),
    NOW - timedelta(microseconds=1),
    NOW,
    NOW + timedelta(microseconds=1),
    NOW + timedelta(days=1),
    datetime.max.replace(microsecond=999_998, tzinfo=UTC),
]


PEOPLE = {name: UUID(int=0x7000 + place) for place, name in enumerate(("ann", "Bob", "eve"))}


ANN = Viewer(PEOPLE["ann"], UserRole.MEMBER, UUID(int=0), datetime.max.replace(tzinfo=UTC))


BOSS = Viewer(PEOPLE["eve"], UserRole.ADMIN, UUID(int=0), datetime.max.replace(tzinfo=UTC))


_SCHEMA = make_schema(make_settings())


_IS_LONG_RUN = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def examples(count: int) -> settings:
    """The same examples in every run, at most 10 in quick ones.

    With HYPOTHESIS_PROFILE=long, new examples and fifty times as many.
    """
    return settings(
        max_examples=count * 50 if _IS_LONG_RUN else min(count, settings().max_examples),
        derandomize=not _IS_LONG_RUN,
        deadline=None,
        # Sharing the fixture is safe: each example works in its own transaction, which is never committed.
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def read_filter(given: FilterJson, viewer: Viewer = ANN, now: datetime = NOW) -> Filter:
    """The filter that the server makes from a filter in the variables of a request."""
    coerced = coerce_input_value(given, _SCHEMA.core.type_map["TaskFilter"])  # type: ignore[arg-type]
    assert coerced is not Undefined, given
    converted = convert_argument(
        coerced, TaskFilter, _SCHEMA.schema_converter.scalar_registry, _SCHEMA.schema_converter.config
    )
    assert isinstance(converted, TaskFilter)
    return filter_of(converted, viewer, now)


def make_user(name: str, id: UUID, *, full_name: str | None = None) -> dict[str, Any]:
    """The columns of a user."""
    return {
        "id": id,
        "email": f"{name}@example.com",
        "email_key": f"{name}@example.com".casefold(),
        "username": name,
        "username_key": name.casefold(),
        "full_name": full_name or name.title(),
        "name_words": name_words(full_name or name),
        "password_hash": "",
        "role": UserRole.MEMBER,
        "is_active": True,
        "created_at": NOW,
        "updated_at": NOW,
    }


def make_task(**fields: Any) -> TaskRow:
    row: dict[str, Any] = {
        "id": UUID(int=1),
        "title": "A task",
        "description": None,
        "status": TaskStatus.PENDING,
        "priority": TaskPriority.MEDIUM,
        "category": TaskCategory.OTHER,
        "due_date": None,
        "creator_id": ANN.id,
        "assignee_id": None,
        "version": 1,
        "created_at": NOW,
        "updated_at": NOW,
        **fields,
    }
    is_completed = row["status"] is TaskStatus.COMPLETED
    return TaskRow(**(row | {"completed_at": row.get("completed_at", NOW) if is_completed else None}))


async def insert_tasks(session: DatabaseSession, tasks: Sequence[TaskRow]) -> None:
    rows = [task._asdict() | text_keys(task.title, task.description) for task in tasks]
    if rows:
        await session.execute(insert(Task), rows)


class _NeverCommitted(Exception):
    pass


@asynccontextmanager
async def holding(database: Database, tasks: Sequence[TaskRow]) -> AsyncIterator[DatabaseSession]:
    """Yield a session that sees PEOPLE and these tasks, in a transaction that is never committed."""
    with suppress(_NeverCommitted):
        async with database.write() as session:
            await session.execute(insert(User), [make_user(name, id) for name, id in PEOPLE.items()])
            await insert_tasks(session, tasks)
            yield session
            raise _NeverCommitted


# Text that casefold() changes, lengthens or keeps, characters that are not letters, and syntax of the databases.
PIECES = [
    *("plan", "PLANNING", "Straße", "STRASSE", "ẞ", "İstanbul", "ıstanbul", "ǆ", "ǅ", "ΑΣ", "ας", "ſo", "K", "k", "ﬁx"),
    *(
        "Café",
        "cafe\u0301",
        "\u0301",
        "ΐ",
        "ŉ",
        "٣٤",
        "४२",
        "42",
        "²",
        "½",
        "snake_case",
        "_",
        "日本語",
        "語",
        "한국",
        "ไทย",
    ),
    *(
        "🙂",
        "👩\u200d💻",
        "O'Brien",
        '"quoted"',
        "\\",
        "%",
        "a%b",
        "&",
        "|",
        "!",
        ":*",
        "*",
        "(",
        ")",
        "-",
        "^",
        "''",
        "<->",
    ),
    *("NEAR", "OR", "AND", "NOT", "or", "near", "NULL", "tab\there", "\u00a0", "\u2028", "\x1f", "x" * 100, "x" * 101),
    *("x" * 99 + "y", "x" * 99 + "ß", " ", " ", " "),
]


# A lexeme in PostgreSQL has at most 2046 bytes.
LONG_PIECES = ["x" * 2047, "ß" * 1100, "日" * 2050, "😀" * 600]


TITLES = [
    "",
    "plan",
    "PLAN b",
    "Straße 42",
    "STRASSE 42",
    "İstanbul",
    "ǆ ǅ",
    "a%b",
    "日本語 plan",
    "O'Brien \\ ''",
    "x" * 101,
]


IDS = [UUID(int=number << 40) for number in range(1, 51)]


def random_tasks(seed: int, *, count: int = 40) -> list[TaskRow]:
    """Tasks with many equal values, so that filters choose several of them and orders have ties to break."""
    random = Random(seed)
    people = list(PEOPLE.values())

    def text(*pieces: str) -> str:
        if random.random() < 0.5:
            return random.choice(TITLES)
        anything = [chr(random.choice((random.randrange(1, 0x500), random.randrange(0xE000, 0x20000)))) for _ in "abc"]
        return random.choice(["", " "]).join(random.choices([*pieces, *anything], k=random.randint(1, 4)))

    return [
        make_task(
            id=id,
            title=text(*PIECES)[:255],
            description=random.choice([None, text(*PIECES, *LONG_PIECES)]),
            status=random.choice(list(TaskStatus)),
            priority=random.choice(list(TaskPriority)),
            category=random.choice(list(TaskCategory)),
            due_date=random.choice([None, None, *TIMES]),
            completed_at=random.choice(TIMES),
            creator_id=random.choice(people),
            assignee_id=random.choice([None, *people]),
            created_at=random.choice(TIMES),
            updated_at=random.choice(TIMES),
        )
        for id in random.sample(IDS, count)
    ]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


TEXT = st.one_of(
    st.sampled_from(TITLES), st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join), ANY_TEXT
)


PART = st.one_of(st.sampled_from([*"psixß_% '\\日", "", "PL", "Ss", "İ", "i\u0307", "ǅ", "a%", " b", "x" * 100]), TEXT)


WORDS = st.one_of(PART, st.lists(st.sampled_from(PIECES + LONG_PIECES), min_size=1, max_size=4).map(" ".join))


@st.composite
def some_of(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[Any]], max_size: int = 2) -> FilterJson:
    """An input object with some of its fields, occasionally null."""
    names = draw(st.lists(st.sampled_from(sorted(fields)), unique=True, min_size=1, max_size=max_size))
    return {name: None if draw(st.integers(0, 9)) == 7 else draw(fields[name]) for name in names}


def _list_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, max_size=4)


def _enum_filter(enum: type[TaskStatus | TaskPriority | TaskCategory]) -> st.SearchStrategy[FilterJson]:
    value = st.sampled_from([member.name for member in enum])
    return some_of({"eq": value, "ne": value, "in": _list_of(value), "notIn": _list_of(value)})


def _id_filter(ids: Iterable[UUID]) -> st.SearchStrategy[FilterJson]:
    value = st.sampled_from([spelling for id in ids for spelling in (str(id), str(id).upper())])
    return some_of({"eq": value, "ne": value, "in": _list_of(value), "notIn": _list_of(value)})


_TIME = st.sampled_from(
    [time.isoformat() for time in TIMES]
    + ["2026-03-01T14:00:00+02:00", "2026-03-01t12:00:00z"]
    # The minimum and maximum datetime: no column holds them, but filters may.
    + ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999+00:00"]
)


_TEXT_FILTER = some_of({"eq": TEXT, "ne": TEXT, "in": _list_of(TEXT), "contains": PART, "startsWith": PART})


_TIME_FILTER = some_of({"eq": _TIME, "gt": _TIME, "gte": _TIME, "lt": _TIME, "lte": _TIME, "isNull": st.booleans()})


_USER_FILTER = some_of({"id": _id_filter(PEOPLE.values()), "isMe": st.booleans(), "isNull": st.booleans()})


COMPARISONS: dict[str, st.SearchStrategy[Any]] = {
    "id": _id_filter(IDS),
    "title": _TEXT_FILTER,
    "description": _TEXT_FILTER,
    "status": _enum_filter(TaskStatus),
    "priority": _enum_filter(TaskPriority),
    "category": _enum_filter(TaskCategory),
    "dueDate": _TIME_FILTER,
    "completedAt": _TIME_FILTER,
    "createdAt": _TIME_FILTER,
    "updatedAt": _TIME_FILTER,
    "overdue": st.booleans(),
    "creator": _USER_FILTER,
    "assignee": _USER_FILTER,
    "search": WORDS,
}


@st.composite
def _trees(draw: st.DrawFn, depth: int) -> FilterJson:
    made: FilterJson = draw(some_of(COMPARISONS))
    if depth > 1 and draw(st.booleans()):
        parts = st.lists(_trees(depth - 1), min_size=1, max_size=3)
        made |= draw(some_of({"and": parts, "or": parts, "not": _trees(depth - 1)}))
    return made


@st.composite
def task_filters(draw: st.DrawFn) -> FilterJson:
    """Any filter within the limits: a tree of depth 3 at most, wrapped up to the maximum depth."""
    made: FilterJson = draw(_trees(3))
    for wrapper in draw(st.lists(st.sampled_from(["and", "or", "not"]), max_size=MAX_DEPTH - 3)):
        made = {wrapper: made if wrapper == "not" else [made]}
    return made


def holds(wanted: FilterJson, task: TaskRow) -> bool:
    """Whether the filter holds for ANN at NOW. Written simply from the contract, independently of the server's code."""
    return all(_holds(name, value, task) for name, value in wanted.items() if value is not None)


def _holds(name: str, wanted: Any, task: TaskRow) -> bool:
    match name:
        case "and":
            return all(holds(part, task) for part in wanted)
        case "or":
            return any(holds(part, task) for part in wanted)
        case "not":
            return not holds(wanted, task)
        case "search":
            words = _words(task.title) + _words(task.description or "")
            return all(any(word.startswith(start) for word in words) for start in _words(wanted))
        case "overdue":
            is_open = task.status is not TaskStatus.COMPLETED
            return (is_open and task.due_date is not None and task.due_date < NOW) is wanted
        case "creator":
            return _person_is(wanted, task.creator_id)
        case "assignee":
            return _person_is(wanted, task.assignee_id)
        case "title" | "description":
            text = getattr(task, name)
            return _compares(None if text is None else text.casefold(), wanted, str.casefold)
        case "id":
            return _compares(task.id, wanted, UUID)
        case "status" | "priority" | "category":
            return _compares(getattr(task, name), wanted, str)
    field = re.sub("([A-Z])", r"_\1", name).lower()
    return _compares(getattr(task, field), wanted, lambda text: datetime.fromisoformat(text.upper()))


def _person_is(wanted: FilterJson, id: UUID | None) -> bool:
    said = {name: value for name, value in wanted.items() if value is not None}
    return (
        _compares(id, said.get("id", {}), UUID)
        and said.get("isMe", id == ANN.id) == (id == ANN.id)
        and said.get("isNull", id is None) == (id is None)
    )


OPERATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "in": lambda found, values: found in values,
    "notIn": lambda found, values: found not in values,
    "contains": lambda found, value: value in found,
    "startsWith": lambda found, value: str(found).startswith(value),
}


def _compares(found: Any, wanted: FilterJson, read: Callable[[str], Any]) -> bool:
    """Whether the value meets every comparison. `read` converts the JSON values."""

    def is_as(name: str, value: Any) -> bool:
        if name == "isNull":
            return (found is None) is value
        compared = [read(item) for item in value] if isinstance(value, list) else read(value)
        return found is not None and OPERATIONS[name](found, compared)

    return all(is_as(name, value) for name, value in wanted.items() if value is not None)


def _words(text: str) -> list[str]:
    """The words of a text: runs of Unicode letters and digits after casefold(), cut to 100 characters."""
    return ["".join(run)[:100] for is_word, run in groupby(text.casefold(), str.isalnum) if is_word]
