"""One reader of the record per process, and a bounded queue per subscriber."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from taskflow_gql.database.units import Database
from taskflow_gql.errors import BadUserInput, ServerStops, TaskflowError, TooManySubscriptions
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.events import EventRow, events_after
from taskflow_gql.services.positions import (
    decode_cursor,
    encode_cursor,
    read_stream_end,
    read_stream_state,
    require_kept,
)
from taskflow_gql.stream.bus import Bus

log = logging.getLogger(__name__)

_BATCH = 500
# Without news for so long, read the table all the same: the news may have been lost.
_POLL_SECONDS = 1.0


class Subscriber:
    """What one subscription has yet to be told. Made by `Fanout.subscribe`."""

    def __init__(self, viewer: Viewer, queue_size: int) -> None:
        self.viewer = viewer
        self.position = 0
        self._skip: frozenset[int] = frozenset()
        # A list, and no asyncio.Event below: there are thousands of subscribers, and an empty deque is 760 bytes.
        self._queue: list[EventRow] = []
        self._queue_size = queue_size
        self._must_read_table = False
        self._end_reason: TaskflowError | None = None
        self._has_news = False
        self._waiter: asyncio.Future[None] | None = None

    def begin(self, position: int, skip: frozenset[int]) -> None:
        """Everything after the position, but for the events with these ids."""
        self.position = position
        self._skip = skip

    def replay(self, position: int) -> None:
        """Everything after the position, beginning with what the table has."""
        self.position = position
        self._must_read_table = True

    def offer(self, event: EventRow) -> None:
        """Never blocks. What does not fit into the queue is read from the table later."""
        if self._must_read_table:
            return
        if len(self._queue) >= self._queue_size:
            self._queue.clear()
            self._must_read_table = True
        else:
            self._queue.append(event)
        self._wake()

    def end(self, reason: TaskflowError) -> None:
        """Nothing more is delivered."""
        self._end_reason = reason
        self._wake()

    def _wake(self) -> None:
        self._has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next_batch(self, database: Database) -> list[EventRow]:
        """Waits for events after `position` that the viewer may see before or after the change; in order.

        Raises what it was ended with.
        """
        while True:
            # Before looking, not before waiting: what is offered while the table is read must wake us.
            self._has_news = False
            if self._must_read_table:
                # Cleared first: what is offered while we read is queued again, and dropped below if it was read.
                self._must_read_table = False
                async with database.read() as session:
                    events = await events_after(session, self.position, viewer=self.viewer, limit=_BATCH)
                    # Asked afterwards: what was still there now was there when the events were read.
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
    """Reads each placed event once and hands it to the subscribers whom it may concern."""

    def __init__(self, database: Database, bus: Bus, *, queue_size: int = 200, max_per_user: int = 1000) -> None:
        self._database = database
        self._queue_size = queue_size
        self._max_per_user = max_per_user
        self._stream_id = ""
        self._position = 0
        self._news = asyncio.Event()
        self._by_user: defaultdict[UUID, set[Subscriber]] = defaultdict(set)
        # Those of `_by_user` whom every event concerns.
        self._admins: set[Subscriber] = set()
        self._is_draining = False
        self._task: asyncio.Task[None] | None = None
        bus.listen(self._news.set)

    async def start(self) -> None:
        async with self._database.read() as session:
            state = await read_stream_state(session)
        self._stream_id, self._position = state.stream_id, state.last_position
        self._task = asyncio.create_task(self._run(), name="fanout")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def drain(self) -> None:
        """The server stops: end every stream, and let no new one begin."""
        self._is_draining = True
        for subscriber in self.subscribers():
            subscriber.end(ServerStops())

    def subscribers(self) -> list[Subscriber]:
        return [subscriber for group in self._by_user.values() for subscriber in group]

    def set_viewer(self, subscriber: Subscriber, viewer: Viewer) -> None:
        """The same person with another role."""
        subscriber.viewer = viewer
        if viewer.is_admin:
            self._admins.add(subscriber)
        else:
            self._admins.discard(subscriber)

    async def position_of(self, cursor: str) -> int:
        """Where a client's cursor points. Raises BadUserInput for one that is not of this stream, or of its future, and
        CursorExpired for one whose events are no longer kept.
        """
        position = self.decode(cursor)
        async with self._database.read() as session:
            state = await require_kept(session, position)
        if position > state.last_position:
            raise BadUserInput("after is a cursor from the future: read again from a query")
        return position

    def decode(self, cursor: str) -> int:
        """The position of a cursor of this stream, whether or not there is anything. Raises BadUserInput for others."""
        return decode_cursor(cursor, self._stream_id)

    def cursor(self, position: int) -> str:
        return encode_cursor(self._stream_id, position)

    def require_room(self, viewer: Viewer) -> None:
        """Raises TooManySubscriptions when this person may not open another one."""
        if len(self._by_user.get(viewer.id, ())) >= self._max_per_user:
            raise TooManySubscriptions(self._max_per_user)

    @asynccontextmanager
    async def subscribe(self, viewer: Viewer, *, after: int | None = None) -> AsyncIterator[Subscriber]:
        """Everything after a position, or everything committed from now on, in order."""
        self.require_room(viewer)
        subscriber = Subscriber(viewer, self._queue_size)
        group = self._by_user[viewer.id]
        # Registered before the end of the stream is read, so that nothing falls between the two.
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

    async def changes(self, viewer: Viewer, *, after: int | None = None) -> AsyncGenerator[tuple[Viewer, EventRow]]:
        """What `subscribe` delivers, one by one, each with the viewer as known at its delivery."""
        async with self.subscribe(viewer, after=after) as subscriber:
            while True:
                for event in await subscriber.next_batch(self._database):
                    yield subscriber.viewer, event

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._news.wait()
            self._news.clear()
            try:
                await self._read_on()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("Cannot read events now (%s); trying again", type(error).__name__)
                await asyncio.sleep(_POLL_SECONDS / 4)
                self._news.set()

    async def _read_on(self) -> None:
        count = _BATCH
        while count == _BATCH:
            async with self._database.read() as session:
                events = await events_after(session, self._position, limit=_BATCH)
            for event in events:
                self._deliver(event)
                self._position = event.position
            count = len(events)

    def _deliver(self, event: EventRow) -> None:
        for subscriber in self._concerned(event):
            subscriber.offer(event)

    def _concerned(self, event: EventRow) -> Iterable[Subscriber]:
        concerned = set(self._admins)
        for user_id in event.audience:
            concerned |= self._by_user.get(user_id, set())
        return concerned
