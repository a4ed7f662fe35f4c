"""Processes started by tests can be interrupted, and end with the test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.processes import blocking_child, child
from tests.support.servers import living_tree, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Two processes that run for minutes unless killed: a shell, and the sleep that it waits for.
LONG_LIVED = ["sh", "-c", "sleep 300 & echo $!; wait"]

SAY_DEFAULTS = """
import signal
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    print(name, signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN)
"""


def is_gone(pid: int) -> bool:
    return wait_until(lambda: not living_tree(pid), 20)


async def test_a_child_has_the_default_signals() -> None:
    async with child(sys.executable, "-c", SAY_DEFAULTS, stdout=subprocess.PIPE) as process:
        said, _ = await process.communicate()
    assert said.decode() == "SIGINT True\nSIGTERM True\nSIGHUP True\n"


def test_a_child_has_the_default_signals_in_a_job_that_ignores_them() -> None:
    """Run the test above as a background job of a script does, with the signals ignored."""
    test = f"{Path(__file__).relative_to(ROOT)}::{test_a_child_has_the_default_signals.__name__}"
    job = f"trap '' INT TERM HUP; exec '{sys.executable}' -m pytest -q -p no:cacheprovider '{test}'"
    with blocking_child(["sh", "-c", job], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "1 passed" in said


class Failure(Exception):
    pass


async def test_a_failing_block_kills_its_child_and_grandchild() -> None:
    with suppress(Failure):
        async with child(*LONG_LIVED, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            grandchild = int(await process.stdout.readline())
            raise Failure
    assert process.returncode == -signal.SIGKILL
    assert is_gone(grandchild)


def test_a_failing_block_kills_its_blocking_child_and_grandchild() -> None:
    with suppress(Failure), blocking_child(LONG_LIVED, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        raise Failure
    assert process.returncode == -signal.SIGKILL
    assert is_gone(grandchild)


def test_killed_tests_take_their_children_and_grandchildren_with_them() -> None:
    script = (
        "import subprocess\n"
        "from tests.support.processes import blocking_child\n"
        f"with blocking_child({LONG_LIVED}, stdout=subprocess.PIPE) as process:\n"
        "    print(process.pid, int(process.stdout.readline()), flush=True)\n"
        "    input()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with blocking_child([sys.executable, "-c", script], cwd=ROOT, **pipes) as owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 2
        os.kill(owner.pid, signal.SIGKILL)
        assert [is_gone(pid) for pid in pids] == [True, True]


def test_processes_are_started_only_in_modules_that_end_them() -> None:
    """`subprocess.run` is allowed elsewhere, because it waits for the end."""
    starts = re.compile(r"\bPopen\(|\bcreate_subprocess_|\bos\.(?:fork|spawn|posix_spawn)")
    found = {
        str(path.relative_to(ROOT / "tests"))
        for path in (ROOT / "tests").rglob("*.py")
        if starts.search(path.read_text()) and path != Path(__file__)
    }
    assert found == {"support/servers.py", "support/processes.py"}
