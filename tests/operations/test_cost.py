"""Limits on what one operation may cost, and text that no database can store."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from graphql import GraphQLError, get_introspection_query, parse

from taskflow_gql.api.schema import PRICES
from taskflow_gql.config import Settings
from taskflow_gql.operations.cost import problems_of_request
from taskflow_gql.operations.documents import Document
from tests.support.client import PATIENCE_SECONDS, Api, Person
from tests.support.serving import make_settings, serving

SETTINGS = make_settings()


@pytest.fixture(scope="module")
async def web(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """One server for all tests that leave nothing behind."""
    path = tmp_path_factory.mktemp("limits") / "taskflow.sqlite3"
    shutil.copy(migrated_sqlite, path)
    async with serving(make_settings(data_dir=path.parent, database_url=f"sqlite:///{path}")) as api:
        yield api


@pytest.fixture(scope="module")
async def ann(web: Api) -> Person:
    return await web.register("ann")


async def errors(api: Api, query: str, by: Person | None = None, **variables: Any) -> list[tuple[str, str]]:
    """The code and message of each error."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": by.token} if by else {})
    # ASCII, as browsers write it: half a surrogate pair cannot be encoded in UTF-8.
    body = json.dumps({"query": query, "variables": variables})
    answer = (await api.http.post("/graphql", content=body, headers=headers)).json()
    return [(error["extensions"]["code"], error["message"]) for error in answer.get("errors", [])]


def problems_of(query: str, variables: dict[str, Any], settings: Settings) -> list[GraphQLError]:
    document = Document(query, parse(query))
    problems, _ = problems_of_request(document, document.operations[0], variables, settings, PRICES)
    return problems


def too_much(what: str) -> list[tuple[str, str]]:
    return [("QUERY_TOO_COMPLEX", f"The operation asks for too much: {what}")]


# ---------------------------------------------------------------- depth


def nested(depth: int, leaf: str = "id") -> str:
    """A query of tasks, their creators, the creators' tasks and so on, with `depth` nested selections."""
    cycle = ("createdTasks(first: 1)", "nodes", "creator")
    names = ["tasks(first: 1)", "nodes", "creator", *(cycle[n % 3] for n in range(depth))][: depth - 1]
    return "{" + "{".join([*names, leaf if depth % 3 != 2 else "totalCount"]) + "}" * depth


async def test_selections_may_be_nested_15_deep(web: Api, ann: Person) -> None:
    assert await errors(web, nested(15), ann) == []
    assert await errors(web, nested(16), ann) == too_much("16 deep, counted in nested selections; the limit is 15")
    assert await errors(web, nested(100), ann) == too_much("100 deep, counted in nested selections; the limit is 15")


async def test_fragments_do_not_hide_depth(web: Api, ann: Person) -> None:
    inner = "createdTasks(first: 1) { nodes { creator { createdTasks(first: 1) { nodes { creator { id } } } } } }"
    more = f"createdTasks(first: 1) {{ nodes {{ creator {{ {inner} }} }} }}"
    query = "{ tasks(first: 1) { nodes { creator { createdTasks(first: 1) { nodes { creator { %s } } } } } } }"
    message = too_much("16 deep, counted in nested selections; the limit is 15")
    assert await errors(web, f"{query % '...A'} fragment A on User {{ {more} }}", ann) == message
    assert await errors(web, query % f"... on User {{ {more} }}", ann) == message
    assert await errors(web, f"{query % '...A'} fragment A on User {{ {inner} }}", ann) == []


@pytest.mark.parametrize("depth", [50, 100, 200, 300, 400, 500, 1000])
async def test_deep_nesting_of_any_kind_gets_an_answer(web: Api, ann: Person, depth: int) -> None:
    for query in (
        "{ me " * depth + "}" * depth,
        "{" + "... {" * depth + "me { id }" + "}" * depth + "}",
        "{ nodes(ids: " + "[" * depth + "]" * depth + ") { id } }",
        "{ tasks(filter: " + "{not: " * depth + "{}" + "}" * depth + ") { totalCount } }",
        "query($a: " + "[" * depth + "ID" + "]" * depth + ") { me { id } }",
        "{ ...F0 }"
        + "".join(f" fragment F{n} on Query {{ ...F{n + 1} }}" for n in range(depth))
        + f" fragment F{depth} on Query {{ me {{ id }} }}",
    ):
        assert "INTERNAL_SERVER_ERROR" not in await web.codes(query, by=ann), query[:60]
    for value in ("[" * depth + "]" * depth, '{"not": ' * depth + "{}" + "}" * depth):
        query = "query($a: TaskFilter) { tasks(filter: $a) { totalCount } }"
        body = f'{{"query": {json.dumps(query)}, "variables": {{"a": {value}}}}}'
        headers = {"Content-Type": "application/json", "Authorization": ann.token}
        response = await web.http.post("/graphql", content=body, headers=headers)
        assert response.status_code in (200, 400)
        assert [error["extensions"]["code"] for error in response.json()["errors"]] == ["BAD_USER_INPUT"]


# ---------------------------------------------------------------- aliases, costs, tokens


def aliases(count: int, field: str = "me { id }") -> str:
    return " ".join(f"a{n}: {field}" for n in range(count))


async def test_an_operation_may_have_60_aliases(web: Api, ann: Person) -> None:
    assert await errors(web, f"{{ {aliases(60)} }}", ann) == []
    for count in (61, 101):
        message = too_much(f"{count} aliases; the limit is 60")
        assert await errors(web, f"{{ {aliases(count)} }}", ann) == message
        # Fragments do not hide aliases, nor does spreading them over several levels.
        assert await errors(web, f"{{ ...F }} fragment F on Query {{ {aliases(count)} }}", ann) == message
        assert await errors(web, f"{{ tasks {{ nodes {{ {aliases(count, 'title')} }} }} }}", ann) == message
    # The aliases of a fragment count once for each spread.
    thrice = f"{{ me {{ ...F }} x: me {{ ...F }} y: me {{ ...F }} }} fragment F on User {{ {aliases(20, 'username')} }}"
    assert await errors(web, thrice, ann) == too_much("62 aliases; the limit is 60")


async def test_one_request_cannot_try_a_hundred_logins(web: Api) -> None:
    guess = 'login(input: {usernameOrEmail: "ann", password: "guess"}) { accessToken }'
    assert await errors(web, f"mutation {{ {aliases(101, guess)} }}") == too_much("101 aliases; the limit is 60")


FRIENDS = """users(first: $n) { nodes {
  createdTasks(first: $n) { nodes { assignee { assignedTasks(first: $n) { nodes { title } } } } }
} }"""


async def test_a_list_multiplies_the_cost_by_its_page_size(web: Api, ann: Person) -> None:
    declared = f"query($n: Int) {{ {FRIENDS} }}"
    assert await errors(web, declared, ann, n=1) == []
    for query, variables in (
        (declared, {"n": 100}),
        (f"{{ {FRIENDS.replace('$n', '100')} }}", {}),
        (f"{{ {FRIENDS.replace('first: $n', 'last: 100')} }}", {}),
        # The cost is computed before the page size is validated.
        (f"{{ {FRIENDS.replace('$n', '9' * 5000)} }}", {}),
        (declared, {"n": 10**9}),
        (declared, {"n": None}),
        (f"query($n: Int = 100) {{ {FRIENDS} }}", {}),
    ):
        found = await errors(web, query, ann, **variables)
        assert [code for code, _ in found] == ["QUERY_TOO_COMPLEX"], query[:60]
        assert found[0][1].endswith("values at most, counted from the page sizes; the limit is 100000")


def test_the_cost_is_the_maximum_number_of_values_in_the_answer() -> None:
    def cost(query: str, **variables: Any) -> int:
        settings = SETTINGS.model_copy(update={"max_query_cost": -1})
        (error,) = problems_of(query, variables, settings)
        return int(error.message.removeprefix("The operation asks for too much: ").split()[0])

    assert cost("{ me { id username } }") == 3
    assert cost("{ tasks(first: 10) { pageInfo { endCursor } nodes { id creator { username } } } }") == 4 + 10 * 3
    assert cost("{ tasks(first: 10) { ... { nodes { id } } } }") == 2 + 10
    assert cost("{ tasks(first: 10) { ...F } } fragment F on TaskConnection { pageInfo { endCursor } }") == 3
    # Neither fragments nor a default page size hide a list.
    for wrapped in (
        "{ tasks { nodes { id title } } }",
        "{ tasks { ... { nodes { id title } } } }",
        "{ tasks { ...F } } fragment F on TaskConnection { nodes { id title } }",
        "{ tasks { ...F } } fragment F on TaskConnection { ... { nodes { id title } } }",
    ):
        assert cost(wrapped) == 2 + 50 * 2, wrapped
    assert cost('{ nodes(ids: ["a", "b"]) { id } }') == 1 + 2
    assert cost("query($ids: [ID!]!) { nodes(ids: $ids) { id } }", ids=["a"]) == 1 + 100
    # Fields that need a look-up for each object, or that may be long, count as many values.
    assert cost("{ tasks(first: 10) { totalCount nodes { description history(first: 3) { nodes { kind } } } } }") == (
        1 + 50 + 1 + 10 * (50 + 50 + 1 + 3)
    )
    # A page of changes may look at 1,000 of them.
    assert cost("{ taskChanges(last: 3) { nodes { kind } } }") == 1_000 + 1 + 3
    # A page that is a plain list.
    assert cost("{ taskStats { byAssignee(first: 3) { count assignee { id } } } }") == 1 + 50 + 3 * 3
    assert cost("{ taskStats { byAssignee { ...F } } } fragment F on TaskAssigneeCount { count }") == 1 + 50 + 50
    assert cost("{ tasks { edges { cursor } } }") == 2 + 50
    assert cost("query($n: Int) { tasks(last: $n) { edges { cursor } } }", n=7) == 2 + 7
    assert cost("{ ...F ...F } fragment F on Query { me { id } }") == 4


async def test_a_document_may_have_4000_tokens(web: Api) -> None:
    def query(tokens: int) -> str:
        return "{ nodes(ids: [" + '"x" ' * (tokens - 12) + "]) { id } }"

    assert await errors(web, query(4000)) == [("UNAUTHENTICATED", "Not authenticated")]
    (found,) = await errors(web, query(4001))
    assert found[0] == "GRAPHQL_PARSE_FAILED"
    assert "more than 4000 tokens" in found[1]


async def test_the_cost_limits_come_from_the_settings(sqlite_settings: Settings) -> None:
    limits = {"max_query_depth": 2, "max_query_aliases": 1, "max_query_cost": 50, "max_query_tokens": 40}
    async with serving(sqlite_settings.model_copy(update=limits)) as api:
        assert await errors(api, "{ a: me { id } }") == []
        assert await errors(api, "{ tasks { nodes { id } } }") == [
            *too_much("3 deep, counted in nested selections; the limit is 2"),
            *too_much("52 values at most, counted from the page sizes; the limit is 50"),
        ]
        assert await errors(api, "{ a: me { id } b: me { id } }") == too_much("2 aliases; the limit is 1")
        assert [code for code, _ in await errors(api, "{" + "__typename " * 39 + "}")] == ["GRAPHQL_PARSE_FAILED"]


# ---------------------------------------------------------------- fragments


def doubling(count: int, leaf: str) -> str:
    """Each fragment spreads the next one twice, so naive measuring takes 2 ** count steps."""
    fragments = (f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(count))
    return f"{{ ...F0 }} {' '.join(fragments)} {leaf.replace('LAST', f'F{count}')}"


@pytest.mark.parametrize("count", [30, 150, 300])
async def test_exponential_fragments_get_an_answer(web: Api, count: int) -> None:
    # The test is that an answer arrives: even at a nanosecond a step, 2 ** 150 steps would never end.
    found = await errors(web, doubling(count, "fragment LAST on Query { __typename }"))
    assert {code for code, _ in found} == {"QUERY_TOO_COMPLEX"}
    for leaf in ("", "fragment LAST on Query { ...F0 }", "fragment LAST on Query { ...Other }"):
        codes = {code for code, _ in await errors(web, doubling(count, leaf))}
        assert codes <= {"GRAPHQL_VALIDATION_FAILED", "QUERY_TOO_COMPLEX"}
        assert codes != set()
    unused = f"{{ me {{ id }} }} {doubling(count, 'fragment LAST on Query { __typename }')[10:]}"
    assert {code for code, _ in await errors(web, unused)} <= {"GRAPHQL_VALIDATION_FAILED", "QUERY_TOO_COMPLEX"}


async def test_exponential_fragments_with_a_small_result_are_run(web: Api) -> None:
    query = doubling(10, "fragment LAST on Query { __typename }")
    assert await web.data(query) == {"__typename": "Query"}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("{ ...A } fragment A on Query { ...A }", "Cannot spread fragment 'A' within itself."),
        (
            "{ ...A } fragment A on Query { ...B } fragment B on Query { ...A }",
            "Cannot spread fragment 'A' within itself via 'B'.",
        ),
        (
            "{ me { ...A } } fragment A on User { createdTasks { nodes { creator { ...A } } } }",
            "Cannot spread fragment 'A' within itself.",
        ),
        ("{ ...Nowhere }", "Unknown fragment 'Nowhere'."),
        ("{ me { ...Nowhere } }", "Unknown fragment 'Nowhere'."),
        ("{ me { id } } fragment Unused on Query { me { id } }", "Fragment 'Unused' is never used."),
    ],
)
async def test_cyclic_unknown_and_unused_fragments_are_validation_errors(web: Api, query: str, message: str) -> None:
    assert await errors(web, query) == [("GRAPHQL_VALIDATION_FAILED", message)]


# ---------------------------------------------------------------- nesting, values, length


def nested_fragments(count: int, inline: int) -> str:
    """A chain of `count` fragments, each with `inline` nested inline fragments."""
    inner = [f"...F{n + 1}" for n in range(count - 1)] + ["__typename"]
    fragments = (f"fragment F{n} on Query {{ {'... {' * inline} {inner[n]} {'}' * inline} }}" for n in range(count))
    return f"{{ ...F0 }} {' '.join(fragments)}"


@pytest.mark.parametrize(("count", "inline"), [(10, 100), (498, 0), (120, 0)])
async def test_nesting_of_selection_sets_is_counted_through_fragments(web: Api, count: int, inline: int) -> None:
    found = too_much(
        f"{1 + count * (1 + inline)} selection sets in each other, counted through fragments; the limit is 100"
    )
    assert await errors(web, nested_fragments(count, inline)) == found
    stream = {"Accept": "text/event-stream"}
    answer = await web.http.post("/graphql", json={"query": nested_fragments(count, inline)}, headers=stream)
    assert answer.status_code == 200
    assert answer.text.startswith('event: next\ndata: {"errors":[{"message":"' + found[0][1])
    async with web.socket() as socket:
        await socket.send(type="connection_init")
        assert (await socket.receive())["type"] == "connection_ack"
        await socket.subscribe(nested_fragments(count, inline))
        message = await socket.receive()
        assert (message["type"], message["payload"][0]["message"]) == ("error", found[0][1])


async def test_selection_sets_may_be_nested_100_deep(web: Api) -> None:
    assert await errors(web, nested_fragments(9, 10)) == []
    assert await errors(web, nested_fragments(99, 0)) == []


async def test_a_long_cycle_of_fragments_is_refused_before_it_is_followed(web: Api) -> None:
    circle = "{ ...F0 } " + " ".join(f"fragment F{n} on Query {{ ...F{(n + 1) % 498} }}" for n in range(498))
    assert await errors(web, circle) == too_much(
        "499 selection sets in each other, counted through fragments; the limit is 100"
    )


async def test_argument_values_count_once_for_each_use(web: Api, ann: Person) -> None:
    stats = "query($f: TaskFilter) {" + aliases(60, "taskStats(filter: $f) { total }") + "}"
    message = too_much("12060 values in arguments; the limit is 10000")
    # Refused before the token is checked.
    assert await errors(web, stats, f={"and": [{}] * 200}) == message
    assert await errors(web, stats, ann, f={"and": [{}] * 100}) == []
    literal = "{" + aliases(60, "taskStats(filter: {and: [" + "{} " * 13 + "]}) { total }") + "}"
    assert await errors(web, literal, ann) == []
    fragment = "fragment F on User { createdTasks(filter: {and: [" + "{} " * 197 + "]}) { __typename } }"
    assert await errors(web, "{" + aliases(60, "me { ...F }") + "}" + fragment) == too_much(
        "11880 values in arguments; the limit is 10000"
    )
    default = "query($f: TaskFilter = {and: [" + "{} " * 200 + "]}) {" + aliases(60, "taskStats(filter: $f) { total }")
    assert await errors(web, default + "}") == message


async def test_values_of_unused_variables_count_too(web: Api) -> None:
    assert await errors(web, "{ __typename }", unused=[1] * 9_999) == []
    assert await errors(web, "{ __typename }", unused=[1] * 10_000) == too_much(
        "10001 values in arguments; the limit is 10000"
    )


async def test_a_long_string_counts_as_many_values(web: Api, ann: Person) -> None:
    search = "query($s: String) {" + aliases(60, "taskStats(filter: {search: $s}) { total }") + "}"
    assert await errors(web, search, ann, s="x" * 200) == []
    # The string counts as 201 values in each of its 60 uses, and so does each literal below.
    assert await errors(web, search, s="x" * 50_000) == too_much("12060 values in arguments; the limit is 10000")
    fragment = 'fragment F on User { createdTasks(filter: {search: "%s"}) { __typename } }' % ("x" * 50_000)
    assert await errors(web, "{" + aliases(60, "me { ...F }") + "}" + fragment) == too_much(
        "12060 values in arguments; the limit is 10000"
    )
    pages = "query($a: String) {" + aliases(3, "tasks(after: $a) { totalCount }") + "}"
    assert await errors(web, pages, a="x" * 900_000) == too_much("10800 values in arguments; the limit is 10000")


async def test_an_order_with_thousands_of_keys_is_refused(web: Api, ann: Person) -> None:
    query = "query($o: [TaskOrder!]) { tasks(orderBy: $o) { totalCount } }"
    assert await errors(web, query, ann, o=[{"field": "TITLE"}] * 5_000) == too_much(
        "10001 values in arguments; the limit is 10000"
    )


async def test_an_alias_may_have_100_characters(web: Api) -> None:
    assert await errors(web, f"{{ {'a' * 100}: __typename }}") == []
    assert await errors(web, f"{{ {'a' * 101}: __typename }}") == too_much(
        "101 characters in an alias; the limit is 100"
    )


async def test_the_characters_and_lines_of_a_document_are_limited(web: Api) -> None:
    assert await errors(web, "{ __typename }" + " " * 99_986) == []
    assert await errors(web, "{ __typename }" + " " * 99_987) == [
        ("QUERY_TOO_COMPLEX", "The document has 100001 characters; the limit is 100000")
    ]
    assert await errors(web, "{ __typename }" + "\n" * 10_000) == []
    assert await errors(web, "{ __typename }" + "\r\n" * 10_000) == []
    assert await errors(web, "{ __typename }" + "\r\n" * 10_001) == [
        ("QUERY_TOO_COMPLEX", "The document has 10001 lines; the limit is 10000")
    ]


# ---------------------------------------------------------------- errors


async def test_error_locations_are_right_in_long_documents(web: Api) -> None:
    query = "{\n" + "\r\n".join(f"  x{n}" for n in range(500)) + "\r}"
    response = await web.http.post("/graphql", json={"query": query})
    found = [(error["message"], error["locations"]) for error in response.json()["errors"][:20]]
    assert found == [(f"Cannot query field 'x{n}' on type 'Query'.", [{"line": n + 2, "column": 3}]) for n in range(20)]
    query = "\n" * 5_000 + "{ me {\n a: id\n a: username } }"
    error = (await web.http.post("/graphql", json={"query": query})).json()["errors"][0]
    assert error["locations"] == [{"line": 5_002, "column": 2}, {"line": 5_003, "column": 2}]


async def test_validation_stops_after_20_errors(web: Api) -> None:
    found = await errors(web, "{" + " ".join(f"x{n}" for n in range(110)) + "}")
    assert len(found) == 21
    assert found[-1] == ("GRAPHQL_VALIDATION_FAILED", "Validation stopped after 20 errors")


async def test_a_response_has_at_most_100_errors_and_says_how_many_more(web: Api, ann: Person) -> None:
    lists = " ".join(
        f"{name}: nodes(ids: $ids) {{ ... on User {{ createdTasks(first: 0) {{ totalCount }} }} }}" for name in "abc"
    )
    answer = await web.post(f"query($ids: [ID!]!) {{ {lists} }}", {"ids": [ann.id] * 100}, by=ann)
    assert answer["data"] == dict.fromkeys("abc", [None] * 100)
    *errors_of_fields, last = answer["errors"]
    assert {error["message"] for error in errors_of_fields} == {"first must be from 1 to 100, not 0"}
    assert len(errors_of_fields) == 100
    assert last == {
        "message": "There are 200 more errors like these",
        "extensions": {"code": "QUERY_TOO_COMPLEX"},
    }


@pytest.mark.parametrize(
    ("query", "variables"),
    [
        ("query($s: TaskStatus!) { tasks(filter: {status: {eq: $s}}) { totalCount } }", {"s": "x" * 900_000}),
        ("query($n: Int!) { tasks(first: $n) { totalCount } }", {"n": "x" * 900_000}),
        ("{ " + "x" * 90_000 + " }", {}),
        ('{ me(id: "' + "x" * 90_000 + '") { id } }', {}),
        ("{ me { id } } " + "x" * 90_000, {}),
        ("query($" + "x" * 90_000 + ": Int) { me { id } }", {}),
        ("{ ..." + "x" * 90_000 + " }", {}),
        ("{ me @" + "x" * 90_000 + " { id } }", {}),
        ("{ tasks(filter: {" + "x" * 90_000 + ": 1}) { totalCount } }", {}),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
async def test_error_messages_quote_at_most_200_characters(web: Api, query: str, variables: dict[str, Any]) -> None:
    response = await web.http.post("/graphql", json={"query": query, "variables": variables})
    errors = response.json()["errors"]
    assert errors
    assert all(error["message"].count("x") <= 200 for error in errors)
    assert len(response.content) < 10_000


async def test_the_name_of_an_unknown_operation_is_truncated_in_the_message(web: Api) -> None:
    response = await web.http.post("/graphql", json={"query": "{ me { id } }", "operationName": "x" * 900_000})
    assert response.status_code == 400
    assert len(response.json()["errors"][0]["message"]) < 250


async def test_errors_suggest_nothing_when_introspection_is_off(sqlite_settings: Settings) -> None:
    async with serving(sqlite_settings.model_copy(update={"introspection": False})) as api:
        assert await errors(api, "{ mee { id } }") == [
            ("GRAPHQL_VALIDATION_FAILED", "Cannot query field 'mee' on type 'Query'.")
        ]
        mistakes: list[tuple[str, dict[str, Any]]] = [
            ("{ tasks(frist: 1) { totalCount } }", {}),
            ("{ tasks(filter: {status: {eq: PENDIN}}) { totalCount } }", {}),
            ("query($f: TaskFilter) { tasks(filter: $f) { totalCount } }", {"f": {"stats": {"eq": "PENDING"}}}),
            ("query($f: TaskFilter) { tasks(filter: $f) { totalCount } }", {"f": {"status": {"eq": "PENDIN"}}}),
            ("subscription($f: TaskFiltr) { taskChanged(filter: $f) { kind } }", {}),
        ]
        for query, variables in mistakes:
            assert "Did you mean" not in str(await errors(api, query, **variables)), query


async def test_one_operation_does_not_take_the_whole_connection_pool(postgresql_settings: Settings) -> None:
    pool = {"database_pool_size": 5, "database_max_overflow": 0}
    async with serving(postgresql_settings.model_copy(update=pool)) as api:
        ann = await api.register("ann")
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        async with postgres_connection(postgresql_settings) as holder, postgres_connection(postgresql_settings) as seer:
            # The lock makes every statement on tasks wait, as slow counts would.
            async with asyncio.timeout(PATIENCE_SECONDS), holder.transaction():
                await holder.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
                counts = asyncio.create_task(api.post(f"{{ {aliases(60, 'taskStats { total }')} }}", by=ann))
                while await seer.fetchval(waiting) < 3:  # noqa: ASYNC110 (another process decides)
                    await asyncio.sleep(0.01)
                assert await api.data("{ me { username } }", by=ann) == {"me": {"username": "ann"}}
                assert await seer.fetchval(waiting) == 3
            assert len((await counts)["data"]) == 60


@asynccontextmanager
async def postgres_connection(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(settings.database_url)
    try:
        yield connection
    finally:
        await connection.close()


# ---------------------------------------------------------------- what attack scanners try


REPEATED = [
    "{" + "__typename " * 500 + "}",
    "{" + "me { id } " * 500 + "}",
    "{" + 'user(id: "1") { id } ' * 440 + "}",
    "{ tasks { nodes {" + "creator { id } " * 900 + "} } }",
    "{" + " ".join(f'user(id: "{n}") {{ id }}' for n in range(400)) + "}",
    "{"
    + " ".join(f"...F{n}" for n in range(300))
    + "}"
    + " ".join(f"fragment F{n} on Query {{ me {{ id }} }}" for n in range(300)),
    "{" + " ".join(f"unknown{n}" for n in range(3900)) + "}",
    "{ __typename " + "@aa " * 1900 + "}",
    "{ nodes(ids: [" + '"x" ' * 3900 + "]) { id } }",
    "query(" + " ".join(f"$v{n}: Int" for n in range(900)) + ") { me { id } }",
    " ".join(f"query Q{n} {{ me {{ id }} }}" for n in range(400)),
]


@pytest.mark.parametrize("query", REPEATED, ids=lambda query: query[:30])
async def test_documents_full_of_repetition_get_no_internal_error(web: Api, query: str) -> None:
    response = await web.http.post("/graphql", json={"query": query})
    assert response.status_code == 200
    codes = {error["extensions"]["code"] for error in response.json().get("errors", [])}
    assert codes <= {"QUERY_TOO_COMPLEX", "GRAPHQL_VALIDATION_FAILED", "BAD_USER_INPUT", "UNAUTHENTICATED"}


async def test_repeated_fields_are_not_compared_pair_by_pair(web: Api) -> None:
    # 1,000 fields make 500,000 pairs, which graphql-core compares for two seconds.
    assert await errors(web, "{" + "me { id } " * 990 + "}") == []
    # A front end of a hundred components sends this: each component has a fragment of its own.
    fragments = [f"fragment Part{n} on User {{ __typename id username }}" for n in range(100)]
    spreads = " ".join(f"...Part{n}" for n in range(100))
    assert await errors(web, f"{{ me {{ {spreads} }} }} {' '.join(fragments)}") == []


async def test_a_fragment_spread_by_many_operations_is_not_compared_for_each(web: Api) -> None:
    fields = "fragment All on Query {" + "__typename " * 2000 + "}"
    operations = " ".join(f"query Q{n} {{ ...All }}" for n in range(300))
    message = "The document repeats fields, or nests fragments, too much to be validated"
    response = await web.http.post("/graphql", json={"query": f"{operations} {fields}", "operationName": "Q0"})
    assert [error["message"] for error in response.json()["errors"]] == [message]


async def test_directives_must_be_known_and_not_repeated(web: Api) -> None:
    for query in ("{ __typename " + "@aa" * 10 + "}", "{ __typename " + "@include(if: true) " * 10 + "}"):
        assert {code for code, _ in await errors(web, query)} == {"GRAPHQL_VALIDATION_FAILED"}
    assert await web.data("{ __typename @include(if: true) @skip(if: false) }") == {"__typename": "Query"}


async def test_introspection_works_in_development(web: Api) -> None:
    schema = (await web.data(get_introspection_query(input_value_deprecation=True)))["__schema"]
    assert {"Task", "User", "TaskChange"} <= {type_["name"] for type_ in schema["types"]}
    assert await web.data('{ __type(name: "Node") { kind } }') == {"__type": {"kind": "INTERFACE"}}


async def test_one_operation_may_introspect_three_times(web: Api) -> None:
    standard = get_introspection_query(input_value_deprecation=True)
    fragments = standard[standard.index("fragment") :]
    three, four = ("{" + aliases(n, "__schema { types { ...FullType } }") + "}" + fragments for n in (3, 4))
    assert await errors(web, three) == []
    assert [code for code, _ in await errors(web, four)] == ["QUERY_TOO_COMPLEX"]


async def test_circular_introspection_is_refused(web: Api) -> None:
    circle = "{ __schema { types " + "{ fields { type " * 4 + "{ name } " + "} }" * 4 + "} }"
    ((code, message),) = await errors(web, circle)
    assert (code, message) == ("GRAPHQL_VALIDATION_FAILED", "Maximum introspection depth exceeded")


async def test_introspection_is_refused_in_production_unless_enabled(postgresql_settings: Settings) -> None:
    production = postgresql_settings.model_copy(update={"env": "production"})
    async with serving(production) as api:
        for query in (
            get_introspection_query(),
            '{ __type(name: "User") { name } }',
            "{ me { id } __schema { types { name } } }",
        ):
            codes = {code for code, _ in await errors(api, query)}
            assert codes == {"GRAPHQL_VALIDATION_FAILED"}
        assert await api.data("{ __typename serverInfo { __typename } }") == {
            "__typename": "Query",
            "serverInfo": {"__typename": "ServerInfo"},
        }
        # GraphiQL is off too.
        page = await api.http.get("/graphql", headers={"Accept": "text/html"})
        assert (page.status_code, page.headers["content-type"]) == (400, "application/json; charset=utf-8")
    async with serving(production.model_copy(update={"introspection": True})) as api:
        assert await errors(api, get_introspection_query()) == []


async def test_a_misspelt_field_is_an_ordinary_validation_error(web: Api) -> None:
    assert await errors(web, "{ mee { id } }") == [
        ("GRAPHQL_VALIDATION_FAILED", "Cannot query field 'mee' on type 'Query'. Did you mean 'me'?")
    ]


# ---------------------------------------------------------------- text that cannot be stored


NUL, HALF = "\x00", "\ud800"
VARIABLE = "A variable holds U+0000 or half a surrogate pair, which is no text that can be kept"
LITERAL = "The document holds U+0000 in a text, which cannot be kept"

# Every input field whose text goes into a statement. `%` marks the place of the text.
OPERATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("mutation($input: CreateTaskInput!) { createTask(input: $input) { errors { code } } }", "input", {"title": "a%b"}),
    (
        "mutation($input: CreateTaskInput!) { createTask(input: $input) { errors { code } } }",
        "input",
        {"title": "A task", "description": "%"},
    ),
    (
        "mutation($input: CreateTaskInput!) { createTask(input: $input) { errors { code } } }",
        "input",
        {"title": "A task", "assigneeId": "%"},
    ),
    ("mutation($input: UpdateTaskInput!) { updateTask(input: $input) { errors { code } } }", "input", {"id": "%"}),
    (
        "mutation($input: UpdateProfileInput!) { updateProfile(input: $input) { errors { code } } }",
        "input",
        {"fullName": "a%"},
    ),
    (
        "mutation($input: UpdateProfileInput!) { updateProfile(input: $input) { errors { code } } }",
        "input",
        {"email": "a%@example.com"},
    ),
    (
        "mutation($input: RegisterInput!) { register(input: $input) { errors { code } } }",
        "input",
        {"email": "b@example.com", "username": "b%b", "fullName": "B", "password": "12345678"},
    ),
    (
        "mutation($input: RegisterInput!) { register(input: $input) { errors { code } } }",
        "input",
        {"email": "b@example.com", "username": "bob", "fullName": "B%", "password": "1234567%"},
    ),
    (
        "mutation($input: LoginInput!) { login(input: $input) { errors { code } } }",
        "input",
        {"usernameOrEmail": "a%", "password": "12345678"},
    ),
    (
        "mutation($input: LoginInput!) { login(input: $input) { errors { code } } }",
        "input",
        {"usernameOrEmail": "ann", "password": "%"},
    ),
    ("query($filter: TaskFilter) { tasks(filter: $filter) { totalCount } }", "filter", {"title": {"contains": "%"}}),
    ("query($filter: TaskFilter) { tasks(filter: $filter) { totalCount } }", "filter", {"title": {"in": ["a", "%"]}}),
    ("query($filter: TaskFilter) { tasks(filter: $filter) { totalCount } }", "filter", {"search": "%"}),
]
# The same for arguments that are text themselves.
QUERIES = [
    "query($text: ID!) { task(id: $text) { id } }",
    "query($text: ID!) { user(id: $text) { id } }",
    "query($text: ID!) { node(id: $text) { id } }",
    "query($text: ID!) { nodes(ids: [$text]) { id } }",
    "query($text: String) { tasks(after: $text) { totalCount } }",
    "query($text: String) { users(before: $text) { totalCount } }",
    "query($text: String) { users(search: $text) { totalCount } }",
]


def filled(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {key: filled(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, text) for item in value]
    return value.replace("%", text) if isinstance(value, str) else value


def literal(value: Any) -> str:
    """The value as a GraphQL literal."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    return json.dumps(value)


async def test_text_that_cannot_be_stored_is_refused_in_variables(api: Api) -> None:
    ann = await api.register("ann")
    for text in (NUL, HALF):
        for query, name, value in OPERATIONS:
            assert await errors(api, query, ann, **{name: filled(value, text)}) == [("BAD_USER_INPUT", VARIABLE)]
        for query in QUERIES:
            assert await errors(api, query, ann, text=f"a{text}b") == [("BAD_USER_INPUT", VARIABLE)]
    # Also in the name of an input field, and in a variable that nothing uses.
    found = await errors(api, OPERATIONS[0][0], ann, input={"title": "A task", f"x{NUL}": 1})
    assert found == [("BAD_USER_INPUT", VARIABLE)]
    assert await errors(api, "{ me { id } }", ann, **{"unused": [{"deep": HALF}]}) == [("BAD_USER_INPUT", VARIABLE)]
    assert (await api.data("{ tasks { totalCount } me { fullName } }", by=ann)) == {
        "tasks": {"totalCount": 0},
        "me": {"fullName": "Ann"},
    }


async def test_text_that_cannot_be_stored_is_refused_in_the_document(api: Api) -> None:
    ann = await api.register("ann")
    for query, name, value in OPERATIONS:
        head, _, rest = query.partition(") {")
        assert head.count("$") == 1
        written = "{" if head.startswith("query") else "mutation {"
        for spelling in ("\\u0000", "\\u{0}", "\\u{00000}", NUL):
            document = written + rest.replace(f"${name}", literal(filled(value, "%%%")).replace("%%%", spelling))
            assert await errors(api, document, ann) == [("BAD_USER_INPUT", LITERAL)], document
        # Half a surrogate pair is a syntax error in GraphQL.
        for spelling in ("\\uD800", "\\u{D800}", HALF):
            document = written + rest.replace(f"${name}", literal(filled(value, "%%%")).replace("%%%", spelling))
            assert [code for code, _ in await errors(api, document, ann)] == ["GRAPHQL_PARSE_FAILED"], document
    for query in QUERIES:
        document = "{" + query.partition(") {")[2].replace("$text", '"a\\u0000b"')
        assert await errors(api, document, ann) == [("BAD_USER_INPUT", LITERAL)]
        document = query.replace("!", "").replace(") {", f' = """a{NUL}b""") {{', 1)
        found = await errors(api, document, ann)
        assert ("BAD_USER_INPUT", LITERAL) in found
    assert (await api.data("{ tasks { totalCount } me { fullName } }", by=ann)) == {
        "tasks": {"totalCount": 0},
        "me": {"fullName": "Ann"},
    }


async def test_other_unusual_text_is_stored_unchanged(api: Api) -> None:
    ann = await api.register("ann")
    for text in (
        "\x01\x02\x1f",
        "\u202eabc",
        "\uffff\ufffe",
        "a\u0301e\u0301",
        "\U0010ffff😀x",
        "\\u0000",
        "'; DROP--",
    ):
        task = await api.create_task(ann, f"<{text}>", description=text)
        found = await api.data("query($id: ID!) { task(id: $id) { title description } }", {"id": task["id"]}, by=ann)
        assert found == {"task": {"title": f"<{text}>", "description": text}}


def test_nested_variables_are_checked_without_recursion() -> None:
    deep: Any = ["text"]
    for _ in range(5_000):
        deep = [deep]
    (error,) = problems_of("{ me { id } }", {"a": deep}, SETTINGS)
    assert error.message == "A variable is nested more than 100 deep"


async def test_the_errors_of_one_request_do_not_stick_to_the_cached_document(web: Api) -> None:
    query = "query A { serverInfo { name } } query B { serverInfo { version } }"
    for _ in range(3):
        refused = await web.post(query)
        assert [error["message"] for error in refused["errors"]] == [
            "Several operations: say in operationName which to run"
        ]
        named = await web.http.post("/graphql", json={"query": query, "operationName": "A"})
        assert named.json() == {"data": {"serverInfo": {"name": "TaskFlow GQL"}}}
