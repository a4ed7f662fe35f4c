"""A document that is parsed again uses the plan of the first parse, but its answer has its own nodes."""

from collections.abc import Mapping
from typing import Any

import pytest
from graphql import (
    DocumentNode,
    ExecutionResult,
    FragmentDefinitionNode,
    GraphQLSchema,
    OperationDefinitionNode,
    Source,
    build_schema,
    execute,
    parse,
)

from taskflow_gql.execution import BATCH, Batch, CompilingExecutor, batch_resolver
from taskflow_gql.execution.cache import PlanCache

SDL = """
type Query { user: User users: [User!] node: Node search(limit: Int!): User }
type Mutation { first: User second: User }
interface Node { id: ID }
type User implements Node { id: ID! name: String friend: User boss: User! later: User number(is: Int!): Int }
"""

USER = """
fragment Person on User {
  name
  friend { ...Name }
  later { name later { name } }
  boss { name }
}
fragment Name on User { name number(is: $number) }
"""

DOCUMENTS = {
    "fields of fragments": "query Q($number: Int) { user { ...Person } }",
    "fields of lists": "query Q($number: Int) { users { friend { ...Name } users: friend { ...Person } } }",
    "an abstract type": "query Q($number: Int) { node { ... on User { ...Name friend { ...Person } } } }",
    "an argument of the root": "query Q($number: Int) { search(limit: $number) { ...Person } }",
    "a mutation": "mutation Q($number: Int) { first { ...Person } second { ...Person } }",
    "fields that are merged": "query Q($number: Int) { user { friend { id } } user { friend { ...Person } } }",
}


class Planned(CompilingExecutor):
    seen_before_planned = 1
    runs = 0

    def _fills(self, serially: bool | None) -> Any:
        fills = super()._fills(serially)
        Planned.runs += fills is not None
        return fills


class User:
    """A source whose fields fail and record their info."""

    id = None
    boss_id = "1"

    def __init__(self, infos: list[Any]) -> None:
        self.infos = infos

    def name(self, info: Any) -> str:
        self.infos.append(info)
        raise ValueError("no name")

    def friend(self, info: Any) -> "User":
        self.infos.append(info)
        return User(self.infos)

    async def later(self, info: Any) -> "User":
        self.infos.append(info)
        return User(self.infos)


async def users_by_id(_context: Any, _ids: list[str]) -> Mapping[str, User]:
    raise ValueError("no boss")


def make_schema() -> GraphQLSchema:
    schema = build_schema(SDL)
    batch = Batch(users_by_id, "boss_id")
    field = schema.type_map["User"].fields["boss"]  # type: ignore[attr-defined]
    field.extensions[BATCH] = batch
    field.resolve = batch_resolver(batch)
    schema.type_map["Node"].resolve_type = lambda *_: "User"  # type: ignore[attr-defined]
    return schema


SCHEMA = make_schema()


async def run(document: DocumentNode, executor_class: type[CompilingExecutor] | None) -> tuple[ExecutionResult, Any]:
    infos: list[Any] = []
    user = User(infos)
    root = {"user": user, "users": [user, user], "node": user, "search": user, "first": user, "second": user}
    result = execute(SCHEMA, document, root, {}, {"number": None}, executor_class=executor_class)
    if not isinstance(result, ExecutionResult):
        result = await result
    nodes = {
        (tuple(info.path.as_list()), tuple(map(id, info.field_nodes)), id(info.operation), *map(id, info.fragments))
        for info in infos
    }
    return result, nodes


def origin(error: Any) -> Any:
    """Return the identities of the error's nodes and source, since equal nodes are not enough."""
    return error.message, error.path, [id(node) for node in error.nodes or ()], error.source.name, error.positions


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
async def test_errors_and_infos_have_the_nodes_of_the_executed_document(text: str) -> None:
    Planned.runs = 0
    for name in ("first", "second", "third"):
        document = parse(Source(text + USER, name))
        for _ in range(2):
            expected, expected_nodes = await run(document, None)
            result, nodes = await run(document, Planned)
            assert result.data == expected.data
            assert expected.errors
            assert result.errors
            assert sorted(map(origin, result.errors), key=str) == sorted(map(origin, expected.errors), key=str)
            assert all(error.source and error.source.name == name for error in result.errors)
            assert nodes == expected_nodes
    assert Planned.runs == 6


async def test_a_document_deeper_than_the_stack_may_be_parsed_again() -> None:
    depth = 900
    fragments = [f"fragment F{number} on User {{ friend {{ ...F{number + 1} }} }}" for number in range(depth)]
    text = "\n".join(["{ user { ...F0 } }", *fragments, f"fragment F{depth} on User {{ later {{ name }} }}"])

    class Endless:
        """Only the innermost field needs an info, so all selections around it have to be collected for it."""

        @property
        def friend(self) -> Any:
            async def friend() -> Endless:
                return Endless()

            return friend()

        async def later(self, info: Any) -> Any:
            raise ValueError(info.field_nodes[0])

    for name in ("first", "second"):
        document = parse(Source(text, name))
        result = execute(SCHEMA, document, {"user": Endless()}, executor_class=Planned)
        assert not isinstance(result, ExecutionResult)
        errors = (await result).errors
        assert errors
        [error] = errors
        assert error.source is not None
        assert error.source.name == name
        assert error.original_error is not None
        assert [error.original_error.args[0]] == error.nodes


def test_an_operation_with_other_fragments_does_not_use_the_plan() -> None:
    [operation, fragment] = parse("{ ...F } fragment F on Query { a }").definitions
    [_, equal_fragment] = parse("{ ...F } fragment F on Query { a }").definitions
    assert isinstance(operation, OperationDefinitionNode)
    assert isinstance(fragment, FragmentDefinitionNode)
    assert isinstance(equal_fragment, FragmentDefinitionNode)
    cache = PlanCache(seen_before_planned=1)
    assert cache.get(("text", 0), operation, {"F": fragment})
    assert cache.get(("text", 0), operation, {"F": fragment})
    assert not cache.get(("text", 0), operation, {"F": equal_fragment})
