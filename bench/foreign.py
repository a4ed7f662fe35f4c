"""The example schema under the compiling executor and under Strawberry's default executor, in pairs.

    python -m bench.foreign

The schema is `tests/execution/example_schema.py`, with 1,000 books. Each round executes a query under one executor and
then under the other, in turn, and gives one ratio of times; the median and the quartiles of these ratios are printed.
So whatever else the machine does slows both down. Parsing and validation are part of the times unless the documents
are cached, with Strawberry's `ParserCache` and `ValidationCache`.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from typing import Any

from strawberry.extensions import ParserCache, ValidationCache

from taskflow_gql.execution.strawberry import BatchingExecutor
from tests.execution.example_schema import fresh_copy

ROUNDS = 40
CACHES: dict[str, list[Any]] = {"documents cached": [ParserCache, ValidationCache], "documents parsed each time": []}
QUERIES = {
    "1,000 books, 5 attributes": "{ books { id title genre published price } }",
    "with a method each": "{ books { id title genre published price label } }",
    "with a batched author each": "{ books { id title author { id name } } }",
    "with an author by DataLoader each": "{ books { id title loadedAuthor { id name } } }",
    "one book": '{ book(key: {id: "1"}) { id title genre } }',
    "two fields of the root": "{ motto page(first: 1) { total isEmpty } }",
}


class Example:
    """The example schema with an executor and data of its own."""

    def __init__(self, executor_class: Any, extensions: list[Any]) -> None:
        self.module = fresh_copy()
        self.schema = self.module.make_schema(executor_class, extensions=extensions)
        self.library = self.module.Library(books=1000, authors=100)

    async def run(self, query: str) -> tuple[float, Any]:
        # A DataLoader caches, so each request needs a new one.
        self.library.author_loader = self.module.Library(books=0, authors=100).author_loader
        gc.collect()
        began = time.perf_counter()
        result = await self.schema.execute(query, context_value={"library": self.library})
        took = time.perf_counter() - began
        assert result.errors is None
        return took, result.data


async def compare(query: str, extensions: list[Any]) -> tuple[list[float], list[float]]:
    stock, compiled = Example(None, extensions), Example(BatchingExecutor, extensions)
    for _ in range(3):  # the first two see the document for the first time and make its plan
        assert (await stock.run(query))[1] == (await compiled.run(query))[1]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        order = (0, 1) if number % 2 else (1, 0)
        for which in order:
            times[which].append((await (stock, compiled)[which].run(query))[0])
    return times


async def main() -> None:
    for title, extensions in CACHES.items():
        print(f"{title:36}{'default':>11}{'compiled':>11}{'ratio':>8}  quartiles")
        for name, query in QUERIES.items():
            stock, compiled = await compare(query, extensions)
            low, middle, high = statistics.quantiles([one / other for one, other in zip(stock, compiled, strict=True)])
            print(
                f"  {name:34}{statistics.median(stock) * 1e3:8.2f} ms{statistics.median(compiled) * 1e3:8.2f} ms"
                f"{middle:8.2f}  {low:.2f} to {high:.2f}"
            )


if __name__ == "__main__":
    asyncio.run(main())
