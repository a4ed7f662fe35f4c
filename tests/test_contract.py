"""The whole schema: rules for every type, every field and every mutation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from graphql import (
    GraphQLArgument,
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLScalarType,
    build_schema,
    get_named_type,
    is_introspection_type,
    is_specified_scalar_type,
)

from taskflow_gql.api.schema import make_schema
from tests.support.client import Api
from tests.support.serving import make_settings

COMMITTED = Path(__file__).parent.parent / "schema.graphql"
EXPORTED = make_schema(make_settings()).as_str()
SCHEMA = build_schema(EXPORTED)

# Anonymous callers may use these. Every other field must refuse them, or a test below fails.
PUBLIC_QUERIES = {"serverInfo", "me"}
PUBLIC_MUTATIONS = {"register", "login", "refreshToken", "requestPasswordReset", "resetPassword"}

assert SCHEMA.query_type is not None
assert SCHEMA.mutation_type is not None
assert SCHEMA.subscription_type is not None
QUERIES, MUTATIONS = SCHEMA.query_type.fields, SCHEMA.mutation_type.fields
TYPES = {
    name: type_
    for name, type_ in SCHEMA.type_map.items()
    if not is_introspection_type(type_) and not is_specified_scalar_type(type_)
}


def test_the_committed_schema_equals_the_exported_one() -> None:
    assert COMMITTED.read_text() == EXPORTED.rstrip() + "\n", "run `taskflow export-schema` and commit schema.graphql"


def test_the_schema_does_not_depend_on_settings() -> None:
    production = make_settings(env="production", database_url="postgresql://db/x", graphiql=True, introspection=False)
    assert make_schema(production).as_str() == EXPORTED


# ---------------------------------------------------------------- descriptions


def described() -> Iterator[tuple[str, str | None]]:
    """Everything that can have a description, with its path."""
    for name, type_ in TYPES.items():
        yield name, type_.description
        match type_:
            case GraphQLObjectType() | GraphQLInterfaceType():
                for field_name, field in type_.fields.items():
                    yield f"{name}.{field_name}", field.description
                    for argument_name, argument in field.args.items():
                        yield f"{name}.{field_name}({argument_name}:)", argument.description
            case GraphQLInputObjectType():
                for field_name, input_field in type_.fields.items():
                    yield f"{name}.{field_name}", input_field.description
            case GraphQLEnumType():
                for value_name, value in type_.values.items():
                    yield f"{name}.{value_name}", value.description


def test_everything_in_the_schema_is_described() -> None:
    assert [path for path, description in described() if not (description or "").strip()] == []


def test_a_description_says_more_than_the_name() -> None:
    def plain(words: str) -> str:
        return "".join(letter for letter in words.lower() if letter.isalnum())

    repeating = [
        path
        for path, description in described()
        if plain(description or "") in {plain(path), plain(path.rpartition(".")[2]), plain(path.partition(".")[0])}
        # The values of these enums are names of fields, which are described at their types.
        and not path.startswith(("TaskField.", "TaskOrderField."))
    ]
    assert repeating == []


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_takes_one_input_and_returns_a_payload_with_errors(name: str) -> None:
    mutation = MUTATIONS[name]
    capitalized = name[0].upper() + name[1:]
    if mutation.args:
        assert str(mutation.args["input"].type) == f"{capitalized}Input!"
        assert list(mutation.args) == ["input"]
    payload = get_named_type(mutation.type)
    assert isinstance(mutation.type, GraphQLNonNull)
    assert isinstance(payload, GraphQLObjectType)
    assert payload.name in (f"{capitalized}Payload", "AuthPayload")
    common = {name: str(payload.fields[name].type) for name in ("errors", "replayed", "changeCursor")}
    assert common == {"errors": "[UserError!]!", "replayed": "Boolean!", "changeCursor": "String"}
    # When there are errors, everything else is null, an empty list or a count of nothing.
    required = {name: field.type.of_type for name, field in payload.fields.items() if is_required(field.type)}
    del required["replayed"]
    assert [
        name for name, type_ in required.items() if not isinstance(type_, GraphQLList) and str(type_) != "Int"
    ] == []
    for argument in mutation.args.values():
        input_type = get_named_type(argument.type)
        assert isinstance(input_type, GraphQLInputObjectType)
        assert str(input_type.fields["mutationId"].type) == "ID"


@pytest.mark.parametrize("name", [name for name in TYPES if name.endswith("Connection")])
def test_a_connection_has_the_shape_that_clients_expect(name: str) -> None:
    connection, node = TYPES[name], name.removesuffix("Connection")
    edge = TYPES[f"{node}Edge"]
    assert isinstance(connection, GraphQLObjectType)
    assert isinstance(edge, GraphQLObjectType)
    shape = {field: str(connection.fields[field].type) for field in ("edges", "nodes", "pageInfo")}
    assert shape == {"edges": f"[{node}Edge!]!", "nodes": f"[{node}!]!", "pageInfo": "PageInfo!"}
    assert {field: str(definition.type) for field, definition in edge.fields.items()} == {
        "cursor": "String!",
        "node": f"{node}!",
    }


def test_every_field_that_returns_a_connection_takes_first_and_after() -> None:
    for name, type_ in TYPES.items():
        if isinstance(type_, GraphQLObjectType):
            for field_name, field in type_.fields.items():
                if get_named_type(field.type).name.endswith("Connection"):
                    assert {"first", "after"} <= set(field.args), f"{name}.{field_name}"


def test_tasks_and_users_are_nodes_with_an_id() -> None:
    interface = TYPES["Node"]
    assert isinstance(interface, GraphQLInterfaceType)
    assert {type_.name for type_ in SCHEMA.get_implementations(interface).objects} == {"Task", "User"}
    assert {name: str(field.type) for name, field in interface.fields.items()} == {"id": "ID!"}


def test_no_field_is_named_after_a_password_or_hash() -> None:
    for name, type_ in TYPES.items():
        if isinstance(type_, GraphQLObjectType) and name != "Mutation":
            assert [field for field in type_.fields if "password" in field.lower() or "hash" in field.lower()] == []


# ---------------------------------------------------------------- access


def least(type_: GraphQLInputType) -> Any:
    """The smallest value of the type."""
    match type_:
        case GraphQLNonNull():
            return least(type_.of_type)
        case GraphQLList():
            return [least(type_.of_type)]
        case GraphQLEnumType():
            return next(iter(type_.values))
        case GraphQLInputObjectType():
            required = {name: field for name, field in type_.fields.items() if is_required(field.type)}
            if type_.is_one_of:
                required = dict([*type_.fields.items()][:1])
            return {name: least(field.type) for name, field in required.items()}
        case GraphQLScalarType():
            return {"ID": str(uuid4()), "Int": 1, "Boolean": True, "DateTime": "2026-01-31T08:00:00Z"}.get(
                type_.name, "some text"
            )
    raise AssertionError(type_)


def is_required(type_: GraphQLInputType) -> bool:
    return isinstance(type_, GraphQLNonNull)


def operation(kind: str, name: str, field: GraphQLField) -> tuple[str, dict[str, Any]]:
    """A document that selects only this field, and its variables."""
    required: dict[str, GraphQLArgument] = {
        argument: definition for argument, definition in field.args.items() if is_required(definition.type)
    }
    declared = ", ".join(f"${argument}: {definition.type}" for argument, definition in required.items())
    given = ", ".join(f"{argument}: ${argument}" for argument in required)
    selected = "{ __typename }" if hasattr(get_named_type(field.type), "fields") else ""
    head = f"{kind}({declared})" if declared else kind
    call = f"{name}({given})" if given else name
    return f"{head} {{ {call} {selected} }}", {
        argument: least(definition.type) for argument, definition in required.items()
    }


async def test_every_field_except_the_public_ones_refuses_anonymous_callers(api: Api) -> None:
    for kind, fields, public in (("query", QUERIES, PUBLIC_QUERIES), ("mutation", MUTATIONS, PUBLIC_MUTATIONS)):
        assert public <= set(fields)
        for name, field in fields.items():
            query, variables = operation(kind, name, field)
            for token, message in ((None, "Not authenticated"), ("rubbish", "Could not validate credentials")):
                answer = await api.post(query, variables, by=token)
                found = [(error["message"], error["extensions"]) for error in answer.get("errors", [])]
                if name not in public:
                    assert found == [(message, {"code": "UNAUTHENTICATED"})], name
                elif name == "me" and token is not None:
                    # A client must learn that its token is no longer valid.
                    assert found == [(message, {"code": "UNAUTHENTICATED"})]
                else:
                    assert found == [], name
    ann = await api.register("ann")
    counts = await api.data("{ tasks { totalCount } users { totalCount } }", by=ann)
    assert counts == {"tasks": {"totalCount": 0}, "users": {"totalCount": 1}}


async def test_no_field_fails_internally_on_the_smallest_input(api: Api) -> None:
    ann = await api.register("ann")
    for kind, fields in (("query", QUERIES), ("mutation", MUTATIONS)):
        # Signing out comes last.
        for name, field in sorted(fields.items(), key=lambda item: item[0] == "logout"):
            query, variables = operation(kind, name, field)
            codes = await api.codes(query, variables, by=ann)
            assert set(codes) <= {"BAD_USER_INPUT"}, name
