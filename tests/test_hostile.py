"""Requests that try to stop the server for everybody else, against a real `taskflow serve`.

Each probe measures how long a second client waits at most. The bound is generous, because test machines are busy:
without the countermeasures these requests took from one to twenty seconds. `pytest tests/test_hostile.py -s` prints
the waits.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.support.cluster import TaskflowServer
from tests.support.second_client import second_client

pytestmark = pytest.mark.slow

# How long a second client may wait. On an idle machine it waits a tenth of a second.
BOUND_SECONDS = 0.7
# How much memory a probe may leave behind.
BOUND_MEBIBYTES = 100


@dataclass(frozen=True)
class Site:
    server: TaskflowServer
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/graphql"

    def post(self, query: str, variables: dict[str, Any] | None = None, *, by: str | None = None) -> httpx.Response:
        headers = {"Content-Type": "application/json"} | ({"Authorization": by} if by else {})
        body = json.dumps({"query": query, "variables": variables})
        return httpx.post(self.url, content=body, headers=headers, timeout=60)

    @property
    def mebibytes(self) -> float:
        """Resident memory of the server, in MiB."""
        process = self.server._require_process()
        (line,) = [
            each for each in Path(f"/proc/{process.pid}/status").read_text().splitlines() if each.startswith("VmRSS")
        ]
        return int(line.split()[1]) / 1024


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server on SQLite with 200 users and 20,000 tasks, and the token of an ADMIN."""
    folder = tmp_path_factory.mktemp("hostile")
    settings = {"TASKFLOW_DATA_DIR": str(folder)}
    taskflow = Path(sys.executable).with_name("taskflow")
    seed = [str(taskflow), "seed", "--users", "200", "--tasks", "20000"]
    subprocess.run(seed, env=settings, check=True, capture_output=True, timeout=120)
    with TaskflowServer(settings) as server:
        site = Site(server, "")
        login = 'mutation { login(input: {usernameOrEmail: "user1", password: "password"}) { accessToken } }'
        yield Site(server, site.post(login).json()["data"]["login"]["accessToken"])


Probe = Callable[[Site], httpx.Response]


def posted(query: str, variables: dict[str, Any] | None = None, *, signed_in: bool = False) -> Probe:
    return lambda site: site.post(query, variables, by=site.token if signed_in else None)


def gotten(query: str) -> Probe:
    return lambda site: httpx.get(f"{site.url}?query={query}", headers={"Accept": "application/json"}, timeout=60)


def times(count: int, probe: Probe) -> Probe:
    def repeated(site: Site) -> httpx.Response:
        for _ in range(count - 1):
            probe(site)
        return probe(site)

    return repeated


def ever_new(count: int, make: Callable[[int], str], *, signed_in: bool = False) -> Probe:
    """Send `count` different documents, none of which the server has seen before."""

    def flood(site: Site) -> httpx.Response:
        for number in range(count):
            answer = site.post(make(number), by=site.token if signed_in else None)
        return answer

    return flood


def aliases(count: int, field: str) -> str:
    return " ".join(f"a{n}: {field}" for n in range(count))


UNKNOWN = " ".join(f"x{n}" for n in range(110))
ALL = (
    "id title status priority category dueDate completed completedAt overdue version createdAt updatedAt "
    "viewerCanUpdate viewerCanDelete viewerCanChangeStatus creator { id username fullName } assignee { id username }"
)
STATS = "query($f: TaskFilter) {" + aliases(60, "taskStats(filter: $f) { total }") + "}"


def tasks_of_people(people: int, tasks: int, selected: str) -> Callable[[int], str]:
    """Returns a function that makes a different document for each number, reading `tasks` tasks of `people` users."""

    def document(number: int) -> str:
        inner = f"createdTasks(first: {tasks}) {{ nodes {{ {selected} }} }}"
        return f"{{ x{number}: users(first: {people}) {{ nodes {{ {inner} }} }} }}"

    return document


def chain(count: int, inline: int, last: str) -> str:
    inner = [f"...F{n + 1}" for n in range(count - 1)] + [last]
    fragments = (f"fragment F{n} on Query {{ {'... {' * inline} {inner[n]} {'}' * inline} }}" for n in range(count))
    return f"{{ ...F0 }} {' '.join(fragments)}"


# A random sequence, so that no two filters are alike.
OPERATORS = (random.Random(1).choice(("eq", "ne", "contains", "startsWith")) for _ in iter(int, 1))

APPLY = "applyMutations(input: $i) { results { ... on CreateTaskPayload { task { %s } changeCursor } } }"
BATCHES = "mutation($i: ApplyMutationsInput!) {" + aliases(3, APPLY % ALL) + "}"
# As much text as the limit on values lets through, in words that the search index must hold.
WORDS = " ".join(f"{n:x}" for n in range(1_800))
HUNDRED = [{"createTask": {"title": f"Number {n}", "description": WORDS[:5_000]}} for n in range(100)]


def undone_and_done_again(site: Site) -> httpx.Response:
    """A batch of 100, and the undo of undos of it."""
    document = f"mutation($i: ApplyMutationsInput!) {{ {APPLY % ALL} }}"
    answer = site.post(document, {"i": {"mutations": HUNDRED, "mutationId": "0"}}, by=site.token)
    undo = f"mutation($i: UndoInput!) {{ undo(input: $i) {{ undone {{ task {{ {ALL} }} }} conflicts {{ fields }} }} }}"
    for number in range(4):
        answer = site.post(undo, {"i": {"undoes": str(number), "mutationId": str(number + 1)}}, by=site.token)
        assert len(answer.json()["data"]["undo"]["undone"]) == 100
    return answer


PROBES: dict[str, Probe] = {
    "3 batches of 100 tasks with long descriptions": posted(BATCHES, {"i": {"mutations": HUNDRED}}, signed_in=True),
    "3 batches of 100 tasks, each a transaction": posted(
        BATCHES, {"i": {"mutations": HUNDRED, "mode": "EACH", "mutationId": "each"}}, signed_in=True
    ),
    "undos of a batch of 100 tasks with long descriptions": undone_and_done_again,
    "100 errors behind 500,000 newlines": posted("{" + "\n" * 500_000 + UNKNOWN + "}"),
    "100 errors behind 9,000 newlines": posted("{" + "\n" * 9_000 + UNKNOWN + "}"),
    "GET of newlines": gotten("{" + "%0A" * 9_000 + UNKNOWN.replace(" ", "+") + "}"),
    "5,900 errors of fields behind 5,000 newlines": posted(
        "{"
        + "\n" * 5_000
        + "users(first: 100) { nodes {"
        + aliases(59, "createdTasks(first: 0) { __typename }")
        + "} } }",
        signed_in=True,
    ),
    "60 filters of 20,000 values": posted(STATS, {"f": {"and": [{}] * 20_000}}),
    "60 filters of 160 values": posted(STATS, {"f": {"and": [{}] * 160}}),
    "a filter of 170,000 values": posted(
        "query($f: TaskFilter) { taskStats(filter: $f) { total } }", {"f": {"and": [{}] * 170_000}}
    ),
    "an order of 40,000 keys": posted(
        "query($o: [TaskOrder!]) { tasks(orderBy: $o) { totalCount } }",
        {"o": [{"field": "TITLE"}] * 40_000},
        signed_in=True,
    ),
    "an order of 4,900 keys": posted(
        "query($o: [TaskOrder!]) { tasks(orderBy: $o) { totalCount } }",
        {"o": [{"field": "TITLE"}] * 4_900},
        signed_in=True,
    ),
    "10 fragments of 100 inline fragments": posted(chain(10, 100, "__typename")),
    "a chain of 498 fragments": posted(chain(498, 0, "__typename")),
    "a circle of 498 fragments": posted(chain(498, 0, "...F0")),
    "600 equal fields, again and again": times(12, posted("{" + "me { id username } " * 600 + "}", signed_in=True)),
    "300 operations with one large fragment": posted(
        " ".join(f"query Q{n} {{ ...All }}" for n in range(300))
        + " fragment All on Query {"
        + "__typename " * 2_000
        + "}"
    ),
    "an enum value of 900 KB": posted(
        "query($s: TaskStatus!) { tasks(filter: {status: {eq: $s}}) { totalCount } }", {"s": "x" * 900_000}
    ),
    "59 times the whole schema": posted(
        "{" + aliases(59, "__schema { types { fields { name args { name } } } }") + "}"
    ),
    "three times the whole schema": posted(
        "{" + aliases(3, "__schema { types { fields { name description args { name type { name } } } } }") + "}"
    ),
    "two searches for 300,000 words": posted(
        "query($s: String) {" + aliases(2, "tasks(filter: {search: $s}) { totalCount }") + "}",
        {"s": "ab " * 300_000},
        signed_in=True,
    ),
    "two searches for a word of 900 KB": posted(
        "query($s: String) {" + aliases(2, "tasks(filter: {search: $s}) { totalCount }") + "}",
        {"s": "x" * 900_000},
        signed_in=True,
    ),
    "a cursor of 900 KB": posted(
        "query($a: String) { tasks(after: $a) { totalCount } }", {"a": "YWJj" * 225_000}, signed_in=True
    ),
    "filters of 190 comparisons, each another": times(
        30,
        lambda site: site.post(
            "query($f: TaskFilter) { tasks(filter: $f) { totalCount } }",
            {"f": {"and": [{"title": {next(OPERATORS): "x"}} for _ in range(190)]}},
            by=site.token,
        ),
    ),
    "documents of 3,900 tokens, each new": ever_new(
        10, lambda n: "{" + f"a{n}: __typename " * 1 + "__typename " * 3_890 + "}"
    ),
    "the largest page of people with tasks, each document new": ever_new(
        4, tasks_of_people(100, 40, ALL), signed_in=True
    ),
    "lists of 50 in each other, inside of inline fragments": posted(
        "{ users { ... { nodes { createdTasks { ... { nodes {"
        " creator { createdTasks { ... { nodes { id title version } } } } } } } } } } }",
        signed_in=True,
    ),
    "60 titles of 1,600 tasks, each document new": ever_new(
        4, tasks_of_people(40, 40, aliases(59, "title")), signed_in=True
    ),
    "histories of 1,900 tasks, each document new": ever_new(
        3, tasks_of_people(19, 100, "history(first: 1) { __typename }"), signed_in=True
    ),
    "counts of 1,900 lists, each document new": ever_new(
        3,
        lambda n: (
            f"{{ x{n}: users(first: 100) {{ nodes {{ {aliases(19, 'createdTasks(first: 1) { totalCount }')} }} }} }}"
        ),
        signed_in=True,
    ),
}


@pytest.mark.parametrize("name", PROBES)
def test_a_hostile_request_does_not_delay_others(site: Site, name: str) -> None:
    before = site.mebibytes
    with second_client(site.server.port) as waits:
        answer = PROBES[name](site)
    kept = site.mebibytes - before
    codes = [error["extensions"]["code"] for error in answer.json().get("errors", [])][:2]
    said = f"{answer.status_code} {len(answer.content)} B {codes}"
    print(f"\n| {name} | {waits.longest * 1000:.0f} ms | {kept:+.0f} MiB | {said} |")
    assert "INTERNAL_SERVER_ERROR" not in codes
    assert waits.longest < BOUND_SECONDS
    assert kept < BOUND_MEBIBYTES


def test_subscriptions_with_many_searches_receive_a_task_without_delaying_others(site: Site) -> None:
    """Ninety subscriptions with a hundred searches each, and a task with the longest allowed text."""
    document = "subscription($f: TaskFilter, $a: String) { taskChanged(filter: $f, after: $a) { task { title } } }"
    letters = "abcdefghijklmnopqrstuvwxyz"
    # A subscription that begins after the mutation receives the change too.
    page = site.post("{ tasks(first: 1) { changesCursor } }", by=site.token).json()
    cursor = page["data"]["tasks"]["changesCursor"]
    with connect(site.url.replace("http", "ws"), subprotocols=[Subprotocol("graphql-transport-ws")]) as socket:
        socket.send(json.dumps({"type": "connection_init", "payload": {"Authorization": site.token}}))
        assert json.loads(socket.recv(10))["type"] == "connection_ack"
        for number in range(90):
            searches = [{"search": f"zz{number} {letters[n % 26]}{letters[n // 26]}q"} for n in range(99)]
            variables = {"f": {"or": [*searches, {"title": {"eq": "Found"}}]}, "a": cursor}
            payload = {"query": document, "variables": variables}
            socket.send(json.dumps({"id": str(number), "type": "subscribe", "payload": payload}))
        # The answer to this query shows that the server has read all subscriptions. Some may not have begun.
        socket.send(json.dumps({"id": "query", "type": "subscribe", "payload": {"query": "{ __typename }"}}))
        while json.loads(socket.recv(30))["id"] != "query":
            pass
        text = " ".join(letters[n % 26] + letters[n // 26 % 26] + letters[n // 676 % 26] for n in range(2_500))
        create = 'mutation($d: String) { createTask(input: {title: "Found", description: $d}) { errors { code } } }'
        with second_client(site.server.port) as waits:
            assert site.post(create, {"d": text}, by=site.token).json()["data"]["createTask"]["errors"] == []
            told = {json.loads(socket.recv(30))["id"] for _ in range(90)}
    assert len(told) == 90
    print(f"\n| 90 subscriptions with 99 searches | {waits.longest * 1000:.0f} ms |")
    assert waits.longest < BOUND_SECONDS


def test_a_flood_of_new_documents_does_not_evict_a_front_ends_documents(site: Site) -> None:
    """The front end's documents stay cached, so its requests need no parsing."""
    front_end = "query Front { me { id username fullName } tasks(first: 1) { nodes { id title status } } }"
    for _ in range(3):
        site.post(front_end, by=site.token)
    with second_client(site.server.port) as waits:
        for number in range(60):
            with suppress(httpx.TransportError):
                site.post("{" + aliases(50, "__typename").replace("a", f"b{number}_") + "}" + " " * 9_000)
            assert "errors" not in site.post(front_end, by=site.token).json()
    assert waits.longest < BOUND_SECONDS
