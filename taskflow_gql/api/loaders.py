"""Batched reads of related rows. They live for one operation, so that they never return stale rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from strawberry.dataloader import DataLoader

from taskflow_gql.database.units import BoundedReads
from taskflow_gql.models import UserRow
from taskflow_gql.services import events, positions, tasks
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.events import EventRow, Window
from taskflow_gql.services.positions import StreamPlace
from taskflow_gql.services.task_filters import Filter
from taskflow_gql.services.tasks import Relation
from taskflow_gql.stream.relay import Relay


class Loaders:
    def __init__(self, reads: BoundedReads) -> None:
        self._reads = reads
        self._caught_up: asyncio.Future[None] | None = None
        self._stream_place: asyncio.Future[StreamPlace] | None = None
        self._positions: DataLoader[int, int | None] | None = None
        self._history: dict[Window, DataLoader[UUID, list[EventRow]]] = {}
        # People already read. The check of the token has added the viewer.
        self.people: dict[UUID, UserRow] = {}
        # One loader for each set of arguments, because a field can be selected under several aliases.
        self._task_counts_of_users: dict[tuple[Relation, Filter], DataLoader[UUID, int]] = {}

    def task_counts_of_users(self, viewer: Viewer, relation: Relation, filter_: Filter) -> DataLoader[UUID, int]:
        # Not `self._reads`: `self` keeps the function, so referring to `self` would create a reference cycle.
        reads = self._reads

        async def load(user_ids: Sequence[UUID]) -> list[int]:
            async with reads.read() as session:
                counts = await tasks.count_tasks_of_users(session, viewer, relation, user_ids, filter_)
            return [counts[user_id] for user_id in user_ids]

        return self._task_counts_of_users.setdefault((relation, filter_), DataLoader(load))

    def history(self, viewer: Viewer, window: Window) -> DataLoader[UUID, list[EventRow]]:
        reads = self._reads

        async def load(task_ids: Sequence[UUID]) -> list[list[EventRow]]:
            async with reads.read() as session:
                history = await events.history_of_tasks(session, viewer, task_ids, window)
            return [history[task_id] for task_id in task_ids]

        return self._history.setdefault(window, DataLoader(load))

    def positions(self, relay: Relay) -> DataLoader[int, int | None]:
        """Positions of committed events by event id; None for an event that is no longer kept."""
        if self._positions is None:
            reads = self._reads

            async def load(event_ids: Sequence[int]) -> list[int | None]:
                await relay.catch_up()
                async with reads.read() as session:
                    found = await positions.positions_of_events(session, event_ids)
                return [found.get(event_id) for event_id in event_ids]

            self._positions = DataLoader(load)
        return self._positions

    async def catch_up(self, relay: Relay) -> None:
        """Call `Relay.catch_up` once for all fields of the operation."""
        if self._caught_up is None:
            self._caught_up = asyncio.ensure_future(relay.catch_up())
        await self._caught_up

    async def stream_place(self) -> StreamPlace:
        """The position of the stream, read once for each operation.

        All its lists can share it: any position from before a list was read is correct for the list.
        """
        if self._stream_place is None:
            self._stream_place = asyncio.ensure_future(self._read_stream_place())
        return await self._stream_place

    async def _read_stream_place(self) -> StreamPlace:
        async with self._reads.read() as session:
            state = await positions.read_stream_state(session)
        return StreamPlace(state.stream_id, state.last_position)
