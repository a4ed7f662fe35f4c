"""The cache is bounded, and one client cannot evict the plans of others."""

import gc
import linecache
import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    FragmentDefinitionNode,
    GraphQLSchema,
    OperationDefinitionNode,
    build_schema,
    execute,
    lexicographic_sort_schema,
    parse,
)

from taskflow_gql.execution import CompilingExecutor
from taskflow_gql.execution import cache as cache_module
from taskflow_gql.execution.cache import PlanCache, plans_of


def operation_of(document: DocumentNode) -> OperationDefinitionNode:
    operation = document.definitions[0]
    assert isinstance(operation, OperationDefinitionNode)
    return operation


def see(cache: PlanCache, text: str, times: int = 1) -> bool:
    """Tell whether the document is in the cache after so many sightings."""
    operation = operation_of(parse(text))
    for _ in range(times):
        document = cache.get((text, 0), operation, {})
    return document is not None


def test_a_document_is_planned_when_seen_again() -> None:
    cache = PlanCache(seen_before_planned=2)
    assert not see(cache, "{ a }")
    assert see(cache, "{ a }")


def test_the_number_of_documents_is_bounded() -> None:
    cache = PlanCache(seen_before_planned=1, max_documents=4)
    for number in range(100):
        see(cache, f"{{ a{number} }}", times=number // 10 + 1)
    assert len(cache) == 4


def test_a_flood_of_new_documents_does_not_evict_popular_ones() -> None:
    cache = PlanCache(seen_before_planned=2, max_documents=4)
    popular = [f"{{ popular{number} }}" for number in range(4)]
    for text in popular:
        see(cache, text, times=10)
    planned = 0
    for number in range(30):
        # Each document is sent twice, so that it could be planned.
        planned += see(cache, f"{{ flood{number} }}", times=2)
        assert all(see(cache, text) for text in popular)
    assert planned == 0


def test_formerly_popular_documents_are_evicted() -> None:
    cache = PlanCache(seen_before_planned=2, max_documents=2)
    see(cache, "{ old }", times=30)
    see(cache, "{ older }", times=30)
    assert any(see(cache, "{ new }") for _ in range(100))


def test_the_counts_of_unplanned_documents_are_bounded() -> None:
    cache = PlanCache(seen_before_planned=2, max_documents=4)
    for number in range(10_000):
        see(cache, f"{{ a{number} }}")
    assert len(cache) == 0
    assert len(cache._sightings) <= 16 * 4 + 1


def test_the_same_text_with_another_tree_is_another_document() -> None:
    cache = PlanCache(seen_before_planned=1)
    operation = operation_of(parse("{ a }"))
    assert cache.get(("{ a }", 0), operation, {})
    assert cache.get(("{ a }", 0), operation_of(parse("{ a }")), {})
    assert not cache.get(("{ a }", 0), operation_of(parse("{ b }")), {})
    fragment = parse("fragment F on T { a }").definitions[0]
    assert isinstance(fragment, FragmentDefinitionNode)
    assert not cache.get(("{ a }", 0), operation, {"F": fragment})


SCHEMA = """
type Query { me: User }
type User { name: String friend: User }
"""


class PlansAtOnce(CompilingExecutor):
    seen_before_planned = 1


def run(schema: GraphQLSchema, text: str, variables: dict[str, Any] | None = None) -> ExecutionResult:
    user = {"name": "ann"}
    user["friend"] = user  # type: ignore[assignment]
    result = execute(schema, parse(text), {"me": user}, variable_values=variables, executor_class=PlansAtOnce)
    assert isinstance(result, ExecutionResult)
    return result


def test_the_size_of_a_plan_is_bounded() -> None:
    schema = build_schema(SCHEMA)
    # Each fragment doubles the answer: a dozen lines make it a thousand times as large.
    fragments = [
        f"fragment F{n} on User {{ a: friend {{ ...F{n + 1} }} b: friend {{ ...F{n + 1} }} }}" for n in range(10)
    ]
    text = "\n".join(["{ me { ...F0 } }", *fragments, "fragment F10 on User { name }"])
    result = run(schema, text)
    assert str(result.data).count("ann") == 2**10
    [document] = plans_of(schema, PlansAtOnce, 1)._documents.values()
    assert document.fields <= cache_module.MAX_FIELDS_OF_DOCUMENT


def planned(schema: GraphQLSchema) -> dict[str | int, int]:
    """Return the documents with plans and the number of planned fields of each."""
    documents = plans_of(schema, PlansAtOnce, 1)._documents.values()
    return {document.key[0]: document.fields for document in documents if document.fields}


def four_fields(name: str) -> str:
    return f"{{ me {{ {name}: name b: name c: name }} }}"


def test_the_size_of_all_plans_is_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(cache_module, "MAX_FIELDS", 50)
    schema = build_schema(SCHEMA)
    for number in range(50):
        for _ in range(number // 10 + 1):
            assert run(schema, four_fields(f"a{number}")).data == {"me": {f"a{number}": "ann", "b": "ann", "c": "ann"}}
        assert sum(planned(schema).values()) <= 50
    # The later documents were seen more often.
    assert four_fields("a0") not in planned(schema)


def test_documents_that_do_not_fit_do_not_evict_other_plans(monkeypatch: Any) -> None:
    monkeypatch.setattr(cache_module, "MAX_FIELDS", 50)
    schema = build_schema(SCHEMA)
    for _ in range(20):
        run(schema, four_fields("popular"))
    flood = [four_fields(f"a{number}") for number in range(20)]
    for text in flood:
        run(schema, text)
    first = planned(schema)
    for _ in range(5):
        for text in flood:
            run(schema, text)
    assert planned(schema) == first
    assert four_fields("popular") in first


def test_long_documents_take_room_and_too_long_ones_are_not_planned() -> None:
    cache = PlanCache(seen_before_planned=1)
    for number in range(20):
        see(cache, f"{{ a{number} }}".ljust(cache_module.MAX_DOCUMENT_CHARACTERS))
        assert not see(cache, f"{{ a{number} }}".ljust(cache_module.MAX_DOCUMENT_CHARACTERS + 16))
    assert (
        len(cache)
        == cache_module.MAX_FIELDS * cache_module.CHARACTERS_FOR_A_FIELD // cache_module.MAX_DOCUMENT_CHARACTERS
    )


def test_threads_may_share_a_schema(monkeypatch: Any) -> None:
    monkeypatch.setattr(cache_module, "MAX_DOCUMENTS", 32)
    schema = build_schema(SCHEMA)
    texts = [four_fields(f"a{number}") for number in range(64)]

    def work(seed: int) -> int:
        random = Random(seed)
        chosen = [texts[int(random.random() ** 3 * len(texts))] for _ in range(1000)]
        return sum(run(schema, text).errors is None for text in chosen)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, range(4))) == [1000] * 4
    finally:
        sys.setswitchinterval(interval)


def test_the_plans_of_a_document_are_bounded() -> None:
    schema = build_schema(SCHEMA)
    names = [f"v{number}" for number in range(6)]
    fields = " ".join(f"{name}: name @include(if: ${name})" for name in names)
    text = f"query ({', '.join(f'${name}: Boolean!' for name in names)}) {{ me {{ {fields} }} }}"
    for number in range(2**6):
        variables = {name: bool(number >> index & 1) for index, name in enumerate(names)}
        expected = {name: "ann" for name in names if variables[name]}
        assert run(schema, text, variables).data == {"me": expected}
    [document] = plans_of(schema, PlansAtOnce, 1)._documents.values()
    assert len(document.plans) == cache_module.MAX_PLANS_OF_DOCUMENT


def test_operations_of_a_document_have_plans_of_their_own() -> None:
    schema = build_schema(SCHEMA)
    document = parse("""
      query A { me { name } }
      query B($yes: Boolean!) { me { ...F } }
      fragment F on User { name @include(if: $yes) friend { name @skip(if: $yes) } }
    """)
    for name, variables in (("A", {}), ("B", {"yes": True}), ("B", {"yes": False})):
        options: dict[str, Any] = {"operation_name": name, "variable_values": variables}
        expected = execute(schema, document, {"me": {"name": "ann"}}, **options)
        assert execute(schema, document, {"me": {"name": "ann"}}, executor_class=PlansAtOnce, **options) == expected
    documents = plans_of(schema, PlansAtOnce, 1)._documents.values()
    assert [len(document.plans) for document in documents] == [1, 2]


def test_a_copy_of_a_schema_has_plans_of_its_own() -> None:
    schema = build_schema(SCHEMA)
    run(schema, "{ me { name } }")
    copy = lexicographic_sort_schema(schema)
    assert len(plans_of(schema, PlansAtOnce, 1)) == 1
    assert len(plans_of(copy, PlansAtOnce, 1)) == 0


def test_plans_are_freed_with_their_schema() -> None:
    gc.collect()
    before = {name for name in linecache.cache if name.startswith("<plan ")}
    schema = build_schema(SCHEMA)
    run(schema, "{ me { name } }")
    assert {name for name in linecache.cache if name.startswith("<plan ")} - before
    del schema
    gc.collect()
    assert not {name for name in linecache.cache if name.startswith("<plan ")} - before
