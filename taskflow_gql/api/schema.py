"""The schema: all nouns together, and how operations on them are limited, run and answered."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import strawberry
from graphql import NoSchemaIntrospectionCustomRule
from strawberry.extensions import AddValidationRules, SchemaExtension
from strawberry.schema.config import StrawberryConfig

from taskflow_gql.api.accounts import AccountMutations
from taskflow_gql.api.batching import BatchingExecutor
from taskflow_gql.api.changes import ChangeQueries, Subscription
from taskflow_gql.api.context import Context
from taskflow_gql.api.documents import Documents, ReuseDocuments
from taskflow_gql.api.errors import RenderErrors
from taskflow_gql.api.limits import LimitOperations
from taskflow_gql.api.nodes import NodeQueries
from taskflow_gql.api.scalars import DATE_TIME
from taskflow_gql.api.tasks import Task, TaskMutations, TaskQueries
from taskflow_gql.api.users import User, UserMutations, UserQueries
from taskflow_gql.config import Settings


@strawberry.type(description="What you can read.")
class Query(NodeQueries, UserQueries, TaskQueries, ChangeQueries):
    pass


@strawberry.type(
    description=(
        "What you can change. Who you are decides first: no or bad credentials is a top-level error "
        "UNAUTHENTICATED. What you asked for is answered in the payload: `errors` is empty, or it says everything "
        "that is wrong, the entity is null, and nothing was changed."
    )
)
class Mutation(AccountMutations, TaskMutations, UserMutations):
    pass


class OperationContext(SchemaExtension):
    """Gives each operation a context of its own; Strawberry hands the connection's to every one on a WebSocket."""

    def on_operation(self) -> Iterator[None]:
        context = self.execution_context.context
        if isinstance(context, Context):
            self.execution_context.context = context.for_operation()
        yield


def make_schema(settings: Settings) -> strawberry.Schema:
    documents = Documents()
    extensions: list[type[SchemaExtension] | object] = [
        RenderErrors,
        OperationContext,
        lambda: LimitOperations(settings),
        lambda: ReuseDocuments(documents),
    ]
    if not settings.allows_introspection:
        extensions.append(lambda: AddValidationRules([NoSchemaIntrospectionCustomRule]))
    return strawberry.Schema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        types=[Task, User],
        execution_context_class=BatchingExecutor,
        extensions=extensions,  # type: ignore[arg-type]
        config=StrawberryConfig(scalar_map={datetime: DATE_TIME}),
    )
