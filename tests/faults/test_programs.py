"""Random programs of mutations by several users, with subscribers that come, leave, return and read slowly."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from taskflow_gql import clock
from taskflow_gql.api.task_filters import (
    TaskFilter,
    TaskPriorityFilter,
    TaskStatusFilter,
    UserFilter,
    filter_of,
)
from taskflow_gql.database.units import Database
from taskflow_gql.errors import Refusal
from taskflow_gql.models import TASK_COLUMNS, TaskPriority, TaskRow, TaskStatus, UserRole
from taskflow_gql.services import tasks
from taskflow_gql.services.access import Viewer, visible
from taskflow_gql.services.changes import Change, TaskChangeKind, change_for
from taskflow_gql.services.events import events_after
from taskflow_gql.services.positions import read_stream_state
from taskflow_gql.services.task_filters import condition
from taskflow_gql.stream.bus import MemoryBus
from taskflow_gql.stream.fanout import Fanout
from taskflow_gql.stream.relay import Relay
from tests.support.factories import make_task, make_user, make_viewer

pytestmark = pytest.mark.slow

PEOPLE = 4
# How long a change may take to arrive. Short, because hypothesis tries many programs after a failure.
PATIENCE_SECONDS = 3
FILTERS = [
    None,
    TaskFilter(status=TaskStatusFilter(eq=TaskStatus.PENDING)),
    TaskFilter(assignee=UserFilter(is_me=True)),
    TaskFilter(not_=TaskFilter(priority=TaskPriorityFilter(eq=TaskPriority.LOW))),
]

people = st.integers(0, PEOPLE - 1)
# An index into the tasks made so far, or into the subscribers.
numbers = st.integers(0, 11)
mutations = st.one_of(
    st.tuples(st.just("create"), people, st.none() | people, st.sampled_from(TaskPriority)),
    st.tuples(st.just("assign"), people, numbers, st.none() | people),
    st.tuples(st.just("status"), people, numbers, st.sampled_from(TaskStatus)),
    st.tuples(st.just("priority"), people, numbers, st.sampled_from(TaskPriority)),
    st.tuples(st.just("delete"), people, numbers),
)
steps = st.one_of(
    mutations,
    mutations,
    st.tuples(st.just("together"), st.lists(mutations, min_size=2, max_size=6)),
    st.tuples(st.just("join"), people, st.sampled_from(range(len(FILTERS))), st.booleans()),
    st.tuples(st.sampled_from(["leave", "return", "dawdle", "hurry"]), numbers),
)


class World:
    """A server process without HTTP: the services, the relay and the fan-out."""

    def __init__(self, database: Database) -> None:
        bus = MemoryBus()
        self.database = database
        self.relay = Relay(database, bus)
        # The queue has room for two events, so slow subscribers soon have to read from the table.
        self.fanout = Fanout(database, bus, queue_size=2)
        self.people: list[Viewer] = []
        self.task_ids: list[UUID] = []
        self.followers: list[Follower] = []
        database.observe(self.relay)

    async def open(self) -> None:
        async with self.database.write() as session:
            for number in range(PEOPLE):
                role = UserRole.ADMIN if number == 0 else UserRole.MEMBER
                user = await make_user(session, f"person-{uuid4().hex}", role=role)
                self.people.append(make_viewer(user.id, role))
        await self.fanout.start()
        self.relay.start()

    async def close(self) -> None:
        for follower in self.followers:
            await follower.leave()
        await self.relay.close()
        await self.fanout.close()

    async def run(self, program: list[tuple[Any, ...]]) -> None:
        for step in program:
            match step:
                case "together", list(mutations_):
                    await asyncio.gather(*(self.mutate(*mutation) for mutation in mutations_))
                case "join", int(person), int(filter_), bool(has_cursor):
                    self.followers.append(Follower(self, self.people[person], FILTERS[filter_]))
                    await self.followers[-1].join(has_cursor=has_cursor)
                case ("leave" | "return" | "dawdle" | "hurry") as what, int(number):
                    if self.followers:
                        follower = self.followers[number % len(self.followers)]
                        if what in ("leave", "return"):
                            await (follower.leave() if what == "leave" else follower.come_back())
                        elif what == "dawdle":
                            follower.hurries.clear()
                        else:
                            follower.hurries.set()
                case mutation:
                    await self.mutate(*mutation)

    async def mutate(self, what: str, person: int, *arguments: Any) -> None:
        viewer = self.people[person]
        if what == "create":
            assignee, priority = arguments
            async with self.database.write() as session:
                task = await make_task(session, viewer, assignee_id=self.id_of(assignee), priority=priority)
            self.task_ids.append(task.id)
            return
        if not self.task_ids:
            return
        task_id = self.task_ids[arguments[0] % len(self.task_ids)]
        with suppress(Refusal):
            async with self.database.write() as session:
                match what:
                    case "assign":
                        given: tasks.TaskUpdate = {"assignee_id": self.id_of(arguments[1])}
                        await tasks.update_task(session, viewer, task_id, given)
                    case "status":
                        await tasks.set_task_status(session, viewer, task_id, arguments[1])
                    case "priority":
                        await tasks.update_task(session, viewer, task_id, {"priority": arguments[1]})
                    case "delete":
                        await tasks.delete_task(session, viewer, task_id)

    def id_of(self, person: int | None) -> UUID | None:
        return None if person is None else self.people[person].id


class Follower:
    """A subscriber that remembers the list it read and the changes it received since."""

    def __init__(self, world: World, viewer: Viewer, filter_: TaskFilter | None) -> None:
        self._world, self._viewer, self._filter = world, viewer, filter_
        self._listed: dict[UUID, TaskRow] = {}
        self._cursor: int | None = None
        # Where its changes start, and whether it must get all of them or only those after some later moment.
        self._since, self._has_cursor = 0, True
        self._heard: list[Change] = []
        self._task: asyncio.Task[None] | None = None
        self.hurries = asyncio.Event()
        self.hurries.set()

    async def join(self, *, has_cursor: bool) -> None:
        """With a cursor: read the list, then subscribe. Without: subscribe, then read the list."""
        self._has_cursor, self._heard = has_cursor, []
        async with self._world.database.read() as session:
            self._since = (await read_stream_state(session)).last_position
        if has_cursor:
            self._cursor = self._since
            self._listed = await self.list_tasks()
            await self._subscribe()
        else:
            self._cursor = None
            await self._subscribe()
            self._listed = await self.list_tasks()

    async def leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def come_back(self) -> None:
        if self._task is not None:
            return
        if self._cursor is None:
            await self.join(has_cursor=False)
        else:
            await self._subscribe()

    async def _subscribe(self) -> None:
        has_begun = asyncio.Event()
        self._task = asyncio.create_task(self._follow(has_begun))
        await has_begun.wait()

    async def _follow(self, has_begun: asyncio.Event) -> None:
        async with self._world.fanout.subscribe(self._viewer, after=self._cursor) as subscriber:
            has_begun.set()
            while True:
                await self.hurries.wait()
                for event in await subscriber.next_batch(self._world.database):
                    if change := change_for(
                        subscriber.viewer, event, filter_of(self._filter, self._viewer, clock.now())
                    ):
                        self._heard.append(change)
                        self._cursor = event.position

    async def list_tasks(self) -> dict[UUID, TaskRow]:
        found = condition(filter_of(self._filter, self._viewer, clock.now()))
        async with self._world.database.read() as session:
            may_see = visible(is_admin=self._viewer.is_admin)
            statement = select(*TASK_COLUMNS).where(may_see, found)
            rows = await session.execute(statement, {"viewer_id": self._viewer.id})
        return {row.id: TaskRow._make(row) for row in rows}

    async def check(self) -> None:
        """Check that every change was received and leads to the current list. All have returned and none is slow."""
        async with self._world.database.read() as session:
            events = await events_after(session, self._since, limit=100_000)
        to_tell = [
            change
            for event in events
            if (change := change_for(self._viewer, event, filter_of(self._filter, self._viewer, clock.now())))
        ]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while to_tell[-1:] != self._heard[-1:] and time.monotonic() < deadline:
            await asyncio.sleep(0)
            if not self._has_cursor and not self._heard and await self._is_up_to_date():
                break
        if not self._has_cursor:
            # "From now on" began at some moment after this position was read.
            to_tell = to_tell[len(to_tell) - len(self._heard) :]
        assert self._heard == to_tell
        assert await self._is_up_to_date()

    async def _is_up_to_date(self) -> bool:
        replica = dict(self._listed)
        for change in self._heard:
            if change.kind in (TaskChangeKind.DELETED, TaskChangeKind.LEFT):
                replica.pop(change.event.subject_id, None)
            else:
                assert change.event.after is not None
                replica[change.event.subject_id] = change.event.after
        return replica == await self.list_tasks()


@settings(
    max_examples=25,
    deadline=None,
    # All examples share one database: each has its own users, and its subscribers start where the last example ended.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(steps, min_size=4, max_size=30))
async def test_every_subscriber_ends_with_the_list_that_a_query_returns(
    database: Database, program: list[tuple[Any, ...]]
) -> None:
    world = World(database)
    await world.open()
    try:
        await world.run(program)
        await world.relay.catch_up()
        for follower in world.followers:
            follower.hurries.set()
            await follower.come_back()
        for follower in world.followers:
            await follower.check()
    finally:
        await world.close()
