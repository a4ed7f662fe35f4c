"""One reader of the record per process, and a bounded queue per subscriber."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from taskflow_gql.database.units import Database
from taskflow_gql.errors import RETRY_AFTER_SECONDS, BadUserInput, ServerStops, TaskflowError
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.events import EventRow, events_after
from taskflow_gql.services.positions import (
    decode_cursor,
    encode_cursor,
    read_stream_end,
    read_stream_state,
    require_kept,
)
from taskflow_gql.stream.background import Background
from taskflow_gql.stream.bus import Bus

log = logging.getLogger(__name__)

_BATCH = 500
# How long to wait for news before reading the table anyway: a message may have been lost.
_POLL_SECONDS = 1.0


class TooManySubscriptions(TaskflowError):
    code = "RATE_LIMITED"

    def __init__(self, limit: int) -> None:
        super().__init__(f"You have {limit} subscriptions open, which is the limit: close some first")

    @property
    def extensions(self) -> dict[str, object]:
        return {"retryAfter": RETRY_AFTER_SECONDS}


class Subscriber:
    """The events that one subscription has not received yet. Made by `Fanout.subscribe`."""

    def __init__(self, viewer: Viewer, queue_size: int, row_class: type[Any] | None = None) -> None:
        self.viewer = viewer
        # The noun whose events are delivered; None for all.
        self._row_class = row_class
        self.position = 0
        self._skip: frozenset[int] = frozenset()
        # A list here and a future below save memory: there are thousands of subscribers, and a deque takes 760 bytes.
        self._queue: list[EventRow] = []
        self._queue_size = queue_size
        self._must_read_table = False
        self._end_reason: TaskflowError | None = None
        self._has_news = False
        self._waiter: asyncio.Future[None] | None = None

    def begin(self, position: int, skip: frozenset[int]) -> None:
        """Deliver events after the position, except those with these ids."""
        self.position = position
        self._skip = skip

    def replay(self, position: int) -> None:
        """Deliver events after the position, those in the table first."""
        self.position = position
        self._must_read_table = True

    def offer(self, event: EventRow) -> None:
        """Queue the event. If the queue is full, drop it and read the table later. Never blocks."""
        if self._must_read_table or (self._row_class is not None and event.row_class is not self._row_class):
            return
        if len(self._queue) >= self._queue_size:
            self._queue.clear()
            self._must_read_table = True
        else:
            self._queue.append(event)
        self._wake()

    def end(self, reason: TaskflowError) -> None:
        """Deliver nothing more, and raise the reason in `next_batch`."""
        self._end_reason = reason
        self._wake()

    def _wake(self) -> None:
        self._has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next_batch(self, database: Database) -> list[EventRow]:
        """Waits for events after `position` that the viewer may see before or after the change, and returns them in
        order.

        Raises the reason with which the subscriber was ended.
        """
        while True:
            # Cleared before reading: an event offered while the table is read must wake this coroutine.
            self._has_news = False
            if self._must_read_table:
                # Cleared before reading: events offered meanwhile are queued, and dropped below if they were read.
                self._must_read_table = False
                async with database.read() as session:
                    events = await events_after(
                        session, self.position, viewer=self.viewer, row_class=self._row_class, limit=_BATCH
                    )
                    # Checked after the events: those that are stored now were stored when they were read.
                    await require_kept(session, self.position)
                if len(events) == _BATCH:
                    self._queue.clear()
                    self._must_read_table = True
            else:
                events, self._queue = self._queue, []
            if self._end_reason is not None:
                raise self._end_reason
            events = [event for event in events if event.position > self.position]
            if events:
                self.position = events[-1].position
                fresh = [event for event in events if event.id not in self._skip]
                if fresh:
                    return fresh
                continue
            if not self._has_news:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter


class Fanout:
    """Reads each placed event once and offers it to the subscribers in its audience."""

    def __init__(self, database: Database, bus: Bus, *, queue_size: int = 200, max_per_user: int = 1000) -> None:
        self._database = database
        self._queue_size = queue_size
        self._max_per_user = max_per_user
        self._stream_id = ""
        self._position = 0
        self._by_user: defaultdict[UUID, set[Subscriber]] = defaultdict(set)
        # The subscribers of `_by_user` who get every event.
        self._admins: set[Subscriber] = set()
        self._is_draining = False
        self._background = Background(
            "fanout",
            self._read_on,
            failure="Cannot read events",
            interval_seconds=_POLL_SECONDS,
            retry_seconds=_POLL_SECONDS / 4,
        )
        bus.listen(self._background.wake)

    async def start(self) -> None:
        async with self._database.read() as session:
            state = await read_stream_state(session)
        self._stream_id, self._position = state.stream_id, state.last_position
        self._background.start()

    async def close(self) -> None:
        await self._background.close()

    def drain(self) -> None:
        """End every stream and refuse new ones, because the server stops."""
        self._is_draining = True
        for subscriber in self.subscribers():
            subscriber.end(ServerStops())

    def subscribers(self) -> list[Subscriber]:
        return [subscriber for group in self._by_user.values() for subscriber in group]

    def set_viewer(self, subscriber: Subscriber, viewer: Viewer) -> None:
        """Record that the subscriber's role has changed."""
        subscriber.viewer = viewer
        if viewer.is_admin:
            self._admins.add(subscriber)
        else:
            self._admins.discard(subscriber)

    async def position_of(self, cursor: str, *, argument: str = "after") -> int:
        """The position of a client's cursor.

        Raises BadUserInput if it belongs to another stream or lies in the future, and CursorExpired if events after it
        are no longer stored.
        """
        position = self.decode(cursor, argument=argument)
        async with self._database.read() as session:
            state = await require_kept(session, position)
        if position > state.last_position:
            raise BadUserInput(f"{argument} is a cursor from the future: read again from a query")
        return position

    def decode(self, cursor: str, *, argument: str = "after") -> int:
        """The position of a cursor; does not read the table. Raises BadUserInput if it belongs to another stream."""
        return decode_cursor(cursor, self._stream_id, argument=argument)

    def cursor(self, position: int) -> str:
        return encode_cursor(self._stream_id, position)

    def require_room(self, viewer: Viewer) -> None:
        """Raises TooManySubscriptions if this person may not open another subscription."""
        if len(self._by_user.get(viewer.id, ())) >= self._max_per_user:
            raise TooManySubscriptions(self._max_per_user)

    @asynccontextmanager
    async def subscribe(
        self, viewer: Viewer, row_class: type[Any] | None = None, *, after: int | None = None
    ) -> AsyncIterator[Subscriber]:
        """Delivers events of one noun, or of all, after a position, or those committed from now on, in order."""
        self.require_room(viewer)
        subscriber = Subscriber(viewer, self._queue_size, row_class)
        group = self._by_user[viewer.id]
        # Registered before the end of the stream is read, so that no event is lost between the two.
        group.add(subscriber)
        self.set_viewer(subscriber, viewer)
        if self._is_draining:
            subscriber.end(ServerStops())
        try:
            if after is None:
                async with self._database.read() as session:
                    subscriber.begin(*await read_stream_end(session))
            else:
                subscriber.replay(after)
            yield subscriber
        finally:
            self._admins.discard(subscriber)
            group.discard(subscriber)
            if not group:
                self._by_user.pop(viewer.id, None)

    async def events(
        self, viewer: Viewer, row_class: type[Any], *, after: int | None = None
    ) -> AsyncGenerator[tuple[Viewer, EventRow]]:
        """The events of one noun that `subscribe` delivers, one by one, each with the viewer as known at delivery."""
        async with self.subscribe(viewer, row_class, after=after) as subscriber:
            while True:
                for event in await subscriber.next_batch(self._database):
                    yield subscriber.viewer, event

    async def _read_on(self, _was_woken: bool) -> None:
        count = _BATCH
        while count == _BATCH:
            async with self._database.read() as session:
                events = await events_after(session, self._position, limit=_BATCH)
            for event in events:
                self._deliver(event)
                self._position = event.position
            count = len(events)

    def _deliver(self, event: EventRow) -> None:
        for subscriber in self._subscribers_of(event):
            subscriber.offer(event)

    def _subscribers_of(self, event: EventRow) -> Iterable[Subscriber]:
        subscribers = set(self._admins)
        for user_id in event.audience:
            subscribers |= self._by_user.get(user_id, set())
        return subscribers
