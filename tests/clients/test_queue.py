"""The unchanged recipe docs/recipes/queue.mjs, in Node, through everything that loses an answer.

The queue sends through a proxy to the first of two servers, which has the faults. It follows the stream of the second,
so that it is told of its changes also while their answers are lost.
"""

from __future__ import annotations

import asyncio
import json
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from taskflow_gql.app import create_app
from taskflow_gql.config import Settings
from taskflow_gql.transport.server import uvicorn_config
from tests.clients.node import HERE, node
from tests.faults.checker import Event, Seen
from tests.support.client import Api, Person
from tests.support.cluster import Cluster
from tests.support.processes import child
from tests.support.serving import SECRET, listening

pytestmark = pytest.mark.clients

PATIENCE_SECONDS = 30


def document(field: str, selection: str = "changeCursor task { id version status title }") -> str:
    input_type = f"{field[0].upper()}{field[1:]}Input"
    fields = f"replayed {selection} errors {{ code field message }}"
    return f"mutation($input: {input_type}!) {{ {field}(input: $input) {{ {fields} }} }}"


CREATE, UPDATE, TOGGLE = document("createTask"), document("updateTask"), document("toggleTaskCompletion")
INVALID = document("updateTask", "noSuchField")
ELSEWHERE = "mutation-of-another-device"

Fact = dict[str, Any]


class FrontEnd:
    """A running queue, and what it has written down."""

    def __init__(self, process: Process, facts: list[Fact]) -> None:
        self._process = process
        # The front end that used the store last.
        self.facts = facts
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.facts.append(json.loads(line))
            self._changed.set()

    async def add(self, document: str, **input: object) -> Fact:
        """Returns the input as it is sent, when it is stored."""
        assert self._process.stdin is not None
        seen = len(self.facts)
        self._process.stdin.write(json.dumps({"document": document, "input": input}).encode() + b"\n")
        fact = await self.until(lambda fact: fact["kind"] == "added", since=seen)
        added: Fact = fact["input"]
        return added

    async def answer(self, added: Fact) -> Fact:
        return await self.until(lambda fact: fact["kind"] in OUTCOMES and id_of(fact) == added["mutationId"])

    async def error(self, since: int, code: str | None = None) -> Fact:
        return await self.until(
            lambda fact: fact["kind"] == "error" and (code is None or code in fact["codes"]), since=since
        )

    async def until(self, holds: Callable[[Fact], bool], *, since: int = 0) -> Fact:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not (found := [fact for fact in self.facts[since:] if holds(fact)]):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise TimeoutError(f"still waiting, after {self.facts[-5:]}") from error
        return found[0]

    def kill(self) -> None:
        self._process.kill()

    async def close(self) -> None:
        """Close the queue. Fails if something keeps the process alive."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await self._process.wait() == 0


OUTCOMES = ("done", "refused", "dropped")


@asynccontextmanager
async def front_end(facts: list[Fact], **given: object) -> AsyncIterator[FrontEnd]:
    """A queue in a process of its own."""
    async with child(node(), HERE / "queue.mjs", json.dumps(given), stdin=PIPE, stdout=PIPE) as process:
        page = FrontEnd(process, facts)
        seen = len(facts)
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(page.listen())
            await page.until(
                lambda fact: fact["kind"] == ("following" if "streamUrl" in given else "opened"), since=seen
            )
            yield page
            if process.returncode is None:
                process.kill()
            await listening


@dataclass
class Story:
    """The log of the front ends, the record of all changes, and the tasks at the end."""

    facts: list[Fact]
    record: list[Event]
    tasks: dict[str, Seen]
    ids: dict[str, str]
    told_before_the_answer: set[str]

    def of_kind(self, *kinds: str) -> list[Fact]:
        return [fact for fact in self.facts if fact["kind"] in kinds]


@pytest.fixture(scope="module")
async def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    async with (
        Cluster({"TASKFLOW_SECRET_KEY": SECRET}) as cluster,
        Api(f"http://127.0.0.1:{cluster.servers[1].port}") as elsewhere,
    ):
        ann = await elsewhere.register("ann")
        names = ("offline", "merging", "killed server", "cut", "killed page", "stopped database", "edited")
        ids = {name: (await elsewhere.create_task(ann, name))["id"] for name in names}
        given = {
            "url": f"{cluster.urls[0]}/graphql",
            "streamUrl": f"{cluster.urls[1]}/graphql",
            "file": str(tmp_path_factory.mktemp("queue") / "entries"),
            "token": ann.token,
            "patience": 3_000,
        }
        facts: list[Fact] = []
        told = await Faults(cluster, elsewhere, ann, ids, given, facts).do_all()
        await cluster.heal()
        print(transcript(facts))
        return Story(facts, await cluster.record(), await cluster.tasks(), ids, told)


@dataclass
class Faults:
    """Adds mutations, and injects one fault after the other."""

    cluster: Cluster
    elsewhere: Api
    ann: Person
    ids: dict[str, str]
    given: dict[str, object]
    facts: list[Fact]

    async def do_all(self) -> set[str]:
        async with front_end(self.facts, **self.given) as page:
            await self.work_offline(page)
            page.kill()
        async with front_end(self.facts, **self.given) as page:
            server = self.cluster.servers[0]
            await asyncio.to_thread(server.start)
            await page.answer(self.last_added())
            told = {await self.lose_an_answer(page, "killed server", server.kill)}
            await asyncio.to_thread(server.start)
            self.note("server started")
            await page.answer(self.last_added())
            # The end of withholding cuts the connection.
            told.add(await self.lose_an_answer(page, "cut", lambda: None))
            await page.answer(self.last_added())
            await self.stop_the_database(page)
            await self.be_refused(page)
            await self.hear_of_another_device(page)
            told.add(await self.lose_an_answer(page, "killed page", page.kill))
        async with front_end(self.facts, **self.given) as page:
            await page.add(TOGGLE, id=self.ids["killed page"])
            await page.answer(self.last_added())
            await page.close()
        return told

    async def work_offline(self, page: FrontEnd) -> None:
        await asyncio.to_thread(self.cluster.servers[0].stop)
        seen = len(self.facts)
        made = self.ids["made"] = (await page.add(CREATE, title="Made offline"))["id"]
        await page.add(UPDATE, id=made, title="Made and changed offline")
        await page.add(TOGGLE, id=made)
        # The second change is made on top of the first one, and the version is the last one that the server told.
        await page.add(UPDATE, id=self.ids["offline"], title="First", expectedVersion=1)
        await page.add(UPDATE, id=self.ids["offline"], title="Second", expectedVersion=1)
        # Each toggles what it expects, so the second one must expect what the first one made.
        for _ in range(2):
            await page.add(TOGGLE, id=self.ids["merging"], expectedVersion=1, onConflict="MERGE")
        await page.error(seen)

    async def lose_an_answer(self, page: FrontEnd, task: str, lose: Callable[[], None]) -> str:
        """Lose the answer to a toggle after its commit. Returns the toggle's mutationId."""
        proxy = self.cluster.proxies[0]
        async with proxy.withholding():
            toggle = await page.add(TOGGLE, id=self.ids[task])
            await page.add(UPDATE, id=self.ids[task], title=f"{task}, and changed")
            async with asyncio.timeout(PATIENCE_SECONDS):
                await proxy.has_withheld.wait()
            mutation_id: str = toggle["mutationId"]
            await page.until(lambda fact: fact["kind"] == "told" and fact["mutationId"] == mutation_id)
            assert not [fact for fact in self.facts if fact["kind"] in OUTCOMES and id_of(fact) == mutation_id]
            await asyncio.to_thread(lose)
            self.note(f"lost: {task}")
        return mutation_id

    def note(self, kind: str) -> None:
        self.facts.append({"kind": kind, "at": time.time() * 1000})

    async def stop_the_database(self, page: FrontEnd) -> None:
        await asyncio.to_thread(self.cluster.postgres.kill)
        seen = len(self.facts)
        await page.add(TOGGLE, id=self.ids["stopped database"])
        await page.error(seen, "INTERNAL_SERVER_ERROR")
        await self.cluster.start_again(self.cluster.postgres)
        await page.answer(self.last_added())

    async def be_refused(self, page: FrontEnd) -> None:
        edited = self.ids["edited"]
        assert not (await self.elsewhere.update_task(self.ann, edited, priority="HIGH"))["errors"]
        await page.add(UPDATE, id=edited, title="Merged", expectedVersion=1)
        await page.add(UPDATE, id=str(UUID(int=1)), title="Nobody has it")
        await page.add(CREATE, title="x")
        await page.add(UPDATE, id=edited, title="Throw", expectedVersion=1)
        await page.add(INVALID, id=edited, title="A document that is wrong")
        await page.add(UPDATE, id=edited, titel="An input that is wrong")
        await page.add(TOGGLE, id=edited)
        await page.answer(self.last_added())

    async def hear_of_another_device(self, page: FrontEnd) -> None:
        payload = await self.elsewhere.update_task(self.ann, self.ids["edited"], category="WORK", mutationId=ELSEWHERE)
        assert not payload["errors"]
        await page.until(lambda fact: fact["kind"] == "told" and fact["mutationId"] == ELSEWHERE)

    def last_added(self) -> Fact:
        added: Fact = [fact for fact in self.facts if fact["kind"] == "added"][-1]["input"]
        return added


def id_of(fact: Fact) -> str:
    mutation_id: str = fact["input"]["mutationId"]
    return mutation_id


def transcript(facts: list[Fact]) -> str:
    """One line a fact. `docs/writes.md` shows a part."""
    return "\n".join(
        " ".join(
            (
                f"{(fact['at'] - facts[0]['at']) / 1000:6.2f} s",
                f"{fact['kind']:<14}",
                fact.get("field", ""),
                f"…{mutation_id[-4:]}" if (mutation_id := fact.get("input", fact).get("mutationId")) else "",
                *(name for name in ("replayed", "isOwn") if fact.get(name)),
                fact.get("text", ""),
            )
        ).rstrip()
        for fact in facts
        if fact["kind"] != "following"
    )


# ---------------------------------------------------------------- the verdict


def test_each_mutation_has_one_outcome_in_the_order_of_adding(story: Story) -> None:
    outcomes = [id_of(fact) for fact in story.of_kind(*OUTCOMES)]
    added = [id_of(fact) for fact in story.of_kind("added")]
    assert len(added) == 22
    # The merged change is the only one that nobody added.
    assert [id_ for id_ in outcomes if id_ in set(added)] == added
    assert len(outcomes) == len(set(outcomes)) == len(added) + 1


def test_each_mutation_was_done_once_and_in_order(story: Story) -> None:
    done = [id_of(fact) for fact in story.of_kind("done")]
    assert len(done) == 17
    assert [event.mutation_id for event in story.record if event.mutation_id not in (None, ELSEWHERE)] == done


def test_a_lost_answer_is_read_later(story: Story) -> None:
    replayed = {id_of(fact) for fact in story.of_kind("done") if fact["replayed"]}
    assert replayed >= story.told_before_the_answer
    assert len(story.told_before_the_answer) == 3


def test_tasks_are_as_the_person_left_them(story: Story) -> None:
    found = {name: (story.tasks[id_].title, story.tasks[id_].status) for name, id_ in story.ids.items()}
    assert found == {
        "made": ("Made and changed offline", "COMPLETED"),
        "offline": ("Second", "PENDING"),
        "merging": ("merging", "PENDING"),
        "killed server": ("killed server, and changed", "COMPLETED"),
        "cut": ("cut, and changed", "COMPLETED"),
        # Toggled again after the reload.
        "killed page": ("killed page, and changed", "PENDING"),
        "stopped database": ("stopped database", "COMPLETED"),
        "edited": ("Merged", "COMPLETED"),
    }
    assert story.tasks[story.ids["edited"]].priority == "HIGH"


def test_refusals_are_told_and_do_not_block(story: Story) -> None:
    refused = [(fact["kind"], *fact["codes"]) for fact in story.of_kind("refused", "dropped")]
    assert refused == [
        ("refused", "VERSION_CONFLICT"),
        ("refused", "NOT_FOUND"),
        ("refused", "BAD_USER_INPUT"),
        ("refused", "VERSION_CONFLICT"),
        ("dropped", "GRAPHQL_VALIDATION_FAILED"),
        ("dropped", "BAD_USER_INPUT"),
    ]


def test_a_conflict_has_the_task_and_its_merged_change_is_sent_next(story: Story) -> None:
    outcomes = story.of_kind(*OUTCOMES)
    (place,) = [
        n for n, fact in enumerate(outcomes) if fact["kind"] == "refused" and fact["input"].get("title") == "Merged"
    ]
    conflict, merged = outcomes[place : place + 2]
    assert conflict["task"]["version"] == 2
    assert merged["kind"] == "done"
    assert merged["input"] == conflict["input"] | {"expectedVersion": 2, "mutationId": merged["input"]["mutationId"]}
    assert id_of(merged) != id_of(conflict)


def test_own_changes_are_recognised(story: Story) -> None:
    told = {fact["mutationId"]: fact["isOwn"] for fact in story.of_kind("told")}
    done = {id_of(fact) for fact in story.of_kind("done")}
    assert {id_ for id_, is_own in told.items() if is_own} == set(told) & done
    assert story.told_before_the_answer <= set(told)
    assert told[ELSEWHERE] is False
    assert told[None] is False
    # Those of the last page were told too late for its list, or were in it.
    assert len(done - set(told)) <= 2


async def test_answers_that_are_none_are_repeated(sqlite_settings: Settings, tmp_path: Path) -> None:
    app = create_app(sqlite_settings)
    limited = {"message": "Slow down", "extensions": {"code": "RATE_LIMITED", "retryAfter": 2}}
    canned = [
        Response("<p>Sign in to the hotel's network</p>", media_type="text/html"),
        Response("Bad gateway", 502),
        JSONResponse({"errors": [limited]}, 429),
        JSONResponse({"errors": [{"message": "Oops", "extensions": {"code": "INTERNAL_SERVER_ERROR"}}]}),
    ]

    async def unreliable(scope: Scope, receive: Receive, send: Send) -> None:
        respond = canned.pop(0) if spoiled and canned and scope["type"] == "http" else app
        await respond(scope, receive, send)

    spoiled = False
    too_old = {"title": "Perhaps made a month ago", "mutationId": "old"}
    entries = tmp_path / "entries"
    entries.write_text(json.dumps([{"document": CREATE, "variables": {"input": too_old}, "madeAt": 0}]))
    async with listening(uvicorn_config(unreliable, sqlite_settings)) as url, Api(url) as api:
        ann = await api.register("ann")
        spoiled = True
        given = {
            "url": f"{url}/graphql",
            "file": str(entries),
            "token": "no longer good",
            "username": "ann",
            "password": ann.password,
        }
        facts: list[Fact] = []
        async with front_end(facts, **given) as page:
            done = await page.answer(await page.add(CREATE, title="Made at last"))
            await page.close()
        tasks = (await api.data("{ tasks { nodes { id title } } }", by=ann))["tasks"]["nodes"]
    assert UUID(done["input"]["id"]).version == 7
    assert tasks == [{"id": done["input"]["id"], "title": "Made at last"}]
    errors = [fact for fact in facts if fact["kind"] == "error"]
    codes = [[None], [None], ["RATE_LIMITED"], ["INTERNAL_SERVER_ERROR"], ["UNAUTHENTICATED"]]
    assert [fact["codes"] for fact in errors] == codes
    assert errors[3]["at"] - errors[2]["at"] >= 2000
    assert [fact["kind"] for fact in facts].count("signed in") == 1
    assert [fact["input"] for fact in facts if fact["kind"] == "dropped"] == [too_old]
    assert json.loads(entries.read_text()) == []
