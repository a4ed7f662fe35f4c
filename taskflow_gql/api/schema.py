"""The schema, composed of the types of all nouns."""

from __future__ import annotations

from datetime import datetime

import strawberry
from strawberry.schema.config import StrawberryConfig

from taskflow_gql.api.accounts import AccountMutations
from taskflow_gql.api.batches import MAX_MUTATIONS, BatchMutations
from taskflow_gql.api.changes import ChangeQueries, TaskSubscriptions
from taskflow_gql.api.needs import Analysis
from taskflow_gql.api.nodes import MAX_NODES, NodeQueries
from taskflow_gql.api.password_resets import PasswordResetMutations
from taskflow_gql.api.scalars import DATE_TIME
from taskflow_gql.api.server import ServerQueries
from taskflow_gql.api.sessions import SessionMutations, SessionQueries
from taskflow_gql.api.tasks import Task, TaskMutations, TaskQueries
from taskflow_gql.api.undo import UndoMutations
from taskflow_gql.api.users import User, UserMutations, UserQueries
from taskflow_gql.config import Settings
from taskflow_gql.execution.strawberry import BatchingExecutor, StrawberryExecutor
from taskflow_gql.operations.cost import Prices
from taskflow_gql.operations.schema import Schema
from taskflow_gql.services.paging import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE


@strawberry.type(description="What you can read.")
class Query(ServerQueries, NodeQueries, UserQueries, SessionQueries, TaskQueries, ChangeQueries):
    pass


@strawberry.type(
    description=(
        "What you can change. Who you are decides first: no or bad credentials is a top-level error "
        "UNAUTHENTICATED. What you asked for is answered in the payload: `errors` is empty, or it says everything "
        "that is wrong, the entity is null, and nothing was changed."
    )
)
class Mutation(
    AccountMutations,
    SessionMutations,
    PasswordResetMutations,
    TaskMutations,
    BatchMutations,
    UndoMutations,
    UserMutations,
):
    pass


@strawberry.type(
    description=(
        "What changes while you watch: over `graphql-transport-ws`, as server-sent events (`Accept: "
        "text/event-stream`) or as a multipart response, all at this same address."
    )
)
class Subscription(TaskSubscriptions):
    pass


# Fields that cost many times as much as other values: a look-up for each object, a text of 10,000 characters, a search
# through 1,000 changes, or a change of a batch. With these weights, an operation within the default limit blocks others
# for at most some tenths of a second (tests/test_hostile.py).
PRICES = Prices(
    {"history": 50, "totalCount": 50, "byAssignee": 50, "description": 50, "taskChanges": 1_000, "mySessions": 1_000},
    lists=["byAssignee"],
    items=["edges", "nodes", "results", "undone", "conflicts"],
    batches={"applyMutations": 200, "undo": 200},
    default_page_size=DEFAULT_PAGE_SIZE,
    max_page_size=MAX_PAGE_SIZE,
    max_ids=MAX_NODES,
    max_batch=MAX_MUTATIONS,
)


def make_schema(settings: Settings, executor: type[StrawberryExecutor] = BatchingExecutor) -> Schema:
    return Schema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        types=[Task, User],
        execution_context_class=executor,
        config=StrawberryConfig(scalar_map={datetime: DATE_TIME}),
        settings=settings,
        prices=PRICES,
        analyse=Analysis,
    )
