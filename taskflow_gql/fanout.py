"""One reader of the record per process, and a bounded queue per subscriber."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from taskflow_gql.bus import Bus
from taskflow_gql.database import Database
from taskflow_gql.events import TaskChanged, encode_cursor
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.changes import audience, events_after, read_stream_end, read_stream_state

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
        self._queue: deque[TaskChanged] = deque()
        self._queue_size = queue_size
        self._must_read_table = False
        self._wake = asyncio.Event()

    def begin(self, position: int, skip: frozenset[int]) -> None:
        self.position = position
        self._skip = skip

    def offer(self, event: TaskChanged) -> None:
        """Never blocks. What does not fit into the queue is read from the table later."""
        if self._must_read_table:
            return
        if len(self._queue) >= self._queue_size:
            self._queue.clear()
            self._must_read_table = True
        else:
            self._queue.append(event)
        self._wake.set()

    async def next_batch(self, database: Database) -> list[TaskChanged]:
        """Waits for events after `position` that the viewer may see before or after the change; in order."""
        while True:
            if self._must_read_table:
                # Cleared first: what is offered while we read is queued again, and dropped below if it was read.
                self._must_read_table = False
                async with database.read() as session:
                    events = await events_after(session, self.position, viewer=self.viewer, limit=_BATCH)
                if len(events) == _BATCH:
                    self._queue.clear()
                    self._must_read_table = True
            else:
                events = list(self._queue)
                self._queue.clear()
            events = [event for event in events if event.position > self.position]
            if events:
                self.position = events[-1].position
                fresh = [event for event in events if event.id not in self._skip]
                if fresh:
                    return fresh
                continue
            self._wake.clear()
            await self._wake.wait()


class Fanout:
    """Reads each placed event once and hands it to the subscribers whom it may concern."""

    def __init__(self, database: Database, bus: Bus, *, queue_size: int = 200) -> None:
        self._database = database
        self._queue_size = queue_size
        self._stream_id = ""
        self._position = 0
        self._news = asyncio.Event()
        self._by_user: defaultdict[UUID, set[Subscriber]] = defaultdict(set)
        self._admins: set[Subscriber] = set()
        self._task: asyncio.Task[None] | None = None
        bus.listen(self._news.set)

    async def start(self) -> None:
        async with self._database.read() as session:
            self._stream_id, self._position = await read_stream_state(session)
        self._task = asyncio.create_task(self._run(), name="fanout")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @asynccontextmanager
    async def subscribe(self, viewer: Viewer) -> AsyncIterator[Subscriber]:
        """Everything committed from now on, in order."""
        subscriber = Subscriber(viewer, self._queue_size)
        group = self._admins if viewer.is_admin else self._by_user[viewer.id]
        # Registered before the end of the stream is read, so that nothing falls between the two.
        group.add(subscriber)
        try:
            async with self._database.read() as session:
                subscriber.begin(*await read_stream_end(session))
            yield subscriber
        finally:
            group.discard(subscriber)
            if not group and not viewer.is_admin:
                self._by_user.pop(viewer.id, None)

    async def changes(self, viewer: Viewer) -> AsyncIterator[TaskChanged]:
        """What `subscribe` delivers, one by one."""
        async with self.subscribe(viewer) as subscriber:
            while True:
                for event in await subscriber.next_batch(self._database):
                    yield event

    def cursor(self, event: TaskChanged) -> str:
        return encode_cursor(self._stream_id, event.position)

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

    def _deliver(self, event: TaskChanged) -> None:
        for subscriber in self._admins:
            subscriber.offer(event)
        for user_id in audience(event):
            for subscriber in self._by_user.get(user_id, ()):
                subscriber.offer(event)
