"""The floor: the cost of the operations without GraphQL. Starlette, asyncpg, orjson, and one statement each.

It knows the operations of `taskflow.graphql` by name, ignores the rest of the document, and answers like a GraphQL
server. It checks tokens like the other servers.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from taskflow_gql.errors import Unauthenticated
from taskflow_gql.security.tokens import TokenSigner

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Variables = dict[str, Any]
Operation = Callable[[Any, UUID, Variables], Awaitable[Any]]

_tokens = TokenSigner(os.environ["SECRET_KEY"], timedelta(minutes=30))

VIEWER = """
SELECT 1 FROM users JOIN sessions ON sessions.user_id = users.id AND sessions.id = $2
WHERE users.id = $1 AND users.is_active AND users.role = 'ADMIN'
"""
WITH_PEOPLE = """
SELECT tasks.id, title, description, status, priority, due_date, tasks.created_at,
       creator.id AS creator_id, creator.username AS creator_username, creator.full_name AS creator_name,
       assignee.id AS assignee_id, assignee.username AS assignee_username, assignee.full_name AS assignee_name
FROM tasks JOIN users creator ON creator.id = creator_id LEFT JOIN users assignee ON assignee.id = assignee_id
"""
FIRST_PAGE = f"{WITH_PEOPLE} ORDER BY tasks.created_at DESC, tasks.id DESC LIMIT 50"
PAGE_AFTER = f"""{WITH_PEOPLE} WHERE (tasks.created_at, tasks.id) < ($1, $2)
ORDER BY tasks.created_at DESC, tasks.id DESC LIMIT 50"""
TASK = f"{WITH_PEOPLE} WHERE tasks.id = $1"
ME = """
SELECT me.id AS me_id, me.username AS me_username, me.full_name AS me_name, task.*,
       creator.username AS creator_username, creator.full_name AS creator_name
FROM users me LEFT JOIN LATERAL (
  SELECT id, title, status, priority, due_date, creator_id, created_at FROM tasks WHERE assignee_id = me.id
  ORDER BY created_at DESC, id DESC LIMIT 20
) task ON true LEFT JOIN users creator ON creator.id = creator_id
WHERE me.id = $1 ORDER BY task.created_at DESC, task.id DESC
"""
PEOPLE = """
SELECT person.id AS person_id, person.username AS person_username, person.full_name AS person_name, task.*,
       assignee.username AS assignee_username, assignee.full_name AS assignee_name
FROM (SELECT * FROM users WHERE username_key > $1 ORDER BY username_key LIMIT 20) person LEFT JOIN LATERAL (
  SELECT id, title, status, assignee_id, created_at FROM tasks WHERE creator_id = person.id
  ORDER BY created_at DESC, id DESC LIMIT 5
) task ON true LEFT JOIN users assignee ON assignee.id = assignee_id
ORDER BY person.username_key, task.created_at DESC, task.id DESC
"""
FILTERED = """
WITH matching AS MATERIALIZED (SELECT * FROM tasks WHERE assignee_id = $1 AND status = $2)
SELECT matching.id, title, priority, due_date, matching.updated_at, creator_id, username AS creator_username,
       (SELECT count(*) FROM matching) AS total_count
FROM matching JOIN users ON users.id = creator_id ORDER BY matching.updated_at DESC, matching.id DESC LIMIT 20
"""
SET_STATUS = """
UPDATE tasks SET status = $2::varchar, completed_at = CASE WHEN $2::varchar = 'COMPLETED' THEN now() END,
       version = version + 1, updated_at = now()
WHERE id = $1 RETURNING id, title, status
"""


async def page(connection: Connection, _viewer: UUID, variables: Variables) -> Any:
    return {"tasks": {"nodes": list(map(task_with_people, await page_rows(connection, variables)))}}


async def page_cursor(connection: Connection, _viewer: UUID, variables: Variables) -> Any:
    last = (await page_rows(connection, variables))[-1]
    return {"tasks": {"pageInfo": {"endCursor": f"{last['created_at'].isoformat()} {last['id']}"}}}


async def page_rows(connection: Connection, variables: Variables) -> list[asyncpg.Record]:
    if (cursor := variables.get("after")) is None:
        return await connection.fetch(FIRST_PAGE)
    created_at, id_ = cursor.split()
    return await connection.fetch(PAGE_AFTER, datetime.fromisoformat(created_at), id_)


async def task(connection: Connection, _viewer: UUID, variables: Variables) -> Any:
    row = await connection.fetchrow(TASK, variables["id"])
    return {"task": row and task_with_people(row)}


async def me(connection: Connection, viewer: UUID, _variables: Variables) -> Any:
    rows = await connection.fetch(ME, viewer)
    tasks = [
        {
            "id": row["id"],
            "title": row["title"],
            "status": row["status"],
            "priority": row["priority"],
            "dueDate": row["due_date"],
            "creator": person(row, "creator"),
        }
        for row in rows
        if row["id"] is not None
    ]
    return {"me": {**person(rows[0], "me"), "assignedTasks": {"nodes": tasks}}}


async def people(connection: Connection, _viewer: UUID, variables: Variables) -> Any:
    found: dict[str, Any] = {}
    for row in await connection.fetch(PEOPLE, variables.get("after") or ""):
        one = found.get(row["person_id"])
        if one is None:
            one = found[row["person_id"]] = {**person(row, "person"), "createdTasks": {"nodes": []}}
        if row["id"] is not None:
            one["createdTasks"]["nodes"].append(
                {
                    "id": row["id"],
                    "title": row["title"],
                    "status": row["status"],
                    "assignee": None if row["assignee_id"] is None else person(row, "assignee"),
                }
            )
    return {"users": {"nodes": list(found.values())}}


async def people_cursor(connection: Connection, viewer: UUID, variables: Variables) -> Any:
    found = await people(connection, viewer, variables)
    return {"users": {"pageInfo": {"endCursor": found["users"]["nodes"][-1]["username"]}}}


async def filtered(connection: Connection, _viewer: UUID, variables: Variables) -> Any:
    rows = await connection.fetch(FILTERED, variables["assignee"], variables["status"])
    tasks = [
        {
            "id": row["id"],
            "title": row["title"],
            "priority": row["priority"],
            "dueDate": row["due_date"],
            "updatedAt": row["updated_at"],
            "creator": {"id": row["creator_id"], "username": row["creator_username"]},
        }
        for row in rows
    ]
    return {"tasks": {"totalCount": rows[0]["total_count"] if rows else 0, "nodes": tasks}}


async def set_status(connection: Connection, _viewer: UUID, variables: Variables) -> Any:
    row = await connection.fetchrow(SET_STATUS, variables["id"], variables["status"])
    return {"setTaskStatus": {"task": row and dict(row), "errors": []}}


def task_with_people(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "id": row["id"],
        "title": row["title"],
        "description": row["description"],
        "status": row["status"],
        "priority": row["priority"],
        "dueDate": row["due_date"],
        "createdAt": row["created_at"],
        "creator": person(row, "creator"),
        "assignee": None if row["assignee_id"] is None else person(row, "assignee"),
    }


def person(row: asyncpg.Record, who: str) -> dict[str, Any]:
    return {"id": row[f"{who}_id"], "username": row[f"{who}_username"], "fullName": row[f"{who}_name"]}


OPERATIONS: dict[str, Operation] = {
    "Page": page,
    "Task": task,
    "Me": me,
    "People": people,
    "Filtered": filtered,
    "SetStatus": set_status,
    "PageCursor": page_cursor,
    "PeopleCursor": people_cursor,
}


async def graphql(request: Request) -> Response:
    posted = orjson.loads(await request.body())
    try:
        claims = _tokens.read(request.headers.get("authorization", "").removeprefix("Bearer "))
    except Unauthenticated as error:
        raise HTTPException(401) from error
    pool: asyncpg.Pool[asyncpg.Record] = request.app.state.pool
    async with pool.acquire() as connection:
        if await connection.fetchrow(VIEWER, claims.user_id, claims.session_id) is None:
            raise HTTPException(401)
        run = OPERATIONS[posted["operationName"]]
        data = await run(connection, claims.user_id, posted.get("variables") or {})
    return Response(orjson.dumps({"data": data}), media_type="application/json")


async def read_ids_as_text(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    await connection.set_type_codec("uuid", schema="pg_catalog", encoder=str, decoder=str)


async def leave_as_is(_connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Replaces the reset, which would cost a round trip for each request. Nothing here changes the session's state."""


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    size = int(os.environ["POOL_SIZE"])
    async with asyncpg.create_pool(
        os.environ["DATABASE_URL"], min_size=size, max_size=size, init=read_ids_as_text, reset=leave_as_is
    ) as app.state.pool:
        yield


app = Starlette(routes=[Route("/graphql", graphql, methods=["POST"])], lifespan=lifespan)
