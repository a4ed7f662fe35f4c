"""The cost of a `mutationId`: processor time of the server and of PostgreSQL for mutations with and without it.

    python -m bench.writes [--rounds 20] [--requests 200]

Starts a durable PostgreSQL and one `taskflow serve`, and sends mutations one after the other. Each round sends the same
number without an id, with an id, and repeated with the ids that were just used, in turn. So whatever else the machine
does slows all of them down. Medians over the rounds, and ratios to the mutations without an id of the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

from rich.console import Console
from rich.table import Table

from bench.stream import cpu_seconds_of
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import migrate
from tests.support.cluster import TaskflowServer
from tests.support.servers import PostgresServer, living_tree

SECRET = "only for this bench, and long enough for HS256"
REGISTER = """mutation {
  register(input: {email: "a@example.com", username: "ann", fullName: "Ann", password: "correct horse"}) { accessToken }
}"""
CREATE = "mutation($input: CreateTaskInput!) { createTask(input: $input) { task { id version } errors { code } } }"
SET_STATUS = """mutation($input: SetTaskStatusInput!) {
  setTaskStatus(input: $input) { task { id status version } errors { code } }
}"""


class Client:
    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._headers = {"Content-Type": "application/json"}
        self._headers["Authorization"] = self.post(REGISTER)["register"]["accessToken"]

    def post(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables})
        self._connection.request("POST", "/graphql", body, self._headers)
        answer = json.loads(self._connection.getresponse().read())
        assert "errors" not in answer, answer
        return answer["data"]

    def mutate(self, query: str, given: dict[str, Any]) -> Any:
        (payload,) = self.post(query, input=given).values()
        assert payload["errors"] == [], payload
        return payload


def inputs_of(client: Client) -> dict[str, tuple[str, Iterator[dict[str, Any]]]]:
    task_id = client.mutate(CREATE, {"title": "A task"})["task"]["id"]
    statuses = itertools.cycle(["IN_PROGRESS", "COMPLETED", "PENDING"])
    return {
        "createTask": (CREATE, ({"title": "A task"} for _ in itertools.count())),
        "setTaskStatus": (SET_STATUS, ({"id": task_id, "status": status} for status in statuses)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.writes")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=200)
    arguments = parser.parse_args()
    with PostgresServer(durable=True) as postgres:
        postgres.create_database("bench")
        asyncio.run(make_tables(postgres.url("bench")))
        environment = {"TASKFLOW_DATABASE_URL": postgres.url("bench"), "SECRET_KEY": SECRET}
        with TaskflowServer(environment) as server:
            pids = [each._require_process().pid for each in (server, postgres)]
            trees: list[Callable[[], float]] = [
                lambda: sum(map(cpu_seconds_of, living_tree(pids[0]))),
                lambda: sum(map(cpu_seconds_of, living_tree(pids[1]))),
            ]
            report(measure(Client(server.port), trees, arguments))


async def make_tables(url: str) -> None:
    engine = create_engine(Settings(database_url=url))
    await migrate(engine)
    await engine.dispose()


def measure(
    client: Client, trees: list[Callable[[], float]], arguments: argparse.Namespace
) -> dict[str, dict[str, list[list[float]]]]:
    """By mutation and way, for each round: milliseconds of a request by the clock and by each tree."""
    measured: dict[str, dict[str, list[list[float]]]] = {}
    for name, (query, inputs) in inputs_of(client).items():
        ways = measured[name] = {"without an id": [], "with an id": [], "repeated": []}
        for _ in range(arguments.rounds):
            given = list(itertools.islice(inputs, arguments.requests))
            named = [each | {"mutationId": str(uuid4())} for each in given]
            for way, sent in zip(ways, (given, named, named), strict=True):
                before = [time.perf_counter(), *(tree() for tree in trees)]
                for each in sent:
                    client.mutate(query, each)
                after = [time.perf_counter(), *(tree() for tree in trees)]
                took = [(end - begin) * 1000 / len(sent) for begin, end in zip(before, after, strict=True)]
                ways[way].append(took)
    return measured


def report(measured: dict[str, dict[str, list[list[float]]]]) -> None:
    table = Table("mutation", "way", "ms a request", "server CPU", "ratio", "PostgreSQL CPU", "ratio")
    for name, ways in measured.items():
        base = ways["without an id"]
        for way, rounds in ways.items():
            clock, server, postgres = (statistics.median(each) for each in zip(*rounds, strict=True))
            ratios = [
                statistics.median(one[place] / other[place] for one, other in zip(rounds, base, strict=True))
                for place in (1, 2)
            ]
            table.add_row(
                name, way, f"{clock:.2f}", f"{server:.2f}", f"{ratios[0]:.2f}", f"{postgres:.2f}", f"{ratios[1]:.2f}"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
