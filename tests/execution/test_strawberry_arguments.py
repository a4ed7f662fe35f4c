"""`BatchingExecutor` calls resolvers with the same arguments as Strawberry, also for unusual fields."""

from collections.abc import Callable
from datetime import date
from enum import Enum
from typing import Annotated, Any, Generic, TypeVar

import pytest
import strawberry
from strawberry import UNSET, relay
from strawberry.extensions import FieldExtension
from strawberry.permission import BasePermission
from strawberry.schema.config import StrawberryConfig
from strawberry.types import Info
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.field import StrawberryField
from strawberry.types.fields.resolver import StrawberryResolver

from taskflow_gql.execution.strawberry import BatchingExecutor, build_quickly, core_schema

T = TypeVar("T")


@strawberry.enum
class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Point:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Point({self.text})"


POINT = strawberry.scalar(name="Point", serialize=repr, parse_value=Point)


@strawberry.input
class Inner:
    color: Color = Color.RED
    day: date | None = None
    not_given: int | None = UNSET


@strawberry.input
class Range(Generic[T]):
    low: T
    high: T | None = None


@strawberry.input
class Outer:
    inner: Inner
    inners: list[Inner | None] | None = None
    range: Range[int] | None = None
    numbers: list[int] = strawberry.field(default_factory=lambda: [1, 2])
    maybe: strawberry.Maybe[int]
    maybe_null: strawberry.Maybe[int | None]
    global_ids: list[relay.GlobalID] | None = None
    lazy: Annotated["Inner", strawberry.lazy("tests.execution.test_strawberry_arguments")] | None = None


class Shouting(FieldExtension):
    """Changes the arguments and the result."""

    def resolve(self, next_: Callable[..., Any], source: Any, info: Info[Any, Any], **arguments: Any) -> Any:
        return next_(source, info, **{name: f"{value}!" for name, value in arguments.items()}).upper()

    async def resolve_async(
        self, next_: Callable[..., Any], source: Any, info: Info[Any, Any], **arguments: Any
    ) -> Any:
        return (await next_(source, info, **{name: f"{value}!" for name, value in arguments.items()})).upper()


class Bracketing(FieldExtension):
    async def resolve_async(
        self, next_: Callable[..., Any], source: Any, info: Info[Any, Any], **arguments: Any
    ) -> Any:
        return f"[{info.field_name}: {await next_(source, info, **arguments)}]"


class Mapping(FieldExtension):
    def map_arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {name: f"mapped {value}" for name, value in kwargs.items()}


class IsAllowed(BasePermission):
    message = "not allowed"

    def has_permission(self, source: Any, info: Info[Any, Any], **kwargs: Any) -> bool:
        return kwargs.get("word") == "open"


class OwnResult(StrawberryField):
    def get_result(self, source: Any, info: Any, args: list[Any], kwargs: Any) -> Any:
        return f"own {super().get_result(source, info, args, kwargs)}"


def repr_of(first: int, word: str = "default", none: str | None = None) -> str:
    return repr((first, word, none))


@strawberry.type
class Query:
    @strawberry.field
    def leaves(
        self,
        info: Info[Any, Any],
        id: strawberry.ID,
        snake_case: int = 1,
        color: Color = Color.BLUE,
        point: Point | None = None,
        day: date | None = None,
        unset: str | None = UNSET,
        renamed: Annotated[str, strawberry.argument(name="otherName")] = "x",
        colors: list[Color | None] | None = None,
        table: list[list[int]] | None = None,
    ) -> str:
        assert (info.field_name, info.python_name, info.context) == ("leaves", "leaves", {"of": "request"})
        return repr((self, id, snake_case, color, point, day, unset, renamed, colors, table))

    @strawberry.field
    async def inputs(self, outer: Outer, outers: list[Outer] | None = None) -> str:
        return repr((outer, outers))

    @strawberry.field
    def maybe(self, value: strawberry.Maybe[int], null: strawberry.Maybe[int | None]) -> str:
        return repr((value, null))

    @strawberry.field
    def node(self, id: relay.GlobalID, ids: list[relay.GlobalID] | None = None) -> str:
        return repr((id, ids))

    @strawberry.field
    def default_list(self, numbers: list[int] = [1]) -> str:  # noqa: B006 (this is what is tested)
        numbers.append(2)
        return repr(numbers)

    @strawberry.field
    def of_root(self, root: Any, word: str = "x") -> str:
        return repr((root, word))

    @strawberry.field
    @staticmethod
    def of_parent(parent: strawberry.Parent[Any], info: Info[Any, Any], word: str = "x") -> str:
        return repr((parent, info.field_name, word))

    @strawberry.field
    @classmethod
    def of_class(cls, word: str = "x") -> str:
        return repr((cls.__name__, word))

    @strawberry.field
    def other_name_of_info(self, i: Info[Any, Any], word: str = "x") -> str:
        return repr((i.field_name, word))

    @strawberry.field
    def broken(self, word: str = "x") -> str:
        raise ValueError(word)

    @strawberry.field
    async def broken_later(self, word: str = "x") -> str:
        raise ValueError(word)

    @strawberry.field(extensions=[Shouting()])  # type: ignore[untyped-decorator]
    def shouted(self, info: Info[Any, Any], word: str = "x") -> str:
        return f"{info.field_name} {word}"

    @strawberry.field(extensions=[Shouting(), Bracketing()])  # type: ignore[untyped-decorator]
    async def shouted_later(self, info: Info[Any, Any], word: str = "x") -> str:
        return f"{info.field_name} {word}"

    @strawberry.field(extensions=[Bracketing()])  # type: ignore[untyped-decorator]
    def bracketed(self, word: str = "x") -> str:
        return word

    @strawberry.field(extensions=[Mapping()])  # type: ignore[untyped-decorator]
    def mapped(self, word: str = "x") -> str:
        return word

    @strawberry.field(permission_classes=[IsAllowed])  # type: ignore[untyped-decorator]
    def guarded(self, word: str = "x") -> str:
        return word

    plain: str = strawberry.field(resolver=repr_of)
    own_result: str = OwnResult(base_resolver=StrawberryResolver(repr_of))  # type: ignore[assignment]


CONFIG = StrawberryConfig(scalar_map={Point: POINT})
stock = strawberry.Schema(Query, config=CONFIG)
compiled = strawberry.Schema(Query, config=CONFIG, execution_context_class=BatchingExecutor)


async def both(query: str, variables: dict[str, Any] | None = None) -> tuple[Any, list[str]]:
    """Return the answer, which both executors agree on, before and after the plan is made."""
    expected = await stock.execute(query, variables, context_value={"of": "request"}, root_value="root")
    for _ in range(3):
        result = await compiled.execute(query, variables, context_value={"of": "request"}, root_value="root")
        assert result.data == expected.data
        assert [(str(error), error.path) for error in result.errors or []] == [
            (str(error), error.path) for error in expected.errors or []
        ]
    return expected.data, [error.message for error in expected.errors or []]


def quick_fields() -> set[str]:
    schema = core_schema(compiled)
    fields = schema.type_map["Query"].fields  # type: ignore[attr-defined]
    return {name for name, field in fields.items() if BatchingExecutor.resolver_of(schema, field) is not field.resolve}


OUTER = """{
    inner: {color: BLUE}, inners: [{day: "2026-01-31"}, null], range: {low: 1}, maybe: 1, maybeNull: null,
    globalIds: ["VGFzazox"], lazy: {notGiven: null}
}"""


@pytest.mark.parametrize(
    "query",
    [
        "{ leaves(id: 5) }",
        '{ leaves(id: 5, snakeCase: 2, color: RED, point: "1 2", day: null, unset: null, otherName: "y") }',
        "{ leaves(id: 5, colors: [RED, null], table: [[1], [2, 3]]) other: leaves(id: 6, colors: BLUE, table: 1) }",
        "{ inputs(outer: {inner: {}}) }",
        f"{{ inputs(outer: {OUTER}, outers: [{OUTER}, {OUTER}]) }}",
        "{ inputs(outer: {inner: {}, maybe: null}) }",
        "{ maybe } ",
        "{ maybe(value: 1, null: null) }",
        "{ maybe(value: null) }",
        '{ node(id: "VGFzazox", ids: ["VGFzazox"]) }',
        '{ plain node(id: "no id") }',
        "{ defaultList again: defaultList third: defaultList(numbers: [7]) }",
        '{ ofRoot ofParent ofClass(word: "y") otherNameOfInfo plain(first: 1) ownResult(first: 2, word: null) }',
        '{ broken brokenLater(word: "later") }',
        '{ shouted shoutedLater(word: "loud") bracketed mapped guarded open: guarded(word: "open") }',
    ],
)
async def test_resolvers_get_the_same_arguments_as_from_strawberry(query: str) -> None:
    await both(query)


async def test_variables_are_converted_like_strawberrys() -> None:
    query = "query ($outer: Outer!, $point: Point) { inputs(outer: $outer) leaves(id: 1, point: $point) }"
    outer = {"inner": {"color": "RED", "day": "2026-01-31"}, "range": {"low": 1, "high": 2}, "maybeNull": 3}
    data, errors = await both(query, {"outer": outer, "point": "3 4"})
    assert errors == []
    assert "datetime.date(2026, 1, 31)" in data["inputs"]
    assert "Point(3 4)" in data["leaves"]


def test_unusual_fields_keep_strawberrys_resolver() -> None:
    fields = set(core_schema(compiled).type_map["Query"].fields)  # type: ignore[attr-defined]
    assert fields - quick_fields() == {"mapped", "ownResult", "otherNameOfInfo"}


async def test_quickly_built_input_objects_are_equal_to_strawberrys() -> None:
    definitions = [one.definition for one in compiled.schema_converter.type_map.values()]
    inputs = [one for one in definitions if isinstance(one, StrawberryObjectDefinition) and one.is_input]
    query = f"{{ inputs(outer: {OUTER}, outers: [{OUTER}, {OUTER}]) default: inputs(outer: {{inner: {{}}}}) }}"
    expected, errors = await both(query)
    assert errors == []
    for one in inputs:
        build_quickly(one, CONFIG)
    try:
        assert (await both(query)) == (expected, [])
        _, errors = await both("{ inputs(outer: {inner: {}, maybe: null}) }")
        assert len(errors) == 1
    finally:
        for one in inputs:
            one.from_input = None
