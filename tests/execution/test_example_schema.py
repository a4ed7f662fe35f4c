"""A foreign Strawberry schema answers alike under `BatchingExecutor` and under Strawberry's default executor."""

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import strawberry
import strawberry.federation
from strawberry.exceptions import MissingQueryError
from strawberry.extensions import MaskErrors, ParserCache, SchemaExtension, ValidationCache
from strawberry.field_extensions import InputMutationExtension
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.exceptions import CannotGetOperationTypeError
from strawberry.types import Info

from taskflow_gql.execution.strawberry import Batched, BatchingExecutor
from tests.execution.example_schema import fresh_copy


class AtOnce(BatchingExecutor):
    """Plans a document that it sees for the first time."""

    seen_before_planned = 1


class Timing(SchemaExtension):
    """Wraps every resolver, so its operations are not compiled."""

    resolved = 0

    async def resolve(self, _next: Callable[..., Any], root: Any, info: Any, *args: Any, **kwargs: Any) -> Any:
        self.resolved += 1
        result = _next(root, info, *args, **kwargs)
        return await result if asyncio.iscoroutine(result) else result

    def get_results(self) -> dict[str, Any]:
        return {"resolved": self.resolved}


class Counting(SchemaExtension):
    errors = -1

    def on_operation(self) -> Iterator[None]:
        yield
        result = self.execution_context.result
        self.errors = len(getattr(result, "errors", None) or [])

    def get_results(self) -> dict[str, Any]:
        return {"errors": self.errors}


class OwnInfo(Info[Any, Any]):
    @property
    def input_extensions(self) -> dict[str, Any]:
        return {"own": self.field_name}


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "snake case": {"config": StrawberryConfig(auto_camel_case=False)},
    "legacy ids": {"config": StrawberryConfig(relay_use_legacy_global_id=True)},
    "own info": {"config": StrawberryConfig(info_class=OwnInfo)},
    "no suggestions, sorted": {"config": StrawberryConfig(disable_field_suggestions=True, sort_schema=True)},
    "incremental": {"config": StrawberryConfig(enable_experimental_incremental_execution=True)},
    "extensions": {"extensions": [ParserCache, ValidationCache, Counting]},
    "masked errors": {"extensions": [MaskErrors]},
    "wrapped resolvers": {"extensions": [Timing]},
}

BOOK = "id title genre published price"
SYNCHRONOUS = [
    f"{{ shelfOfBooks {{ {BOOK} label quote(words: 2) }} }}",
    "{ maybeBooks { title age } }",
    "{ shelfOfBooks { title age } }",
    "{ page(first: 1) { __typename total isEmpty items { title genre } } authors { total items { id name } } }",
    '{ search(words: ["1", "2"]) { __typename ... on Book { title } ... on Author { name label } } }',
    "{ search(words: []) { ... on Missing { reason } ... on Named { id } } }",
    "{ named { __typename id label ... on Author { name } ... on Book { price } } made { id ... on Author { name } } }",
    '{one: book(key: {id: "1"}) { title } other: book(key: {title: "Book 2"}) {id} none: book(key: {id: "x"}) { id }}',
    "{ shelves(first: 2) { edges { cursor node { id room } } pageInfo { hasNextPage endCursor } } }",
    "query ($number: Int = 3) { seen(number: $number) { path variables selected extensions root } }",
    "{ generated wrong }",
    "{ nothing }",
    "{ motto broken }",
    "query ($with: Boolean!) { motto @include(if: $with) page { total @skip(if: $with) isEmpty } }",
    '{ __schema { queryType { name fields { name } } } __type(name: "Book") { interfaces { name } } __typename }',
    "fragment B on Book { id ...N } fragment N on Named { label } { shelfOfBooks { ...B ... { title } } }",
    "mutation { burn }",
    "{ missing }",
    '{ page(first: "x") { total } }',
    "{",
]
ASYNCHRONOUS = [
    f"{{ books {{ {BOOK} author {{ name }} }} }}",
    "{ books { writer { name } } }",
    "{ maybeBooks { writer { name books { title author { id } } } } }",
    "{ authors { items { name few: books(first: 1) { title } essays: books(genre: ESSAYS) { title genre } } } }",
    "{ books { loadedAuthor { name books { loadedAuthor { id } } } } }",
    "{ books { title lentTo } secret motto }",
    '{ books(where: {genres: [NOVEL], price: {low: "0.5"}, titleHas: "Book"}) { title price } }',
    "query ($where: BookFilter) { books(where: $where) { title } }",
    '{ node(id: "U2hlbGY6MQ==") { id __typename ... on Shelf { room } } }',
    '{ nodes(ids: ["U2hlbGY6MQ==", "U2hlbGY6OQ=="]) { id } }',
    '{ node(id: "bm9uc2Vuc2U=") { id } }',
    "{ brokenLater streamed generated }",
    'mutation { a: addAuthor(name: "x") { id name books { id } } b: addAuthor(name: "y") { id } burn }',
]
VARIABLES = {"with": True, "where": {"genres": ["ESSAYS"], "price": {"high": "1"}}}
SUBSCRIPTIONS = [
    "subscription { arrivals { id title author { name } loadedAuthor { name } } }",
    "subscription { arrivals(count: 3) { age } }",
    "subscription { interrupted }",
    "subscription { missing }",
]


class Example:
    """The example schema under one executor."""

    def __init__(self, executor_class: Any = None, **options: Any) -> None:
        self.module = fresh_copy()
        self.schema = self.module.make_schema(executor_class, **options)

    def arguments(self, query: str) -> dict[str, Any]:
        return {
            "query": query,
            "context_value": {"library": self.module.Library()},
            "variable_values": {name: value for name, value in VARIABLES.items() if f"${name}:" in query},
            "root_value": "root",
            "operation_extensions": {"from": "the request"},
        }

    async def answer(self, query: str) -> Any:
        try:
            return answer_of(await self.schema.execute(**self.arguments(query)))
        except (MissingQueryError, CannotGetOperationTypeError) as error:
            return repr(error)

    def answer_synchronously(self, query: str) -> Any:
        return answer_of(self.schema.execute_sync(**self.arguments(query)))

    async def sent(self, query: str) -> list[Any]:
        results = await self.schema.subscribe(**self.arguments(query))
        return [answer_of(result) async for result in results]


def answer_of(result: Any) -> Any:
    """Everything a client sees, with the keys in order."""
    errors = [error.formatted for error in result.errors or []]
    shown = json.dumps([result.data, errors, result.extensions], default=str)
    # Messages may name the module.
    return json.loads(re.sub(r"example_\d+", "example", shown)), list(_keys(result.data))


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def translate(query: str, options: str) -> str:
    if options != "snake case":
        return query
    for name in (
        "shelfOfBooks",
        "maybeBooks",
        "isEmpty",
        "loadedAuthor",
        "lentTo",
        "titleHas",
        "brokenLater",
        "addAuthor",
    ):
        query = query.replace(name, "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name))
    return (
        query.replace("endCursor", "end_cursor")
        .replace("hasNextPage", "has_next_page")
        .replace("pageInfo", "page_info")
    )


EXECUTORS = [None, BatchingExecutor, AtOnce]


@pytest.fixture(params=OPTIONS, scope="module")
def examples(request: pytest.FixtureRequest) -> tuple[str, list[Example]]:
    return request.param, [Example(executor_class, **OPTIONS[request.param]) for executor_class in EXECUTORS]


@pytest.fixture(scope="module")
def plain_examples() -> list[Example]:
    return [Example(executor_class) for executor_class in EXECUTORS]


@pytest.mark.parametrize("query", [*SYNCHRONOUS, *ASYNCHRONOUS])
async def test_answers_are_equal_to_the_default_executors(query: str, examples: tuple[str, list[Example]]) -> None:
    options, (stock, *compiled) = examples
    query = translate(query, options)
    expected = await stock.answer(query)
    for example in compiled:
        for _ in range(3):
            assert await example.answer(query) == expected


@pytest.mark.parametrize("query", SYNCHRONOUS)
def test_synchronous_answers_are_equal_to_the_default_executors(query: str, plain_examples: list[Example]) -> None:
    stock, *compiled = plain_examples
    expected = stock.answer_synchronously(query)
    for example in compiled:
        for _ in range(3):
            assert example.answer_synchronously(query) == expected


@pytest.mark.parametrize("query", SUBSCRIPTIONS)
async def test_subscriptions_send_the_default_executors_results(query: str, plain_examples: list[Example]) -> None:
    stock, *compiled = plain_examples
    expected = await stock.sent(query)
    assert expected != []
    for example in compiled:
        for _ in range(3):
            assert await example.sent(query) == expected


async def test_a_dataloader_gets_the_keys_of_all_objects(plain_examples: list[Example]) -> None:
    for example in plain_examples:
        for _ in range(3):
            library = example.module.Library()
            await example.schema.execute("{ books { loadedAuthor { name } } }", context_value={"library": library})
            assert library.loads == [("DataLoader", [0, 1, 2])]


async def test_batched_fields_load_each_level_once_and_keep_nothing_in_the_context(
    plain_examples: list[Example],
) -> None:
    query = "{ books { author { name books { title } } } }"
    for example, kind in itertools.product(plain_examples, (dict, SimpleNamespace)):
        for _ in range(3):
            context: Any = kind(library=example.module.Library())
            result = await example.schema.execute(query, context_value=context)
            assert result.errors is None
            assert example.module.library_of(context).loads == [
                ("authors", [0, 1, 2]),
                ("books", [0, 1, 2], None, 2),
            ]
            assert set(context if isinstance(context, dict) else vars(context)) == {"library"}


async def test_batched_fields_need_no_context() -> None:
    loads: list[list[int]] = []

    async def load_doubles(context: Any, numbers: list[int]) -> dict[int, int]:
        assert context is None
        loads.append(numbers)
        return {number: 2 * number for number in numbers}

    def make_numbers() -> Any:
        return [SimpleNamespace(value=value) for value in (1, 2)]

    @strawberry.type
    class Number:
        value: int
        double: int = strawberry.field(extensions=[Batched(load_doubles, key="value")])

    @strawberry.type
    class Numbers:
        numbers: list[Number] = strawberry.field(resolver=make_numbers)

    for executor_class in EXECUTORS:
        schema = strawberry.Schema(Numbers, execution_context_class=executor_class)
        for _ in range(3):
            result = await schema.execute("{ numbers { double } }")
            assert (result.data, result.errors) == ({"numbers": [{"double": 2}, {"double": 4}]}, None)
    assert loads == [[1, 2]] * 9


def make_federated(executor_class: Any) -> strawberry.Schema:
    @strawberry.federation.type(keys=["id"])
    class Product:
        id: strawberry.ID
        name: str

        @classmethod
        def resolve_reference(cls, id: strawberry.ID) -> "Product":
            return cls(id=id, name=f"product {id}")

    @strawberry.type
    class Query:
        @strawberry.field
        def top(self) -> Product:
            return Product(id=strawberry.ID("1"), name="top")

    return strawberry.federation.Schema(query=Query, execution_context_class=executor_class)


def make_of_dicts(executor_class: Any) -> strawberry.Schema:
    """A schema whose resolvers return dicts, read by a default resolver of its own."""

    async def load_people(context: Any, ids: list[int]) -> dict[int, Any]:
        return {id_: {"name": f"person {id_}"} for id_ in ids}

    @strawberry.type
    class Person:
        name: str

    @strawberry.type
    class Pet:
        owner_id: int
        owner: Person = strawberry.field(extensions=[Batched(load_people, key="owner_id")])

    @strawberry.type
    class Query:
        @strawberry.field
        def pets(self) -> list[Pet]:
            return [{"owner_id": 1}, {"owner_id": 2}]  # type: ignore[list-item]

    @strawberry.type
    class Mutation:
        @strawberry.mutation(extensions=[InputMutationExtension()])  # type: ignore[untyped-decorator]
        def repeat(self, word: str, times: int = 2) -> str:
            return word * times

    config = StrawberryConfig(default_resolver=lambda source, name: source[name])
    return strawberry.Schema(Query, Mutation, config=config, execution_context_class=executor_class)


@pytest.mark.parametrize(
    ("make", "query"),
    [
        (make_federated, "{ top { id name } _service { sdl } }"),
        (
            make_federated,
            '{ _entities(representations: [{__typename: "Product", id: "7"}]) { ... on Product { id name } } }',
        ),
        (make_of_dicts, "{ pets { ownerId owner { name } } }"),
        (make_of_dicts, 'mutation { repeat(input: {word: "a"}) }'),
    ],
)
async def test_other_kinds_of_schemas_answer_alike(make: Callable[[Any], strawberry.Schema], query: str) -> None:
    expected = await make(None).execute(query)
    assert expected.errors is None
    for executor_class in (BatchingExecutor, AtOnce):
        schema = make(executor_class)
        for _ in range(3):
            assert answer_of(await schema.execute(query)) == answer_of(expected)


async def test_the_schema_is_compiled() -> None:
    """The comparison would prove nothing if the operations were left to graphql-core."""
    example = Example(Planning)
    for query in [*SYNCHRONOUS, *ASYNCHRONOUS]:
        Planning.planned = None
        await example.answer(query)
        assert Planning.planned in (True, None), query
    assert Planning.planned is True


class Planning(AtOnce):
    planned: bool | None = None

    def _fills(self, serially: bool | None) -> Any:
        fills = super()._fills(serially)
        Planning.planned = fills is not None
        return fills
