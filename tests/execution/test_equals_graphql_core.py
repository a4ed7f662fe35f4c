"""graphql-core's executor is the oracle: a compiled operation must give the same answer."""

import asyncio
import gc
import re
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from graphql import ExecutionResult, GraphQLError, GraphQLField, GraphQLSchema, execute, parse
from hypothesis import given, note
from hypothesis import strategies as st

from taskflow_gql.execution import CompilingExecutor

from .worlds import World, Writer, as_text, written

# graphql-core leaves coroutines to the background, which are never awaited once the event loop is closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def no_garbage_for_others() -> Iterator[None]:
    yield
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


# Operations take milliseconds. The bound is generous, so that only an operation that hangs fails, not a busy machine.
TIMEOUT_SECONDS = 60

Path = tuple[str | int, ...]


class PlansAtOnce(CompilingExecutor):
    seen_before_planned = 1

    @classmethod
    def attribute_of(cls, field: GraphQLField) -> str | None:
        return field.extensions.get("attribute")

    @classmethod
    def function_of(cls, schema: GraphQLSchema, field: GraphQLField) -> Callable[[Any], Any] | None:
        return field.extensions.get("function")


@dataclass
class Case:
    """The seeds of the schema, of the document, and of the resolvers' outcomes."""

    schema: int
    document: int
    outcomes: int
    trouble: float
    yes: bool


seeds = st.integers(0, 10**6)
cases = st.builds(Case, seeds, seeds, seeds, st.sampled_from([0.0, 0.03, 0.1, 0.3]), st.booleans())


@given(case=cases)
def test_synchronous_operations_equal_graphql_cores(case: Case) -> None:
    world = World(Random(case.schema), is_async=False, trouble=case.trouble)
    document = Writer(Random(case.document), world.schema).document()
    note(document)
    # The second run has other outcomes: a plan must not keep those of the first.
    for world.seed in (case.outcomes, case.outcomes + 1):
        expected, expected_calls = start(world, document, case.yes, None), world.log
        result, calls = start(world, document, case.yes, PlansAtOnce), world.log
        assert isinstance(expected, ExecutionResult)
        assert isinstance(result, ExecutionResult)
        assert written(result.data) == written(expected.data)
        assert [as_text(error) for error in result.errors or []] == [as_text(error) for error in expected.errors or []]
        assert calls == expected_calls


@given(case=cases)
def test_asynchronous_operations_equal_graphql_cores(case: Case) -> None:
    world = World(Random(case.schema), is_async=True, trouble=case.trouble)
    document = Writer(Random(case.document), world.schema).document()
    note(document)
    for world.seed in (case.outcomes, case.outcomes + 1):
        expected, expected_calls = asyncio.run(finish(world, document, case.yes, None))
        result, calls = asyncio.run(finish(world, document, case.yes, PlansAtOnce))
        note(f"expected {expected.data} {expected.errors}")
        note(f"     got {result.data} {result.errors}")
        assert written(result.data) == written(expected.data)

        # Errors come in the order in which resolvers fail. Below a position that the first error has set to null, the
        # further errors that are reported depend on a race. Everywhere else errors are equal.
        lost = lost_positions(expected)
        assert lost_positions(result) == lost
        assert errors_outside(lost, result) == errors_outside(lost, expected)

        # The same holds for calls.
        assert all(count == 1 for call, count in calls.items() if RESOLVER_CALL.match(call))
        if expected.errors:
            nulled = lost | {tuple(error.path or ()) for error in expected.errors}
            calls = calls_outside(nulled, calls)
            expected_calls = calls_outside(nulled, expected_calls)
        assert calls == expected_calls


def start(
    world: World, document: str, yes: bool, executor_class: type[CompilingExecutor] | None
) -> ExecutionResult | Awaitable[ExecutionResult]:
    world.log = []
    root, variables = world.root(document), {"yes": yes}
    return execute(world.schema, parse(document), root, {}, variables, executor_class=executor_class)


async def finish(
    world: World, document: str, yes: bool, executor_class: type[CompilingExecutor] | None
) -> tuple[ExecutionResult, Counter[str]]:
    result = start(world, document, yes, executor_class)
    if not isinstance(result, ExecutionResult):
        async with asyncio.timeout(TIMEOUT_SECONDS):
            result = await result
    # Counted now, because work that goes on in the background belongs to neither executor.
    return result, Counter(world.log)


def lost_position(error: GraphQLError, data: Any) -> Path | None:
    """Return the position that is null because of the error, if any."""
    path = tuple(error.path or ())
    value = data
    for depth, key in enumerate(path):
        if value is None:
            return path[:depth]
        value = value[key]
    return None


def lost_positions(result: ExecutionResult) -> set[Path]:
    positions = (lost_position(error, result.data) for error in result.errors or [])
    return {position for position in positions if position is not None}


def is_in(positions: set[Path], path: Path) -> bool:
    return any(path[: len(position)] == position for position in positions)


def errors_outside(positions: set[Path], result: ExecutionResult) -> Counter[str]:
    return Counter(as_text(error) for error in result.errors or [] if not is_in(positions, tuple(error.path or ())))


# The form of World's log: the path and the name of the field.
RESOLVER_CALL = re.compile(r"(?P<path>[\w.]+) \w+\.\w+ {")


def calls_outside(positions: set[Path], calls: Counter[str]) -> Counter[str]:
    outside: Counter[str] = Counter()
    for call, count in calls.items():
        match = RESOLVER_CALL.match(call)
        if match:
            path = tuple(int(key) if key.isdigit() else key for key in match["path"].split("."))
            if not is_in(positions, path):
                outside[call] = count
    return outside
