"""Clients that log what they sent, what they were answered, and which changes they received."""

from __future__ import annotations

import asyncio
import base64
import json
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from tests.faults.checker import FILTERS, Acknowledged, Answer, Listener, Seen, Told

# Shorter than the longest freeze of a server, so some clients give up on a frozen server and use the other.
TIMEOUT_SECONDS = 4
# Few enough that most tasks change often and are seen by several users.
TASKS = 120

TASK = "id title status priority version assignee { id }"
CHANGE = f"cursor kind taskId task {{ {TASK} }} previous {{ version }}"
LOGIN = "mutation($i: LoginInput!) { login(input: $i) { accessToken errors { code } } }"
_COMMON = "replayed changeCursor errors { code }"
CREATE = f"mutation($i: CreateTaskInput!) {{ x: createTask(input: $i) {{ task {{ {TASK} }} {_COMMON} }} }}"
UPDATE = f"mutation($i: UpdateTaskInput!) {{ x: updateTask(input: $i) {{ task {{ {TASK} }} {_COMMON} }} }}"
STATUS = f"mutation($i: SetTaskStatusInput!) {{ x: setTaskStatus(input: $i) {{ task {{ {TASK} }} {_COMMON} }} }}"
TOGGLE = f"""
mutation($i: ToggleTaskCompletionInput!) {{ x: toggleTaskCompletion(input: $i) {{ task {{ {TASK} }} {_COMMON} }} }}
"""
DELETE = f"mutation($i: DeleteTaskInput!) {{ x: deleteTask(input: $i) {{ deletedTaskId {_COMMON} }} }}"
_PART = f"task {{ {TASK} }} changeCursor errors {{ code }}"
BATCH = f"""
mutation($i: ApplyMutationsInput!) {{
  x: applyMutations(input: $i) {{
    results {{
      ... on CreateTaskPayload {{ {_PART} }} ... on UpdateTaskPayload {{ {_PART} }}
      ... on DeleteTaskPayload {{ deletedTaskId changeCursor errors {{ code }} }}
    }}
    {_COMMON}
  }}
}}
"""
UNDO = f"""
mutation($i: UndoInput!) {{
  x: undo(input: $i) {{ undone {{ cursor taskId task {{ {TASK} }} }} conflicts {{ subjectId fields }} {_COMMON} }}
}}
"""
KINDS = {
    CREATE: "createTask",
    UPDATE: "updateTask",
    STATUS: "setTaskStatus",
    TOGGLE: "toggle",
    DELETE: "deleteTask",
    BATCH: "batch",
    UNDO: "undo",
}
LIST = f"""
query($filter: TaskFilter, $after: String) {{
  tasks(filter: $filter, first: 100, after: $after) {{
    changesCursor nodes {{ {TASK} }} pageInfo {{ hasNextPage endCursor }}
  }}
}}
"""
PULL = f"""
query($filter: TaskFilter, $after: String!) {{
  taskChanges(filter: $filter, first: 25, after: $after) {{
    nodes {{ {CHANGE} }} pageInfo {{ hasNextPage endCursor }}
  }}
}}
"""
SUBSCRIBE = f"""
subscription($filter: TaskFilter, $after: String) {{
  taskChanged(filter: $filter, after: $after) {{ {CHANGE} }}
}}
"""


class Interrupted(Exception):
    """No answer, or one that does not say what happened. Ask again, perhaps another server."""


class SignedOut(Exception):
    pass


@dataclass
class Log:
    """The log that all clients share."""

    acknowledged: list[Acknowledged] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    # How often each path that is rare without faults was taken.
    sometimes: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    interruptions: Counter[str] = field(default_factory=Counter)
    listeners: list[Listener] = field(default_factory=list)
    # Answers that no fault excuses.
    complaints: list[str] = field(default_factory=list)
    # How many changes each ALL_OR_NOTHING batch makes if it is done, by mutation id.
    batches: dict[str, int] = field(default_factory=dict)
    # Tasks that probably exist, with their creators.
    creators: dict[str, str] = field(default_factory=dict)

    def some_task(self, random: Random) -> tuple[str, str]:
        """Prefers old tasks to new ones: ordering errors show in tasks that change often."""
        index = int(len(self.creators) * random.random() ** 2)
        return list(self.creators.items())[index]


@dataclass
class Person:
    """A user who signs in again when the token has expired, once for all clients of the same user."""

    id: str
    username: str
    password: str
    token: str
    is_admin: bool = False
    _signing_in: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def renew(self, http: httpx.AsyncClient, urls: Sequence[str], token: str, log: Log) -> None:
        async with self._signing_in:
            for attempt in range(200):
                if self.token != token:
                    return
                with suppress(Interrupted):
                    given = {"usernameOrEmail": self.username, "password": self.password}
                    data = await post(http, urls[attempt % len(urls)], None, LOGIN, {"i": given})
                    self.token = data["login"]["accessToken"]
                    log.interruptions["credentials ended"] += 1
                    return
                await asyncio.sleep(0.1)


def decoded(cursor: str) -> int:
    return int(base64.urlsafe_b64decode(cursor + "==").decode().partition(":")[2])


def seen(task: Mapping[str, Any]) -> Seen:
    assignee = task["assignee"] and task["assignee"]["id"]
    return Seen(task["title"], task["status"], task["priority"], assignee, task["version"])


async def post(http: httpx.AsyncClient, url: str, token: str | None, query: str, variables: Mapping[str, Any]) -> Any:
    """`data` of a response without errors."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        response = await http.post(f"{url}/graphql", json={"query": query, "variables": variables}, headers=headers)
        answer = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Interrupted(type(error).__name__) from error
    raise_for(answer.get("errors"))
    return answer["data"]


def raise_for(errors: Sequence[Mapping[str, Any]] | None) -> None:
    codes = [error.get("extensions", {}).get("code", error["message"]) for error in errors or ()]
    if "UNAUTHENTICATED" in codes:
        raise SignedOut
    if codes:
        raise Interrupted(codes[0])


@dataclass
class Sent:
    """A mutation with its id."""

    task_id: str
    query: str
    given: dict[str, Any]
    # Servers that were asked, in order, and the attempts that got no answer.
    urls: list[str] = field(default_factory=list)
    unanswered: int = 0
    answers: int = 0


class Writer:
    """Creates, updates, assigns, completes and deletes tasks, repeats some of it, and logs every answer."""

    def __init__(self, person: Person, people: Sequence[Person], urls: Sequence[str], log: Log, seed: int) -> None:
        self._person, self._people, self._urls, self._log = person, people, urls, log
        self._random = Random(seed)
        self._count = 0
        self._past: deque[Sent] = deque(maxlen=40)
        # The versions that this writer was told last.
        self._versions: dict[str, int] = {}

    async def run(self, stop: asyncio.Event, *, pause_seconds: float) -> None:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as http:
            while not stop.is_set():
                await self._mutate(http)
                await asyncio.sleep(self._random.uniform(0, 2 * pause_seconds))

    async def _mutate(self, http: httpx.AsyncClient) -> None:
        task_id, query, given = self._choose()
        mutation_id = str(UUID(int=self._random.getrandbits(128)))
        sent = Sent(task_id, query, given | {"mutationId": mutation_id})
        if given.get("mode") == "ALL_OR_NOTHING":
            self._log.batches[mutation_id] = len(given["mutations"])
        at_once = 2 if self._random.random() < 0.1 else 1
        self._log.sometimes["two requests at once"] += at_once == 2
        await asyncio.gather(*(self._send(http, sent) for _ in range(at_once)))
        self._past.append(sent)
        if self._random.random() < 0.2:
            await self._send(http, self._random.choice(self._past))

    async def _send(self, http: httpx.AsyncClient, sent: Sent) -> None:
        """Send the same mutation until it is answered. The outcome of an unanswered attempt is unknown."""
        log = self._log
        for _ in range(20):
            token, url = self._person.token, self._random.choice(self._urls)
            sent.urls.append(url)
            try:
                data = await post(http, url, token, sent.query, {"i": sent.given})
            except SignedOut:
                await self._person.renew(http, self._urls, token, log)
            except Interrupted as reason:
                sent.unanswered += 1
                log.outcomes["unknown"] += 1
                log.interruptions[f"mutation: {reason}"] += 1
                await asyncio.sleep(self._random.uniform(0, 0.3))
            else:
                self._hear(sent, data["x"], url)
                return

    def _hear(self, sent: Sent, payload: dict[str, Any], url: str) -> None:
        log = self._log
        is_replay = payload.pop("replayed")
        changes = payload["undone"] if "undone" in payload else payload.get("results", [payload])
        cursors = [change.pop("cursor" if "cursor" in change else "changeCursor") for change in changes]
        payload.pop("changeCursor", None)
        answer = Answer(
            mutation_id=sent.given["mutationId"],
            payload=json.dumps(payload, sort_keys=True),
            was_refused=payload["errors"] != [],
            positions=tuple(decoded(cursor) for cursor in cursors if cursor is not None),
            is_replay=is_replay,
        )
        log.answers.append(answer)
        sent.answers += 1
        self._count_paths(sent, answer, url, payload)
        if answer.was_refused:
            self._hear_refusal(sent, payload)
            return
        log.outcomes["acknowledged"] += 1
        for change in changes:
            if change.get("errors"):
                log.outcomes["refused in a batch"] += 1
            elif "task" in change or "deletedTaskId" in change:
                self._hear_change(change, is_replay=is_replay)

    def _hear_change(self, change: dict[str, Any], *, is_replay: bool) -> None:
        log, task = self._log, change.get("task")
        if task is None:
            task_id = change.get("deletedTaskId") or change["taskId"]
            log.creators.pop(task_id, None)
            log.acknowledged.append(Acknowledged(task_id, None))
            return
        if not is_replay:
            log.creators.setdefault(task["id"], self._person.id)
            self._versions[task["id"]] = task["version"]
        log.acknowledged.append(Acknowledged(task["id"], seen(task)))

    def _hear_refusal(self, sent: Sent, payload: dict[str, Any]) -> None:
        self._log.outcomes["refused"] += 1
        code = payload["errors"][0]["code"]
        if code == "NOT_FOUND":
            self._log.creators.pop(sent.task_id, None)
        elif code not in ("FORBIDDEN", "VERSION_CONFLICT", "NOT_APPLIED"):
            self._log.complaints.append(f"{sent.query} with {sent.given}: {payload['errors']}")

    def _count_paths(self, sent: Sent, answer: Answer, url: str, payload: dict[str, Any]) -> None:
        sometimes = self._log.sometimes
        if sent.query == UNDO and not answer.is_replay:
            done, left = payload["undone"] != [], payload["conflicts"] != []
            sometimes["undo in part" if done and left else "undo refused" if left else "undo"] += done or left
        if "expectedVersion" in sent.given and answer.positions and not answer.is_replay:
            sometimes["merge"] += payload["task"]["version"] > sent.given["expectedVersion"] + 1
        if answer.is_replay:
            sometimes[f"repeat of {KINDS[sent.query]}"] += 1
            sometimes["repeat on the other server"] += any(other != url for other in sent.urls)
            sometimes["repeat of an attempt without an answer, which was done"] += sent.answers == 1
            sometimes["repeat of a refusal"] += answer.was_refused
        elif sent.unanswered:
            sometimes["attempt without an answer, which was not done"] += 1

    def _choose(self) -> tuple[str, str, dict[str, Any]]:
        random = self._random
        self._count += 1
        # A new title each time, so that every acknowledged update is an event of its own.
        title = f"{self._person.username} {self._count}"
        assignee = random.choice([None, *(person.id for person in self._people)])
        count = len(self._log.creators)
        if count < 20 or random.random() < (0.5 if count < TASKS else 0.05):
            priority = random.choice(["LOW", "MEDIUM", "HIGH"])
            return "", CREATE, {"title": title, "assigneeId": assignee, "priority": priority}
        task_id, _ = self._log.some_task(random)
        match random.randrange(14):
            case 0:
                return task_id, DELETE, {"id": task_id}
            case 1 | 2 | 3:
                return (
                    task_id,
                    STATUS,
                    {"id": task_id, "status": random.choice(["PENDING", "IN_PROGRESS", "COMPLETED"])},
                )
            case 4:
                return task_id, UPDATE, {"id": task_id, "title": title, "assigneeId": assignee}
            case 5 | 6:
                return task_id, TOGGLE, {"id": task_id}
            case 7 | 8:
                return "", BATCH, self._choose_batch(title, assignee)
            case 9 | 10 if self._past:
                return "", UNDO, {"undoes": random.choice(self._past).given["mutationId"]}
            case 11 | 12 if self._versions:
                # Often an old version.
                task_id, version = random.choice([*self._versions.items()][-60:])
                given = {"id": task_id, "title": title, "expectedVersion": version, "onConflict": "MERGE"}
                return task_id, UPDATE, given
        return task_id, UPDATE, {"id": task_id, "title": title, "priority": random.choice(["LOW", "HIGH"])}

    def _choose_batch(self, title: str, assignee: str | None) -> dict[str, Any]:
        """Mutations of different tasks. Each makes a change if it is not refused."""
        random = self._random
        new = str(UUID(int=random.getrandbits(128)))
        mutations: list[dict[str, Any]] = [{"createTask": {"id": new, "title": title, "assigneeId": assignee}}]
        task_ids = {self._log.some_task(random)[0] for _ in range(random.randrange(1, 4))}
        mutations += [{"updateTask": {"id": task_id, "title": f"{title} {task_id[:8]}"}} for task_id in task_ids]
        if random.random() < 0.3:
            mutations[-1] = {"deleteTask": {"id": mutations[-1]["updateTask"]["id"]}}
        return {"mutations": mutations, "mode": random.choice(["ALL_OR_NOTHING", "EACH"])}


class Follower(ABC):
    """Keeps a replica of a list: reads it once, and then only applies the changes it receives."""

    def __init__(self, person: Person, filter_: str, urls: Sequence[str], log: Log, seed: int) -> None:
        self.person, self._urls, self._log = person, urls, log
        self._random = Random(seed)
        name = f"{person.username} {type(self).__name__} {filter_!r}"
        self.listener = Listener(name, person.id, person.is_admin, filter_)
        self.cursor: str | None = None

    @property
    def variables(self) -> dict[str, Any]:
        return {"filter": FILTERS[self.listener.filter], "after": self.cursor}

    async def run(self) -> None:
        """Run until cancelled."""
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as http:
            while True:
                token = self.person.token
                try:
                    if self.cursor is None:
                        await self._begin(http)
                    await self.follow(http, self._random.choice(self._urls))
                except SignedOut:
                    await self.person.renew(http, self._urls, token, self._log)
                except Interrupted as reason:
                    self._log.interruptions[f"{type(self).__name__}: {reason}"] += 1
                    if any(code in str(reason) for code in ("BAD_USER_INPUT", "CURSOR_EXPIRED", "VALIDATION")):
                        self._log.complaints.append(f"{self.listener.name}: {reason}")
                    await asyncio.sleep(self._random.uniform(0, 0.3))

    async def _begin(self, http: httpx.AsyncClient) -> None:
        cursor, tasks = await self.read_list(http, self._random.choice(self._urls))
        self.listener.replica = tasks
        self.listener.since = decoded(cursor)
        self.cursor = cursor
        self._log.listeners.append(self.listener)

    async def read_list(self, http: httpx.AsyncClient, url: str) -> tuple[str, dict[str, Seen]]:
        """Read all pages, with the cursor of the first one: changes made while the others are read come after it."""
        tasks: dict[str, Seen] = {}
        cursor, after = "", None
        while True:
            data = await post(http, url, self.person.token, LIST, self.variables | {"after": after})
            page = data["tasks"]
            cursor = cursor or page["changesCursor"]
            tasks |= {task["id"]: seen(task) for task in page["nodes"]}
            if not page["pageInfo"]["hasNextPage"]:
                return cursor, tasks
            after = page["pageInfo"]["endCursor"]

    @abstractmethod
    async def follow(self, http: httpx.AsyncClient, url: str) -> None:
        """Receive changes after the cursor until something goes wrong."""

    def hear(self, change: Mapping[str, Any]) -> None:
        self.listener.hear(
            Told(
                position=decoded(change["cursor"]),
                kind=change["kind"],
                task_id=change["taskId"],
                task=change["task"] and seen(change["task"]),
                previous=change["previous"] and change["previous"]["version"],
            )
        )
        self.cursor = change["cursor"]

    def hear_result(self, result: Mapping[str, Any]) -> None:
        # A change with a partial error does not count: it comes again, because the cursor stays before it.
        raise_for(result.get("errors"))
        self.hear(result["data"]["taskChanged"])


class SocketFollower(Follower):
    async def follow(self, http: httpx.AsyncClient, url: str) -> None:
        try:
            async with connect(
                url.replace("http", "ws") + "/graphql",
                subprotocols=[Subprotocol("graphql-transport-ws")],
                open_timeout=TIMEOUT_SECONDS,
                ping_interval=1,
                ping_timeout=TIMEOUT_SECONDS,
                close_timeout=0.5,
                proxy=None,
            ) as socket:
                credentials = {"Authorization": f"Bearer {self.person.token}"}
                await socket.send(json.dumps({"type": "connection_init", "payload": credentials}))
                payload = {"query": SUBSCRIBE, "variables": self.variables}
                async for text in socket:
                    message = json.loads(text)
                    match message["type"]:
                        case "connection_ack":
                            await socket.send(json.dumps({"type": "subscribe", "id": "1", "payload": payload}))
                        case "next":
                            self.hear_result(message["payload"])
                        case "error":
                            raise_for(message["payload"])
                        case "complete":
                            raise Interrupted("complete")
        except (WebSocketException, OSError, TimeoutError) as error:
            raise Interrupted(type(error).__name__) from error
        if socket.close_code == 4403:
            raise SignedOut
        raise Interrupted(f"closed with {socket.close_code}")


class EventSourceFollower(Follower):
    async def follow(self, http: httpx.AsyncClient, url: str) -> None:
        # Like EventSource in a browser: repeat the same request with the id of the last event.
        headers = {
            "Accept": "text/event-stream",
            "Authorization": f"Bearer {self.person.token}",
            "Last-Event-ID": self.cursor or "",
        }
        body = {"query": SUBSCRIBE, "variables": {"filter": self.variables["filter"]}}
        timeout = httpx.Timeout(TIMEOUT_SECONDS, read=20)
        try:
            async with http.stream("POST", f"{url}/graphql", json=body, headers=headers, timeout=timeout) as response:
                if response.headers["content-type"].partition(";")[0] != "text/event-stream":
                    raise_for(json.loads(await response.aread()).get("errors"))
                async for event in _events(response):
                    if event["event"] == "complete":
                        raise Interrupted("complete")
                    self.hear_result(json.loads(event["data"]))
                    if event["id"] != self.cursor:
                        self._log.complaints.append(f"{self.listener.name}: id {event['id']} of {self.cursor}")
        except (httpx.HTTPError, ValueError) as error:
            raise Interrupted(type(error).__name__) from error
        raise Interrupted("ended without complete")


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """Server-sent events. An event cut short by the end of the connection is dropped."""
    event: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if line == "" and event:
            yield event
            event = {}
        elif name:
            event[name] = value


class Puller(Follower):
    async def follow(self, http: httpx.AsyncClient, url: str) -> None:
        data = await post(http, url, self.person.token, PULL, self.variables)
        for change in data["taskChanges"]["nodes"]:
            self.hear(change)
        info = data["taskChanges"]["pageInfo"]
        self.cursor = info["endCursor"]
        if not info["hasNextPage"]:
            await asyncio.sleep(self._random.uniform(0, 1))
