"""`quick` answers for objects that store everything that is selected, and its answers are graphql-core's."""

import weakref
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import make_dataclass
from datetime import UTC, datetime
from enum import Enum, StrEnum
from types import MemberDescriptorType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLFloat,
    GraphQLID,
    GraphQLInt,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    GraphQLString,
    execute_sync,
    parse,
)
from hypothesis import given
from hypothesis import strategies as st

from taskflow_gql.execution import AsItIs, CompilingExecutor, IsInstance, codegen, trust

from .worlds import as_text, written


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


class Strange(Enum):
    LOW = "low"


class Text(str):
    """A subclass of str."""


class Row(NamedTuple):
    # The order differs from that of the selections.
    creator: Any = None
    id: Any = "1"
    due: Any = None
    title: Any = "title"
    level: Any = Level.LOW
    boss: Any = None
    count: Any = 1
    share: Any = None


NAMES = Row._fields
Slots = make_dataclass("Slots", NAMES, slots=True)
Object = make_dataclass("Object", NAMES)
CLASSES = [Row, Slots, Object, dict]


def read_title(source: Any, _info: Any) -> Any:
    return source["title"] if isinstance(source, dict) else source.title


def _schema() -> GraphQLSchema:
    level = GraphQLEnumType("Level", Level, names_as_values=None)
    person = GraphQLObjectType(
        "Person",
        {"id": GraphQLField(GraphQLID), "level": GraphQLField(level), "title": GraphQLField(GraphQLString)},
        is_type_of=IsInstance(*CLASSES),
    )
    task = GraphQLObjectType(
        "Task",
        lambda: {
            "id": GraphQLField(GraphQLNonNull(GraphQLID)),
            "title": GraphQLField(GraphQLString, resolve=read_title),
            "level": GraphQLField(GraphQLNonNull(level)),
            "due": GraphQLField(GraphQLScalarType("Due", coerce_output_value=AsItIs(datetime))),
            "count": GraphQLField(GraphQLInt),
            "share": GraphQLField(GraphQLFloat),
            "creator": GraphQLField(task),
            "boss": GraphQLField(GraphQLNonNull(person)),
        },
    )
    return GraphQLSchema(
        GraphQLObjectType("Query", {"tasks": GraphQLField(GraphQLList(task)), "one": GraphQLField(task)})
    )


SCHEMA = _schema()


class Planned(CompilingExecutor):
    """Plans a document that it sees for the first time, and knows what `read_title` reads of objects."""

    seen_before_planned = 1

    @classmethod
    def attribute_of(cls, field: GraphQLField) -> str | None:
        return "title" if field.resolve is read_title else None


def outcome(query: str, tasks: list[Any], executor_class: type[CompilingExecutor] | None) -> tuple[str, list[str]]:
    result = execute_sync(SCHEMA, parse(query), {"tasks": tasks}, executor_class=executor_class)
    return written(result.data), [as_text(error) for error in result.errors or []]


# The usual value of each field, and other values that it may have.
USUAL: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from(["a", 7, UUID(int=7)]),
    "title": st.sampled_from(["one", "", None]),
    "level": st.sampled_from([*Level]),
    "due": st.sampled_from([datetime(2026, 11, 21, tzinfo=UTC), None]),
    "count": st.sampled_from([0, 5, None]),
    "share": st.sampled_from([0.5, None]),
}
ODD = st.sampled_from(
    [
        None,
        "low",
        7,
        True,
        2**40,
        float("nan"),
        Text("text"),
        Strange.LOW,
        (),
        [],
        ValueError("kept"),
        lambda _info: "x",
    ]
)
QUERIES = [
    "{ tasks { id level due count share } }",
    "{ tasks { __typename share a: id b: id level l: level t: __typename } }",
    "{ tasks { boss { id level } creator { id count boss { __typename } creator { id due } } } }",
]


def objects(depth: int = 2) -> st.SearchStrategy[Any]:
    related = objects(depth - 1) if depth else st.none()
    values = {**USUAL, "creator": st.none() | related, "boss": related}
    held = {name: st.one_of(*[value] * 9, ODD) for name, value in values.items()}
    return st.builds(lambda cls, held: cls(**held), st.sampled_from([*CLASSES, Row]), st.fixed_dictionaries(held))


@given(st.sampled_from(QUERIES), st.lists(st.lists(objects(), max_size=9), min_size=1, max_size=3), st.booleans())
def test_answers_are_equal_to_graphql_cores(query: str, lists: list[list[Any]], with_title: bool) -> None:
    if with_title:
        query = query.replace("{ tasks {", "{ tasks { title")
        lists = [[task for task in tasks if type(task) is not dict] for tasks in lists]
    for tasks in lists:
        assert outcome(query, tasks, Planned) == outcome(query, tasks, None)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the results of `quick`, for each object that it is tried on."""
    generate = codegen.generate_quick
    made: list[Any] = []

    def generate_watched(*arguments: Any) -> Any:
        quick = generate(*arguments)

        def watched(source: Any) -> Any:
            assert quick is not None
            made.append(quick(source))
            return made[-1]

        return quick and watched

    monkeypatch.setattr("taskflow_gql.execution.planner.generate_quick", generate_watched)
    return made


def answer(query: str, tasks: list[Any]) -> Any:
    class Fresh(Planned):
        """A class of its own has a cache without plans."""

    results = [execute_sync(SCHEMA, parse(query), {"tasks": tasks}, executor_class=Fresh) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0] == execute_sync(SCHEMA, parse(query), {"tasks": tasks})
    return results[0].data["tasks"] if results[0].data else None


@pytest.mark.parametrize("cls", [*CLASSES, SimpleNamespace])
def test_quick_is_tried_on_objects_that_store_all_selected_values(cls: Any, tries: list[Any]) -> None:
    held = Row()._asdict()
    expected = [{"id": "1", "level": "LOW", "creator": {"id": "1"}}] * 3
    assert answer("{ tasks { id level creator { id } } }", [cls(**held | {"creator": cls(**held)})] * 3) == expected
    # All objects but the first, which made the class and the enum's name known. Each comes with its creator.
    assert tries == [{"id": "1"}, expected[0]] * 5


class Computed(Row):
    @property
    def id(self) -> str:
        return count_read()


class Dynamic:
    def __init__(self, **_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name not in Row._fields:
            raise AttributeError(name)
        return "not a number" if name == "share" else count_read()


class Trusted(Dynamic):
    pass


trust(Trusted)


class Mapped(dict[str, Any]):
    def get(self, *_: Any) -> str:
        return count_read()


class Reversed(Row):
    def __iter__(self) -> Iterator[Any]:
        return iter([self[place] for place in reversed(range(len(self)))])


class Meta(type):
    def __getattr__(cls, name: str) -> Any:
        raise LookupError(count_read())


class OfMeta(SimpleNamespace, metaclass=Meta):
    pass


class Descriptor:
    __class__ = MemberDescriptorType  # type: ignore[assignment]

    def __get__(self, *_: Any) -> str:
        return count_read()


class Described:
    id = Descriptor()

    def __init__(self, **_: Any) -> None:
        pass


class Module(ModuleType):
    def __init__(self, **_: Any) -> None:
        super().__init__("module")

    def __getattr__(self, name: str) -> str:
        return count_read()


class Printed(UUID):
    def __str__(self) -> str:
        return count_read()


def proxied(**_: Any) -> Any:
    class Property:
        @property
        def id(self) -> str:
            return count_read()

    KEPT.append(Property())
    return weakref.proxy(KEPT[-1])


KEPT: list[Any] = []
READS: list[None] = []


def count_read() -> str:
    READS.append(None)
    return str(len(READS))


@pytest.mark.parametrize(
    "make",
    [
        Computed,
        Dynamic,
        Trusted,
        Mapped,
        Reversed,
        OfMeta,
        Described,
        Module,
        proxied,
        lambda **_: Row(id=Printed(int=1)),
    ],
)
@pytest.mark.parametrize("query", ["{ tasks { id } }", "{ tasks { id share } }"])
def test_properties_run_as_often_as_under_graphql_core(make: Any, query: str) -> None:
    tasks = [make(**Row(share="not a number")._asdict()) for _ in range(3)]
    answers = []
    for executor_class in (None, Planned, Planned, Planned):
        READS.clear()
        answers.append((outcome(query, tasks, executor_class), len(READS)))
    assert answers == [answers[0]] * 4


def test_quick_answers_the_typename_of_an_empty_tuple(tries: list[Any]) -> None:
    empty = namedtuple("empty", ())
    assert answer("{ tasks { __typename } }", [empty()] * 3) == [{"__typename": "Task"}] * 3
    assert tries == [{"__typename": "Task"}] * 5


def test_a_tuple_of_another_length_is_left_to_fill(tries: list[Any]) -> None:
    short = tuple.__new__(Row, (None, "2"))
    assert answer("{ tasks { id } }", [Row(), short]) == [{"id": "1"}, {"id": "2"}]
    assert None in tries


def test_quick_is_made_for_a_bounded_number_of_classes(tries: list[Any]) -> None:
    tasks = [type("Task", (SimpleNamespace,), {})(id="1") for _ in range(200)]
    assert answer("{ tasks { id } }", tasks) == [{"id": "1"}] * 200
    assert len(tries) < 20


def test_quick_is_made_only_for_items_of_lists(tries: list[Any]) -> None:
    document = parse("{ one { id creator { id } } }")
    for _ in range(3):
        result = execute_sync(SCHEMA, document, {"one": Row(creator=Row())}, executor_class=Planned)
        assert result.data == {"one": {"id": "1", "creator": {"id": "1"}}}
    assert tries == []


def test_the_fast_path_budget_switches_quick_off_and_on_again(tries: list[Any]) -> None:
    document = parse("{ tasks { id } }")

    class Fresh(Planned):
        """A class of its own has a cache without plans."""

    def run(*ids: Any, times: int) -> int:
        before = len(tries)
        for _ in range(times):
            execute_sync(SCHEMA, document, {"tasks": [Row(id=id_) for id_ in ids]}, executor_class=Fresh)
        return len(tries) - before

    odd = Text("text")
    # Occasional misses keep the budget above zero.
    assert run(*["1"] * 9, odd, times=500) == 10 * 500 - 1
    # With mostly misses the budget runs out after a while, however short the lists are, and recovers much later.
    assert run("1", odd, odd, times=100) < 3 * 50
    assert run(odd, odd, times=1000) < 2 * 15
    # From here on every try would be a hit.
    assert run(*["1"] * 9, times=200) > 9 * 100
