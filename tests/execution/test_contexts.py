"""Context variables are visible where they are under graphql-core, and nowhere else."""

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from random import Random
from typing import Any

import pytest
from graphql import ExecutionResult, GraphQLSchema, build_schema, execute, parse
from hypothesis import given, note
from hypothesis import strategies as st

from taskflow_gql.execution import BATCH, Batch, CompilingExecutor, batch_resolver

FIELDS = """
  sync: Node
  later: Node
  much_later: Node
  syncs: [Node]
  laters: [Node]
  pending: [Node]
  loaded: Node
  value: Int
  later_value: Int
  failing: Int
  later_failing: Int!
"""
SDL = f"type Query {{ {FIELDS} }} type Mutation {{ {FIELDS} }} type Node {{ {FIELDS} }}"

LAST: ContextVar[str] = ContextVar("LAST", default="nobody")


class Planned(CompilingExecutor):
    seen_before_planned = 1


class Log:
    """The value of the variable that each resolver saw, by path. Each resolver sets the variable to its own path."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self.loads: list[tuple[str, list[str]]] = []

    def visit(self, info: Any) -> None:
        path = ".".join(map(str, info.path.as_list()))
        self.seen[path] = LAST.get()
        LAST.set(path)


def make_schema() -> GraphQLSchema:
    schema = build_schema(SDL)

    def resolve_sync(value: Any) -> Any:
        def resolve(_source: Any, info: Any) -> Any:
            info.context.visit(info)
            return value

        return resolve

    def resolve_later(value: Any, turns: int = 1) -> Any:
        async def resolve(_source: Any, info: Any) -> Any:
            info.context.visit(info)
            for _ in range(turns):
                await asyncio.sleep(0)
            return value

        return resolve

    async def fail_later(_source: Any, info: Any) -> Any:
        info.context.visit(info)
        await asyncio.sleep(0)
        raise ValueError("failed")

    def fail(_source: Any, info: Any) -> Any:
        info.context.visit(info)
        raise ValueError("failed")

    async def pending(_source: Any, info: Any) -> Any:
        path = ".".join(map(str, info.path.as_list()))

        async def item(index: int) -> Any:
            info.context.seen[f"{path} item {index}"] = LAST.get()
            LAST.set(f"{path} item {index}")
            await asyncio.sleep(0)
            return {"id": str(index)}

        info.context.visit(info)
        return [item(0), {"id": "1"}, item(2)]

    node = {"id": "1"}
    batch = Batch(load, "id")
    for name in ("Query", "Mutation", "Node"):
        fields = schema.type_map[name].fields  # type: ignore[attr-defined]
        fields["sync"].resolve = resolve_sync(node)
        fields["later"].resolve = resolve_later(node)
        fields["much_later"].resolve = resolve_later(node, turns=7)
        fields["syncs"].resolve = resolve_sync([{"id": "1"}, {"id": "2"}])
        fields["laters"].resolve = resolve_later([{"id": "3"}, {"id": "4"}])
        fields["pending"].resolve = pending
        fields["loaded"].extensions[BATCH] = batch
        fields["loaded"].resolve = batch_resolver(batch)
        fields["value"].resolve = resolve_sync(1)
        fields["later_value"].resolve = resolve_later(1)
        fields["failing"].resolve = fail
        fields["later_failing"].resolve = fail_later
    return schema


async def load(log: Log, ids: list[str]) -> Mapping[str, Any]:
    log.loads.append((LAST.get(), ids))
    LAST.set("load")
    await asyncio.sleep(0)
    return {id_: {"id": f"{id_}'"} for id_ in ids}


SCHEMA = make_schema()


async def run(query: str, executor_class: type[CompilingExecutor] | None) -> tuple[ExecutionResult, Log, str]:
    """Return the result, what the resolvers saw, and what the caller sees afterwards."""
    log = Log()
    LAST.set("caller")
    result = execute(SCHEMA, parse(query), {"id": "root"}, log, executor_class=executor_class)
    if not isinstance(result, ExecutionResult):
        result = await result
    return result, log, LAST.get()


async def run_both(query: str, *, loads_are_equal: bool = True) -> tuple[Log, str]:
    """Return the log and what the caller sees under the compiling executor; both are equal to graphql-core's."""
    expected, expected_log, expected_last = await asyncio.create_task(run(query, None))
    result, log, last = await asyncio.create_task(run(query, Planned))
    assert result.data == expected.data
    assert log.seen == expected_log.seen
    assert last == expected_last
    assert log.loads == expected_log.loads or not loads_are_equal
    return log, last


QUERIES = {
    "one field in flight": "{ later { value } }",
    "one field in flight and others that are not": "{ a: value later { value sync { value } } b: value }",
    "several fields in flight": "{ a: later { value later { value } } b: later { value later { value } } }",
    "several, of which one ends later": "{ a: later { later { value } } b: much_later { later { later { value } } } }",
    "one in flight in each of several objects": "{ a: sync { later { value } } b: sync { later { value } } }",
    "objects of a list": "{ syncs { later { value } value } }",
    "objects of a list that comes later": "{ laters { a: value later { value } b: value } }",
    "items in flight": "{ pending { value later { value } } }",
    "one load for one object": "{ sync { loaded { value later { value } } } }",
    "one load for several objects": "{ syncs { loaded { value sync { value } } } }",
    "loads below loads": "{ syncs { loaded { value loaded { value later_value } } } }",
    "loads below what comes later": "{ laters { later { value loaded { value loaded { value } } } } }",
    "a load beside a field in flight": "{ loaded { value } later { value loaded { value } } }",
    "fields of a mutation": "mutation { a: later { value } b: value c: later { value } d: loaded { value } e: value }",
    "several below a field of a mutation": "mutation { a: later { x: later { value } y: later { value } } b: value }",
    "errors": "{ a: sync { later_failing later { value } } b: sync { failing later { value } } later_value }",
    "nothing but values": "{ a: value sync { value } syncs { value } b: value }",
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
async def test_resolvers_see_the_same_context_variables_as_under_graphql_core(query: str) -> None:
    await run_both(query)


@given(seed=st.integers(0, 10**6))
def test_resolvers_of_random_queries_see_the_same_context_variables_as_under_graphql_core(seed: int) -> None:
    random = Random(seed)

    def selection(depth: int) -> str:
        leaves = ["value", "later_value"]
        objects = ["sync", "later", "much_later", "syncs", "laters", "pending", "loaded", "loaded"]
        fields = []
        for alias in "abc"[: random.randint(1, 3)]:
            name = random.choice(leaves if depth == 0 else leaves[:1] + objects)
            fields.append(f"{alias}: {name} {'' if name in leaves else selection(depth - 1)}")
        return f"{{ {' '.join(fields)} }}"

    query = f"{random.choice(['query', 'mutation'])} {selection(random.randint(1, 4))}"
    note(query)
    # The keys that share a load depend on timing.
    asyncio.run(run_both(query, loads_are_equal=False))


async def test_a_resolver_sees_the_value_set_by_its_parent_field() -> None:
    log, last = await run_both("{ a: later { value } b: later { value } }")
    assert log.seen == {"a": "caller", "b": "caller", "a.value": "a", "b.value": "b"}
    # Each field has a task of its own.
    assert last == "caller"


async def test_a_batch_function_has_a_copy_of_the_first_askers_context() -> None:
    log, last = await run_both("{ laters { a: value loaded { value } } }")
    assert log.loads == [("laters.1.a", ["3", "4"])]
    assert log.seen["laters.0.loaded.value"] == "laters.1.a"
    # The loaded objects are completed one after the other, each in a context of its own.
    assert log.seen["laters.1.loaded.value"] == "laters.1.a"
    assert last == "laters.1.a"


async def test_a_single_load_does_not_change_the_callers_context() -> None:
    log, last = await run_both("{ loaded { id: __typename } }")
    assert log.loads == [("caller", ["root"])]
    assert last == "caller"


async def test_values_of_context_variables_need_not_be_comparable() -> None:
    class Incomparable:
        def __eq__(self, other: object) -> bool:
            raise ValueError("no telling")

        __hash__ = None  # type: ignore[assignment]

    variable: ContextVar[object] = ContextVar("variable")
    first = Incomparable()
    schema = build_schema("type Query { users: [User] } type User { boss: User name: String }")
    batch = Batch(load, "id")
    boss = schema.type_map["User"].fields["boss"]  # type: ignore[attr-defined]
    boss.extensions[BATCH] = batch
    boss.resolve = batch_resolver(batch)

    def name(_source: Any, _info: Any) -> str:
        has_first = variable.get() is first
        variable.set(Incomparable())
        return str(has_first)

    schema.type_map["User"].fields["name"].resolve = name  # type: ignore[attr-defined]
    variable.set(first)
    root = {"users": [{"id": "1"}, {"id": "2"}]}
    for executor_class in (None, Planned):
        result = execute(schema, parse("{ users { boss { name } } }"), root, Log(), executor_class=executor_class)
        assert not isinstance(result, ExecutionResult)
        assert await result == ExecutionResult({"users": [{"boss": {"name": "True"}}] * 2}, None)
