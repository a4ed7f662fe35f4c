"""The unchanged recipes of docs/stream.md, in Node, through everything that ends a stream.

Two servers share one PostgreSQL and one Redis. The recipes follow the first, which has all the faults. Meanwhile other
users change tasks through the second, so that there is always something to miss.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from uuid import UUID

import httpx
import jwt
import pytest
from sqlalchemy import text

from taskflow_gql import clock
from taskflow_gql.security.tokens import TokenSigner
from taskflow_gql.services.positions import expire_events
from tests.clients.node import FOLLOWED, PACKAGES, Recipe, comes_true, running
from tests.faults.checker import Event, Listener, Seen
from tests.faults.clients import Log, Person, Puller, Writer
from tests.support.client import Api
from tests.support.client import Person as SignedIn
from tests.support.cluster import Cluster
from tests.support.serving import SECRET, make_admin

pytestmark = pytest.mark.clients

OVER_WEBSOCKET = ("graphql-ws", "urql", "apollo")
OVER_HTTP = ("fetch", "graphql-sse", "apollo over http")
RECIPES = OVER_WEBSOCKET + OVER_HTTP
# They see no pings and no comments, and keep waiting when nothing more comes.
PATIENT = ("graphql-sse", "apollo over http")
SEED = 20261121
# For all recipes to come back. After several failures they wait some seconds between attempts.
PATIENCE_SECONDS = 30
DEACTIVATE = "mutation($input: DeactivateUserInput!) { deactivateUser(input: $input) { errors { code } } }"
REACTIVATE = "mutation($input: ReactivateUserInput!) { reactivateUser(input: $input) { errors { code } } }"
# More than one page, so that lists are read in several pages.
FIRST_TASKS = 120
TOKEN_SECONDS = 5


@dataclass
class Story:
    """The result of all faults."""

    recipes: dict[str, Recipe]
    # Every change, including those that have expired meanwhile.
    record: list[Event]
    # The final answer to a query, by filter.
    fresh: dict[str, dict[str, Seen]]


@pytest.fixture(scope="module")
async def story() -> Story:
    settings = {"TASKFLOW_SECRET_KEY": SECRET}
    async with Cluster(settings) as cluster, Api(f"http://127.0.0.1:{cluster.servers[1].port}") as elsewhere:
        people = {name: await elsewhere.register(name) for name in ("ann", "bob", "cia", "root")}
        await make_admin(cluster.database, people["root"].id)
        ann, bob = people["ann"], people["bob"]
        await asyncio.gather(*(elsewhere.create_task(ann, f"Task {n}", assigneeId=bob.id) for n in range(FIRST_TASKS)))
        async with AsyncExitStack() as stack:
            recipes = {
                name: await stack.enter_async_context(
                    running(
                        name,
                        cluster.urls[0],
                        bob.id,
                        username=bob.username,
                        password=bob.password,
                        token=short_lived(bob.token),
                        # The server sends a comment over HTTP only every 15 seconds, so this cuts off live streams too.
                        patience=3000,
                        longestPause=1500,
                    )
                )
                for name in RECIPES
            }
            async with others_at_work(elsewhere, people):
                faults = Faults(cluster, elsewhere, people, list(recipes.values()))
                await faults.do_all()
            await cluster.heal()
            await faults.everybody_follows()
            for recipe in recipes.values():
                recipe.ask_for_lists()
            await comes_true(list(recipes.values()), lambda recipe: recipe.lists == len(FOLLOWED), PATIENCE_SECONDS)
            await faults.read_record()
            return Story(recipes, list(faults.record.values()), await fresh_lists(cluster.urls[0], bob))


def short_lived(token: str) -> str:
    """A token of the same session that expires in a few seconds."""
    claims = jwt.decode(token, options={"verify_signature": False})
    signer = TokenSigner(SECRET, timedelta(seconds=TOKEN_SECONDS))
    return signer.sign(user_id=UUID(claims["sub"]), session_id=UUID(claims["sid"]), issued_at=clock.now())


@asynccontextmanager
async def others_at_work(elsewhere: Api, people: Mapping[str, SignedIn]) -> AsyncIterator[None]:
    """Three users create, update, assign, complete and delete tasks without a break."""
    known = {name: Person(each.id, name, each.password, each.token) for name, each in people.items()}
    stop, log = asyncio.Event(), Log()
    async with asyncio.TaskGroup() as group:
        for seed, name in enumerate(("ann", "cia", "root")):
            writer = Writer(known[name], list(known.values()), [elsewhere.url], log, SEED + seed)
            group.create_task(writer.run(stop, pause_seconds=0.1))
        try:
            yield
        finally:
            stop.set()


async def fresh_lists(url: str, bob: SignedIn) -> dict[str, dict[str, Seen]]:
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS, trust_env=False) as http:
        person = Person(bob.id, bob.username, bob.password, token="")
        await person.renew(http, [url], "", Log())
        readers = {filter_: Puller(person, filter_, [url], Log(), SEED) for filter_ in FOLLOWED}
        return {filter_: (await reader.read_list(http, url))[1] for filter_, reader in readers.items()}


class Faults:
    """Injects one fault after the other into the first server. After each, waits until all recipes follow again."""

    def __init__(self, cluster: Cluster, elsewhere: Api, people: Mapping[str, SignedIn], recipes: list[Recipe]) -> None:
        self._cluster, self._elsewhere, self._people, self._recipes = cluster, elsewhere, people, recipes
        self._server = cluster.servers[0]
        self.record: dict[int, Event] = {}

    async def do_all(self) -> None:
        await self.everybody_follows()
        for fault in (
            self.let_the_token_expire,
            self.cut_the_sockets,
            self.kill,
            self.restart,
            self.freeze,
            self.lock_out,
            self.exchange_the_database,
        ):
            begun = time.monotonic()
            await fault()
            done = time.monotonic()
            await self.everybody_follows()
            print(f"{fault.__name__}: {done - begun:.1f} s, and {time.monotonic() - done:.1f} s to come back")

    async def everybody_follows(self) -> None:
        ann, bob = self._people["ann"], self._people["bob"]
        task = await self._elsewhere.create_task(ann, "Does everybody follow?", assigneeId=bob.id)

        def has_heard(recipe: Recipe) -> bool:
            return all(task["id"] in following.heard_of for following in recipe.followings.values())

        await comes_true(self._recipes, has_heard, PATIENCE_SECONDS)

    async def let_the_token_expire(self) -> None:
        await comes_true(self._recipes, lambda recipe: recipe.sign_ins > 0, PATIENCE_SECONDS)

    async def cut_the_sockets(self) -> None:
        random = Random(SEED)
        assert self._cluster.proxies[0].cut(lambda: random.randint(0, 300)) >= len(RECIPES)

    async def kill(self) -> None:
        await asyncio.to_thread(self._server.kill)
        await self._change_something()
        await asyncio.to_thread(self._server.start)

    async def restart(self) -> None:
        await asyncio.to_thread(self._server.stop)
        await self._change_something()
        await asyncio.to_thread(self._server.start)

    async def freeze(self) -> None:
        """Connections stay open, and nothing comes any more."""
        noticing = [recipe for recipe in self._recipes if recipe.name not in PATIENT]
        errors = {recipe.name: recipe.errors for recipe in noticing}
        await asyncio.to_thread(self._server.pause)
        try:
            await comes_true(noticing, lambda recipe: recipe.errors > errors[recipe.name], PATIENCE_SECONDS)
        finally:
            await asyncio.to_thread(self._server.resume)

    async def lock_out(self) -> None:
        """Deactivate the recipes' user until the changes since then have expired."""
        bob, root = self._people["bob"], self._people["root"]
        errors = {recipe.name: recipe.errors for recipe in self._recipes}
        await self._elsewhere.data(DEACTIVATE, {"input": {"userId": bob.id}}, by=root)
        await comes_true(self._recipes, lambda recipe: recipe.errors > errors[recipe.name], PATIENCE_SECONDS)
        await self._change_something()
        await self.read_record()
        async with self._cluster.database.write() as session:
            assert await expire_events(session, clock.now(), limit=100_000)
        await self._elsewhere.data(REACTIVATE, {"input": {"userId": bob.id}}, by=root)

    async def exchange_the_database(self) -> None:
        """Give the stream a new id, so that older cursors belong to another database."""
        await asyncio.to_thread(self._server.stop)
        async with self._cluster.database.write() as session:
            await session.execute(text("UPDATE stream_state SET stream_id = 'feedfacefeedface'"))
        await asyncio.to_thread(self._server.start)

    async def _change_something(self) -> None:
        ann, bob = self._people["ann"], self._people["bob"]
        task = await self._elsewhere.create_task(ann, "While you were away")
        assert (await self._elsewhere.update_task(ann, task["id"], title="And again"))["errors"] == []
        # This fails while the user is deactivated, because inactive users cannot be assigned.
        await self._elsewhere.update_task(ann, task["id"], assigneeId=bob.id)

    async def read_record(self) -> None:
        for event in await self._cluster.record():
            if event.position is not None:
                self.record[event.position] = event


# ---------------------------------------------------------------- the verdict


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, story: Story) -> Recipe:
    return story.recipes[request.param]


def test_the_list_equals_a_fresh_query(recipe: Recipe, story: Story) -> None:
    for following in recipe.followings.values():
        assert following.tasks == story.fresh[following.filter]
        assert len(following.tasks) > 10


def test_every_change_was_received_once_and_in_order(recipe: Recipe, story: Story) -> None:
    for following in recipe.followings.values():
        for part in following.parts:
            is_last = part is following.parts[-1]
            end = max(event.position or 0 for event in story.record) if is_last else end_of(part)
            expected = [
                (event.position, event.task_id, kind)
                for event in story.record
                if part.since < (event.position or 0) <= end and (kind := part.kind_of(event))
            ]
            assert [(told.position, told.task_id, told.kind) for told in part.told] == expected


def end_of(part: Listener) -> int:
    return part.told[-1].position if part.told else part.since


def test_no_change_was_applied_twice(recipe: Recipe) -> None:
    for following in recipe.followings.values():
        assert len(following.applied) == len(set(following.applied))


def test_the_list_was_read_again_only_for_refused_cursors(recipe: Recipe) -> None:
    for following in recipe.followings.values():
        # At the start, when the cursor had expired, and when it was another database's.
        assert len(following.parts) == 3
        assert following.counts["page"] > 3


@pytest.mark.parametrize("name", ["apollo", "apollo over http"])
def test_apollos_cache_has_the_current_tasks(name: str, story: Story) -> None:
    for following in story.recipes[name].followings.values():
        assert following.cached == {task_id: task.version for task_id, task in following.tasks.items()}


def test_a_restart_does_not_complete_streams_over_websockets(story: Story) -> None:
    for name in OVER_WEBSOCKET:
        # In order: cut or killed; restarted; expired or deactivated; frozen, and closed by the client.
        assert {1006, 1012, 4403, 4499} <= set(story.recipes[name].close_codes)
    # urql and Apollo create a completion of their own when a stream ends.
    followings = story.recipes["graphql-ws"].followings.values()
    assert [following.counts["complete"] for following in followings] == [0, 0]


def test_a_restart_completes_streams_over_http(story: Story) -> None:
    for name in OVER_HTTP:
        assert all(following.counts["complete"] > 0 for following in story.recipes[name].followings.values())


def test_a_stopped_recipe_leaves_nothing_open(recipe: Recipe) -> None:
    assert not recipe.hangs


def test_the_documentation_names_every_recipe() -> None:
    text = (PACKAGES.parent.parent / "stream.md").read_text()
    named = set(re.findall(r"\]\(recipes/(.*?)\)", text))
    assert named == {path.name for path in PACKAGES.parent.glob("*.mjs")}
