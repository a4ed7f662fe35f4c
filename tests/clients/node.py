"""Runs the recipes of docs/recipes in Node, each in its own process, and collects their logs."""

from __future__ import annotations

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.checker import FILTERS, Listener, Seen, Told
from tests.faults.clients import decoded, seen
from tests.support.processes import child

HERE = Path(__file__).parent
PACKAGES = HERE.parent.parent / "docs/recipes/node_modules"
# A line may hold a list of all tasks of a user, which has tens of thousands of bytes.
LONGEST_LINE = 16 * 1024 * 1024
STOP_SECONDS = 10


class NodeMissing(Exception):
    pass


def node() -> str:
    program = shutil.which("node")
    if program is None or not PACKAGES.exists():
        raise NodeMissing("Node or the packages of docs/recipes are missing: `make client-test` installs them")
    return program


@dataclass
class Following:
    """The log of one list in one recipe, in parts: a new part begins each time the list is read again."""

    user_id: str
    filter: str
    parts: list[Listener] = field(default_factory=list)
    # The list that is being read: its cursor, and the tasks so far.
    since: int = 0
    read: set[str] = field(default_factory=set)
    # The tasks seen in the last part, in the list or in a change.
    heard_of: set[str] = field(default_factory=set)
    # The task and the version of each change that was applied to the list.
    applied: list[tuple[str, int]] = field(default_factory=list)
    # The list as the recipe holds it, and as Apollo's cache holds it.
    tasks: dict[str, Seen] = field(default_factory=dict)
    cached: dict[str, int | None] | None = None
    errors: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class Recipe:
    """A running recipe."""

    def __init__(self, name: str, user_id: str, process: Process) -> None:
        self.name = name
        self.followings = {filter_: Following(user_id, filter_) for filter_ in FOLLOWED}
        self.close_codes: Counter[int] = Counter()
        self.sign_ins = 0
        self.lists = 0
        # Whether something kept the process alive after it was stopped.
        self.hangs = False
        self._is_stopped = False
        self._process = process
        self.changed = asyncio.Event()

    @property
    def errors(self) -> int:
        """The number of errors that every one of its lists has met."""
        return min(len(following.errors) for following in self.followings.values())

    async def listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self._note(json.loads(line))
            self.changed.set()

    def _note(self, fact: Mapping[str, Any]) -> None:
        if self._is_stopped:
            return
        match fact["kind"]:
            case "closed":
                self.close_codes[fact["code"]] += 1
                return
            case "signed in":
                self.sign_ins += 1
                return
        following = self.followings[fact["filter"]]
        following.counts[fact["kind"]] += 1
        match fact["kind"]:
            case "page":
                if fact["isFirst"]:
                    following.since, following.read = decoded(fact["cursor"]), set()
                following.read.update(fact["ids"])
                # If a page cannot be read, the list is read again from the start. That does not make a part of its own.
                if fact["isLast"]:
                    name = f"{self.name} {following.filter!r}"
                    part = Listener(name, following.user_id, filter=following.filter, since=following.since)
                    following.parts.append(part)
                    following.heard_of = following.read
            case "told":
                following.parts[-1].told.append(told(fact["change"]))
                following.heard_of.add(fact["change"]["taskId"])
            case "applied":
                following.applied.append((fact["taskId"], fact["version"]))
            case "error":
                following.errors.append(fact["text"])
            case "list":
                following.tasks = {task["id"]: seen(task) for task in fact["tasks"]}
                assert len(following.tasks) == len(fact["tasks"])
                if fact["cached"] is not None:
                    following.cached = dict(zip(following.tasks, fact["cached"], strict=True))
                self.lists += 1

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._is_stopped = True
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            self.hangs = True

    def ask_for_lists(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")


FOLLOWED = ("everything", "pending")


def told(change: Mapping[str, Any]) -> Told:
    return Told(
        position=decoded(change["cursor"]),
        kind=change["kind"],
        task_id=change["taskId"],
        task=change["task"] and seen(change["task"]),
        previous=change["previous"] and change["previous"]["version"],
    )


@asynccontextmanager
async def running(name: str, url: str, user_id: str, **given: object) -> AsyncIterator[Recipe]:
    filters = {filter_: FILTERS[filter_] for filter_ in FOLLOWED}
    argument = json.dumps({"recipe": name, "url": f"{url}/graphql", "filters": filters, **given})
    command = (node(), HERE / "run.mjs", argument)
    async with child(*command, stdin=PIPE, stdout=PIPE, limit=LONGEST_LINE) as process:
        recipe = Recipe(name, user_id, process)
        async with asyncio.TaskGroup() as group:
            group.create_task(recipe.listen())
            try:
                yield recipe
            finally:
                await recipe.stop()


async def comes_true(recipes: list[Recipe], holds: Callable[[Recipe], bool], seconds: float) -> None:
    """Wait until `holds` is true for each recipe. The TimeoutError names those for which it is not."""

    async def wait(recipe: Recipe) -> None:
        while not holds(recipe):
            recipe.changed.clear()
            await recipe.changed.wait()

    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(wait(recipe) for recipe in recipes))
    except TimeoutError as error:
        waiting = {
            recipe.name: [following.errors[-3:] for following in recipe.followings.values()]
            for recipe in recipes
            if not holds(recipe)
        }
        raise TimeoutError(f"still waiting, after these errors: {waiting}") from error
