"""Tokens of trusted issuers: their keys over HTTP, the accounts of their people, and tokens that nobody accepts."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm
from sqlalchemy import delete, func, select

from taskflow_gql.config import Settings, load_settings
from taskflow_gql.database.units import Database
from taskflow_gql.errors import ConfigurationError, Unauthenticated
from taskflow_gql.models import ForeignIdentity, Session, User
from taskflow_gql.security import issuers
from taskflow_gql.security.issuers import ClaimNames, FixedKeys, Issuer, RemoteKeys
from taskflow_gql.security.keys import Key, key_of_secret
from taskflow_gql.security.passwords import NO_PASSWORD, PasswordHasher
from taskflow_gql.services.identities import link_identity
from tests.support.accounts import CHANGE_PASSWORD, LOGIN
from tests.support.client import Api, Person
from tests.support.factories import noting_statements
from tests.support.hostile_tokens import HOSTILE, Make, Target, base64url
from tests.support.issuers import AUDIENCE, SignInServer, person_claims, trusting
from tests.support.serving import make_admin, serving

DOCS = (Path(__file__).parents[2] / "docs" / "keys.md").read_text()
SHARED = "shared with the backend, and long enough"
ME = "{ me { id username fullName email role } }"
WATCH = "subscription($after: String) { taskChanged(after: $after) { kind } }"
DEACTIVATE = "mutation($id: ID!) { deactivateUser(input: {userId: $id}) { errors { code } } }"
ALGORITHMS = ("EdDSA", "ES256", "RS256")


@pytest.fixture
def auth() -> Iterator[SignInServer]:
    with SignInServer() as server:
        yield server


@pytest.fixture
async def api(settings: Settings, auth: SignInServer) -> AsyncIterator[Api]:
    async with serving(trusting(settings, auth.trusted)) as api:
        yield api


def issuer_of(server: SignInServer) -> Issuer:
    return Issuer(server.issuer, AUDIENCE, RemoteKeys(server.url, ALGORITHMS), ClaimNames())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  (it happens in a thread of the sign-in server)
            await asyncio.sleep(0.01)


def is_idle() -> bool:
    """Whether no keys are being fetched."""
    return "fetch-keys" not in {task.get_name() for task in asyncio.all_tasks()}


async def message(api: Api, token: str) -> str:
    (error,) = (await api.post(ME, by=token))["errors"]
    assert error["extensions"]["code"] == "UNAUTHENTICATED"
    found: str = error["message"]
    return found


async def count(database: Database, model: Any) -> int:
    async with database.read() as session:
        return int((await session.execute(select(func.count()).select_from(model))).scalar_one())


# The documented examples


def documented(number: int) -> list[dict[str, Any]]:
    """The value of TASKFLOW_TRUSTED_ISSUERS in an example of docs/keys.md."""
    found: list[dict[str, Any]] = json.loads(re.findall(r"TASKFLOW_TRUSTED_ISSUERS='(.*)'", DOCS)[number])
    return found


async def test_better_auths_jwt_plugin_as_documented(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys have no `use`, its header has no `typ`, and its payload holds the whole user."""
    with SignInServer("b1X7wPAo0Yx4GgrGQ5ieMgvhPFtbJVDh") as auth:
        public = json.loads(auth.jwks())["keys"][0]
        auth.body = json.dumps({"keys": [{name: public[name] for name in ("alg", "crv", "x", "kty", "kid")}]}).encode()
        (example,) = documented(0)
        assert example["jwks_url"] == "https://app.example/api/auth/jwks"
        monkeypatch.setenv("TASKFLOW_TRUSTED_ISSUERS", json.dumps([example | {"jwks_url": auth.url}]))
        trusted = load_settings().trusted_issuers
        claims = {
            "iat": int(time.time()),
            "id": "rTKvVWpGMNZQb4Uv0nHs",
            "name": "Ann Lee",
            "email": "ann@app.example",
            "emailVerified": False,
            "image": None,
            "createdAt": "2026-11-30T10:00:00.000Z",
            "updatedAt": "2026-11-30T10:00:00.000Z",
            "sub": "rTKvVWpGMNZQb4Uv0nHs",
            "exp": int(time.time()) + 900,
            "iss": "https://app.example",
            "aud": "https://tasks.example",
        }
        kid = next(iter(auth.keys))
        token = jwt.encode(claims, auth.keys[kid], algorithm="EdDSA", headers={"kid": kid, "typ": None})
        assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "kid": kid}
        async with serving(trusting(sqlite_settings, *trusted)) as api:
            me = (await api.post(ME, by=token))["data"]["me"]
    assert me == {
        "id": me["id"],
        "username": "Ann.Lee",
        "fullName": "Ann Lee",
        "email": "ann@app.example",
        "role": "MEMBER",
    }


async def test_a_shared_secret_as_documented(sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = documented(1)
    monkeypatch.setenv("TASKFLOW_TRUSTED_ISSUERS", json.dumps([example | {"secret": SHARED}]))
    trusted = load_settings().trusted_issuers
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    token = eval(code, {"jwt": jwt, "time": time, "secret": SHARED})  # noqa: S307  (from our own page)
    async with serving(trusting(sqlite_settings, *trusted)) as api:
        me = (await api.post(ME, by=token))["data"]["me"]
    assert (me["username"], me["email"]) == ("Ann.Lee", "ann@app.example")


# People


async def test_a_person_is_made_at_first_sight_and_known_afterwards(
    api: Api, database: Database, auth: SignInServer
) -> None:
    first = await api.post(ME, by=auth.token())
    later = await api.post(ME, by=auth.token(name="Another Name", email="other@app.example"))
    assert first == later
    me = first["data"]["me"]
    assert (me["username"], me["fullName"], me["email"]) == ("Person.4711", "Person 4711", "4711@app.example")
    assert await count(database, User) == await count(database, ForeignIdentity) == 1
    assert await count(database, Session) == 0
    # An account like others.
    person = Person(me["id"], me["username"], me["email"], "", auth.token())
    task = await api.create_task(person)
    assert (await api.update_task(person, task["id"], title="Changed"))["errors"] == []


async def test_twenty_first_requests_at_once_make_one_person(api: Api, database: Database, auth: SignInServer) -> None:
    answers = await asyncio.gather(*(api.post(ME, by=auth.token()) for _ in range(20)))
    assert {answer["data"]["me"]["email"] for answer in answers} == {"4711@app.example"}
    assert len({answer["data"]["me"]["id"] for answer in answers}) == 1
    assert await count(database, User) == await count(database, ForeignIdentity) == 1


async def test_first_requests_with_different_addresses_make_one_person(
    api: Api, database: Database, auth: SignInServer
) -> None:
    tokens = [auth.token(email=f"a{number}@app.example", name=f"Name {number}") for number in range(10)]
    answers = await asyncio.gather(*(api.post(ME, by=token) for token in tokens))
    assert len({answer["data"]["me"]["id"] for answer in answers}) == 1
    assert await count(database, User) == await count(database, ForeignIdentity) == 1


async def test_people_with_the_same_name_get_different_usernames(api: Api, auth: SignInServer) -> None:
    tokens = [auth.token(f"id{number}", name="Ann Lee") for number in range(10)]
    answers = await asyncio.gather(*(api.post(ME, by=token) for token in tokens))
    names = sorted(answer["data"]["me"]["username"] for answer in answers)
    assert len(set(names)) == 10
    assert "Ann.Lee" in names
    assert all(re.fullmatch(r"Ann\.Lee(-[0-9a-f]{8})?", name) for name in names)


@pytest.mark.parametrize(
    ("name", "username", "full_name"),
    [
        ("Zoë Müller-O'Brien", r"Zoe\.Muller-O\.Brien", "Zoë Müller-O'Brien"),
        ("李小龍", r"user-[0-9a-f]{8}", "李小龍"),
        ("<script>alert(1)</script>", r"script\.alert\.1\.script", "<script>alert(1)</script>"),
        ("  Ann  ", "Ann", "Ann"),
        ("x" * 255, r"x{41}", "x" * 255),
        ("x" * 300, r"user-[0-9a-f]{8}", None),
        ("", r"user-[0-9a-f]{8}", None),
        ("Ann\x00Lee", r"user-[0-9a-f]{8}", None),
        ("\ud800nn", r"user-[0-9a-f]{8}", None),
        (["Ann"], r"user-[0-9a-f]{8}", None),
        (None, r"user-[0-9a-f]{8}", None),
    ],
)
async def test_usernames_are_made_of_names(
    api: Api, auth: SignInServer, name: object, username: str, full_name: str | None
) -> None:
    answer = await api.post(ME, by=auth.token(name=name))
    me = answer["data"]["me"]
    assert re.fullmatch(username, me["username"])
    # Without a name that can be shown, the username is the name.
    assert me["fullName"] == (full_name or me["username"])


@pytest.mark.parametrize(
    ("email", "reason"),
    [
        (None, "The token has no email address, which a new account needs: let the issuer add it"),
        (["a@app.example"], "The token has no email address, which a new account needs: let the issuer add it"),
        (
            "nonsense",
            "The token's address cannot be used: Email address is not valid: An email address must have an @-sign.",
        ),
    ],
)
async def test_a_new_person_needs_an_address(
    api: Api, database: Database, auth: SignInServer, email: object, reason: str
) -> None:
    assert await message(api, auth.token(email=email)) == reason
    assert await count(database, User) == 0


async def test_an_address_of_another_account_is_refused_until_the_two_are_linked(
    api: Api, database: Database, auth: SignInServer
) -> None:
    ann = await api.register("ann")
    token = auth.token(email="ANN@example.com")
    assert await message(api, token) == (
        "The address of this token belongs to an account that is not linked to it: sign in to that account with its "
        "password, or ask an admin to link the two"
    )
    assert (await count(database, User), await count(database, ForeignIdentity)) == (1, 0)
    # Not through another person of the issuer either.
    assert await api.codes(ME, by=auth.token("0815")) == []
    assert await api.codes(ME, by=token) == ["UNAUTHENTICATED"]

    async with database.write() as session:
        await link_identity(session, "ann", issuer=auth.issuer, subject="4711")
    assert (await api.post(ME, by=token))["data"]["me"]["id"] == ann.id
    assert (await api.post(ME, by=ann))["data"]["me"]["id"] == ann.id


async def test_people_of_two_issuers_with_the_same_id_are_two(settings: Settings, database: Database) -> None:
    class Other(SignInServer):
        issuer = "https://other.example"

    with SignInServer() as one, Other() as other:
        async with serving(trusting(settings, one.trusted, other.trusted)) as api:
            tokens = [one.token(), other.token(email="someone@other.example")]
            ids = [(await api.post(ME, by=token))["data"]["me"]["id"] for token in (*tokens, *tokens)]
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == 2


async def test_a_person_without_a_password_cannot_sign_in_with_any(
    api: Api, database: Database, auth: SignInServer
) -> None:
    await api.post(ME, by=auth.token())
    for password in (NO_PASSWORD, "", "correct horse"):
        given = {"usernameOrEmail": "4711@app.example", "password": password}
        payload = (await api.data(LOGIN, {"input": given}))["login"]
        assert [error["code"] for error in payload["errors"]] == ["INVALID_CREDENTIALS"]
        given = {"currentPassword": password, "newPassword": "battery staple"}
        answer = await api.post(CHANGE_PASSWORD, {"input": given}, by=auth.token())
        assert [error["code"] for error in answer["data"]["changePassword"]["errors"]] == ["INVALID_CREDENTIALS"]


async def test_no_password_takes_as_long_as_a_wrong_one() -> None:
    hasher = PasswordHasher()
    try:
        known = await hasher.hash("correct horse")
        seconds = {}
        for stored in (known, NO_PASSWORD):
            begun = time.perf_counter()
            for _ in range(3):
                assert not await hasher.verify("battery staple", stored)
            seconds[stored] = time.perf_counter() - begun
        assert seconds[NO_PASSWORD] > seconds[known] / 3
    finally:
        hasher.close()


async def test_a_deactivated_person_stays_out(api: Api, database: Database, auth: SignInServer) -> None:
    boss = await api.register("boss")
    await make_admin(database, boss.id)
    me = (await api.post(ME, by=auth.token()))["data"]["me"]
    await api.data(DEACTIVATE, {"id": me["id"]}, by=boss)
    assert await message(api, auth.token()) == "Could not validate credentials: the user is deactivated"
    assert await count(database, User) == 2


async def test_own_tokens_work_beside_foreign_ones(api: Api, auth: SignInServer) -> None:
    ann = await api.register("ann")
    answers = await asyncio.gather(*(api.post(ME, by=by) for by in (ann.token, auth.token()) * 5))
    assert [answer["data"]["me"]["username"] for answer in answers] == ["ann", "Person.4711"] * 5
    assert auth.fetches == 1


async def test_a_known_person_costs_as_many_statements_as_an_own_token(api: Api, auth: SignInServer) -> None:
    ann = await api.register("ann")
    await api.post(ME, by=auth.token())
    counts = []
    for token in (ann.token, auth.token()):
        statements: list[str] = []
        with noting_statements(statements.append):
            await api.post(ME, by=token)
        counts.append(len([sql for sql in statements if "users" in sql]))
    assert counts == [1, 1]


# Streams


async def test_a_foreign_token_is_good_for_a_websocket_and_for_server_sent_events(api: Api, auth: SignInServer) -> None:
    token = auth.token()
    me = (await api.post(ME, by=token))["data"]["me"]
    person = Person(me["id"], me["username"], me["email"], "", token)
    cursor = (await api.data("{ tasks { changesCursor } }", by=person))["tasks"]["changesCursor"]
    async with api.signed_in_socket(person) as socket:
        await socket.subscribe(WATCH, variables={"after": cursor})
        await api.create_task(person)
        assert await socket.next() == {"taskChanged": {"kind": "CREATED"}}
    headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
    body = {"query": WATCH, "variables": {"after": cursor}}
    async with api.http.stream("POST", "/graphql", json=body, headers=headers) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                assert json.loads(line.removeprefix("data: "))["data"] == {"taskChanged": {"kind": "CREATED"}}
                break


@pytest.mark.parametrize("end", ["expiry", "deactivated", "unlinked"])
async def test_a_stream_of_a_foreign_token_ends(api: Api, database: Database, auth: SignInServer, end: str) -> None:
    boss = await api.register("boss")
    await make_admin(database, boss.id)
    token = auth.token(exp=int(time.time()) + 3) if end == "expiry" else auth.token()
    me = (await api.post(ME, by=token))["data"]["me"]
    person = Person(me["id"], me["username"], me["email"], "", token)
    cursor = (await api.data("{ tasks { changesCursor } }", by=person))["tasks"]["changesCursor"]
    async with api.signed_in_socket(person) as socket:
        await socket.subscribe(WATCH, variables={"after": cursor})
        await api.create_task(person)
        assert await socket.next() == {"taskChanged": {"kind": "CREATED"}}
        if end == "deactivated":
            await api.data(DEACTIVATE, {"id": me["id"]}, by=boss)
        elif end == "unlinked":
            async with database.write() as session:
                await session.execute(delete(ForeignIdentity))
        # Clients get a new token on this code, and reconnect.
        assert await socket.close_code() == 4403


async def test_a_bad_foreign_token_closes_a_websocket(api: Api, auth: SignInServer) -> None:
    async with api.socket() as socket:
        await socket.send(type="connection_init", payload={"Authorization": auth.token(aud="https://other.example")})
        assert await socket.close_code() == 4403


# The issuer's keys


@pytest.fixture
def no_cool_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuers, "_COOL_DOWN_SECONDS", 0)


async def test_the_keys_are_fetched_once_for_many_requests(auth: SignInServer) -> None:
    issuer = issuer_of(auth)
    auth.may_answer.clear()
    reading = [asyncio.create_task(issuer.read(auth.token(f"id{number}"))) for number in range(50)]
    await until(lambda: auth.fetches == 1)
    auth.may_answer.set()
    read = await asyncio.gather(*reading)
    assert [token.subject for token in read] == [f"id{number}" for number in range(50)]
    assert auth.fetches == 1


async def test_an_unknown_key_is_looked_for_once_and_not_once_a_request(
    auth: SignInServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer, known = issuer_of(auth), auth.token()
    await issuer.read(known)
    with SignInServer("unknown") as other:
        unknown = [other.token(f"id{number}") for number in range(50)]

    async def refused() -> None:
        results = await asyncio.gather(*(issuer.read(token) for token in unknown), return_exceptions=True)
        assert {type(result) for result in results} == {Unauthenticated}

    # The first fetch has just been.
    await refused()
    assert auth.fetches == 1
    with monkeypatch.context() as patch:
        patch.setattr(issuers, "_COOL_DOWN_SECONDS", 0)
        with pytest.raises(Unauthenticated):
            await issuer.read(unknown[0])
    assert auth.fetches == 2
    await refused()
    assert auth.fetches == 2
    assert (await issuer.read(known)).subject == "4711"


async def test_requests_with_an_unknown_key_share_the_fetch_in_flight(auth: SignInServer, no_cool_down: None) -> None:
    issuer = issuer_of(auth)
    await issuer.read(auth.token())
    auth.add_key("second")
    auth.may_answer.clear()
    reading = [asyncio.create_task(issuer.read(auth.token(f"id{number}"))) for number in range(50)]
    await until(lambda: auth.fetches == 2)
    # Tokens of the known key do not wait.
    assert (await issuer.read(auth.token(kid="first"))).subject == "4711"
    # A request that is cancelled does not end the fetch of the others.
    reading.pop().cancel()
    auth.may_answer.set()
    assert len(await asyncio.gather(*reading)) == 49
    assert auth.fetches == 2


async def test_a_token_without_a_key_id_needs_a_single_key(auth: SignInServer, no_cool_down: None) -> None:
    issuer = issuer_of(auth)
    claims = person_claims("4711") | {"iss": auth.issuer, "aud": AUDIENCE}
    token = jwt.encode(claims, auth.keys["first"], algorithm="EdDSA")
    assert (await issuer.read(token)).subject == "4711"
    auth.add_key("second")
    await issuer.read(auth.token())
    with pytest.raises(Unauthenticated):
        await issuer.read(token)


async def test_a_withdrawn_key_ends_when_the_keys_are_old(
    auth: SignInServer, no_cool_down: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = issuer_of(auth)
    old = auth.token()
    await issuer.read(old)
    auth.add_key("second")
    await issuer.read(auth.token())
    del auth.keys["first"]
    await issuer.read(old)
    monkeypatch.setattr(issuers, "_MAX_AGE_SECONDS", -1)
    # Requests do not wait for the fetch that they begin.
    await issuer.read(old)
    await until(lambda: auth.fetches == 3 and is_idle())
    with pytest.raises(Unauthenticated):
        await issuer.read(old)
    assert (await issuer.read(auth.token())).subject == "4711"
    # Its warning would otherwise be one of the next test.
    await until(is_idle)


async def test_an_outage_keeps_known_keys_working(
    auth: SignInServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = issuer_of(auth)
    await issuer.read(auth.token())
    monkeypatch.setattr(issuers, "_MAX_AGE_SECONDS", -1)
    auth.stop()
    fresh = issuer_of(auth)
    with caplog.at_level(logging.WARNING):
        for number in range(20):
            assert (await issuer.read(auth.token(f"id{number}"))).subject == f"id{number}"
        assert caplog.messages == [], "30 seconds have not passed"
        monkeypatch.setattr(issuers, "_COOL_DOWN_SECONDS", 0)
        await issuer.read(auth.token("other"))
        monkeypatch.setattr(issuers, "_COOL_DOWN_SECONDS", 30)
        await until(lambda: caplog.messages != [])
        for number in range(20):
            await issuer.read(auth.token(f"id{number}"))
    (warning,) = caplog.messages
    assert warning.startswith(f"Cannot fetch the keys at {auth.url}, and the known ones stay in use: ")
    with pytest.raises(Unauthenticated, match=r"not among the known keys of https://app\.example"):
        await fresh.read(auth.token())


async def test_a_slow_issuer_delays_nobody_else(
    auth: SignInServer, monkeypatch: pytest.MonkeyPatch, sqlite_settings: Settings
) -> None:
    auth.may_answer.clear()
    async with serving(trusting(sqlite_settings, auth.trusted)) as api:
        ann = await api.register("ann")
        monkeypatch.setattr(issuers, "_WAIT_SECONDS", 3)
        waiting = asyncio.create_task(api.codes(ME, by=auth.token()))
        await until(lambda: auth.fetches == 1)
        assert await api.codes(ME, by=ann) == []
        assert not waiting.done()
        assert await waiting == ["UNAUTHENTICATED"]
        # Later requests wait for the same fetch.
        monkeypatch.setattr(issuers, "_WAIT_SECONDS", 0.1)
        assert await api.codes(ME, by=auth.token()) == ["UNAUTHENTICATED"]
        assert auth.fetches == 1
        auth.may_answer.set()
        # The fetch goes on though nobody waits for it.
        await until(is_idle)
        assert await api.codes(ME, by=auth.token()) == []
        assert auth.fetches == 1


@pytest.mark.parametrize("limit", ["_STEP_SECONDS", "_BODY_SECONDS"])
async def test_a_fetch_that_takes_too_long_is_given_up(
    auth: SignInServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str
) -> None:
    monkeypatch.setattr(issuers, limit, 0.1 if limit == "_STEP_SECONDS" else -1)
    if limit == "_STEP_SECONDS":
        auth.may_answer.clear()
    with caplog.at_level(logging.WARNING), pytest.raises(Unauthenticated):
        await issuer_of(auth).read(auth.token())
    (warning,) = caplog.messages
    assert warning.startswith(f"Cannot fetch the keys at {auth.url}, and its tokens are refused: ")
    assert warning.endswith({"_STEP_SECONDS": "timed out", "_BODY_SECONDS": "it took more than -1 seconds"}[limit])


PADDING = b" " * 300_000
WRONG: dict[str, tuple[int, bytes]] = {
    "a page": (200, b"<html>Not found</html>"),
    "an error": (500, b"{}"),
    "nothing": (200, b""),
    "a list": (200, b"[]"),
    "no keys": (200, b'{"keys": []}'),
    "keys in an object": (200, b'{"keys": {}}'),
    "keys that are none": (200, b'{"keys": [1, null, "key", [], {}, {"kty": []}, {"kty": "OKP", "crv": "Ed25519"}]}'),
    "nested": (200, b"[" * 200_000),
    "no text": (200, b"\xff\xfe\xfd"),
    "huge": (200, PADDING),
}


@pytest.mark.parametrize(("status", "body"), WRONG.values(), ids=WRONG)
async def test_a_wrong_answer_for_keys_is_a_warning_and_changes_nothing(
    auth: SignInServer, no_cool_down: None, caplog: pytest.LogCaptureFixture, status: int, body: bytes
) -> None:
    known, fresh = issuer_of(auth), issuer_of(auth)
    await known.read(auth.token())
    auth.status, auth.body = status, body
    auth.add_key("second")
    with caplog.at_level(logging.WARNING):
        for issuer in (known, fresh):
            with pytest.raises(Unauthenticated):
                await issuer.read(auth.token())
    assert [message.startswith(f"Cannot fetch the keys at {auth.url}, and ") for message in caplog.messages] == [
        True
    ] * 2
    assert (await known.read(auth.token(kid="first"))).subject == "4711"


async def test_redirects_are_not_followed(auth: SignInServer) -> None:
    with SignInServer() as evil:
        auth.status, auth.location = 302, evil.url
        with pytest.raises(Unauthenticated):
            await issuer_of(auth).read(evil.token())
        assert (auth.fetches, evil.fetches) == (1, 0)


async def test_secrets_and_private_keys_in_a_published_set_are_of_no_use(auth: SignInServer) -> None:
    secret = b"published, and long enough for HS256"
    key = auth.keys["first"]
    assert isinstance(key, Ed25519PrivateKey)
    private = OKPAlgorithm.to_jwk(key, as_dict=True)
    unusable = [
        {"kty": "oct", "kid": "oct", "alg": "HS256", "k": base64url(secret)},
        private | {"kid": "wrong alg", "alg": "HS256"},
        private | {"kid": "encryption", "use": "enc"},
        private | {"kid": "k" * 256},
    ]
    auth.body = json.dumps({"keys": [*unusable, private | {"kid": "private"}]}).encode()
    issuer = issuer_of(auth)
    claims = person_claims("4711") | {"iss": auth.issuer, "aud": AUDIENCE}
    refused: list[tuple[Any, str, str]] = [
        (secret, "HS256", "oct"),
        (secret, "HS256", "wrong alg"),
        (key, "EdDSA", "encryption"),
        (key, "EdDSA", "wrong alg"),
    ]
    for signing, algorithm, kid in refused:
        with pytest.raises(Unauthenticated):
            await issuer.read(jwt.encode(claims, signing, algorithm=algorithm, headers={"kid": kid}))
    # A private key that somebody published by mistake verifies; its private part is not read.
    token = jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": "private"})
    assert (await issuer.read(token)).subject == "4711"


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
async def test_only_the_algorithms_of_the_settings_are_accepted(algorithm: str) -> None:
    with SignInServer(algorithm=algorithm) as auth:
        for allowed in ALGORITHMS:
            issuer = Issuer(auth.issuer, AUDIENCE, RemoteKeys(auth.url, [allowed]), ClaimNames())
            if allowed == algorithm:
                assert (await issuer.read(auth.token())).subject == "4711"
            else:
                with pytest.raises(Unauthenticated):
                    await issuer.read(auth.token())


async def test_claims_may_have_other_names(auth: SignInServer) -> None:
    names = ClaimNames(id="uid", email="mail", name="display", username="login")
    issuer = Issuer(auth.issuer, AUDIENCE, RemoteKeys(auth.url, ALGORITHMS), names)
    token = auth.token(sub=None, uid="7", mail="a@b.example", display="Ann", login="ann")
    read = await issuer.read(token)
    assert (read.subject, read.email, read.name, read.username) == ("7", "a@b.example", "Ann", "ann")
    with pytest.raises(Unauthenticated):
        await issuer.read(auth.token())


async def test_a_token_that_was_verified_expires(auth: SignInServer) -> None:
    issuer = issuer_of(auth)
    expires_at = int(time.time()) + 2
    token = auth.token(exp=expires_at)
    await issuer.read(token)
    await until(lambda: time.time() >= expires_at)
    with pytest.raises(Unauthenticated):
        await issuer.read(token)


async def test_the_issuers_clock_may_be_a_little_ahead(auth: SignInServer) -> None:
    issuer, now = issuer_of(auth), int(time.time())
    assert (await issuer.read(auth.token(iat=now + 170, nbf=now + 170))).subject == "4711"
    refused: list[dict[str, Any]] = [{"iat": now + 200}, {"nbf": now + 200}, {"exp": now}, {"exp": now - 1}]
    for claims in refused:
        with pytest.raises(Unauthenticated):
            await issuer.read(auth.token(**claims))


# Hostile tokens


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, tuple[Issuer, Target]]]:
    """An issuer for each kind of key, and what an attacker knows of its tokens."""
    made = {}
    servers = [SignInServer(algorithm=algorithm) for algorithm in ALGORITHMS]
    for server in servers:
        server.__enter__()
        private = server.keys["first"]
        key = Key("first", server.algorithm, private.public_key(), private)
        claims = person_claims("4711") | {"iss": server.issuer, "aud": AUDIENCE}
        made[server.algorithm] = issuer_of(server), Target(key, claims)
    claims = person_claims("4711") | {"iss": "backend", "aud": AUDIENCE}
    shared = Issuer("backend", AUDIENCE, FixedKeys(SHARED), ClaimNames())
    made["secret"] = shared, Target(key_of_secret(SHARED), claims)
    yield made
    for server in servers:
        server.stop()


KINDS = [*ALGORITHMS, "secret"]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_good_token_of_the_table_is_accepted(targets: dict[str, tuple[Issuer, Target]], kind: str) -> None:
    issuer, target = targets[kind]
    assert (await issuer.read(target.signed())).subject == "4711"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
async def test_no_hostile_token_is_accepted_for_an_issuer(
    targets: dict[str, tuple[Issuer, Target]], kind: str, make: Make
) -> None:
    issuer, target = targets[kind]
    with pytest.raises(Unauthenticated, match=r"^Could not validate credentials"):
        await issuer.read(make(target))


async def test_no_hostile_token_makes_a_person(sqlite_settings: Settings, auth: SignInServer) -> None:
    private = auth.keys["first"]
    claims = person_claims("4711") | {"iss": auth.issuer, "aud": AUDIENCE}
    target = Target(Key("first", "EdDSA", private.public_key(), private), claims)
    tokens = {name: make(target) for name, make in HOSTILE.items()}
    sent = {name: token for name, token in tokens.items() if token and token == token.strip() and "\n" not in token}
    async with serving(trusting(sqlite_settings, auth.trusted)) as api:
        answers = {name: await api.codes(ME, by=token) for name, token in sent.items()}
        assert {name for name, codes in answers.items() if codes != ["UNAUTHENTICATED"]} == set()
        # None for the unknown keys of these seconds.
        assert auth.fetches == 1
        ann = await api.register("ann")
        await api.codes(ME, by=target.signed())
        users = await api.data("{ users { nodes { username } } }", by=ann)
    assert sorted(node["username"] for node in users["users"]["nodes"]) == ["Person.4711", "ann"]


async def test_a_token_of_an_issuer_that_is_not_trusted_is_refused(api: Api, auth: SignInServer) -> None:
    for issuer in ("https://evil.example", "taskflow", f"{auth.issuer}/"):
        assert await message(api, auth.token(iss=issuer)) == "Could not validate credentials"
    assert auth.fetches == 0


# Settings


def entry(**given: object) -> dict[str, object]:
    valid = {"issuer": "https://app.example", "audience": AUDIENCE, "jwks_url": "https://app.example/api/auth/jwks"}
    return {name: value for name, value in (valid | given).items() if value is not None}


REFUSED: dict[str, tuple[object, str]] = {
    "no JSON": ("{", "is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "),
    "an object": ({}, "Input should be a valid list"),
    "no audience": ([entry(audience=None)], "0.audience: Field required"),
    "an empty issuer": ([entry(issuer="")], "0.issuer: String should have at least 1 character"),
    "an unknown entry": ([entry(jwks_uri="x")], "0.jwks_uri: Extra inputs are not permitted"),
    "an unknown claim": ([entry(claims={"sub": "id"})], "0.claims.sub: Extra inputs are not permitted"),
    "no key": ([entry(jwks_url=None)], "0: needs either a secret or a jwks_url"),
    "two keys": ([entry(secret=SHARED)], "0: needs either a secret or a jwks_url"),
    "31 bytes": (
        [entry(jwks_url=None, secret="s" * 31)],
        "0.secret: must be at least 32 bytes; `openssl rand -hex 32` makes a good one",
    ),
    "a public key": (
        [entry(jwks_url=None, secret="-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA")],
        "0.secret: is a key of another kind: give its public keys as jwks_url",
    ),
    "HS256 by address": ([entry(algorithms=["HS256"])], "0.algorithms.0: Input should be 'EdDSA', "),
    "none by address": ([entry(algorithms=["none"])], "0.algorithms.0: Input should be 'EdDSA', "),
    "no algorithm": ([entry(algorithms=[])], "0.algorithms: List should have at least 1 item"),
    "a file": (
        [entry(jwks_url="file:///etc/passwd")],
        "0.jwks_url: 'file:///etc/passwd' is no address; it looks like ",
    ),
    "an address with a name": (
        [entry(jwks_url="https://a:b@app.example/")],
        "0.jwks_url: 'https://a:b@app.example/' is no address; it looks like ",
    ),
    "twice": ([entry(), entry()], "'https://app.example' is there twice"),
    "our own": ([entry(issuer="taskflow")], "'taskflow' is the issuer of this server's own tokens"),
}


@pytest.mark.parametrize(("value", "problem"), REFUSED.values(), ids=REFUSED)
def test_bad_issuers_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, value: object, problem: str) -> None:
    monkeypatch.setenv("TASKFLOW_TRUSTED_ISSUERS", value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    assert str(refused.value).startswith(f"Bad settings: TASKFLOW_TRUSTED_ISSUERS: {problem}")
    assert "s" * 31 not in str(refused.value)


def test_in_production_keys_come_over_https_or_from_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(url: str) -> Settings:
        monkeypatch.setenv("TASKFLOW_TRUSTED_ISSUERS", json.dumps([entry(jwks_url=url)]))
        return load_settings()

    load("http://auth.internal/jwks")
    monkeypatch.setenv("TASKFLOW_ENV", "production")
    monkeypatch.setenv("SECRET_KEY", SHARED)
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.example/taskflow")
    for url in (
        "https://auth.example/jwks",
        "http://127.0.0.1:3000/jwks",
        "http://localhost/jwks",
        "http://[::1]/jwks",
    ):
        load(url)
    for url in ("http://auth.internal/jwks", "http://127.0.0.1.evil.example/jwks", "http://localhost.evil.example/"):
        with pytest.raises(ConfigurationError) as refused:
            load(url)
        assert str(refused.value) == (
            "Bad settings: production needs https for the keys of https://app.example in TASKFLOW_TRUSTED_ISSUERS"
        )
