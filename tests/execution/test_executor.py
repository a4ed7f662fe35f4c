"""Cancellation, subscriptions, tracebacks, memory, and the operations that are planned."""

import asyncio
import contextlib
import gc
import traceback
import weakref
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from graphql import (
    ExecutionResult,
    GraphQLError,
    GraphQLField,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    build_schema,
    execute,
    execute_sync,
    parse,
    subscribe,
)
from graphql.execution import ExecutionHooks, MiddlewareManager
from graphql.pyutils import AbortController

from taskflow_gql.execution import AsItIs, CompilingExecutor, trust
from taskflow_gql.execution.cache import MAX_FIELDS_OF_DOCUMENT
from tests.support.garbage import collecting_only_new_objects

SCHEMA = build_schema("""
type Query { users: [User!]! maybe: [User] strict: User! a: User b: User name: String node: Node }
type User implements Node { id: ID name: String! slow: String friend: User friends: [User!] }
interface Node { id: ID }
type Mutation { first: User second: User! third: User }
type Subscription { user: User }
""")


class Planned(CompilingExecutor):
    """Plans a document that it sees for the first time, and counts the plans."""

    seen_before_planned = 1
    runs = 0

    def _fills(self, serially: bool | None) -> Any:
        fills = super()._fills(serially)
        Planned.runs += fills is not None
        return fills


# Generous: the operations take milliseconds.
TIMEOUT_SECONDS = 60


@pytest.fixture(autouse=True)
def count_runs() -> None:
    Planned.runs = 0


def run(query: str, root: Any, **options: Any) -> Any:
    return execute(SCHEMA, parse(query), root, executor_class=Planned, **options)


class Sleeper:
    """A source whose fields sleep until they are cancelled, which they record."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []

    def field(self, name: str) -> Any:
        async def sleep(_info: Any) -> str:
            self.started.append(name)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise
            return name

        return sleep


@pytest.mark.parametrize("count", [1, 3])
async def test_cancelling_the_operation_cancels_its_resolvers(count: int) -> None:
    sleeper = Sleeper()
    names = [str(number) for number in range(count)]
    operation = asyncio.ensure_future(
        run("{ users { slow } }", {"users": [{"slow": sleeper.field(name)} for name in names]})
    )
    while len(sleeper.started) < count:
        await asyncio.sleep(0)
    operation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await operation
    assert sleeper.cancelled == names
    assert len(asyncio.all_tasks()) == 1


async def test_an_error_cancels_only_the_resolvers_below_the_nulled_position() -> None:
    sleeper = Sleeper()
    go = asyncio.Event()

    async def fail(_info: Any) -> str:
        await go.wait()
        raise ValueError("no name")

    async def succeed(_info: Any) -> str:
        await go.wait()
        await asyncio.sleep(0.01)
        return "good"

    root = {
        "a": {"name": fail, "slow": sleeper.field("a"), "friend": {"slow": sleeper.field("friend of a")}},
        "b": {"name": succeed},
    }
    operation = asyncio.ensure_future(run("{ a { name slow friend { slow } } b { name } }", root))
    while len(sleeper.started) < 2:
        await asyncio.sleep(0)
    go.set()
    result = await operation
    assert result.data == {"a": None, "b": {"name": "good"}}
    assert [error.path for error in result.errors] == [["a", "name"]]
    assert sleeper.cancelled == ["a", "friend of a"]


async def test_an_error_at_the_root_cancels_all_resolvers() -> None:
    sleeper = Sleeper()

    async def fail(_info: Any) -> str:
        await asyncio.sleep(0)
        raise ValueError("no name")

    result = await run("{ a { slow } strict { name } }", {"a": {"slow": sleeper.field("a")}, "strict": {"name": fail}})
    assert result.data is None
    assert [error.path for error in result.errors] == [["strict", "name"]]
    assert sleeper.cancelled == ["a"]
    assert len(asyncio.all_tasks()) == 1


async def test_a_slow_field_does_not_delay_the_children_of_another() -> None:
    order: list[str] = []

    def after(seconds: float, name: str, value: Any) -> Any:
        async def resolve(_info: Any) -> Any:
            await asyncio.sleep(seconds)
            order.append(name)
            return value

        return resolve

    root = {
        "a": after(0.03, "slow", {"name": "a"}),
        "b": after(0, "fast", {"friend": after(0, "child", {"name": "b"})}),
    }
    result = await run("{ a { name } b { friend { name } } }", root)
    assert result.data == {"a": {"name": "a"}, "b": {"friend": {"name": "b"}}}
    assert order == ["fast", "child", "slow"]


async def test_items_of_a_list_do_not_wait_for_each_other() -> None:
    go = asyncio.Event()

    async def wait_for_the_other(_info: Any) -> Any:
        await go.wait()
        return {"name": "first"}

    def go_on(_info: Any) -> str:
        go.set()
        return "second"

    async def come_first(_info: Any) -> Any:
        await asyncio.sleep(0)
        return {"name": go_on}

    root = {"users": [{"friend": wait_for_the_other}, {"friend": come_first}]}
    async with asyncio.timeout(TIMEOUT_SECONDS):
        result = await run("{ users { friend { name } } }", root)
    assert result.data == {"users": [{"friend": {"name": "first"}}, {"friend": {"name": "second"}}]}


async def test_an_asynchronous_answer_may_be_deeper_than_the_stack() -> None:
    class Endless:
        id = 1

        @property
        def friend(self) -> Any:
            async def friend() -> Endless:
                return Endless()

            return friend()

    # As deep as a plan may be, which is deeper than Python's recursion limit of 1,000.
    depth = MAX_FIELDS_OF_DOCUMENT - 2
    fragments = [f"fragment F{number} on User {{ friend {{ ...F{number + 1} }} }}" for number in range(depth)]
    query = "\n".join(["{ a { ...F0 } }", *fragments, f"fragment F{depth} on User {{ id }}"])
    result = await run(query, {"a": Endless()})
    assert result.errors is None
    answer = result.data["a"]
    for _ in range(depth):
        answer = answer["friend"]
    assert answer == {"id": "1"}


async def test_mutations_run_one_after_the_other() -> None:
    log: list[str] = []

    def step(name: str) -> Any:
        async def slow(_info: Any) -> str:
            await asyncio.sleep(0.001)
            log.append(f"{name}.slow")
            return name

        def resolve(_info: Any) -> Any:
            log.append(name)
            return {"name": name, "slow": slow}

        return resolve

    query = "mutation { first { slow } third { name } second { slow } }"
    result = await run(query, {name: step(name) for name in ("first", "second", "third")})
    assert list(result.data) == ["first", "third", "second"]
    assert log == ["first", "first.slow", "third", "second", "second.slow"]


async def test_a_failed_mutation_that_may_not_be_null_ends_the_operation() -> None:
    called: list[str] = []

    async def fail(_info: Any) -> Any:
        called.append("second")
        raise ValueError("refused")

    root = {"first": {"name": "1"}, "second": fail, "third": lambda _info: called.append("third")}
    result = await run("mutation { first { name } second { name } third { name } }", root)
    assert result.data is None
    assert [error.message for error in result.errors] == ["refused"]
    assert called == ["second"]


async def test_each_event_of_a_subscription_runs_the_plan() -> None:
    async def events(_info: Any) -> AsyncIterator[Any]:
        yield {"user": {"name": "ann"}}
        yield {"user": {"name": None}}
        yield {"user": {"name": "bob"}}

    stream = subscribe(SCHEMA, parse("subscription { user { name } }"), {"user": events}, executor_class=Planned)
    assert not isinstance(stream, ExecutionResult)
    assert hasattr(stream, "__aiter__")
    results = [result async for result in stream]
    assert [result.data for result in results] == [{"user": {"name": "ann"}}, {"user": None}, {"user": {"name": "bob"}}]
    assert [bool(result.errors) for result in results] == [False, True, False]
    assert Planned.runs == 3


def test_synchronous_operations_need_no_event_loop() -> None:
    result = execute_sync(SCHEMA, parse("{ users { name } }"), {"users": [{"name": "ann"}]}, executor_class=Planned)
    assert result == ExecutionResult({"users": [{"name": "ann"}]}, None)
    assert Planned.runs == 1


def test_any_response_name_works_in_generated_code() -> None:
    """Even a name that the generated code uses itself."""
    for name in ("run", "value", "Wait", "field", "leaf", "unusual_leaf", "complete_unusual_leaf", "place_serialised"):
        result = run(f"{{ {name}: users {{ {name}: id }} name }}", {"users": [{"id": 1}], "name": 5})
        assert result == ExecutionResult({name: [{name: "1"}], "name": "5"}, None)


def test_a_root_value_may_be_a_proxy_of_another_class() -> None:
    class Proxy:
        __class__ = property(lambda _self: dict)

        def get(self, name: str) -> str:
            return f"my {name}"

    assert run("{ name }", Proxy()).data == {"name": "my name"}
    assert Planned.runs == 1


def test_a_traceback_shows_the_field() -> None:
    class Broken:
        @property
        def name(self) -> str:
            raise ValueError("no name")

    result = run("{ users { id name } }", {"users": [Broken()]})
    lines = "".join(traceback.format_exception(result.errors[0].original_error))
    assert 'File "<plan Query.users' in lines
    assert "value = getattr(source, 'name', None)" in lines


def test_the_traceback_of_a_propagated_error_shows_the_resolver() -> None:
    result = run("{ a { friends { name } } }", {"a": {"friends": [{"name": refuse}]}})
    lines = "".join(traceback.format_tb(result.errors[0].__traceback__))
    assert 'raise ValueError("refused")' in lines
    assert "<plan Query.a.friends" in lines


class Row:
    """Like the rows of database libraries: only `__getattr__` knows its attributes."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None


def test_rows_with_dynamic_attributes() -> None:
    root = {"users": [Row(name="ann"), {"name": "bob"}, Row(name="eve")]}
    expected = {"users": [{"name": "ann"}, {"name": "bob"}, {"name": "eve"}]}
    assert run("{ users { name } }", root).data == expected
    trust(Row)
    assert run("{ users { name } }", root).data == expected


@pytest.mark.parametrize(
    "options",
    [
        {"abort_signal": AbortController().signal},
        {"middleware": MiddlewareManager(lambda next_, source, info, **args: next_(source, info, **args))},
        {"middleware": type("OfItsOwn", (MiddlewareManager,), {"get_field_resolver": lambda _, resolve: resolve})()},
        {"field_resolver": lambda source, info: source[info.field_name]},
        {"is_awaitable": lambda value: False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_operations_with_unsupported_options_are_left_to_graphql_core(options: dict[str, Any]) -> None:
    assert run("{ name }", {"name": "ann"}, **options).data == {"name": "ann"}
    assert Planned.runs == 0


def test_request_errors_are_equal_to_graphql_cores() -> None:
    for query, variables in [
        ("query ($x: Boolean) { name @include(if: $x) }", {}),
        ("query ($x: Boolean!) { name @include(if: $x) }", {"x": 5}),
        ("query A { name } query B { name }", {}),
        ("fragment F on Query { name }", {}),
    ]:
        expected = execute(SCHEMA, parse(query), {"name": "ann"}, variable_values=variables)
        result = execute(SCHEMA, parse(query), {"name": "ann"}, variable_values=variables, executor_class=Planned)
        assert result == expected
        assert isinstance(result, ExecutionResult)
        assert result.errors


async def test_a_cancelled_resolver_cancels_the_operation() -> None:
    async def give_up(_info: Any) -> Any:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await run("{ a { name } b { name } }", {"a": give_up, "b": give_up})


async def test_a_request_is_freed_after_its_answer() -> None:
    class Context:
        pass

    async def later(_info: Any) -> str:
        return "later"

    context = Context()
    context_ref = weakref.ref(context)
    result = await run("{ a { slow } b { slow } }", {"a": {"slow": later}, "b": {"slow": later}}, context_value=context)
    assert result.data == {"a": {"slow": "later"}, "b": {"slow": "later"}}
    del context
    gc.collect()
    assert context_ref() is None


def refuse(_info: Any) -> Any:
    raise ValueError("refused")


async def refuse_later(_info: Any) -> Any:
    await asyncio.sleep(0)
    raise ValueError("refused")


async def succeed_later(_info: Any) -> str:
    await asyncio.sleep(0)
    return "good"


async def cancel_later(_info: Any) -> Any:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


GARBAGE_FREE: dict[str, tuple[str, dict[str, Any]]] = {
    "values": ("{ name users { name } }", {"users": [{"name": "ann"}], "name": lambda _info: "n"}),
    "later values": ("{ a { slow } b { slow } }", {"a": {"slow": succeed_later}, "b": {"slow": succeed_later}}),
    "an error": ("{ name }", {"name": refuse}),
    "an error that nulls an item": ("{ maybe { name } }", {"maybe": [{"name": refuse}, {"name": "bob"}]}),
    "an error that nulls a list": ("{ a { friends { name } } }", {"a": {"friends": [{"name": refuse}]}}),
    "an error that nulls everything": ("{ strict { name } }", {"strict": {"name": refuse}}),
    "a later error": ("{ a { name } }", {"a": {"name": refuse_later}}),
    "later errors": (
        "{ a { name slow } b { name friend { slow } } }",
        {
            "a": {"name": refuse_later, "slow": refuse_later},
            "b": {"name": refuse_later, "friend": {"slow": succeed_later}},
        },
    ),
    "a later error that nulls everything": (
        "{ strict { name } b { slow } }",
        {"strict": {"name": refuse_later}, "b": {"slow": succeed_later}},
    ),
    "one that is cancelled": ("{ a { slow } }", {"a": {"slow": cancel_later}}),
    "one of several that is cancelled": (
        "{ a { slow } b { slow } }",
        {"a": {"slow": cancel_later}, "b": {"slow": succeed_later}},
    ),
}


@pytest.mark.parametrize(("query", "root"), GARBAGE_FREE.values(), ids=GARBAGE_FREE)
async def test_an_operation_leaves_no_reference_cycles(query: str, root: dict[str, Any]) -> None:
    document = parse(query)

    async def execute_once() -> None:
        # No variable keeps the result, because the traceback of an error has the caller's frame with all its variables.
        executor = Planned.build(SCHEMA, document, root)
        assert isinstance(executor, Planned)
        if "later" in str(root) or "cancel" in str(root):
            with contextlib.suppress(asyncio.CancelledError):
                await executor.execute_operation()  # type: ignore[misc]
        else:
            executor.execute_operation()

    await execute_once()
    await asyncio.sleep(0)
    with collecting_only_new_objects():
        await execute_once()
        # Let the cancelled tasks end.
        for _ in range(5):
            await asyncio.sleep(0)
        assert gc.collect() == 0


def test_infos_are_equal_to_graphql_cores() -> None:
    infos: list[Any] = []

    def resolve(info: Any) -> str:
        infos.append(info)
        return "ann"

    document = parse("query Q($x: Boolean) { users { alias: name @skip(if: false) } }")
    options: dict[str, Any] = {"context_value": object(), "variable_values": {"x": True}}
    root = {"users": [{"name": resolve}]}
    for executor_class in (None, CompilingExecutor, Planned):
        execute(SCHEMA, document, root, executor_class=executor_class, **options)
    expected, *others = infos
    for info in others:
        assert type(info) is type(expected)
        assert info[:-1] == expected[:-1]
        assert type(info.async_helpers) is type(expected.async_helpers)
        for helper, expected_helper in zip(info.async_helpers, expected.async_helpers, strict=True):
            assert helper.__func__ is expected_helper.__func__


@pytest.mark.parametrize("executor_class", [CompilingExecutor, Planned])
def test_helpers_are_made_once_for_an_operation(executor_class: type[CompilingExecutor]) -> None:
    infos: list[Any] = []

    def resolve(info: Any) -> str:
        infos.append(info)
        return "ann"

    root = {"users": [{"name": resolve}] * 3}
    execute(SCHEMA, parse("{ users { name helpers: name } }"), root, executor_class=executor_class)
    assert len(infos) == 6
    assert len({id(info.async_helpers) for info in infos}) == 1


async def test_the_helpers_of_an_info_work_after_the_operation() -> None:
    infos: list[Any] = []
    settled: list[str] = []

    def resolve(info: Any) -> str:
        infos.append(info)
        return "ann"

    async def settle(name: str) -> str:
        await asyncio.sleep(0)
        settled.append(name)
        return name

    for query in ("{ name }", "{ name @include(if: true) a: name }"):
        for executor_class in (CompilingExecutor, Planned):
            execute(SCHEMA, parse(query), {"name": resolve}, executor_class=executor_class)
    gc.collect()
    for info in infos:
        info.async_helpers.track([settle("tracked"), "no awaitable"])
        assert await info.async_helpers.gather([settle("a"), settle("b")]) == ["a", "b"]
        assert settled == ["tracked", "a", "b"]
        settled.clear()


async def test_helpers_track_work_for_their_own_operation() -> None:
    finished: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        finished.append("work")

    def resolve(info: Any) -> str:
        info.async_helpers.track([work()])
        return "ann"

    hooks = ExecutionHooks(async_work_finished=lambda _info: finished.append("operation"))
    run("{ name }", {"name": resolve}, hooks=hooks)
    while "operation" not in finished:
        await asyncio.sleep(0)
    assert finished == ["work", "operation"]


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("query", ["{ a { name } numbers }", "{ numbers a { name } }"])
async def test_errors_of_an_async_list_beside_another_field_keep_graphql_cores_order(query: str, turns: int) -> None:
    schema = build_schema("type Query { a: A numbers: [Int] } type A { name: String }")

    async def numbers(_info: Any) -> AsyncIterator[Any]:
        yield "not a number"
        raise ValueError("no more numbers")

    async def fail(_info: Any) -> Any:
        for _ in range(turns):
            await asyncio.sleep(0)
        raise ValueError("no name")

    root = {"a": {"name": fail}, "numbers": numbers}
    expected = await execute(schema, parse(query), root)  # type: ignore[misc]
    result = await execute(schema, parse(query), root, executor_class=Planned)  # type: ignore[misc]
    assert Planned.runs == 1
    assert len(expected.errors) == 3
    assert result == expected


async def test_the_coroutine_of_an_operation_can_be_closed_before_it_ends() -> None:
    sleeper = Sleeper()
    operation = run("{ users { slow } }", {"users": [{"slow": sleeper.field("a")}, {"slow": sleeper.field("b")}]})
    operation.send(None)
    operation.close()
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


def test_returned_errors_are_handled_like_raised_ones() -> None:
    refused = GraphQLError("refused", extensions={"code": "NO"})
    for value in (refused, lambda _info: refused):
        result = run("{ name }", {"name": value})
        assert result.data == {"name": None}
        assert [error.formatted for error in result.errors] == [
            {
                "message": "refused",
                "locations": [{"line": 1, "column": 3}],
                "path": ["name"],
                "extensions": {"code": "NO"},
            }
        ]


def test_as_it_is_scalars_return_values_unchanged() -> None:
    class Number(int):
        pass

    hands_on = GraphQLScalarType("Exact", serialize=AsItIs(int, Decimal))
    fields = {name: GraphQLField(hands_on) for name in ("a", "b", "c", "d", "e")}
    schema = GraphQLSchema(GraphQLObjectType("Query", fields))
    root = {"a": 1, "b": Decimal("1.50"), "c": None, "d": Number(7), "e": "one"}
    document = parse("{ a b c d e }")
    expected = execute(schema, document, root)
    assert execute(schema, document, root, executor_class=Planned) == expected
    assert isinstance(expected, ExecutionResult)
    assert expected.data == {"a": 1, "b": Decimal("1.50"), "c": None, "d": 7, "e": None}
    assert expected.errors is not None
    assert [error.message for error in expected.errors] == ["'one' is none of int, Decimal"]
