"""GraphQL over HTTP: requests, responses, and the server's other endpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskflow_gql import __version__
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import migrate
from taskflow_gql.transport.middleware import Cors
from tests.support.client import Api
from tests.support.servers import PostgresServer, RedisServer
from tests.support.serving import make_settings, serving

QUERY = "{ serverInfo { name } }"
ANSWER = {"data": {"serverInfo": {"name": "TaskFlow GQL"}}}
JSON = "application/json"
GRAPHQL = "application/graphql-response+json"
ORIGIN = "http://localhost:5173"


@pytest.fixture(scope="module")
async def web(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """One server for all tests that leave nothing behind. None of their requests reaches the database."""
    path = tmp_path_factory.mktemp("http") / "taskflow.sqlite3"
    shutil.copy(migrated_sqlite, path)
    async with serving(make_settings(data_dir=path.parent, database_url=f"sqlite:///{path}")) as api:
        yield api


def assert_refused(response: httpx.Response, status: int, message: str) -> None:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json; charset=utf-8")
    assert response.json() == {"errors": [{"message": message, "extensions": {"code": "BAD_USER_INPUT"}}]}


NOT_JSON = "Unable to parse request body as JSON"
NO_OBJECT = "The request must be a JSON object with a query"
NO_QUERY = "The request has no query"
NO_BATCH = "Batches are not taken: send one operation a request"
GOOD = json.dumps({"query": QUERY}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", NOT_JSON),
        (b"{", NOT_JSON),
        (b"query={me{id}}", NOT_JSON),
        (b"{ me { id } }", NOT_JSON),
        (GOOD + b"}", NOT_JSON),
        (b'{"query": "{ \xe9 }"}', NOT_JSON),
        (b"\x00", NOT_JSON),
        (b"[" * 100_000, NOT_JSON),
        (b'{"query":' * 100_000, NOT_JSON),
        (b'{"query": "{ me { id } }", "variables": {"x": ' + b"9" * 5000 + b"}}", NOT_JSON),
        (b"null", NO_OBJECT),
        (b"1", NO_OBJECT),
        (b'"{ me { id } }"', NO_OBJECT),
        (b"[]", NO_BATCH),
        (b"[" + GOOD + b"]", NO_BATCH),
        (b"{}", NO_QUERY),
        (b'{"query": null}', NO_QUERY),
        (b'{"query": ""}', NO_QUERY),
        (b'{"Query": "{ me { id } }"}', NO_QUERY),
        (b'{"query": 1}', "query must be a string"),
        (b'{"query": ["{ me { id } }"]}', "query must be a string"),
        (b'{"query": "{ me { id } }", "variables": []}', "variables must be an object"),
        (b'{"query": "{ me { id } }", "variables": "{}"}', "variables must be an object"),
        (b'{"query": "{ me { id } }", "operationName": 1}', "operationName must be a string"),
        (b'{"query": "{ me { id } }", "extensions": []}', "extensions must be an object"),
        (b'{"query": "{ me { id } }", "operationName": "Other"}', 'Unknown operation named "Other".'),
        (b'{"query": "fragment F on Query { me { id } }"}', "Can't get GraphQL operation type"),
    ],
    ids=lambda value: ascii(value[:40]),
)
async def test_a_body_that_is_not_a_request_is_refused_with_a_message(web: Api, body: bytes, message: str) -> None:
    assert_refused(await web.http.post("/graphql", content=body, headers={"Content-Type": JSON}), 400, message)


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        (None, "Send the request as application/json"),
        ("", "Send the request as application/json"),
        ("text/plain", "Send the request as application/json"),
        ("application/graphql", "Send the request as application/json"),
        ("application/x-www-form-urlencoded", "Send the request as application/json"),
        ("multipart/form-data; boundary=x", "Send the request as application/json"),
        ("application/json; charset=utf-16", "Send the request in UTF-8"),
        ("application/json; charset=iso-8859-1", "Send the request in UTF-8"),
    ],
)
async def test_requests_need_a_json_content_type_so_foreign_forms_cannot_send_them(
    web: Api, content_type: str | None, message: str
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert_refused(await web.http.post("/graphql", content=GOOD, headers=headers), 415, message)


async def test_content_type_spellings_and_null_or_extra_members_are_accepted(web: Api) -> None:
    for content_type in (
        JSON,
        "Application/JSON",
        "application/json; charset=UTF-8",
        'application/json;charset="utf-8"',
    ):
        response = await web.http.post("/graphql", content=GOOD, headers={"Content-Type": content_type})
        assert (response.status_code, response.json()) == (200, ANSWER)
    given: dict[str, Any] = {"query": QUERY, "variables": None, "operationName": None, "extensions": None}
    assert (await web.http.post("/graphql", json=given)).json() == ANSWER
    given = {"query": f"query A {QUERY} query B {{ me {{ id }} }}", "operationName": "A", "extensions": {"x": [1]}}
    assert (await web.http.post("/graphql", json=given)).json() == ANSWER


async def test_a_body_over_the_limit_is_refused_with_or_without_a_content_length(web: Api) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" " * 10_000

    for body in (b'{"query": "' + b" " * 10_000_000 + b'"}', chunks()):
        try:
            response = await web.http.post("/graphql", content=body, headers={"Content-Type": JSON})
        except httpx.WriteError:
            # The server answered and closed before the whole body was sent.
            continue
        assert response.status_code == 413
        assert response.headers["content-type"].startswith(JSON)
        assert [error["extensions"] for error in response.json()["errors"]] == [{"code": "BAD_USER_INPUT"}]
    assert (await web.http.post("/graphql", json={"query": QUERY})).json() == ANSWER


async def test_get_runs_queries_and_refuses_mutations(web: Api) -> None:
    response = await web.http.get("/graphql", params={"query": QUERY})
    assert (response.status_code, response.json()) == (200, ANSWER)
    response = await web.http.get(
        "/graphql", params={"query": f"query A {QUERY} query B {{ x }}", "operationName": "C"}
    )
    assert_refused(response, 400, 'Unknown operation named "C".')
    node = "query($id: ID!) { node(id: $id) { id } }"
    response = await web.http.get("/graphql", params={"query": node, "variables": '{"id": "x"}', "extensions": "{}"})
    assert [error["extensions"]["code"] for error in response.json()["errors"]] == ["UNAUTHENTICATED"]

    mutation = 'mutation { login(input: {usernameOrEmail: "ann", password: "x"}) { tokenType } }'
    response = await web.http.get("/graphql", params={"query": mutation})
    assert_refused(response, 405, "Mutations need POST")
    assert response.headers["allow"] == "POST"

    for params, message in (
        ({}, NO_QUERY),
        ({"query": ""}, NO_QUERY),
        ({"query": QUERY, "variables": "{"}, NOT_JSON),
        ({"query": QUERY, "variables": "[]"}, "variables must be an object"),
        ({"query": QUERY, "variables": "9" * 5000}, NOT_JSON),
        ({"query": QUERY, "extensions": "x"}, NOT_JSON),
    ):
        assert_refused(await web.http.get("/graphql", params=params), 400, message)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "SUBSCRIBE"])
async def test_other_methods_are_refused(web: Api, method: str) -> None:
    response = await web.http.request(method, "/graphql", json={"query": QUERY})
    assert_refused(response, 405, "GraphQL takes GET and POST")
    assert response.headers["allow"] == "GET, POST"


async def test_a_subscription_in_an_ordinary_request_explains_how_to_subscribe(web: Api) -> None:
    subscription = "subscription { taskChanged { cursor } }"
    for response in (
        await web.http.post("/graphql", json={"query": subscription}),
        await web.http.get("/graphql", params={"query": subscription}),
    ):
        assert response.status_code == 400
        (error,) = response.json()["errors"]
        assert error["message"].startswith("Subscriptions need a WebSocket (graphql-transport-ws)")
        assert error["extensions"] == {"code": "BAD_USER_INPUT"}


# ---------------------------------------------------------------- media types


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html", JSON),
        (JSON, JSON),
        (GRAPHQL, GRAPHQL),
        (GRAPHQL.upper(), GRAPHQL),
        (f"{GRAPHQL}; charset=utf-8", GRAPHQL),
        (f"{GRAPHQL}, {JSON}", GRAPHQL),
        (f"{JSON}, {GRAPHQL}", JSON),
        (f"{GRAPHQL};q=0.5, {JSON}", JSON),
        (f"{JSON};q=0.5, {GRAPHQL};q=0.9", GRAPHQL),
        (f"{JSON}; q=0.9 , {GRAPHQL}; q=0.9", JSON),
        (f"{JSON};q=0, {GRAPHQL};q=0.1", GRAPHQL),
        (f"{GRAPHQL};q=0", JSON),
        (f"{GRAPHQL};q=nonsense, {JSON};q=0.1", JSON),
        (f"text/html, {GRAPHQL};q=0.8, */*;q=0.1", GRAPHQL),
        # urql and Apollo send these with every request.
        (f"{GRAPHQL}, {JSON}, text/event-stream, multipart/mixed", GRAPHQL),
        (f"multipart/mixed;deferSpec=20220824,{GRAPHQL},{JSON};q=0.9", GRAPHQL),
        (";;,,;q=", JSON),
    ],
)
async def test_the_response_has_the_media_type_that_the_client_prefers(
    web: Api, accept: str | None, expected: str
) -> None:
    request = web.http.build_request("POST", "/graphql", json={"query": QUERY})
    del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept
    response = await web.http.send(request)
    assert (response.status_code, response.json()) == (200, ANSWER)
    assert response.headers["content-type"] == f"{expected}; charset=utf-8"


async def test_a_request_error_is_400_under_graphql_response_json_and_200_under_json(web: Api) -> None:
    for query, code in (
        ("{", "GRAPHQL_PARSE_FAILED"),
        ("{ nope }", "GRAPHQL_VALIDATION_FAILED"),
        ("query($id: ID!) { node(id: $id) { id } }", "BAD_USER_INPUT"),
        ("{ me { id } } " * 1000, "GRAPHQL_PARSE_FAILED"),
        ("{" + "a: me { id } " * 500 + "}", "QUERY_TOO_COMPLEX"),
    ):
        for accept, status in ((GRAPHQL, 400), (JSON, 200)):
            response = await web.http.post("/graphql", json={"query": query}, headers={"Accept": accept})
            assert response.status_code == status
            assert response.headers["content-type"] == f"{accept}; charset=utf-8"
            # A request error (raised before execution) has no `data` key.
            assert list(response.json()) == ["errors"]
            assert [error["extensions"]["code"] for error in response.json()["errors"]] == [code]


async def test_a_field_error_is_200_under_both_media_types(web: Api) -> None:
    for accept in (GRAPHQL, JSON):
        response = await web.http.post(
            "/graphql", json={"query": "{ tasks { totalCount } }"}, headers={"Accept": accept}
        )
        assert (response.status_code, response.headers["content-type"]) == (200, f"{accept}; charset=utf-8")
        assert response.json()["data"] is None
        assert [error["path"] for error in response.json()["errors"]] == [["tasks"]]


# ---------------------------------------------------------------- CORS


ALLOWED_HEADERS = (
    "authorization, content-type, accept, x-request-id, x-apollo-operation-name, apollo-require-preflight, "
    "traceparent, tracestate, baggage, sentry-trace, x-requested-with, x-csrf-token, idempotency-key"
)


def preflight(origin: str, method: str = "POST") -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": ALLOWED_HEADERS,
    }


async def test_a_listed_origin_may_send_the_methods_and_headers_of_clients(web: Api) -> None:
    for origin in ("http://localhost:3000", ORIGIN):
        for method in ("GET", "POST"):
            response = await web.http.options("/graphql", headers=preflight(origin, method))
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == origin
            assert response.headers["access-control-allow-credentials"] == "true"
            assert response.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
            allowed = response.headers["access-control-allow-headers"].lower().split(", ")
            assert set(ALLOWED_HEADERS.split(", ")) <= set(allowed)
        response = await web.http.post("/graphql", json={"query": QUERY}, headers={"Origin": origin})
        assert response.headers["access-control-allow-origin"] == origin
        assert "Origin" in response.headers["vary"]


async def test_an_unlisted_origin_is_refused(web: Api) -> None:
    for origin in (
        "http://localhost:5174",
        "https://localhost:5173",
        "http://evil.example",
        "null",
        f"{ORIGIN}.evil.io",
    ):
        response = await web.http.options("/graphql", headers=preflight(origin))
        assert response.status_code == 400
        assert "access-control-allow-origin" not in response.headers
        response = await web.http.post("/graphql", json={"query": QUERY}, headers={"Origin": origin})
        assert "access-control-allow-origin" not in response.headers
    response = await web.http.options("/graphql", headers=preflight(ORIGIN, "DELETE"))
    assert response.status_code == 400


async def test_refusals_have_cors_headers_so_pages_can_read_them(web: Api) -> None:
    for body in (b"{", b" " * 2_000_000):
        response = await web.http.post("/graphql", content=body, headers={"Origin": ORIGIN, "Content-Type": JSON})
        assert response.status_code in (400, 413)
        assert response.headers["access-control-allow-origin"] == ORIGIN


async def test_allowed_origins_come_from_the_settings(sqlite_settings: Settings) -> None:
    settings = sqlite_settings.model_copy(update={"cors_origins": ["https://app.example"]})
    async with serving(settings) as api:
        response = await api.http.options("/graphql", headers=preflight("https://app.example"))
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        response = await api.http.options("/graphql", headers=preflight(ORIGIN))
        assert "access-control-allow-origin" not in response.headers


async def test_cors_headers_setting_allows_further_request_headers(sqlite_settings: Settings) -> None:
    asked = preflight(ORIGIN) | {"Access-Control-Request-Headers": "authorization, x-tenant"}
    async with serving(sqlite_settings) as api:
        assert (await api.http.options("/graphql", headers=asked)).status_code == 400
    async with serving(sqlite_settings.model_copy(update={"cors_headers": ["X-Tenant"]})) as api:
        response = await api.http.options("/graphql", headers=asked)
        assert response.status_code == 200
        assert "X-Tenant" in response.headers["access-control-allow-headers"]


@pytest.mark.parametrize("origins", [[ORIGIN], ["*"], []])
async def test_cors_middleware_sends_the_same_messages_as_starlettes(origins: list[str]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("x", headers=scope["extra"])(scope, receive, send)

    options: dict[str, Any] = {"allow_origins": origins, "allow_credentials": True}
    ours, starlettes = Cors(app, **options), CORSMiddleware(app, **options)

    async def answer(middleware: ASGIApp, scope: Scope) -> list[Message]:
        sent: list[Message] = []

        async def receive() -> Message:
            raise NotImplementedError

        async def send(message: Message) -> None:
            sent.append(message)

        await middleware(scope, receive, send)
        return sent

    for method, origin, extra in product(
        ["GET", "POST", "OPTIONS"], [None, ORIGIN, "http://evil.example"], [{}, {"Vary": "Accept"}]
    ):
        headers = [(b"host", b"x"), *([(b"origin", origin.encode())] if origin else [])]
        scope = {"type": "http", "method": method, "path": "/", "headers": headers, "extra": extra}
        # The second round answers from the cache.
        for _ in range(2):
            assert await answer(ours, scope) == await answer(starlettes, scope)


# ---------------------------------------------------------------- security headers


async def test_every_response_has_nosniff_and_no_referrer(web: Api) -> None:
    answers = [
        await web.http.post("/graphql", json={"query": QUERY}),
        await web.http.get("/graphql", headers={"Accept": "text/html"}),
        await web.http.get("/static/graphiql/app.js"),
        await web.http.post("/graphql", content=b"{", headers={"Content-Type": JSON}),
        await web.http.delete("/graphql"),
        await web.http.post("/graphql", content=b"{}"),
        await web.http.get("/graphql/"),
        await web.http.get("/nowhere"),
        await web.http.post("/health"),
        await web.http.options("/graphql", headers=preflight(ORIGIN)),
        await web.http.get("/health", headers={"A": "x" * 40_000}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 400, 405, 415, 307, 404, 405, 200, 431]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], answer
        assert answer.headers.get_list("referrer-policy") == ["no-referrer"], answer


async def test_graphiql_cannot_be_framed_under_any_of_its_urls(web: Api) -> None:
    for path in ("/graphql", "/static/graphiql/index.html"):
        response = await web.http.get(path, headers={"Accept": "text/html"})
        assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = response.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy)


async def test_no_graphiql_file_is_served_when_graphiql_is_off(sqlite_settings: Settings) -> None:
    async with serving(sqlite_settings.model_copy(update={"graphiql": False})) as api:
        for path in ("index.html", "app.js", "app.css", "vendor/graphiql.min.js"):
            assert (await api.http.get(f"/static/graphiql/{path}")).status_code == 404


async def test_a_trailing_slash_redirects_without_using_the_host_header(web: Api) -> None:
    for path, target in (("/graphql/", "../graphql"), ("/graphql/?query=%7Bme%7Bid%7D%7D", None)):
        for method in ("GET", "POST"):
            response = await web.http.request(method, path, headers={"Host": "evil.example"})
            assert response.status_code == 307
            assert response.headers["location"] == (target or "../graphql?query=%7Bme%7Bid%7D%7D")
    for path in ("/health/", "/static", "/static/graphiql"):
        assert (await web.http.get(path, headers={"Host": "evil.example"})).status_code == 404
    followed = await web.http.post("/graphql/", json={"query": QUERY}, follow_redirects=True)
    assert followed.json() == ANSWER


# ---------------------------------------------------------------- other endpoints


async def test_the_root_names_the_server_and_its_version(web: Api) -> None:
    response = await web.http.get("/")
    assert (response.status_code, response.json()) == (200, {"message": "TaskFlow GQL", "version": __version__})


async def test_health_reports_that_the_process_is_alive_and_the_time(web: Api) -> None:
    for path in ("/health", "/health-check"):
        response = await web.http.get(path)
        assert response.status_code == 200
        said = response.json()
        assert said == {"status": "healthy", "time": said["time"]}
        assert abs(datetime.now(UTC) - datetime.fromisoformat(said["time"])) < timedelta(minutes=1)


async def test_unknown_paths_are_404_and_wrong_methods_405(web: Api) -> None:
    for path in (
        "/nowhere",
        "/graphql/nowhere",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/.env",
        "/static/nope.js",
    ):
        assert (await web.http.get(path)).status_code == 404
    assert (await web.http.post("/health")).status_code == 405


async def test_ready_is_200_when_the_database_and_a_configured_redis_are_reachable(api: Api) -> None:
    response = await api.http.get("/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


async def test_ready_is_503_when_the_database_is_not_migrated(tmp_path: Path) -> None:
    path = tmp_path / "taskflow.sqlite3"
    settings = make_settings(data_dir=tmp_path, database_url=f"sqlite:///{path}")
    engine = create_engine(settings)
    await migrate(engine)
    async with serving(settings) as api:
        assert (await api.http.get("/ready")).status_code == 200
        await migrate(engine, "base")
        response = await api.http.get("/ready")
        assert (response.status_code, response.json()) == (503, {"status": "unavailable", "failing": ["database"]})
        await migrate(engine)
    await engine.dispose()


@pytest.mark.slow
async def test_ready_names_unreachable_parts_and_the_server_recovers_with_them(tmp_path: Path) -> None:
    with PostgresServer(durable=True) as postgres, RedisServer() as redis:
        settings = make_settings(data_dir=tmp_path, database_url=postgres.url(), redis_url=redis.url())
        engine = create_engine(settings)
        await migrate(engine)
        await engine.dispose()
        async with serving(settings) as api:

            async def ready() -> tuple[int, Any]:
                response = await api.http.get("/ready")
                return response.status_code, response.json()

            def unavailable(*parts: str) -> tuple[int, Any]:
                return 503, {"status": "unavailable", "failing": list(parts)}

            ann = await api.register("ann")
            task = await api.create_task(ann, "Before")
            assert await ready() == (200, {"status": "ready"})

            redis.kill()
            assert await ready() == unavailable("redis")
            # Without Redis, changes are streamed late. Everything else works.
            assert (await api.update_task(ann, task["id"], title="Without Redis"))["errors"] == []

            postgres.kill()
            assert await ready() == unavailable("database", "redis")
            assert await api.codes("{ tasks { totalCount } }", by=ann) == ["INTERNAL_SERVER_ERROR"]
            assert (await api.http.get("/health")).status_code == 200
            assert await api.data(QUERY) == ANSWER["data"]

            redis.start()
            assert await ready() == unavailable("database")
            postgres.start()
            assert await ready() == (200, {"status": "ready"})
            assert (await api.update_task(ann, task["id"], title="After"))["errors"] == []
            titles = await api.data("{ tasks { nodes { title version } } }", by=ann)
            assert titles == {"tasks": {"nodes": [{"title": "After", "version": 3}]}}


# ---------------------------------------------------------------- persisted queries

HASHED = {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}
NOT_SUPPORTED = {
    "errors": [
        {"message": "PersistedQueryNotSupported", "extensions": {"code": "PERSISTED_QUERY_NOT_SUPPORTED"}},
    ]
}


async def test_a_hash_without_a_document_gets_persisted_query_not_supported(web: Api) -> None:
    posted = await web.http.post("/graphql", json={"extensions": HASHED, "variables": {}})
    assert (posted.status_code, posted.json()) == (200, NOT_SUPPORTED)
    gotten = await web.http.get("/graphql", params={"extensions": json.dumps(HASHED)})
    assert (gotten.status_code, gotten.json()) == (200, NOT_SUPPORTED)


async def test_a_document_sent_with_its_hash_is_run(web: Api) -> None:
    answer = await web.http.post("/graphql", json={"query": "{ __typename }", "extensions": HASHED})
    assert answer.json() == {"data": {"__typename": "Query"}}


async def test_an_invalid_persisted_query_extension_does_not_replace_the_document(web: Api) -> None:
    answer = await web.http.post("/graphql", json={"extensions": {"persistedQuery": "x"}})
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["message"] == "The request has no query"
