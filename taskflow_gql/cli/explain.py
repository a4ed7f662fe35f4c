"""What the server makes of an operation: its plan, the SQL that answers it, and the generated functions."""

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
from taskflow_gql.security.tokens import TokenSigner
from taskflow_gql.services import accounts
from taskflow_gql.services.access import Viewer
from taskflow_gql.services.ids import make_id
from taskflow_gql.stream.bus import MemoryBus
from taskflow_gql.stream.fanout import Fanout
from taskflow_gql.stream.relay import Relay


class _CompilingAtOnce(BatchingExecutor):
    """A server compiles a document when it comes again; here it comes once."""

    seen_before_planned = 1


class Operation:
    """A valid operation of a document, and what is made of it. Raises the first GraphQLError of any other."""

    def __init__(
        self, settings: Settings, text: str, *, name: str | None = None, variables: dict[str, Any] | None = None
    ) -> None:
        self._settings = settings
        self._schema = make_schema(settings, _CompilingAtOnce)
        self._text, self._name, self._variables = text, name, variables
        document = parse(text)
        if errors := validate(self._schema._schema, document):
            raise errors[0]
        self.type = _chosen(document, name).operation
        self.explanation = explain(
            self._schema._schema,
            document,
            operation_name=name,
            variables=variables,
            executor_class=_CompilingAtOnce,
        )

    async def answer(self, username: str | None) -> Answer:
        """Answer a query as a server would, to this person or to nobody, on connections that cannot write.

        Raises NotFound for somebody who could not sign in, and the first GraphQLError of a query that servers refuse.
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
    # One for each time that it was run.
    parameters: list[Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query took: the statements in the order of their first run, but for the check of a token, of which there
    was none.
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
    """The statements, with their parameters, that are run within and by tasks begun within; not those that the parts of
    a server run meanwhile.
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
    """The context of somebody who needs no token."""

    trusted: UserRow | None = None

    async def viewer(self) -> Viewer | None:
        if self.trusted is not None:
            self._viewer = Viewer(self.trusted.id, self.trusted.role, session_id=make_id(), expires_at=clock.now())
            # Comes with the check of a token.
            self.loaders.people[self.trusted.id] = self.trusted
        return self._viewer


class _LookingRelay(Relay):
    """Looks for events without a position, as lists with a cursor do, and leaves them to a server."""

    async def _place_all(self) -> None:
        return


@asynccontextmanager
async def _parts(settings: Settings) -> AsyncIterator[Parts]:
    database, bus = Database(create_engine(settings)), MemoryBus()
    forbid_writes(database.engine)
    fanout, passwords = Fanout(database, bus), PasswordHasher(threads=1)
    try:
        await fanout.start()
        # Nobody shows a token here, so no key is needed that could check one.
        tokens = TokenSigner("", timedelta())
        yield Parts(settings, database, _LookingRelay(database, bus), fanout, passwords, tokens)
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
