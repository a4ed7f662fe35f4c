"""A client of the API for tests: plain HTTP, and the graphql-transport-ws protocol by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from websockets.asyncio.client import ClientConnection, connect

# Long enough for a busy machine. A test that waits this long fails.
PATIENCE_SECONDS = 15

REGISTER = """
mutation Register($input: RegisterInput!) {
  register(input: $input) { accessToken expiresIn tokenType user { id email username } errors { code message field } }
}
"""
CREATE_TASK = """
mutation CreateTask($input: CreateTaskInput!) {
  createTask(input: $input) { task { id title version } errors { code message field } }
}
"""
UPDATE_TASK = """
mutation UpdateTask($input: UpdateTaskInput!) {
  updateTask(input: $input) {
    task { id title description status priority category dueDate assignee { id } version }
    errors { code message field }
  }
}
"""


@dataclass
class Person:
    """A signed-in user."""

    id: str
    username: str
    email: str
    password: str
    token: str


class Api:
    """One server, used from outside."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.aclose()

    async def post(
        self, query: str, variables: dict[str, Any] | None = None, *, by: Person | str | None = None
    ) -> dict[str, Any]:
        """The whole response, with `data` and `errors`."""
        token = by.token if isinstance(by, Person) else by
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        response = await self.http.post("/graphql", json={"query": query, "variables": variables}, headers=headers)
        answer: dict[str, Any] = response.json()
        return answer

    async def data(self, query: str, variables: dict[str, Any] | None = None, *, by: Person | None = None) -> Any:
        """`data` of a response without errors."""
        answer = await self.post(query, variables, by=by)
        assert "errors" not in answer, answer
        return answer["data"]

    async def codes(
        self, query: str, variables: dict[str, Any] | None = None, *, by: Person | str | None = None
    ) -> list[str]:
        """The codes of the top-level errors."""
        answer = await self.post(query, variables, by=by)
        return [error["extensions"]["code"] for error in answer.get("errors", [])]

    async def register(self, username: str, *, password: str = "correct horse") -> Person:
        given = {
            "email": f"{username}@example.com",
            "username": username,
            "fullName": username.title(),
            "password": password,
        }
        payload = (await self.data(REGISTER, {"input": given}))["register"]
        assert payload["errors"] == [], payload
        return Person(payload["user"]["id"], username, given["email"], password, payload["accessToken"])

    async def create_task(self, by: Person, title: str = "A task", **fields: Any) -> dict[str, Any]:
        payload = (await self.data(CREATE_TASK, {"input": {"title": title, **fields}}, by=by))["createTask"]
        assert payload["errors"] == [], payload
        task: dict[str, Any] = payload["task"]
        return task

    async def update_task(self, by: Person, id: str, **fields: Any) -> dict[str, Any]:
        payload: dict[str, Any] = (await self.data(UPDATE_TASK, {"input": {"id": id, **fields}}, by=by))["updateTask"]
        return payload

    @asynccontextmanager
    async def socket(self, *, headers: dict[str, str] | None = None) -> AsyncIterator[Socket]:
        """A WebSocket before its first message."""
        url = self.url.replace("http://", "ws://") + "/graphql"
        async with connect(url, subprotocols=["graphql-transport-ws"], additional_headers=headers) as connection:  # type: ignore[list-item]
            yield Socket(connection)

    @asynccontextmanager
    async def signed_in_socket(self, by: Person) -> AsyncIterator[Socket]:
        async with self.socket() as socket:
            await socket.send(type="connection_init", payload={"Authorization": f"Bearer {by.token}"})
            assert await socket.receive() == {"type": "connection_ack"}
            yield socket


class Socket:
    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, **message: Any) -> None:
        await self.connection.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            message: dict[str, Any] = json.loads(await self.connection.recv())
            return message

    async def subscribe(self, query: str, *, id: str = "1", variables: dict[str, Any] | None = None) -> None:
        """Send the subscription and return. The server starts to listen a moment later: give `after` if that
        matters.
        """
        await self.send(type="subscribe", id=id, payload={"query": query, "variables": variables})

    async def next(self, id: str = "1") -> Any:
        """`data` of the subscription's next event."""
        message = await self.receive()
        assert (message["type"], message["id"]) == ("next", id), message
        assert "errors" not in message["payload"], message
        return message["payload"]["data"]

    async def close_code(self) -> int | None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.connection.wait_closed()
        return self.connection.close_code
