"""Sessions that last: refresh tokens in bodies and cookies, their theft, sockets that outlive a token, signing out."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from http.cookies import SimpleCookie
from time import time
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import select, update

from taskflow_gql import clock
from taskflow_gql.api.accounts import REFRESH_COOKIE
from taskflow_gql.database.sessions import PostgresTransaction, SqliteTransaction
from taskflow_gql.database.units import Database
from taskflow_gql.models import RefreshToken, Session, User
from taskflow_gql.security.opaque import OpaqueTokens
from taskflow_gql.services.sessions import REUSE_WINDOW, expire_refresh_tokens, expire_sessions
from tests.support.accounts import CHANGE_PASSWORD, forge
from tests.support.client import Api, Person

AUTH = "accessToken refreshToken tokenType expiresIn user { username email } errors { code message field }"
LOGIN = f"mutation($input: LoginInput!) {{ login(input: $input) {{ {AUTH} replayed }} }}"
REFRESH = f"mutation($input: RefreshTokenInput!) {{ refreshToken(input: $input) {{ {AUTH} }} }}"
SESSIONS = "{ mySessions { id createdAt lastSeenAt expiresAt ipAddress userAgent isCurrent } }"
LOGOUT = "mutation { logout { errors { code } } }"
REVOKE = (
    "mutation($input: RevokeSessionInput!) { revokeSession(input: $input) { revokedSessionId errors { code field } } }"
)
REVOKE_OTHERS = "mutation { revokeOtherSessions { revokedCount errors { code } } }"
CHANGES = "subscription { taskChanged { kind task { title } } }"


async def sign_in(api: Api, person: Person, **given: Any) -> dict[str, Any]:
    variables = {"usernameOrEmail": person.username, "password": person.password, **given}
    payload: dict[str, Any] = (await api.data(LOGIN, {"input": variables}))["login"]
    assert payload["errors"] == []
    return payload


async def refresh(api: Api, token: str) -> dict[str, Any]:
    payload: dict[str, Any] = (await api.data(REFRESH, {"input": {"refreshToken": token}}))["refreshToken"]
    return payload


def codes(payload: dict[str, Any]) -> list[str]:
    return [error["code"] for error in payload["errors"]]


async def is_signed_in(api: Api, token: str) -> bool:
    return await api.codes("{ me { id } }", by=token) == []


async def age_replaced_tokens(database: Database) -> None:
    """As if the window for replaced tokens had passed."""
    async with database.write() as session:
        for token in (await session.execute(select(RefreshToken.token_hash, RefreshToken.replaced_at))).all():
            if token.replaced_at is not None:
                aged = token.replaced_at - REUSE_WINDOW - timedelta(seconds=1)
                statement = update(RefreshToken).where(RefreshToken.token_hash == token.token_hash)
                await session.execute(statement.values(replaced_at=aged))


# ---------------------------------------------------------------- rotation


async def test_a_refresh_gives_new_tokens_of_the_same_session(api: Api) -> None:
    ann = await api.register("ann")
    first = await sign_in(api, ann)
    assert first["refreshToken"].startswith("tfr_")
    second = await refresh(api, first["refreshToken"])
    assert (second["errors"], second["tokenType"], second["expiresIn"]) == ([], "Bearer", 1800)
    assert second["user"] == {"username": "ann", "email": "ann@example.com"}
    third = await refresh(api, second["refreshToken"])
    assert len({each["refreshToken"] for each in (first, second, third)}) == 3
    for each in (first, second, third):
        assert await is_signed_in(api, each["accessToken"])
    # One from the registration.
    assert len((await api.data(SESSIONS, by=ann))["mySessions"]) == 2


async def test_registration_gives_a_refresh_token_too(api: Api) -> None:
    given = {"email": "zoe@example.com", "username": "zoe", "fullName": "Zoe", "password": "correct horse"}
    document = f"mutation($input: RegisterInput!) {{ register(input: $input) {{ {AUTH} }} }}"
    payload = (await api.data(document, {"input": given}))["register"]
    assert (await refresh(api, payload["refreshToken"]))["errors"] == []


async def test_tabs_that_share_a_token_all_get_the_same_successor(api: Api) -> None:
    ann = await api.register("ann")
    token = (await sign_in(api, ann))["refreshToken"]
    for _ in range(3):
        answers = await asyncio.gather(*(refresh(api, token) for _ in range(20)))
        assert [codes(answer) for answer in answers] == [[]] * 20
        (token,) = {answer["refreshToken"] for answer in answers}
        assert all([await is_signed_in(api, answer["accessToken"]) for answer in answers[:3]])


async def test_a_slow_tab_gets_the_successor_though_that_was_replaced_too(api: Api) -> None:
    ann = await api.register("ann")
    first = (await sign_in(api, ann))["refreshToken"]
    second = (await refresh(api, first))["refreshToken"]
    third = (await refresh(api, second))["refreshToken"]
    assert (await refresh(api, first))["refreshToken"] == second
    assert (await refresh(api, second))["refreshToken"] == third


async def test_a_token_used_again_later_ends_its_session_and_no_other(
    api: Api, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    ann = await api.register("ann")
    stolen, other = await sign_in(api, ann), await sign_in(api, ann)
    thief = await refresh(api, stolen["refreshToken"])
    await age_replaced_tokens(database)
    with caplog.at_level(logging.WARNING):
        refused = await refresh(api, stolen["refreshToken"])
    assert (codes(refused), refused["accessToken"], refused["refreshToken"]) == (["INVALID_TOKEN"], None, None)
    assert "used before" in refused["errors"][0]["message"]
    (record,) = [record for record in caplog.records if "refresh token" in record.getMessage()]
    assert stolen["refreshToken"] not in record.getMessage()
    for token in (stolen["accessToken"], thief["accessToken"]):
        assert not await is_signed_in(api, token)
    assert codes(await refresh(api, thief["refreshToken"])) == ["INVALID_TOKEN"]
    assert (await refresh(api, other["refreshToken"]))["errors"] == []
    assert await is_signed_in(api, ann.token)


async def test_tokens_that_the_server_did_not_give_are_refused(api: Api) -> None:
    ann = await api.register("ann")
    token = (await sign_in(api, ann))["refreshToken"]
    changed = token[:10] + ("0" if token[10] != "0" else "1") + token[11:]
    unknown = OpaqueTokens("tfr_").make()
    for wrong in ("", changed, unknown, token.upper(), f"{token} ", token * 1000, "tfp_" + token[4:], ann.token, "é"):
        assert codes(await refresh(api, wrong)) == ["INVALID_TOKEN"], wrong[:60]
    assert (await refresh(api, token))["errors"] == []


async def test_clocks_of_servers_that_differ_by_a_minute_sign_nobody_out(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await api.register("ann")
    token = (await sign_in(api, ann))["refreshToken"]
    now = clock.now
    for minutes in (1, -1, 1):
        monkeypatch.setattr(clock, "now", lambda minutes=minutes: now() + timedelta(minutes=minutes))
        first = await refresh(api, token)
        monkeypatch.setattr(clock, "now", lambda minutes=minutes: now() - timedelta(minutes=minutes))
        again = await refresh(api, token)
        assert (first["errors"], again["errors"]) == ([], [])
        assert first["refreshToken"] == again["refreshToken"]
        for each in (first, again):
            assert await is_signed_in(api, each["accessToken"])
        token = first["refreshToken"]


async def test_a_session_ends_when_it_is_not_refreshed_in_time(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    token = (await sign_in(api, ann))["refreshToken"]
    async with database.write() as session:
        await session.execute(update(Session).values(expires_at=clock.now() - timedelta(days=2)))
    assert codes(await refresh(api, token)) == ["INVALID_TOKEN"]
    async with database.write() as session:
        # Retention may have deleted some already.
        await expire_sessions(session, clock.now() - timedelta(days=1), limit=1)
        await expire_sessions(session, clock.now() - timedelta(days=1), limit=10)
        assert (await session.execute(select(Session.id))).all() == []
        assert (await session.execute(select(RefreshToken.session_id))).all() == []


async def test_replaced_tokens_are_deleted_in_batches_and_then_unknown(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    tokens = [(await sign_in(api, ann))["refreshToken"]]
    for _ in range(3):
        tokens.append((await refresh(api, tokens[-1]))["refreshToken"])
    async with database.write() as session:
        soon = clock.now() + timedelta(minutes=1)
        assert [await expire_refresh_tokens(session, soon, limit=2) for _ in range(3)] == [2, 1, 0]
    assert codes(await refresh(api, tokens[0])) == ["INVALID_TOKEN"]
    assert (await refresh(api, tokens[-1]))["errors"] == []


async def test_the_database_holds_no_token(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    first = (await sign_in(api, ann, mutationId="m"))["refreshToken"]
    second = (await refresh(api, first))["refreshToken"]
    async with database.connect() as connection:
        for table in ("sessions", "refresh_tokens", "receipts", "users"):
            rows = str((await connection.exec_driver_sql(f"SELECT * FROM {table}")).all())  # noqa: S608
            assert first not in rows
            assert second not in rows


async def test_a_deactivated_person_and_a_changed_password_end_refresh_tokens(api: Api, database: Database) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    tokens = [(await sign_in(api, person))["refreshToken"] for person in (ann, bob)]
    given = {"currentPassword": ann.password, "newPassword": "battery staple"}
    assert (await api.data(CHANGE_PASSWORD, {"input": given}, by=ann))["changePassword"]["errors"] == []
    async with database.write() as session:
        await session.execute(update(User).where(User.username == "bob").values(is_active=False))
    for token in tokens:
        assert codes(await refresh(api, token)) == ["INVALID_TOKEN"]


async def test_a_repeated_sign_in_gives_the_first_refresh_token_until_it_is_used(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    first = await sign_in(api, ann, mutationId="m")
    again = await sign_in(api, ann, mutationId="m")
    assert (again["replayed"], again["refreshToken"]) == (True, first["refreshToken"])
    assert (await refresh(api, first["refreshToken"]))["errors"] == []
    await age_replaced_tokens(database)
    late = await sign_in(api, ann, mutationId="m")
    assert (late["refreshToken"], late["errors"]) == (None, [])
    assert await is_signed_in(api, late["accessToken"])


# ---------------------------------------------------------------- cookies


async def post(api: Api, document: str, given: Any = None, **headers: str) -> httpx.Response:
    variables = None if given is None else {"input": given}
    return await api.http.post("/graphql", json={"query": document, "variables": variables}, headers=headers)


def cookie_of(response: httpx.Response) -> str:
    morsel = SimpleCookie(response.headers["set-cookie"])[REFRESH_COOKIE]
    attributes = {name: morsel[name] for name in ("path", "secure", "httponly", "samesite", "domain")}
    assert attributes == {"path": "/", "secure": True, "httponly": True, "samesite": "Strict", "domain": ""}
    return f"{REFRESH_COOKIE}={morsel.value}"


async def sign_in_with_cookie(api: Api, person: Person, **headers: str) -> httpx.Response:
    given = {"usernameOrEmail": person.username, "password": person.password, "transport": "COOKIE"}
    return await post(api, LOGIN, given, **headers)


async def test_a_browser_app_signs_in_refreshes_and_signs_out_by_cookie(api: Api) -> None:
    ann = await api.register("ann")
    response = await sign_in_with_cookie(api, ann, Origin=api.url)
    payload = response.json()["data"]["login"]
    assert (payload["errors"], payload["refreshToken"]) == ([], None)
    first = cookie_of(response)
    response = await post(api, REFRESH, {}, Cookie=first, Origin=api.url)
    payload = response.json()["data"]["refreshToken"]
    assert (payload["errors"], payload["refreshToken"]) == ([], None)
    second = cookie_of(response)
    assert second != first
    token = f"Bearer {payload['accessToken']}"
    response = await post(api, LOGOUT, Cookie=second, Authorization=token)
    assert SimpleCookie(response.headers["set-cookie"])[REFRESH_COOKIE]["max-age"] == "0"
    response = await post(api, REFRESH, {}, Cookie=second)
    assert codes(response.json()["data"]["refreshToken"]) == ["INVALID_TOKEN"]
    assert "set-cookie" not in response.headers


async def test_without_a_cookie_or_a_token_a_refresh_says_to_sign_in(api: Api) -> None:
    payload = (await post(api, REFRESH, {}, Cookie="other=1; ;;=")).json()["data"]["refreshToken"]
    assert codes(payload) == ["INVALID_TOKEN"]
    assert "sign in" in payload["errors"][0]["message"]


OWN, NAMED, FOREIGN = "own", "http://localhost:5173", "https://foreign.example"
PAGES = [
    ({}, True),
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Origin": OWN}, True),
    ({"Origin": NAMED, "Sec-Fetch-Site": "same-site"}, True),
    ({"Origin": "https://public.example", "Sec-Fetch-Site": "same-origin"}, True),
    ({"Origin": FOREIGN, "Sec-Fetch-Site": "cross-site"}, False),
    ({"Origin": FOREIGN}, False),
    ({"Origin": "null"}, False),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": "same-site"}, False),
    ({"Sec-Fetch-Site": "none"}, False),
]


@pytest.mark.parametrize(("headers", "is_taken"), PAGES)
async def test_only_pages_of_named_origins_may_use_the_cookie(
    api: Api, headers: dict[str, str], is_taken: bool
) -> None:
    ann = await api.register("ann")
    headers = {name: api.url if value == OWN else value for name, value in headers.items()}
    cookie = cookie_of(await sign_in_with_cookie(api, ann))
    for response in (
        await post(api, REFRESH, {}, Cookie=cookie, **headers),
        await sign_in_with_cookie(api, ann, **headers),
    ):
        (payload,) = response.json()["data"].values()
        assert codes(payload) == ([] if is_taken else ["FORBIDDEN"])
        assert ("set-cookie" in response.headers) is is_taken
    # It was not used up.
    assert codes((await post(api, REFRESH, {}, Cookie=cookie)).json()["data"]["refreshToken"]) == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_forms_of_foreign_pages_cannot_refresh(api: Api, content_type: str) -> None:
    ann = await api.register("ann")
    cookie = cookie_of(await sign_in_with_cookie(api, ann))
    body = '{"query": "mutation { refreshToken(input: {}) { accessToken } }"}'
    headers = {"Cookie": cookie, "Content-Type": content_type}
    response = await api.http.post("/graphql", content=body, headers=headers)
    assert (response.status_code, "set-cookie" in response.headers) == (415, False)


async def test_a_get_request_cannot_refresh(api: Api) -> None:
    ann = await api.register("ann")
    cookie = cookie_of(await sign_in_with_cookie(api, ann))
    query = {"query": "mutation { refreshToken(input: {}) { accessToken } }"}
    response = await api.http.get("/graphql", params=query, headers={"Cookie": cookie})
    assert (response.status_code, "set-cookie" in response.headers) == (405, False)


async def test_the_cookie_alone_signs_nobody_in(api: Api) -> None:
    ann = await api.register("ann")
    cookie = cookie_of(await sign_in_with_cookie(api, ann))
    assert (await post(api, "{ me { id } }", Cookie=cookie)).json() == {"data": {"me": None}}


async def test_streamed_answers_and_sockets_refuse_cookies(api: Api) -> None:
    ann = await api.register("ann")
    given = {"usernameOrEmail": ann.username, "password": ann.password, "transport": "COOKIE"}
    response = await post(api, LOGIN, given, Accept="text/event-stream")
    assert "BAD_USER_INPUT" in response.text
    async with api.signed_in_socket(ann) as socket:
        await socket.subscribe(LOGIN, variables={"input": given})
        assert codes((await socket.next())["login"]) == ["BAD_USER_INPUT"]


# ---------------------------------------------------------------- WebSockets


# Enough for a busy machine to open the socket, and then until the token has expired and streams were checked.
LIFETIME_SECONDS = 4
UNTIL_EXPIRED_SECONDS = LIFETIME_SECONDS + 2.5


def short_lived(person: Person) -> Person:
    token = forge(person.token, exp=int(time() + LIFETIME_SECONDS) + 1)
    return Person(person.id, person.username, person.email, person.password, token)


async def test_a_socket_and_its_streams_outlive_a_token_that_is_refreshed_on_it(api: Api) -> None:
    ann = await api.register("ann")
    signed_in = await sign_in(api, ann)
    short = short_lived(Person(ann.id, "ann", ann.email, ann.password, signed_in["accessToken"]))
    async with api.signed_in_socket(short) as socket:
        await socket.subscribe(CHANGES, id="stream")
        await socket.subscribe(REFRESH, id="refresh", variables={"input": {"refreshToken": signed_in["refreshToken"]}})
        assert (await socket.next("refresh"))["refreshToken"]["errors"] == []
        assert (await socket.receive())["type"] == "complete"
        # The first token expires, and the streams are checked once a second.
        await asyncio.sleep(UNTIL_EXPIRED_SECONDS)
        await api.create_task(ann, "Later")
        assert await socket.next("stream") == {"taskChanged": {"kind": "CREATED", "task": {"title": "Later"}}}
        await socket.subscribe("{ me { username } }", id="query")
        assert await socket.next("query") == {"me": {"username": "ann"}}


async def test_a_ping_gives_a_socket_the_token_of_a_refresh_over_http(api: Api) -> None:
    ann = await api.register("ann")
    signed_in = await sign_in(api, ann)
    short = short_lived(Person(ann.id, "ann", ann.email, ann.password, signed_in["accessToken"]))
    async with api.signed_in_socket(short) as socket:
        await socket.subscribe(CHANGES, id="stream")
        refreshed = await refresh(api, signed_in["refreshToken"])
        await socket.send(type="ping", payload={"authorization": f"Bearer {refreshed['accessToken']}"})
        assert (await socket.receive())["type"] == "pong"
        await asyncio.sleep(UNTIL_EXPIRED_SECONDS)
        await api.create_task(ann, "Later")
        assert (await socket.next("stream"))["taskChanged"]["kind"] == "CREATED"


async def test_a_socket_whose_token_is_not_refreshed_closes(api: Api) -> None:
    ann = await api.register("ann")
    async with api.signed_in_socket(short_lived(ann)) as socket:
        await socket.subscribe(CHANGES)
        # A refresh elsewhere does not extend it.
        assert (await refresh(api, (await sign_in(api, ann))["refreshToken"]))["errors"] == []
        assert await socket.close_code() == 4403


@pytest.mark.parametrize("whose", ["nobody", "another person", "another session"])
async def test_a_ping_with_a_token_of_another_session_closes_the_socket(api: Api, whose: str) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    token = {"nobody": "x", "another person": bob.token, "another session": (await sign_in(api, ann))["accessToken"]}
    async with api.signed_in_socket(ann) as socket:
        await socket.send(type="ping", payload={"authorization": f"Bearer {token[whose]}"})
        assert await socket.close_code() == 4403


@pytest.mark.parametrize("payload", [None, {}, {"authorization": 1}, {"authorization": {}}, {"note": "x"}])
async def test_other_pings_are_answered(api: Api, payload: Any) -> None:
    ann = await api.register("ann")
    async with api.signed_in_socket(ann) as socket:
        await socket.send(type="ping", payload=payload)
        assert (await socket.receive())["type"] == "pong"


async def test_an_anonymous_socket_takes_no_token_later(api: Api) -> None:
    ann = await api.register("ann")
    async with api.socket() as socket:
        await socket.send(type="connection_init")
        assert (await socket.receive())["type"] == "connection_ack"
        await socket.send(type="ping", payload={"authorization": f"Bearer {ann.token}"})
        assert await socket.close_code() == 4403


# ---------------------------------------------------------------- sessions


async def test_a_person_sees_their_own_sessions(api: Api) -> None:
    ann, _ = await api.register("ann"), await api.register("bob")
    given = {"usernameOrEmail": "ann", "password": ann.password}
    response = await post(api, LOGIN, given, **{"User-Agent": "Phone/1 " + "x" * 300})
    token = response.json()["data"]["login"]["accessToken"]
    first, second = (await api.data(SESSIONS, by=token))["mySessions"]
    assert (first["isCurrent"], second["isCurrent"]) == (True, False)
    assert first["userAgent"] == ("Phone/1 " + "x" * 300)[:255]
    assert "httpx" in second["userAgent"]
    assert {first["ipAddress"], second["ipAddress"]} == {"127.0.0.1"}
    assert second["createdAt"] == second["lastSeenAt"] < first["createdAt"] < first["expiresAt"]
    assert await api.codes(SESSIONS) == ["UNAUTHENTICATED"]


async def test_a_refresh_says_when_and_where_a_session_was_last_seen(api: Api) -> None:
    ann = await api.register("ann")
    token = (await sign_in(api, ann))["refreshToken"]
    before = (await api.data(SESSIONS, by=ann))["mySessions"][0]
    await post(api, REFRESH, {"refreshToken": token}, **{"User-Agent": "Elsewhere/2"})
    after = (await api.data(SESSIONS, by=ann))["mySessions"][0]
    assert after["userAgent"] == "Elsewhere/2"
    for name in ("lastSeenAt", "expiresAt"):
        assert after[name] > before[name]
    assert (after["id"], after["createdAt"]) == (before["id"], before["createdAt"])


async def test_signing_out_ends_the_session_its_tokens_and_its_streams(api: Api) -> None:
    ann = await api.register("ann")
    signed_in = await sign_in(api, ann)
    here = Person(ann.id, "ann", ann.email, ann.password, signed_in["accessToken"])
    async with api.signed_in_socket(here) as socket:
        await socket.subscribe(CHANGES)
        assert (await api.data(LOGOUT, by=here))["logout"] == {"errors": []}
        assert not await is_signed_in(api, here.token)
        assert codes(await refresh(api, signed_in["refreshToken"])) == ["INVALID_TOKEN"]
        assert await socket.close_code() == 4403
    assert await is_signed_in(api, ann.token)
    assert await api.codes(LOGOUT, by=here) == ["UNAUTHENTICATED"]


async def test_a_lost_device_is_signed_out_from_another(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    lost = await sign_in(api, ann)
    (lost_id,) = [each["id"] for each in (await api.data(SESSIONS, by=ann))["mySessions"] if not each["isCurrent"]]
    for by, id_, expected in (
        (bob, lost_id, "NOT_FOUND"),
        (ann, str(uuid4()), "NOT_FOUND"),
        (ann, "x", "BAD_USER_INPUT"),
    ):
        payload = (await api.data(REVOKE, {"input": {"id": id_}}, by=by))["revokeSession"]
        assert payload == {"revokedSessionId": None, "errors": [{"code": expected, "field": ["id"]}]}
    assert await is_signed_in(api, lost["accessToken"])
    payload = (await api.data(REVOKE, {"input": {"id": lost_id, "mutationId": "m"}}, by=ann))["revokeSession"]
    assert payload == {"revokedSessionId": lost_id, "errors": []}
    assert not await is_signed_in(api, lost["accessToken"])
    # Repeated.
    payload = (await api.data(REVOKE, {"input": {"id": lost_id, "mutationId": "m"}}, by=ann))["revokeSession"]
    assert payload == {"revokedSessionId": lost_id, "errors": []}


async def test_all_other_sessions_end_at_once(api: Api) -> None:
    ann, bob = await api.register("ann"), await api.register("bob")
    others = [(await sign_in(api, ann))["accessToken"] for _ in range(3)]
    assert (await api.data(REVOKE_OTHERS, by=ann))["revokeOtherSessions"] == {"revokedCount": 3, "errors": []}
    assert (await api.data(REVOKE_OTHERS, by=ann))["revokeOtherSessions"] == {"revokedCount": 0, "errors": []}
    assert [await is_signed_in(api, token) for token in others] == [False] * 3
    assert await is_signed_in(api, ann.token)
    assert await is_signed_in(api, bob.token)


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
async def test_refreshes_and_the_end_of_their_session_do_not_deadlock(api: Api) -> None:
    ann = await api.register("ann")
    for _ in range(10):
        signed_in = await sign_in(api, ann)
        here = Person(ann.id, "ann", ann.email, ann.password, signed_in["accessToken"])
        answers = await asyncio.gather(
            *(refresh(api, signed_in["refreshToken"]) for _ in range(4)), api.data(LOGOUT, by=here)
        )
        assert answers[-1] == {"logout": {"errors": []}}
        assert {code for answer in answers[:-1] for code in codes(answer)} <= {"INVALID_TOKEN"}
        assert not await is_signed_in(api, here.token)


async def test_a_refresh_that_is_not_committed_sets_no_cookie(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await api.register("ann")
    cookie = cookie_of(await sign_in_with_cookie(api, ann))

    async def fail(_session: object) -> None:
        raise OSError("The server has gone away")

    for transaction in (SqliteTransaction, PostgresTransaction):
        monkeypatch.setattr(transaction, "commit", fail)
    response = await post(api, REFRESH, {}, Cookie=cookie)
    assert ("errors" in response.json(), "set-cookie" in response.headers) == (True, False)
    monkeypatch.undo()
    assert codes((await post(api, REFRESH, {}, Cookie=cookie)).json()["data"]["refreshToken"]) == []


async def test_a_repeated_sign_in_after_signing_out_is_refused(api: Api) -> None:
    ann = await api.register("ann")
    signed_in = await sign_in(api, ann, mutationId="m")
    here = Person(ann.id, "ann", ann.email, ann.password, signed_in["accessToken"])
    await api.data(LOGOUT, by=here)
    given = {"usernameOrEmail": "ann", "password": ann.password, "mutationId": "m"}
    payload = (await api.data(LOGIN, {"input": given}))["login"]
    assert (codes(payload), payload["accessToken"]) == (["INVALID_TOKEN"], None)


async def test_the_servers_key_alone_gives_no_refresh_token(api: Api, database: Database) -> None:
    ann = await api.register("ann")
    first, second = (await sign_in(api, ann))["refreshToken"], (await sign_in(api, ann))["refreshToken"]
    assert first != second
    async with database.read() as session:
        nonces = (await session.execute(select(Session.nonce))).scalars().all()
    assert (len(set(nonces)), {len(nonce or b"") for nonce in nonces}) == (3, {32})


async def test_an_older_token_does_not_shorten_a_socket(api: Api) -> None:
    ann = await api.register("ann")
    async with api.signed_in_socket(ann) as socket:
        await socket.send(type="ping", payload={"AUTHORIZATION": f"Bearer {short_lived(ann).token}"})
        assert (await socket.receive())["type"] == "pong"
        await asyncio.sleep(UNTIL_EXPIRED_SECONDS)
        await socket.subscribe("{ me { username } }")
        assert await socket.next() == {"me": {"username": "ann"}}
