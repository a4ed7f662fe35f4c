import pytest
from graphql import GraphQLError, build_schema

from taskflow_gql.execution import BATCH, Batch, explain


async def users_by_id(context: object, ids: list[str]) -> dict[str, object]:
    return {}


SCHEMA = build_schema("""
type Query { tasks(first: Int): [Task!]! node: Node }
type Mutation { touch: Task }
interface Node { id: ID! }
type Task implements Node { id: ID! title: String due: When creator: User! }
type User implements Node { id: ID! name: String }
scalar When
""")
SCHEMA.type_map["Task"].fields["creator"].extensions[BATCH] = Batch(users_by_id, "creator_id")  # type: ignore[attr-defined]

EXPLAINED = """\
query Page
  tasks: [Task!]!  resolved by default_field_resolver
    id: ID!  read from .id
    due: When  read from .due
    creator: User!  loaded for all objects by users_by_id, key creator_id
      name: String  read from .name

# <plan Query>
def fill(run, answer, source, position):
    # tasks: [Task!]!
    try:
        at = (position, 'tasks', 'Query')
        info = run.info(field_tasks, at)
        value = resolve_tasks(source, info, **run.arguments(field_tasks))
        value = complete_tasks(run, value, at, info)
        if type(value) is Wait:
            value.place(answer, 'tasks')
    except Exception as error:
        value = run.field_failed(field_tasks, error, position)
    answer['tasks'] = value

# <plan Query.tasks>
def fill(run, answer, source, position):
    # id: ID!
    try:
        value = getattr(source, 'id', None)
        if type(value) is not str:
            if type(value) in PRINTED:
                value = str(value)
            else:
                value = unusual_leaf(run, field_id, value, answer, position)
    except Exception as error:
        value = run.field_failed(field_id, error, position)
    answer['id'] = value
    # due: When
    try:
        value = getattr(source, 'due', None)
        if type(value) in PLAIN:
            serialised = coerce_due(value)
            if type(serialised) in SERIALISED:
                value = serialised
            else:
                value = place_serialised(run, field_due, value, serialised, answer, position)
        elif value is not None:
            value = unusual_leaf(run, field_due, value, answer, position)
    except Exception as error:
        value = run.field_failed(field_due, error, position)
    answer['due'] = value
    # creator: User!
    try:
        key = source.creator_id
        value = None
        if key is not None:
            run.asked[field_creator].append((answer, key, position))
        else:
            field_creator.level.null()
    except Exception as error:
        value = run.field_failed(field_creator, error, position)
    answer['creator'] = value

# <plan Query.tasks.creator>
def fill(run, answer, source, position):
    # name: String
    try:
        value = getattr(source, 'name', None)
        if type(value) is not str and value is not None:
            value = unusual_leaf(run, field_name, value, answer, position)
    except Exception as error:
        value = run.field_failed(field_name, error, position)
    answer['name'] = value

# <plan Query.tasks.creator>, in lists, of objects that store all of it
def quick(source):
    try:
        v0 = source.name
        if type(v0) is not str and v0 is not None:
            return None
        return {'name': v0}
    except Exception:
        return None
"""


def test_explain_shows_the_plan_and_the_source() -> None:
    query = """
    query Page($all: Boolean = false) {
      tasks(first: 5) { id title @include(if: $all) due creator { name } }
    }
    """
    assert str(explain(SCHEMA, query)) == EXPLAINED
    assert "title: String  read from .title" in explain(SCHEMA, query, variables={"all": True}).plan


def test_explain_shows_abstract_types_and_mutations() -> None:
    assert explain(SCHEMA, "{ node { __typename id ... on User { name } } }").plan == (
        "query\n"
        "  node: Node  read from .node\n"
        "    on Task\n"
        "      __typename: String!  is known\n"
        "      id: ID!  read from .id\n"
        "    on User\n"
        "      __typename: String!  is known\n"
        "      id: ID!  read from .id\n"
        "      name: String  read from .name"
    )
    assert explain(SCHEMA, "mutation { touch { id } }").plan.startswith("mutation, one field after the other\n")


def test_explain_reports_operations_that_are_not_planned() -> None:
    assert str(explain(SCHEMA, "{ ... @defer { node { id } } }")).startswith("Not planned")
    with pytest.raises(GraphQLError, match="Unknown operation named 'X'"):
        explain(SCHEMA, "{ node { id } }", operation_name="X")
