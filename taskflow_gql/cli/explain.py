"""How the server executes an operation: the plan, the SQL statements and the generated functions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from graphql import DocumentNode, GraphQLError, OperationDefinitionNode, OperationType, parse, validate
from starlette.requests import HTTPConnection
from strawberry.types.execution import PreExecutionError

from taskflow_gql import clock
from taskflow_gql.api.context import Context, Parts
from taskflow_gql.api.schema import make_schema
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine, forbid_writes
from taskflow_gql.database.observers import DatabaseObserver
from taskflow_gql.database.units import Database
from taskflow_gql.errors import NotFound
from taskflow_gql.execution import explain
from taskflow_gql.execution.strawberry import BatchingExecutor
from taskflow_gql.models import UserRow
from taskflow_gql.security.passwords import PasswordHasher
from taskflow_gql.security.rates import RateLimits
from taskflow_gql.security.tokens import TokenSigner
from taskflow_gql.services import accounts
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.ids import make_id
from taskflow_gql.stream.bus import MemoryBus
from taskflow_gql.stream.fanout import Fanout
from taskflow_gql.stream.relay import Relay


class _CompilingAtOnce(BatchingExecutor):
    """Compiles a document on its first run. A server waits until it has seen the document before."""

    seen_before_planned = 1


class Operation:
    """A valid operation of a document, and how it is executed. An invalid one raises its first GraphQLError."""

    def __init__(
        self, settings: Settings, text: str, *, name: str | None = None, variables: dict[str, Any] | None = None
    ) -> None:
        self._settings = settings
        self._schema = make_schema(settings, _CompilingAtOnce)
        self._text, self._name, self._variables = text, name, variables
        document = parse(text)
        if errors := validate(self._schema.core, document):
            raise errors[0]
        self.type = _chosen(document, name).operation
        self.explanation = explain(
            self._schema.core,
            document,
            operation_name=name,
            variables=variables,
            executor_class=_CompilingAtOnce,
        )

    async def answer(self, username: str | None) -> Answer:
        """Execute a query as a server would, for this person or without a token, on connections that cannot write.

        Raises NotFound for an unknown or deactivated person, and the first GraphQLError if the query is refused.
        """
        assert self.type is OperationType.QUERY
        async with _parts(self._settings) as parts:
            user = None if username is None else await _require_user(parts.database, username)
            context = _TrustingContext(parts, HTTPConnection({"type": "http", "headers": []}), trusted=user)
            with recording(parts.database) as recorded:
                result = await self._schema.execute(
                    self._text, self._variables, context_value=context, operation_name=self._name
                )
        errors = list(result.errors or [])
        if isinstance(result, PreExecutionError):
            raise errors[0]
        statements: dict[str, Statement] = {}
        for sql, parameters in recorded:
            statements.setdefault(sql, Statement(sql, [])).parameters.append(parameters)
        return Answer(user, list(statements.values()), errors)


@dataclass(frozen=True, slots=True)
class Statement:
    sql: str
    # One entry for each execution.
    parameters: list[Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The statements that a query executed, in the order of their first execution.

    The statement that checks a token is missing, because no token is used.
    """

    user: UserRow | None
    statements: list[Statement]
    errors: list[GraphQLError]


def _chosen(document: DocumentNode, name: str | None) -> OperationDefinitionNode:
    operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    if not operations:
        raise GraphQLError("There is no operation in the document")
    names = ", ".join(node.name.value for node in operations if node.name)
    if name is None and len(operations) > 1:
        raise GraphQLError(f"There are several operations: choose one of {names} with --operation")
    chosen = [node for node in operations if name is None or (node.name and node.name.value == name)]
    if not chosen:
        raise GraphQLError(f"There is no operation {name}; there is {names or 'one without a name'}")
    return chosen[0]


_recorded: ContextVar[list[tuple[str, Any]] | None] = ContextVar("recorded", default=None)


@contextmanager
def recording(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Record the statements that the block and its asyncio tasks execute, with their parameters.

    Statements of background tasks started outside the block are not recorded.
    """
    recorded: list[tuple[str, Any]] = []

    class Recorder(DatabaseObserver):
        def on_statement(self, sql: str, parameters: Any) -> None:
            if _recorded.get() is recorded:
                recorded.append((sql, parameters))

    token = _recorded.set(recorded)
    stop = database.observe(Recorder())
    try:
        yield recorded
    finally:
        stop()
        _recorded.reset(token)


@dataclass
class _TrustingContext(Context):
    """A context for a given person, without a token."""

    trusted: UserRow | None = None

    async def viewer(self) -> Viewer | None:
        if self.trusted is not None:
            self._viewer = Viewer(self.trusted.id, self.trusted.role, session_id=make_id(), expires_at=clock.now())
            # On a server, the check of the token loads the person too.
            self.loaders.people[self.trusted.id] = self.trusted
        return self._viewer


class _LookingRelay(Relay):
    """Looks for events without a position, as lists with a cursor do, but leaves placing them to a server."""

    async def _place_all(self) -> None:
        return


@asynccontextmanager
async def _parts(settings: Settings) -> AsyncIterator[Parts]:
    database, bus = Database(create_engine(settings)), MemoryBus()
    forbid_writes(database.engine)
    fanout, passwords = Fanout(database, bus), PasswordHasher(threads=1)
    try:
        await fanout.start()
        # No tokens are checked here, so no key is needed.
        tokens = TokenSigner("", timedelta())
        rates = RateLimits({}, redis_url=None, key=b"")
        yield Parts(settings, database, _LookingRelay(database, bus), fanout, passwords, tokens, rates)
    finally:
        await fanout.close()
        passwords.close()
        await database.close()


async def _require_user(database: Database, username: str) -> UserRow:
    async with database.read() as session:
        candidate = await accounts.find_candidate(session, username)
    if candidate.user is None:
        raise NotFound(f"There is nobody active called {username}")
    return candidate.user
