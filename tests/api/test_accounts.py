"""register, login, me, updateProfile, changePassword."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest

from taskflow_gql.database.units import Database
from taskflow_gql.errors import Unauthenticated
from taskflow_gql.security.passwords import PasswordHasher
from taskflow_gql.security.tokens import TokenSigner
from tests.support.accounts import CHANGE_PASSWORD, LOGIN, forge, login
from tests.support.client import REGISTER, Api
from tests.support.serving import SECRET, make_admin

UPDATE_PROFILE = """
mutation($input: UpdateProfileInput!) {
  updateProfile(input: $input) { user { fullName email } errors { code message field } }
}
"""
ME = "{ me { id username email role isActive } }"


def refusal(code: str, message: str, *field: str) -> dict[str, Any]:
    return {"code": code, "message": message, "field": list(field)}


WRONG = {"code": "INVALID_CREDENTIALS", "message": "Incorrect username or password", "field": None}
EMAIL_TAKEN = refusal("EMAIL_TAKEN", "Email already registered", "email")
USERNAME_TAKEN = refusal("USERNAME_TAKEN", "Username already taken", "username")


async def register(api: Api, **fields: Any) -> dict[str, Any]:
    given = {"email": "ann@example.com", "username": "ann", "fullName": "Ann", "password": "correct horse"}
    payload: dict[str, Any] = (await api.data(REGISTER, {"input": given | fields}))["register"]
    return payload


async def test_register_signs_in_a_member(api: Api) -> None:
    person = await api.register("ann")
    assert await api.data(ME, by=person) == {
        "me": {
            "id": person.id,
            "username": "ann",
            "email": "ann@example.com",
            "role": "MEMBER",
            "isActive": True,
        }
    }


@pytest.mark.parametrize(
    ("fields", "errors"),
    [
        ({"username": "ab"}, [refusal("BAD_USER_INPUT", "Username must be at least 3 characters long", "username")]),
        (
            {"username": "a" * 51},
            [refusal("BAD_USER_INPUT", "Username must be at most 50 characters long", "username")],
        ),
        (
            {"username": "ann b"},
            [refusal("BAD_USER_INPUT", "Username may only have letters, digits, _, . and -", "username")],
        ),
        (
            {"password": "1234567"},
            [refusal("BAD_USER_INPUT", "Password must be at least 8 characters long", "password")],
        ),
        (
            {"password": "x" * 129},
            [refusal("BAD_USER_INPUT", "Password must be at most 128 characters long", "password")],
        ),
        ({"fullName": "  "}, [refusal("BAD_USER_INPUT", "Full name must not be empty", "fullName")]),
    ],
)
async def test_register_refuses_malformed_values(
    api: Api, fields: dict[str, str], errors: list[dict[str, Any]]
) -> None:
    payload = await register(api, **fields)
    assert payload == {"accessToken": None, "expiresIn": None, "tokenType": None, "user": None, "errors": errors}
    assert (await login(api, "ann", "correct horse"))["errors"] == [WRONG]


@pytest.mark.parametrize(
    "email", ["", "ann", "ann@", "@example.com", "a b@example.com", "ann@example", "ann@@example.com"]
)
async def test_register_refuses_an_invalid_email_address(api: Api, email: str) -> None:
    (error,) = (await register(api, email=email))["errors"]
    assert (error["code"], error["field"]) == ("BAD_USER_INPUT", ["email"])


async def test_register_reports_everything_that_is_wrong_at_once(api: Api) -> None:
    await api.register("ann")
    payload = await register(api, email="Ann@Example.com", username="x", password="short", fullName="")
    assert {tuple(error["field"]): error["code"] for error in payload["errors"]} == {
        ("username",): "BAD_USER_INPUT",
        ("fullName",): "BAD_USER_INPUT",
        ("password",): "BAD_USER_INPUT",
        ("email",): "EMAIL_TAKEN",
    }


async def test_usernames_and_emails_are_unique_ignoring_case(api: Api) -> None:
    await api.register("ann")
    payload = await register(api, email="ANN@example.COM", username="aNN")
    assert payload["errors"] == [EMAIL_TAKEN, USERNAME_TAKEN]


async def test_of_concurrent_registrations_one_wins_and_the_others_get_both_errors(api: Api) -> None:
    payloads = await asyncio.gather(*(register(api) for _ in range(6)))
    assert sorted(payload["errors"] for payload in payloads if payload["user"]) == [[]]
    for payload in payloads:
        if payload["user"] is None:
            assert payload["errors"] == [EMAIL_TAKEN, USERNAME_TAKEN]


async def test_a_role_cannot_be_given_at_registration(api: Api) -> None:
    given = {"email": "a@example.com", "username": "ann", "fullName": "A", "password": "12345678", "role": "ADMIN"}
    assert await api.codes(REGISTER, {"input": given}) == ["BAD_USER_INPUT"]


@pytest.mark.parametrize("name", ["ann", "ANN", " ann ", "ann@example.com", "Ann@EXAMPLE.com"])
async def test_login_takes_username_or_email_in_any_case(api: Api, name: str) -> None:
    await api.register("ann", password="correct horse")
    payload = await login(api, name, "correct horse")
    assert payload["user"] == {"username": "ann", "email": "ann@example.com"}
    assert (payload["tokenType"], payload["expiresIn"], payload["errors"]) == ("Bearer", 1800, [])


async def test_login_gives_the_same_error_for_unknown_wrong_and_deactivated(api: Api, database: Database) -> None:
    ann, boss = await api.register("ann"), await api.register("boss")
    await make_admin(database, boss.id)
    deactivate = "mutation($id: ID!) { deactivateUser(input: {userId: $id}) { errors { code } } }"
    refused = {"accessToken": None, "tokenType": None, "expiresIn": None, "user": None, "errors": [WRONG]}
    assert await login(api, "nobody", "correct horse") == refused
    assert await login(api, "ann", "Correct horse") == refused
    await api.data(deactivate, {"id": ann.id}, by=boss)
    assert await login(api, "ann", "correct horse") == refused


async def test_public_mutations_ignore_a_bad_token(api: Api) -> None:
    answer = await api.post(
        REGISTER,
        {"input": {"email": "a@example.com", "username": "ann", "fullName": "A", "password": "12345678"}},
        by="rubbish",
    )
    assert answer["data"]["register"]["errors"] == []
    given = {"usernameOrEmail": "ann", "password": "12345678"}
    assert (await api.post(LOGIN, {"input": given}, by="rubbish"))["data"]["login"]["errors"] == []


async def test_me_is_null_without_a_token_and_unauthenticated_with_a_bad_one(api: Api) -> None:
    assert await api.post(ME) == {"data": {"me": None}}
    answer = await api.post(ME, by="rubbish")
    assert answer["data"] == {"me": None}
    assert answer["errors"][0]["message"] == "Could not validate credentials"
    assert answer["errors"][0]["extensions"] == {"code": "UNAUTHENTICATED"}


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": None},
        {"sub": "not a uuid"},
        {"sub": str(UUID(int=7))},
        {"sid": None},
        {"sid": str(UUID(int=7))},
        {"exp": datetime(2020, 1, 1, tzinfo=UTC)},
        {"exp": None},
        {"exp": 10**30},
        {"iss": "somebody else"},
        {"aud": "somebody else"},
        {"typ": "refresh"},
        {"nbf": datetime(2200, 1, 1, tzinfo=UTC)},
    ],
    ids=str,
)
async def test_a_token_with_a_bad_claim_is_refused(api: Api, claims: dict[str, Any]) -> None:
    ann = await api.register("ann")
    assert await api.codes(ME, by=forge(ann.token)) == []
    assert await api.codes(ME, by=forge(ann.token, **claims)) == ["UNAUTHENTICATED"]
    assert await api.codes("{ tasks { nodes { id } } }", by=forge(ann.token, **claims)) == ["UNAUTHENTICATED"]


# Values that could confuse PyJWT, UUID() or datetime. NaN and the infinities are written as `json` writes them.
NO_DATES: list[Any] = [
    *(10**10 * 26, 10**12, 10**18, 10**30, -1, -(10**18), 1.5, 4e9, 1e300, float("nan"), float("inf"), -float("inf")),
    *(True, False, "", "4000000000", "tomorrow", [], [4_000_000_000], {}),
]
NO_TEXTS: list[Any] = [None, 0, 1.5, True, [], ["taskflow", 1], {}, {"taskflow": 1}, "", "x" * 5000]
WRONG_CLAIMS: list[tuple[str, Any]] = [
    *((name, value) for name in ("exp", "iat", "nbf") for value in NO_DATES),
    *((name, value) for name in ("sub", "sid", "iss", "typ") for value in NO_TEXTS),
    *(("aud", value) for value in NO_TEXTS if value != ["taskflow", 1]),
    *(("jti", value) for value in NO_TEXTS if value is not None and not isinstance(value, str)),
]


@pytest.mark.parametrize(
    ("name", "value"), WRONG_CLAIMS, ids=[f"{name}={value!r}"[:40] for name, value in WRONG_CLAIMS]
)
def test_a_signed_token_with_a_claim_of_the_wrong_type_is_unauthenticated(name: str, value: object) -> None:
    signer = TokenSigner(SECRET, timedelta(hours=1))
    token = signer.sign(user_id=uuid4(), session_id=uuid4(), issued_at=datetime.now(UTC))
    claims = jwt.decode(token, options={"verify_signature": False}) | {name: value}
    signer.read(token)
    with pytest.raises(Unauthenticated) as caught:
        signer.read(jwt.PyJWS().encode(json.dumps(claims).encode(), SECRET, algorithm="HS256"))
    assert caught.value.message == "Could not validate credentials"


@pytest.mark.parametrize("exp", [10**18, float("inf")])
async def test_a_token_with_an_endless_expiry_is_unauthenticated_over_http(api: Api, exp: float) -> None:
    ann = await api.register("ann")
    claims = jwt.decode(ann.token, options={"verify_signature": False}) | {"exp": exp}
    token = jwt.PyJWS().encode(json.dumps(claims).encode(), SECRET, algorithm="HS256")
    assert await api.codes(ME, by=token) == ["UNAUTHENTICATED"]


@pytest.mark.parametrize(
    "header",
    [
        *(b"", b"[]", b"1", b"{}", b"[" * 5000, b'{"alg":' * 5000, b'{"alg":1}', b'{"alg":["HS256"]}', b'{"alg":{}}'),
        *(b'{"alg":"HS256","crit":5}', b'{"alg":"HS256","kid":5}', b'{"alg":"HS256","x":' + b"9" * 5000 + b"}"),
    ],
    ids=lambda header: repr(header[:30]),
)
def test_a_token_with_a_malformed_header_is_unauthenticated(header: bytes) -> None:
    signer = TokenSigner(SECRET, timedelta(hours=1))
    _, body, signature = signer.sign(user_id=uuid4(), session_id=uuid4(), issued_at=datetime.now(UTC)).split(".")
    with pytest.raises(Unauthenticated):
        signer.read(f"{base64.urlsafe_b64encode(header).decode().rstrip('=')}.{body}.{signature}")


async def test_a_token_with_a_foreign_or_no_signature_is_refused(api: Api) -> None:
    ann = await api.register("ann")
    claims = jwt.decode(ann.token, options={"verify_signature": False})
    foreign = jwt.encode(claims, "another secret that is long enough too", algorithm="HS256")
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=") + f".{body}."
    for token in (foreign, unsigned, ann.token[:-4], f"{ann.token}x", "a.b.c", "."):
        assert await api.codes(ME, by=token) == ["UNAUTHENTICATED"], token


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {}", "{}"])
async def test_the_token_is_read_with_or_without_bearer(api: Api, form: str) -> None:
    ann = await api.register("ann")
    response = await api.http.post(
        "/graphql", json={"query": "{ me { username } }"}, headers={"AUTHORIZATION": form.format(ann.token)}
    )
    assert response.json() == {"data": {"me": {"username": "ann"}}}


async def test_a_deactivated_user_gets_the_reason_and_needs_a_new_login_when_reactivated(
    api: Api, database: Database
) -> None:
    ann, boss = await api.register("ann"), await api.register("boss")
    await make_admin(database, boss.id)
    await api.data(
        "mutation($id: ID!) { deactivateUser(input: {userId: $id}) { errors { code } } }", {"id": ann.id}, by=boss
    )
    (error,) = (await api.post(ME, by=ann))["errors"]
    assert error["message"] == "Could not validate credentials: the user is deactivated"
    await api.data(
        "mutation($id: ID!) { reactivateUser(input: {userId: $id}) { errors { code } } }", {"id": ann.id}, by=boss
    )
    assert await api.codes(ME, by=ann) == ["UNAUTHENTICATED"]
    token = (await login(api, "ann", "correct horse"))["accessToken"]
    assert await api.codes(ME, by=token) == []


async def test_update_profile_changes_only_the_given_fields(api: Api) -> None:
    ann = await api.register("ann")
    assert await api.data(UPDATE_PROFILE, {"input": {"fullName": " Ann B. "}}, by=ann) == {
        "updateProfile": {"user": {"fullName": "Ann B.", "email": "ann@example.com"}, "errors": []}
    }
    assert await api.data(UPDATE_PROFILE, {"input": {"email": "b@example.com"}}, by=ann) == {
        "updateProfile": {"user": {"fullName": "Ann B.", "email": "b@example.com"}, "errors": []}
    }
    assert await api.data(UPDATE_PROFILE, {"input": {}}, by=ann) == {
        "updateProfile": {"user": {"fullName": "Ann B.", "email": "b@example.com"}, "errors": []}
    }
    assert (await login(api, "b@example.com", "correct horse"))["errors"] == []
    assert (await login(api, "ann@example.com", "correct horse"))["errors"] == [WRONG]


async def test_update_profile_refuses_null_and_taken_values(api: Api) -> None:
    ann = await api.register("ann")
    await api.register("bob")
    nulls = (await api.data(UPDATE_PROFILE, {"input": {"fullName": None, "email": None}}, by=ann))["updateProfile"]
    assert nulls == {
        "user": None,
        "errors": [
            refusal("BAD_USER_INPUT", "Full name cannot be null", "fullName"),
            refusal("BAD_USER_INPUT", "Email address cannot be null", "email"),
        ],
    }
    given = {"email": "BOB@example.com", "fullName": "New"}
    taken = (await api.data(UPDATE_PROFILE, {"input": given}, by=ann))["updateProfile"]
    assert taken == {"user": None, "errors": [EMAIL_TAKEN]}
    assert await api.data("{ me { fullName email } }", by=ann) == {
        "me": {"fullName": "Ann", "email": "ann@example.com"}
    }
    assert await api.codes(UPDATE_PROFILE, {"input": {}}) == ["UNAUTHENTICATED"]


async def test_change_password_ends_the_other_sessions_and_keeps_this_one(api: Api) -> None:
    ann = await api.register("ann", password="correct horse")
    other = (await login(api, "ann", "correct horse"))["accessToken"]
    given = {"currentPassword": "correct horse", "newPassword": "battery staple"}
    assert await api.data(CHANGE_PASSWORD, {"input": given}, by=ann) == {"changePassword": {"errors": []}}
    assert await api.codes(ME, by=ann) == []
    assert await api.codes(ME, by=other) == ["UNAUTHENTICATED"]
    assert (await login(api, "ann", "correct horse"))["errors"] == [WRONG]
    assert (await login(api, "ann", "battery staple"))["errors"] == []


async def test_change_password_refuses_a_wrong_current_and_a_short_new_one(api: Api) -> None:
    ann = await api.register("ann", password="correct horse")
    wrong = {"currentPassword": "incorrect", "newPassword": "battery staple"}
    short = {"currentPassword": "correct horse", "newPassword": "short"}
    assert (await api.data(CHANGE_PASSWORD, {"input": wrong}, by=ann))["changePassword"]["errors"] == [
        refusal("INVALID_CREDENTIALS", "The current password is not correct", "currentPassword")
    ]
    assert (await api.data(CHANGE_PASSWORD, {"input": short}, by=ann))["changePassword"]["errors"] == [
        refusal("BAD_USER_INPUT", "Password must be at least 8 characters long", "newPassword")
    ]
    assert await api.codes(CHANGE_PASSWORD, {"input": wrong}) == ["UNAUTHENTICATED"]
    assert (await login(api, "ann", "correct horse"))["errors"] == []


# passlib raises its own error above 4,096 characters.
@pytest.mark.parametrize("length", [129, 4096, 4097, 50_000])
async def test_a_password_that_is_too_long_is_wrong_and_is_not_logged(
    api: Api, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    ann = await api.register("ann")
    long = "correct horse".ljust(length, "#")
    too_long = "Password must be at most 128 characters long"
    with caplog.at_level(logging.DEBUG):
        assert (await login(api, "ann", long))["errors"] == [WRONG]
        assert (await login(api, "nobody", long))["errors"] == [WRONG]
        given = {"currentPassword": long, "newPassword": "battery staple"}
        assert (await api.data(CHANGE_PASSWORD, {"input": given}, by=ann))["changePassword"]["errors"] == [
            refusal("INVALID_CREDENTIALS", "The current password is not correct", "currentPassword")
        ]
        given = {"currentPassword": "correct horse", "newPassword": long}
        assert (await api.data(CHANGE_PASSWORD, {"input": given}, by=ann))["changePassword"]["errors"] == [
            refusal("BAD_USER_INPUT", too_long, "newPassword")
        ]
        assert (await register(api, username="bob", email="bob@example.com", password=long))["errors"] == [
            refusal("BAD_USER_INPUT", too_long, "password")
        ]
    # passlib and the HTTP client log none of it either.
    assert not any("correct horse" in f"{record.getMessage()} {record.exc_text}" for record in caplog.records)
    assert (await login(api, "ann", "correct horse"))["errors"] == []


SECRET_WORD = "hunter2hunter2"


@pytest.mark.parametrize(
    "given",
    [
        {"usernameOrEmail": "ann", "password": SECRET_WORD, "bogus": 1},
        {"usernameOrEmail": "ann", "password": [SECRET_WORD]},
        {"usernameOrEmail": "ann", "password": {"is": SECRET_WORD}},
        {"usernameOrEmail": None, "password": SECRET_WORD},
        {"password": SECRET_WORD},
        [SECRET_WORD],
        SECRET_WORD,
    ],
    ids=str,
)
async def test_an_error_about_variables_does_not_quote_a_password(api: Api, given: object) -> None:
    (error, *_) = (await api.post(LOGIN, {"input": given}))["errors"]
    assert error["extensions"] == {"code": "BAD_USER_INPUT"}
    assert error["message"].startswith("Variable '$input' has invalid value")
    assert SECRET_WORD not in error["message"]


@pytest.mark.parametrize(
    "literal",
    [
        f'{{usernameOrEmail: "ann", password: "{SECRET_WORD}", bogus: 1}}',
        f'{{usernameOrEmail: "ann", password: ["{SECRET_WORD}"]}}',
        f'{{usernameOrEmail: "ann", password: {SECRET_WORD}}}',
        f'{{password: "{SECRET_WORD}"}}',
        f'{{usernameOrEmail: "ann", password "{SECRET_WORD}"}}',
        f'"{SECRET_WORD}"',
    ],
)
async def test_an_error_about_a_document_does_not_quote_a_password(api: Api, literal: str) -> None:
    answer = await api.post(f"mutation {{ login(input: {literal}) {{ accessToken }} }}")
    assert "errors" in answer
    assert SECRET_WORD not in json.dumps(answer)


async def test_other_errors_quote_the_value_that_was_sent(api: Api) -> None:
    ann = await api.register("ann")
    (error,) = (await api.post('{ tasks(first: "ten") { totalCount } }', by=ann))["errors"]
    assert error["message"] == 'Int cannot represent non-integer value: "ten"'
    (error,) = (await api.post("query($n: Int) { tasks(first: $n) { totalCount } }", {"n": "ten"}, by=ann))["errors"]
    assert error["message"] == "Variable '$n' has invalid value: Int cannot represent non-integer value: 'ten'"


@pytest.mark.parametrize("known", [True, False])
async def test_a_password_that_is_too_long_costs_one_hash_like_any_wrong_one(known: bool) -> None:
    passwords = PasswordHasher()
    stored = await passwords.hash("correct horse") if known else None
    costs = []
    for password in ("incorrect", "x" * 5000):
        begun = time.process_time()
        assert not await passwords.verify(password, stored)
        costs.append(time.process_time() - begun)
    passwords.close()
    # Without hashing it takes less than a hundredth of the time.
    assert costs[1] > costs[0] / 4


async def test_passwords_are_hashed_with_argon2id_and_the_designed_parameters(api: Api, database: Database) -> None:
    await api.register("ann")
    async with database.connect() as connection:
        stored = (await connection.exec_driver_sql("SELECT password_hash FROM users")).scalar_one()
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
