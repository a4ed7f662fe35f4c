"""Queries over a million tasks: the cost of each, and a check that each uses an index.

    python -m bench.querying [--tasks 1000000] [--database-url URL]

Starts its own PostgreSQL and fills it with `taskflow seed`, unless the URL of a seeded database is given. Every
query goes through the GraphQL schema, as a client's would. Then its SQL is explained. Exits with 1 if a plan scans
the whole table of tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from taskflow_gql.app import create_app
from taskflow_gql.cli.seeding import Seeding, seed_database
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import migrate
from taskflow_gql.database.observers import DatabaseObserver
from taskflow_gql.database.units import Database
from tests.support.servers import PostgresServer

SECRET = "only for this bench, and long enough for HS256"
ROUNDS = 15
RATIO_ROUNDS = 100
PAGE = "nodes { id title } pageInfo { hasNextPage endCursor }"
TASKS = "query($first: Int, $after: String, $filter: TaskFilter, $orderBy: [TaskOrder!])"
TASKS += " { tasks(first: $first, after: $after, filter: $filter, orderBy: $orderBy) { " + PAGE + " } }"
STATS = "{ taskStats { total pending inProgress completed overdue byPriority { count } byCategory { count } } }"
ORDER_FIELDS = ("CREATED_AT", "UPDATED_AT", "DUE_DATE", "PRIORITY", "STATUS", "TITLE")

out = Console()


class Statements(DatabaseObserver):
    """Collects the statements that the app sends to its database."""

    def __init__(self, database: Database) -> None:
        self.seen: list[tuple[str, Any]] = []
        database.observe(self)

    def on_statement(self, sql: str, parameters: Any) -> None:
        self.seen.append((sql, tuple(parameters)))


class Client:
    def __init__(self, http: httpx.AsyncClient, statements: Statements, engine: AsyncEngine) -> None:
        self.http, self.statements, self.engine = http, statements, engine
        self.headers: dict[str, str] = {}

    async def post(self, query: str, **variables: Any) -> Any:
        response = await self.http.post("/graphql", json={"query": query, "variables": variables}, headers=self.headers)
        answer = response.json()
        if "errors" in answer:
            raise RuntimeError(json.dumps(answer["errors"]))
        return answer["data"]

    async def sign_in(self, username: str) -> None:
        login = 'mutation($u: String!) { login(input: {usernameOrEmail: $u, password: "password"}) { accessToken } }'
        token = (await self.post(login, u=username))["login"]["accessToken"]
        self.headers = {"Authorization": f"Bearer {token}"}

    async def once(self, query: str, **variables: Any) -> float:
        begun = time.perf_counter()
        await self.post(query, **variables)
        return time.perf_counter() - begun

    async def measure(self, query: str, **variables: Any) -> Measurement:
        seconds = []
        for _ in range(ROUNDS):
            self.statements.seen.clear()
            seconds.append(await self.once(query, **variables))
        return Measurement(statistics.median(seconds), len(self.statements.seen), await self._plans())

    async def _plans(self) -> list[str]:
        """The plans of those statements of the last query that read tasks."""
        plans = []
        async with self.engine.connect() as connection:
            for sql, parameters in list(self.statements.seen):
                if " tasks" in sql:
                    explained = await connection.exec_driver_sql(f"EXPLAIN {sql}", parameters)
                    plans.append("\n".join(explained.scalars()))
        if not plans:
            raise RuntimeError("No statement on tasks was seen, so no plan can be judged")
        return plans


class Measurement:
    def __init__(self, seconds: float, statements: int, plans: list[str]) -> None:
        self.milliseconds = seconds * 1000
        self.statements = statements
        self.plans = plans

    @property
    def reads_everything(self) -> bool:
        return any("Seq Scan on tasks" in plan for plan in self.plans)

    @property
    def indexes(self) -> str:
        return ", ".join(
            sorted({name for plan in self.plans for name in re.findall(r"\b(?:i|e|p)[xk]_tasks\w*", plan)})
        )


async def deep_cursor(client: Client, page: int) -> str:
    """The cursor of a page of 50 in the default order, found without paging there."""
    async with client.engine.connect() as connection:
        row = await connection.exec_driver_sql(
            f"SELECT id FROM tasks ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET {(page - 1) * 50 - 2}"  # noqa: S608
        )
        task_id = row.scalar_one()
    data = await client.post(
        "query($f: TaskFilter) { tasks(first: 1, filter: $f) { pageInfo { endCursor } } }",
        f={"id": {"eq": str(task_id)}},
    )
    cursor: str = data["tasks"]["pageInfo"]["endCursor"]
    return cursor


async def run(client: Client, tasks: int, show_plans: bool) -> bool:
    table = Table("query", "as", "ms (median)", "statements", "indexes", title=f"{tasks:,} tasks, page of 50")
    is_well = True

    async def row(name: str, who: str, query: str, **variables: Any) -> None:
        nonlocal is_well
        found = await client.measure(query, **variables)
        is_well = is_well and not found.reads_everything
        shown = "[red]reads all tasks[/red]" if found.reads_everything else found.indexes
        table.add_row(name, who, f"{found.milliseconds:.2f}", str(found.statements), shown)
        if show_plans:
            out.print(f"\n[bold]{name}[/bold] as {who}", *found.plans, sep="\n")

    deep_page = min(10_000, tasks // 50 - 1)
    for who, username in (("ADMIN", "user1"), ("MEMBER", "user2")):
        await client.sign_in(username)
        await row("page 1", who, TASKS, first=50)
        if who == "ADMIN":
            deep = await deep_cursor(client, deep_page)
        await row(f"page {deep_page:,} by cursor", who, TASKS, first=50, after=deep)
        for field in ORDER_FIELDS:
            for direction in ("ASC", "DESC"):
                order = [{"field": field, "direction": direction}]
                only = {"status": {"eq": "PENDING"}}
                await row(f"PENDING by {field} {direction}", who, TASKS, first=50, filter=only, orderBy=order)
        await row("search, rare word", who, TASKS, first=50, filter={"search": "77777"})
        await row("search, common word", who, TASKS, first=50, filter={"search": "gard"})
        await row("search, two common words", who, TASKS, first=50, filter={"search": "order report"})
    await row("stats of a person", "MEMBER", STATS)
    out.print(table)
    ratio = await depth_ratio(client, deep)
    out.print(f"page {deep_page:,} / page 1, median of {RATIO_ROUNDS} pairs: {ratio:.2f} (at most 1.3)")
    return is_well and ratio <= 1.3


async def depth_ratio(client: Client, deep: str) -> float:
    """Measure both pages in turn, so that the load of the machine affects both."""
    await client.sign_in("user1")
    ratios = []
    for _ in range(RATIO_ROUNDS):
        shallow_seconds = await client.once(TASKS, first=50)
        ratios.append(await client.once(TASKS, first=50, after=deep) / shallow_seconds)
    return statistics.median(ratios)


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Client]:
    settings = Settings(_env_file=None, database_url=url, secret_key=SECRET, log_level="WARNING")  # type: ignore[arg-type,call-arg]
    app = create_app(settings)
    database: Database = app.state.parts.database
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://bench", timeout=120) as http:
            yield Client(http, Statements(database), database.engine)


@contextmanager
def seeded_server(users: int, tasks: int) -> Iterator[str]:
    with PostgresServer(durable=True) as server:
        server.create_database("bench")
        url = server.url("bench")
        asyncio.run(fill(url, users, tasks))
        yield url


async def fill(url: str, users: int, tasks: int) -> None:
    engine = create_engine(Settings(_env_file=None, database_url=url))  # type: ignore[call-arg]
    await migrate(engine)
    begun = time.perf_counter()
    await seed_database(engine, Seeding(users=users, tasks=tasks, random_seed=1), Console(stderr=True))
    await engine.dispose()
    out.print(f"seeded {users:,} people and {tasks:,} tasks in {time.perf_counter() - begun:.0f} s")


async def main(url: str, tasks: int, show_plans: bool) -> bool:
    async with client_of(url) as client:
        return await run(client, tasks, show_plans)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--database-url", help="a database that `taskflow seed` has filled")
    parser.add_argument("--plans", action="store_true", help="print every plan")
    arguments = parser.parse_args()
    if arguments.database_url:
        passed = asyncio.run(main(arguments.database_url, arguments.tasks, arguments.plans))
    else:
        with seeded_server(arguments.users, arguments.tasks) as seeded_url:
            passed = asyncio.run(main(seeded_url, arguments.tasks, arguments.plans))
    sys.exit(0 if passed else 1)
