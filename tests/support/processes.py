"""Processes that tests start: each ends with the block that started it, whatever happens to the test.

A process gets a session of its own, so that one signal reaches everything it starts, and a watcher that kills it when
the tests themselves are killed. `tests/support/servers.py` has the same for PostgreSQL, Redis and servers of several
starts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.servers import start_watcher, tell_watcher


def give_children_default_signals() -> None:
    """Reset the signals that end a process to their defaults in every process started from now on.

    A job of a script ignores SIGINT, and nohup ignores SIGHUP. Children inherit an ignored signal, and neither
    `subprocess` nor Python's start resets it, so nothing could interrupt them. A handled signal is reset by exec:
    a handler that does nothing leaves this process as it is and gives its children the default.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@asynccontextmanager
async def child(*command: str | Path, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start the command as `asyncio.create_subprocess_exec` does. At the end of the block it is killed."""
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True, **options)
    try:
        with killed_at_the_end(process.pid):
            yield process
    finally:
        # Reads what is left in the pipes, which closes them.
        await process.communicate()


@contextmanager
def blocking_child(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start the command as `subprocess.Popen` does. At the end of the block it is killed."""
    with (
        subprocess.Popen(command, start_new_session=True, **options) as process,
        killed_at_the_end(process.pid),
    ):
        yield process


@contextmanager
def killed_at_the_end(pid: int) -> Iterator[None]:
    """Kill the process `pid`, which leads a group, and all of the group."""
    watcher = start_watcher()
    tell_watcher(watcher, pid)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        tell_watcher(watcher, 0)
        watcher.communicate()
