"""Generates schemas, documents and resolver outcomes for the comparison with graphql-core.

In a `World`, the outcome of each resolver, attribute, type check and batch depends on a seed and on its place in the
answer, never on the order of calls. Two executors therefore get the same outcomes in whatever order they call.
`log` has each call.
"""

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

from graphql import (
    GraphQLArgument,
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLError,
    GraphQLField,
    GraphQLFloat,
    GraphQLID,
    GraphQLInt,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    GraphQLString,
    GraphQLUnionType,
    get_named_type,
    get_nullable_type,
    is_abstract_type,
    is_list_type,
    is_non_null_type,
)
from graphql.pyutils import Undefined

from taskflow_gql.execution import BATCH, Batch, IsInstance, batch_resolver

OBJECT_TYPES = ["T0", "T1", "T2", "T3"]


class World:
    def __init__(self, random: Random, *, is_async: bool, trouble: float) -> None:
        self.seed = 0
        self.is_async = is_async
        # The probability of an unusual outcome.
        self.trouble = trouble
        self.log: list[str] = []
        # The nesting of objects with stored values that are being made.
        self.depth = 0
        self.schema = self._make_schema(random)

    def root(self, document: str) -> Any:
        type_name = "M" if document.startswith("mutation") else "T0"
        return self.make_object(type_name, "root", Random(f"{self.seed} root"))

    # The schema

    def _make_schema(self, random: Random) -> GraphQLSchema:
        level = GraphQLEnumType("Level", {"LOW": 0, "HIGH": 1, "TOP": "top"})
        odd = GraphQLScalarType("Odd", coerce_output_value=self._coerce_odd)
        leaves: list[Any] = [GraphQLString, GraphQLInt, GraphQLFloat, GraphQLBoolean, GraphQLID, level, odd]
        objects: dict[str, GraphQLObjectType] = {}
        shape = random.randrange(10**6)

        resolves_type = random.choice([None, self._resolve_type])
        interface = GraphQLInterfaceType("I", lambda: {"name": GraphQLField(GraphQLString)}, resolve_type=resolves_type)
        for name in [*OBJECT_TYPES, "M"]:
            is_type_of = random.choice([None, None, self._is_type_of(name), IsInstance(*_TOLD_BY_CLASS)])
            objects[name] = GraphQLObjectType(
                name,
                # graphql-core calls this when all types exist.
                lambda name=name: self._make_fields(Random(f"{shape} {name}"), name, composites, leaves),  # type: ignore[misc]
                interfaces=[interface] if name in {"T1", "T2"} else [],
                is_type_of=is_type_of,
            )
        union = GraphQLUnionType(
            "U", [objects["T2"], objects["T3"]], resolve_type=random.choice([None, self._resolve_type])
        )
        composites: list[Any] = [*(objects[name] for name in OBJECT_TYPES), interface, union]
        return GraphQLSchema(objects["T0"], mutation=objects["M"], types=[*composites, level, odd, GraphQLInt])

    def _make_fields(
        self, random: Random, owner: str, composites: list[Any], leaves: list[Any]
    ) -> dict[str, GraphQLField]:
        fields = {"name": self._make_field(random, owner, "name", GraphQLString)}
        for index in range(random.randint(3, 6)):
            name = f"f{index}"
            type_ = random.choice(composites if random.random() < 0.6 else leaves)
            for _ in range(random.choice([0, 0, 0, 1, 1, 2])):
                type_ = GraphQLList(GraphQLNonNull(type_) if random.random() < 0.4 else type_)
            fields[name] = self._make_field(
                random, owner, name, GraphQLNonNull(type_) if random.random() < 0.35 else type_
            )
        return fields

    def _make_field(self, random: Random, owner: str, name: str, type_: Any) -> GraphQLField:
        arguments = {}
        if random.random() < 0.3 and name != "name":
            arguments["x"] = GraphQLArgument(GraphQLInt, default_value=random.choice([Undefined, 7]))
            arguments["y"] = GraphQLArgument(
                GraphQLNonNull(GraphQLString) if random.random() < 0.2 else GraphQLList(GraphQLString)
            )
        mode = random.choice(["read", "read", "attribute", "function", "resolve", "resolve", "batch"])
        if mode == "read":
            return GraphQLField(type_, arguments)
        if mode == "function":
            function = self._function(name, type_)
            extensions: dict[str, Any] = {"function": function}
            return GraphQLField(type_, resolve=lambda source, _info: function(source), extensions=extensions)
        if mode == "attribute":
            extensions = {"attribute": name}
            return GraphQLField(type_, resolve=lambda source, _info: getattr(source, name), extensions=extensions)
        # One loaded value may be used in several places. Lists may contain values that can be used only once.
        if mode == "resolve" or not self.is_async or get_nullable_type(type_) is not get_named_type(type_):
            return GraphQLField(type_, arguments, resolve=self._resolver(owner, name))
        # Fields with arguments ignore `carried_as`, and not every source's class has the attribute.
        carried_as = None if arguments else random.choice([None, name])
        batch = Batch(self._load(owner, name, type_), f"key_{name}", carried_as=carried_as)
        resolver = batch_resolver(batch)
        return GraphQLField(type_, arguments, resolve=resolver, extensions={BATCH: batch})

    # Outcomes

    def _resolver(self, owner: str, name: str) -> Callable[..., Any]:
        def resolve(source: Any, info: Any, **arguments: Any) -> Any:
            path = ".".join(map(str, info.path.as_list()))
            assert info.parent_type.name == owner
            assert info.field_name == name
            assert info.schema is self.schema
            self.log.append(f"{path} {owner}.{name} {arguments}")
            return self.outcome(f"{identity(source)} {name} {arguments}", info.return_type)

        return resolve

    def _function(self, name: str, type_: Any) -> Callable[[Any], Any]:
        def function(source: Any) -> Any:
            self.log.append(f"function {identity(source)} {name}")
            return self.outcome(f"{identity(source)} {name}", type_)

        return function

    def _load(self, owner: str, name: str, type_: Any) -> Callable[..., Any]:
        async def load(context: Any, keys: list[str], **arguments: Any) -> Any:
            assert len(set(keys)) == len(keys)
            assert None not in keys
            random = Random(f"{self.seed} load {owner}.{name} {arguments}")
            await _pause(random)
            if random.random() < self.trouble / 2:
                raise ValueError(f"cannot load {owner}.{name}")
            if random.random() < self.trouble / 4:
                return ["no", "mapping"]
            loaded = {}
            for key in keys:
                random = Random(f"{self.seed} {key} {arguments}")
                if random.random() > self.trouble / 2:
                    try:
                        loaded[key] = self.value(f"{key} {arguments}", type_, random)
                    except Exception as error:
                        loaded[key] = error
            return loaded

        return load

    def _coerce_odd(self, value: Any) -> Any:
        random = Random(f"{self.seed} odd {identity(value)}")
        choice = random.random()
        if choice < self.trouble / 2:
            raise ValueError(f"cannot write {type(value).__name__}")
        if choice < self.trouble:
            return random.choice([None, Undefined, (1, 2), {"a": [1]}])
        if self.is_async and choice < 2 * self.trouble:
            return _later(random, lambda: "late")
        return f"odd {type(value).__name__}"

    def _resolve_type(self, value: Any, info: Any, type_: Any) -> Any:
        random = Random(f"{self.seed} type {identity(value)}")
        self.log.append(f"{'.'.join(map(str, info.path.as_list()))} type of {identity(value)}")

        def decide() -> Any:
            if random.random() < self.trouble:
                choice = random.choice(["none", "unknown", "scalar", "number", "raise", "other", "list"])
                if choice == "raise":
                    raise ValueError("no type")
                return {"none": None, "unknown": "X", "scalar": "Int", "number": 5, "other": "T0", "list": []}[choice]
            return type_name_of(value)

        if self.is_async and random.random() < 0.2:
            return _later(random, decide)
        return decide()

    def _is_type_of(self, name: str) -> Callable[..., Any]:
        def is_type_of(value: Any, info: Any) -> Any:
            random = Random(f"{self.seed} is {name} {identity(value)}")
            self.log.append(f"{'.'.join(map(str, info.path.as_list()))} is {identity(value)} {name}")

            def decide() -> Any:
                if random.random() < self.trouble / 2:
                    raise ValueError("cannot tell")
                if random.random() < self.trouble / 2:
                    return random.choice([False, None, 0, 1])
                return type_name_of(value) == name

            if self.is_async and random.random() < 0.2:
                return _later(random, decide)
            return decide()

        return is_type_of

    def outcome(self, place: str, type_: Any) -> Any:
        """Make the outcome of a resolver or an attribute: a value, an exception, or an awaitable of one."""
        random = Random(f"{self.seed} {place}")
        if self.is_async and random.random() < 0.35:
            return _later(random, lambda: self.value(place, type_, random))
        return self.value(place, type_, random)

    def value(self, place: str, type_: Any, random: Random) -> Any:
        if random.random() < self.trouble:
            choice = random.randrange(8)
            if choice <= 1:
                raise random.choice([ValueError, KeyError, AttributeError])(f"failed {place}")
            if choice == 2:
                raise GraphQLError(f"refused {place}", extensions={"code": "NO"})
            if choice == 3:
                return random.choice([ValueError, GraphQLError])(f"returned {place}")
            if choice == 4:
                return self.wrong(random)
            if choice == 5:
                return Undefined
            return None
        if not is_non_null_type(type_) and random.random() < 0.1:
            return None
        if is_non_null_type(type_):
            type_ = type_.of_type
        if is_list_type(type_):
            return self.list_of(place, type_.of_type, random)
        named = get_named_type(type_)
        if isinstance(named, GraphQLObjectType):
            return self.make_object(named.name, place, random)
        if is_abstract_type(named):
            names = [type_.name for type_ in self.schema.get_possible_types(named)]
            return self.make_object(random.choice(names), place, random)
        return self.leaf(named.name, random)

    def list_of(self, place: str, type_: Any, random: Random) -> Any:
        items: list[Any] = []
        for index in range(random.choice([0, 1, 2, 2, 3] if self.depth else [0, 1, 2, 2, 3, 9])):
            item_place = f"{place}[{index}]"
            item_random = Random(f"{self.seed} {item_place}")
            try:
                if self.is_async and not self.depth and random.random() < 0.15:
                    items.append(self.outcome(item_place, type_))
                else:
                    items.append(self.value(item_place, type_, item_random))
            except Exception as error:
                items.append(error)
        choice = random.random()
        if choice < 0.15:
            return tuple(items)
        # A stored value may be read twice, so the first use must not exhaust it.
        if self.depth:
            return items
        if choice < 0.25:
            return iter(items)
        if choice < 0.25 + self.trouble / 2:
            return _failing(items)
        if choice > 0.93 and self.is_async:
            return _async_iterable(items)
        return items

    def leaf(self, name: str, random: Random) -> Any:
        good: dict[str, list[Any]] = {
            "String": ["a", "b", "", 5, True, 1.5],
            "Int": [1, -7, True, 3.0, "4"],
            "Float": [1.5, 2, "2.5"],
            "Boolean": [True, False, 1, 0.0],
            "ID": ["id", 9, UUID(int=9)],
            "Level": [0, 1, "top", "top"],
            "Odd": ["x", 1, (1, 2), Odd()],
        }
        return random.choice(good[name])

    def wrong(self, random: Random) -> Any:
        return random.choice([Odd(), [], {}, math.nan, math.inf, 2**40, b"x", "x", 5, ("t",), {"a": 1}, Odd])

    def make_object(self, type_name: str, place: str, random: Random) -> Any:
        if self.depth < 2 and random.random() < 0.6:
            return self.make_stored(type_name, place, random)
        kind = random.choice(["object", "object", "mapping", "dynamic", "callable"])
        return _SOURCES[kind](self, type_name, place)

    def make_stored(self, type_name: str, place: str, random: Random) -> Any:
        """Make an object that stores its values, so that reading them is not logged."""
        self.depth += 1
        values: dict[str, Any] = dict.fromkeys([*NAMES, *KEYS])
        type_ = self.schema.type_map[type_name]
        assert isinstance(type_, GraphQLObjectType)
        for name, field in type_.fields.items():
            values[name] = self.stored(f"{place} {name}", field.type)
            values[f"key_{name}"] = random.choice([None, f"{place} {name}"])
        self.depth -= 1
        kind = random.choice([StoredRow, StoredRow, StoredObject, StoredSlots, dict])
        if kind is dict and random.random() < self.trouble:
            del values[random.choice(NAMES)]
        if kind is dict:
            values["__typename"] = type_name
        return kind(type_name=type_name, place=place, **values)

    def stored(self, place: str, type_: Any) -> Any:
        random = Random(f"{self.seed} {place}")
        if random.random() < 0.05:
            return lambda info, **arguments: self.called(place, type_, arguments)
        try:
            value = self.value(place, type_, random)
        except Exception as error:
            return error
        return Later(value) if self.is_async and random.random() < 0.05 else value

    def read(self, source: "Source", name: str) -> Any:
        """Return the value of an attribute, computed when it is read."""
        if name.startswith("key_"):
            random = Random(f"{self.seed} {source.place} {name}")
            if random.random() < self.trouble / 2:
                raise ValueError(f"no {name}")
            if random.random() < self.trouble / 4:
                return ["no", "hash"]
            return random.choice(
                [None, f"{source.type_name} {name} 1", f"{source.type_name} {name} 2", f"{source.place} {name}"]
            )
        self.log.append(f"read {source.place} {name}")
        type_ = self.schema.get_type(source.type_name).fields[name].type  # type: ignore[union-attr]
        place = f"{source.place} {name}"
        random = Random(f"{self.seed} call {place}")
        if random.random() < 0.1:
            return lambda info, **arguments: self.called(place, type_, arguments)
        return self.outcome(place, type_)

    def called(self, place: str, type_: Any, arguments: Any) -> Any:
        self.log.append(f"called {place} {arguments}")
        return self.outcome(f"{place} called", type_)


NAMES = ["name", *(f"f{index}" for index in range(6))]
KEYS = [f"key_{name}" for name in NAMES]


class Odd:
    def __repr__(self) -> str:
        return "<Odd>"


class Source:
    def __init__(self, world: World, type_name: str, place: str) -> None:
        self.world = world
        self.type_name = type_name
        self.place = place

    @property
    def __typename(self) -> str:
        return self.type_name

    def __repr__(self) -> str:
        return f"<{self.type_name} {self.place}>"


class ObjectSource(Source):
    pass


for _name in [*NAMES, *KEYS]:
    setattr(ObjectSource, _name, property(lambda self, name=_name: self.world.read(self, name)))  # type: ignore[misc]


class CallableSource(ObjectSource):
    def __call__(self, info: Any, **arguments: Any) -> Any:
        return self


class DynamicSource(Source):
    def __getattr__(self, name: str) -> Any:
        if name in NAMES or name in KEYS:
            return self.world.read(self, name)
        raise AttributeError(name)


class MappingSource(Source, dict[str, Any]):
    def get(self, name: str, default: Any = None) -> Any:
        if name == "__typename":
            return self.type_name
        return self.world.read(self, name)

    def __getitem__(self, name: str) -> Any:
        return self.world.read(self, name)


class StoredRow(NamedTuple):
    f1: Any
    type_name: str
    place: str
    name: Any
    f0: Any
    f2: Any
    f3: Any
    f4: Any
    f5: Any
    key_name: Any
    key_f0: Any
    key_f1: Any
    key_f2: Any
    key_f3: Any
    key_f4: Any
    key_f5: Any

    @property
    def __typename(self) -> str:
        return self.type_name

    def __repr__(self) -> str:
        return f"<{self.type_name} {self.place}>"


class StoredObject:
    type_name: str
    place: str

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    @property
    def __typename(self) -> str:
        return self.type_name

    def __repr__(self) -> str:
        return f"<{self.type_name} {self.place}>"


class StoredSlots(StoredObject):
    __slots__ = StoredRow._fields

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)


class Later:
    """An awaitable that can be awaited repeatedly."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Any:
        return asyncio.sleep(0, self.value).__await__()


_TOLD_BY_CLASS = (ObjectSource, MappingSource, StoredRow, StoredObject, dict)

_SOURCES: dict[str, type[Source]] = {
    "object": ObjectSource,
    "mapping": MappingSource,
    "dynamic": DynamicSource,
    "callable": CallableSource,
}


def type_name_of(value: Any) -> Any:
    return value.get("type_name") if type(value) is dict else getattr(value, "type_name", None)


def identity(value: Any) -> str:
    place = value.get("place") if type(value) is dict else getattr(value, "place", None)
    if place is not None:
        return str(place)
    # The text of some objects contains their address, which differs between runs.
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


async def _pause(random: Random) -> None:
    for _ in range(random.choice([0, 0, 1, 2, 5])):
        await asyncio.sleep(0)


def _later(random: Random, decide: Callable[[], Any]) -> Any:
    async def later() -> Any:
        await _pause(random)
        return decide()

    return later()


def _failing(items: list[Any]) -> Iterator[Any]:
    yield from items[:1]
    raise ValueError("broken iterator")


async def _async_iterable(items: list[Any]) -> Any:
    for item in items:
        await asyncio.sleep(0)
        yield item


# Documents


class Writer:
    """Writes a random document for the schema."""

    def __init__(self, random: Random, schema: GraphQLSchema) -> None:
        self.random = random
        self.schema = schema
        self.fragments: dict[str, str] = {}
        self.budget = 40

    def document(self) -> str:
        kind = self.random.choice(["query", "query", "mutation"])
        root_type = self.schema.mutation_type if kind == "mutation" else self.schema.query_type
        body = self.selections(root_type, depth=0)
        variables = '($yes: Boolean!, $no: Boolean = false, $x: Int, $y: [String] = ["d"])'
        return "\n".join([f"{kind} Q{variables} {body}", *self.fragments.values()])

    def selections(self, type_: Any, depth: int) -> str:
        random = self.random
        parts = [self.selection(type_, depth) for _ in range(random.randint(1, 4 if depth < 2 else 3))]
        return "{ " + " ".join(parts) + " }"

    def selection(self, type_: Any, depth: int) -> str:
        random = self.random
        self.budget -= 1
        choice = random.random()
        if choice < 0.1 or (isinstance(type_, GraphQLUnionType) and choice < 0.3):
            return f"{random.choice(['', 't: '])}__typename{self.directive()}"
        if (choice < 0.3 or isinstance(type_, GraphQLUnionType)) and depth < 5:
            return self.fragment(type_, depth)
        if isinstance(type_, GraphQLUnionType):
            return "__typename"
        return self.field(type_, depth)

    def fragment(self, type_: Any, depth: int) -> str:
        on = self.condition(type_)
        if self.random.random() < 0.5:
            header = f"... on {on}" if self.random.random() < 0.8 or on != type_ else "..."
            return f"{header}{self.directive()} {self.selections(on, depth + 1)}"
        name = f"F{self.random.randint(0, 3)}{on}{depth}"
        if name not in self.fragments:
            self.fragments[name] = ""
            self.fragments[name] = f"fragment {name} on {on} {self.selections(on, depth + 1)}"
        return f"...{name}{self.directive()}"

    def condition(self, type_: Any) -> Any:
        if is_abstract_type(type_):
            return self.random.choice([type_, *self.schema.get_possible_types(type_)])
        interfaces = list(type_.interfaces)
        return self.random.choice([type_, *interfaces])

    def field(self, type_: Any, depth: int) -> str:
        random = self.random
        fields = list(type_.fields.items())
        leaves = [(name, field) for name, field in fields if not hasattr(get_named_type(field.type), "fields")]
        if (depth > 3 or self.budget < 0) and leaves:
            fields = leaves
        name, field = random.choice(fields)
        named = get_named_type(field.type)
        alias = random.choice(["", "", "", "a: ", "b: "])
        arguments = ""
        if field.args:
            arguments = random.choice(
                [
                    '(y: "s")',
                    "(y: $y)",
                    "(x: $x, y: [])",
                    "(y: $y, x: 2)",
                    *self.random.choice([[], ["", "(y: $gone)", '(x: "bad")']]),
                ]
            )
        inner = ""
        if hasattr(named, "fields") or isinstance(named, GraphQLUnionType):
            too_deep = depth > 4 or self.budget < 0
            inner = " { __typename }" if too_deep else f" {self.selections(named, depth + 1)}"
        return f"{alias}{name}{arguments}{self.directive()}{inner}"

    def directive(self) -> str:
        return self.random.choice(
            ["", "", "", "", "", " @include(if: $yes)", " @skip(if: $yes)", " @skip(if: $no)", " @include(if: true)"]
        )


def written(data: Any) -> str:
    """Return the data as text, which shows the order of keys."""
    return json.dumps(data, default=repr)


def as_text(error: GraphQLError) -> str:
    return f"{error.formatted} {type(error.original_error).__name__} {error.original_error}"
