"""`taskflow serve` as a process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from taskflow_gql.config import Settings
from tests.support.client import Api
from tests.support.processes import child

TASKFLOW = str(Path(sys.executable).with_name("taskflow"))


# Long enough for a busy machine. Only a failing test waits this long.
START_SECONDS = 60


SOON_SECONDS = 10


@dataclass
class Served:
    """A running `taskflow serve`."""

    process: asyncio.subprocess.Process
    greeting: list[str]
    api: Api
    log: Path

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and return the exit code. Raises TimeoutError if the server does not exit soon."""
        self.process.send_signal(number)
        async with asyncio.timeout(SOON_SECONDS):
            return await self.process.wait()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def serve(folder: Path, *arguments: str, limits: str = "true", **environment: str) -> AsyncIterator[Served]:
    """Run `taskflow serve` in this working folder, on a free port, from a shell that first runs `limits`."""
    log = folder / "log"
    command = ("/bin/sh", "-c", f'{limits} && exec "$@"', "sh", TASKFLOW, "serve", "--port", "0", *arguments)
    with log.open("ab") as errors:
        async with child(
            *command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            greeting = await read_greeting(process)
            port = re.findall(r"http://localhost:(\d+)/graphql", "".join(greeting))[0]
            async with Api(f"http://127.0.0.1:{port}") as api:
                # The port is open already. The first answer shows that the server has started.
                assert (await api.http.get("/health", timeout=START_SECONDS)).status_code == 200
                yield Served(process, greeting, api, log)


async def read_greeting(process: asyncio.subprocess.Process) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(START_SECONDS):
        while not lines or "Ctrl+C" not in lines[-1]:
            line = await process.stdout.readline()
            assert line, "the server has ended; see the file `log` in its folder"
            lines.append(line.decode().rstrip("\n"))
    return lines


def environment_of(settings: Settings) -> dict[str, str]:
    given = {
        "TASKFLOW_DATABASE_URL": settings.database_url,
        "TASKFLOW_REDIS_URL": settings.redis_url,
        "TASKFLOW_SECRET_KEY": settings.signing_key,
        "TASKFLOW_RATE_LIMITS": json.dumps(settings.rate_limits),
    }
    return {name: value for name, value in given.items() if value is not None}
