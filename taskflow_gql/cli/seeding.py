"""Demonstration data: reproducible by its random seed, a million tasks in minutes, in constant memory."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from typing import Any
from uuid import UUID

import asyncpg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Table, insert, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskflow_gql.errors import ConfigurationError
from taskflow_gql.models import Task, TaskCategory, TaskPriority, TaskStatus, User, UserRole
from taskflow_gql.services.search_words import name_words, text_keys

_BATCH = 5_000
# Matches the username or the email address of a demonstration person.
_DEMONSTRATION_KEY = re.compile(r"user([1-9][0-9]{0,8})(?:@example\.com)?")
# argon2id of `password` with a fixed salt, so that the same seed makes the same bytes.
_PASSWORD_HASH = "$argon2id$v=19$m=19456,t=2,p=1$ZGVtb25zdHJhdGlvbi0xNg$WTWe34Sp2x4Vz2O53xdOGywy8OCZ0RHIgYhCtwkGf9U"
_FIRST_DAY = datetime(2025, 1, 1, tzinfo=UTC)
# Ends in the past, so that tasks created now are newer than all seeded ones.
_DAYS = 365

# Words for titles, varied enough that a search finds some tasks and not all.
_VERBS = (
    "Call",
    "Write",
    "Review",
    "Plan",
    "Order",
    "Clean",
    "Repair",
    "Translate",
    "Sketch",
    "Measure",
    "Book",
    "Sort",
)
_THINGS = (
    *("report", "invoice", "garden", "kitchen", "website", "contract", "roof", "bicycle", "calendar", "budget"),
    *("letter", "photo", "server", "recipe", "presentation", "catalogue", "brochure", "timetable", "window", "engine"),
)
_OCCASIONS = ("before Monday", "for the team", "with Anna", "again", "at the office", "for the fair", "together")
_GIVEN = ("Ada", "Alan", "Barbara", "Donald", "Edsger", "Frances", "Grace", "Hedy", "Jean", "John", "Katherine", "Ken")
_FAMILY = ("Allen", "Dijkstra", "Hamilton", "Hopper", "Johnson", "Knuth", "Lamarr", "Lamport", "Liskov", "Turing")


@dataclass(frozen=True, slots=True)
class Seeding:
    users: int
    tasks: int
    random_seed: int
    # Numbers to skip, because their username or email address is taken.
    taken: frozenset[int] = frozenset()

    @property
    def numbers(self) -> Iterator[int]:
        return islice((number for number in count(1) if number not in self.taken), self.users)

    def generator(self, table: int) -> random.Random:
        """One generator for people (0) and one for tasks (1), so that the number of people does not affect the tasks.

        Each seeding of a database starts at another number, which is part of the seed, so that ids do not repeat. As
        long as user1 is free, the data equals that of an empty database.
        """
        first = next(self.numbers)
        seed = self.random_seed + table
        return random.Random(seed if first == 1 else f"{seed} from {first}")


def _make_id(rng: random.Random, moment: datetime) -> UUID:
    """A version 7 UUID for this time. Its random part comes from the generator."""
    milliseconds = int(moment.timestamp() * 1000)
    value = milliseconds << 80 | rng.getrandbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)


def make_users(seeding: Seeding) -> Iterator[dict[str, Any]]:
    rng = seeding.generator(0)
    admin = next(seeding.numbers)
    for number in seeding.numbers:
        moment = _FIRST_DAY - timedelta(days=30) + timedelta(seconds=number)
        username = f"user{number}"
        full_name = f"{rng.choice(_GIVEN)} {rng.choice(_FAMILY)}"
        yield {
            "id": _make_id(rng, moment),
            "email": f"{username}@example.com",
            "email_key": f"{username}@example.com",
            "username": username,
            "username_key": username,
            "full_name": full_name,
            "name_words": name_words(full_name),
            "password_hash": _PASSWORD_HASH,
            "role": UserRole.ADMIN if number == admin else UserRole.MEMBER,
            "is_active": True,
            "created_at": moment,
            "updated_at": moment,
        }


def make_tasks(seeding: Seeding, user_ids: Sequence[UUID]) -> Iterator[dict[str, Any]]:
    rng = seeding.generator(1)
    statuses, priorities, categories = list(TaskStatus), list(TaskPriority), list(TaskCategory)
    step = timedelta(days=_DAYS) / max(seeding.tasks, 1)
    for number in range(seeding.tasks):
        created_at = _FIRST_DAY + number * step
        status = statuses[rng.randrange(3)]
        updated_at = created_at + timedelta(minutes=rng.randrange(10_000))
        title = f"{rng.choice(_VERBS)} the {rng.choice(_THINGS)} {rng.choice(_OCCASIONS)}"
        description = f"{rng.choice(_THINGS).capitalize()} number {number}." if rng.random() < 0.5 else None
        yield {
            "id": _make_id(rng, created_at),
            "title": title,
            "description": description,
            "status": status,
            "priority": priorities[rng.randrange(3)],
            "category": categories[rng.randrange(4)],
            "due_date": created_at + timedelta(days=rng.randrange(1, 60)) if rng.random() < 0.7 else None,
            "completed_at": updated_at if status is TaskStatus.COMPLETED else None,
            "creator_id": user_ids[rng.randrange(len(user_ids))],
            "assignee_id": user_ids[rng.randrange(len(user_ids))] if rng.random() < 0.8 else None,
            "version": 1 if status is TaskStatus.PENDING else 2,
            "created_at": created_at,
            "updated_at": updated_at,
            **text_keys(title, description),
        }


async def seed_database(engine: AsyncEngine, seeding: Seeding, console: Console) -> tuple[int, int]:
    """Add people and tasks to the database. Returns the numbers of the first and the last person.

    Uses one transaction, so that an interrupted seeding leaves nothing behind. All tasks belong to the new people:
    seeded rows have no events, and lists of other people must not change without one.
    """
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as progress:
        async with engine.execution_options(writes=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                # Serialise seedings, because two at once would take the same names. SQLite has one writer anyway.
                # The number is arbitrary, but the same in every process.
                await connection.execute(text("SELECT pg_advisory_xact_lock(7416543002)"))
            seeding = replace(seeding, taken=await _taken_numbers(connection))
            user_ids: list[UUID] = []
            bar = progress.add_task("People", total=seeding.users)
            for users in _batches(make_users(seeding)):
                try:
                    await _insert(connection, User.__table__, users)
                except asyncpg.UniqueViolationError as error:
                    raise ConfigurationError(
                        "Somebody registered with the name or address of a demonstration person meanwhile, "
                        "so nothing was made: run it again"
                    ) from error
                user_ids.extend(user["id"] for user in users)
                progress.advance(bar, len(users))
            bar = progress.add_task("Tasks", total=seeding.tasks)
            for tasks in _batches(make_tasks(seeding, user_ids)):
                await _insert(connection, Task.__table__, tasks)
                progress.advance(bar, len(tasks))
    if engine.dialect.name == "postgresql":
        # Without statistics the planner would assume that the new rows are few.
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            await connection.exec_driver_sql("ANALYZE users, tasks")
    return min(seeding.numbers), max(seeding.numbers)


async def _taken_numbers(connection: AsyncConnection) -> frozenset[int]:
    statement = select(User.username_key, User.email_key).where(
        or_(User.username_key.startswith("user"), User.email_key.startswith("user"))
    )
    numbers: set[int] = set()
    for keys in await connection.execute(statement):
        numbers.update(int(found[1]) for key in keys if (found := _DEMONSTRATION_KEY.fullmatch(key)))
    return frozenset(numbers)


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch


async def _insert(connection: AsyncConnection, table: Any, rows: list[dict[str, Any]]) -> None:
    if connection.dialect.name != "postgresql":
        await connection.execute(insert(table), rows)
        return
    # COPY is ten times as fast as INSERT, with the same memory.
    raw = await connection.get_raw_connection()
    columns = list(rows[0])
    assert isinstance(table, Table)
    driver: Any = raw.driver_connection
    await driver.copy_records_to_table(table.name, columns=columns, records=[tuple(row.values()) for row in rows])
