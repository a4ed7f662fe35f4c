"""How long it takes to complete 1,000 objects of 5 fields: graphql-core against the compiled operation.

    python bench/completion.py

Both answers are compared, then timed in turn. The best time of each counts, because whatever slows a run down is not
the executor. Parsing, validation and planning are not included.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graphql import ExecutionResult, GraphQLSchema, build_schema, execute, parse

from taskflow_gql.execution import BATCH, Batch, CompilingExecutor, batch_resolver

SCHEMA = build_schema("""
type Query { tasks: [Task!]! rows: [Task!]! tasksOfOne: [Task!]! }
type Task { id: ID! title: String! done: Boolean! priority: Int! status: Status creator: User owner: User }
type User { id: ID! name: String! }
enum Status { OPEN DONE }
""")


@dataclass(frozen=True, slots=True)
class User:
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Task:
    id: str
    title: str
    done: bool
    priority: int
    status: str | None
    creator: User
    owner_id: str


async def users_by_id(context: Any, ids: list[str]) -> Mapping[str, User]:
    return {id_: USERS[id_] for id_ in ids}


def _declare_batch(schema: GraphQLSchema) -> None:
    field = schema.type_map["Task"].fields["owner"]  # type: ignore[attr-defined]
    batch = Batch(users_by_id, "owner_id")
    field.extensions[BATCH] = batch
    field.resolve = batch_resolver(batch)


_declare_batch(SCHEMA)
USERS = {str(number): User(str(number), f"user {number}") for number in range(100)}
TASKS = [
    Task(str(number), f"task {number}", number % 2 == 0, number, "OPEN", USERS[str(number % 100)], str(number % 100))
    for number in range(1000)
]
ROOT = {
    "tasks": TASKS,
    "rows": [
        {"id": task.id, "title": task.title, "done": task.done, "priority": task.priority, "status": task.status}
        for task in TASKS
    ],
}

QUERIES = {
    "1,000 objects of 5 fields": "{ tasks { id title done priority status } }",
    "the same from dicts": "{ rows { id title done priority status } }",
    "with an object each": "{ tasks { id title done priority status creator { id name } } }",
    "with a batched relation each": "{ tasks { id title done priority status owner { id name } } }",
}


def main() -> None:
    print(f"{'':32}{'graphql-core':>14}{'compiled':>12}{'ratio':>8}")
    for title, query in QUERIES.items():
        document = parse(query)

        def run(executor_class: type[CompilingExecutor] | None, document: Any = document) -> Any:
            return execute(SCHEMA, document, ROOT, {}, executor_class=executor_class)

        for _ in range(3):  # the first two rounds fill the cache
            assert asyncio.run(_result(run(None))) == asyncio.run(_result(run(CompilingExecutor)))
        stock, compiled = _best(lambda: run(None), lambda: run(CompilingExecutor))
        print(f"{title:32}{stock * 1e3:11.2f} ms{compiled * 1e3:9.2f} ms{stock / compiled:8.1f}")


def _best(*functions: Callable[[], Any]) -> list[float]:
    """The best time of each function, in seconds. The functions take turns."""
    best = [float("inf")] * len(functions)

    async def measure() -> None:
        for _ in range(30):
            for index, function in enumerate(functions):
                gc.collect()
                start = time.perf_counter()
                await _result(function())
                best[index] = min(best[index], time.perf_counter() - start)

    asyncio.run(measure())
    return best


async def _result(result: Any) -> ExecutionResult:
    answer = result if isinstance(result, ExecutionResult) else await result
    assert isinstance(answer, ExecutionResult)
    assert answer.errors is None
    return answer


if __name__ == "__main__":
    main()
