"""Rate limits over HTTP, WebSockets and server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest

from taskflow_gql.config import DEFAULT_RATES, Settings
from tests.support.accounts import CHANGE_PASSWORD, LOGIN
from tests.support.client import REGISTER, Api, Person
from tests.support.servers import RedisServer
from tests.support.serving import serving

# Only what a test is about is counted.
OFF: dict[str, str | None] = dict.fromkeys(DEFAULT_RATES)
CREATE = 'createTask(input: {title: "A task"}) { errors { code } }'
ME = "{ me { username } }"


def limited(settings: Settings, **rates: str) -> Settings:
    return settings.model_copy(update={"rate_limits": OFF | rates})


async def sign_in(
    api: Api, name: str = "ann", password: str = "wrong password", *, address: str | None = None
) -> httpx.Response:
    headers = {} if address is None else {"X-Forwarded-For": address}
    given = {"input": {"usernameOrEmail": name, "password": password}}
    return await api.http.post("/graphql", json={"query": LOGIN, "variables": given}, headers=headers)


def code_of(answer: dict[str, Any]) -> str:
    """The code of a mutation's only error, in the payload or at the top; empty if there is none."""
    if "errors" in answer:
        (error,) = answer["errors"]
        return str(error["extensions"]["code"])
    ((payload,),) = [answer["data"].values()]
    return payload["errors"][0]["code"] if payload["errors"] else ""


async def outcomes(*answers: Any) -> list[str]:
    return [code_of(response.json()) for response in await asyncio.gather(*answers)]


WRONG, LIMITED = "INVALID_CREDENTIALS", "RATE_LIMITED"


async def test_the_eleventh_wrong_password_in_a_minute_is_rate_limited(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, auth="10/minute")) as api:
        for left in range(9, -1, -1):
            response = await sign_in(api)
            assert (response.status_code, code_of(response.json())) == (200, WRONG)
            assert response.headers["ratelimit-policy"] == '"auth";q=10;w=60'
            assert response.headers["ratelimit"].startswith(f'"auth";r={left};t=')
        response = await sign_in(api)
        (error,) = response.json()["errors"]
        seconds = error["extensions"]["retryAfter"]
        assert response.json() == {
            "data": None,
            "errors": [
                {
                    "message": f"Too many attempts, which the rate limit auth counts: try again in {seconds} s",
                    "locations": [{"line": 3, "column": 3}],
                    "path": ["login"],
                    "extensions": {"code": LIMITED, "retryAfter": seconds},
                }
            ],
        }
        assert type(seconds) is int
        assert 1 <= seconds <= 60
        assert response.status_code == 429
        assert response.headers["retry-after"] == str(seconds)
        assert response.headers["ratelimit"] == f'"auth";r=0;t={seconds}'
        assert response.headers["ratelimit-policy"] == '"auth";q=10;w=60'


async def test_right_passwords_are_not_counted(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, auth="3/minute")) as api:
        await api.register("ann")
        right = [await sign_in(api, password="correct horse") for _ in range(5)]
        assert [code_of(response.json()) for response in right] == [""] * 5
        assert [response.headers["ratelimit"].partition(";t=")[0] for response in right] == ['"auth";r=3'] * 5
        # The registration is counted apart.
        assert [code_of((await sign_in(api)).json()) for _ in range(4)] == [WRONG, WRONG, WRONG, LIMITED]


async def test_aliases_of_one_document_are_counted_each(sqlite_settings: Settings) -> None:
    login = 'login(input: {usernameOrEmail: "ann", password: "wrong password"}) { errors { code } }'
    document = "mutation { " + " ".join(f"a{number}: {login}" for number in range(60)) + " }"
    async with serving(limited(sqlite_settings, auth="10/minute")) as api:
        response = await api.http.post("/graphql", json={"query": document})
        # Payloads are not nullable, so the first refusal ends the operation, and the answer has no data.
        (error,) = response.json()["errors"]
        assert (response.status_code, response.json()["data"]) == (429, None)
        assert (error["path"], error["extensions"]["code"]) == (["a10"], LIMITED)
        assert code_of((await sign_in(api)).json()) == LIMITED


async def test_attempts_at_the_same_time_are_counted_before_they_are_answered(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, auth="4/minute")) as api:
        assert sorted(await outcomes(*(sign_in(api) for _ in range(12)))) == [WRONG] * 4 + [LIMITED] * 8


async def test_attempts_over_a_websocket_are_counted_with_the_others(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, auth="3/minute")) as api:
        assert code_of((await sign_in(api)).json()) == WRONG
        given = {"input": {"usernameOrEmail": "ann", "password": "wrong password"}}
        for _ in range(2):
            async with api.socket() as socket:
                await socket.send(type="connection_init")
                await socket.receive()
                found = []
                for number in range(2):
                    await socket.subscribe(LOGIN, id=str(number), variables=given)
                    found.append(code_of((await socket.receive())["payload"]))
                    await socket.receive()
        assert found == [LIMITED, LIMITED]
        assert code_of((await sign_in(api)).json()) == LIMITED


async def test_every_registration_is_counted(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, auth="2/minute")) as api:
        ann = await api.register("ann")
        refused = {"email": "no address", "username": "bob", "fullName": "Bob", "password": "correct horse"}
        assert code_of(await api.post(REGISTER, {"input": refused})) == "BAD_USER_INPUT"
        # Another account does not help.
        assert code_of(await api.post(REGISTER, {"input": refused}, by=ann)) == LIMITED


async def test_wrong_current_passwords_are_counted(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, auth="3/minute")) as api:
        ann = await api.register("ann")

        async def change(current: str) -> str:
            given = {"currentPassword": current, "newPassword": "battery staple"}
            return code_of(await api.post(CHANGE_PASSWORD, {"input": given}, by=ann))

        assert [await change("wrong") for _ in range(4)] == [WRONG, WRONG, WRONG, LIMITED]
        assert await change("correct horse") == LIMITED


async def test_a_repeated_registration_is_counted_again(sqlite_settings: Settings) -> None:
    given = {"email": "a@example.com", "username": "ann", "fullName": "Ann", "password": "correct horse"}
    async with serving(limited(sqlite_settings, auth="2/minute")) as api:
        found = [code_of(await api.post(REGISTER, {"input": given | {"mutationId": "m"}})) for _ in range(3)]
        assert found == ["", "", LIMITED]


# Addresses


def behind_a_proxy(settings: Settings, **rates: str) -> Settings:
    """The tests are the proxy, and say which client they forward."""
    return limited(settings.model_copy(update={"trusted_proxies": [ip_network("127.0.0.1")]}), **rates)


async def test_attackers_with_many_addresses_do_not_lock_the_owner_out(sqlite_settings: Settings) -> None:
    async with serving(behind_a_proxy(sqlite_settings, auth="2/minute")) as api:
        await api.register("ann")
        for number in range(10):
            found = await outcomes(*(sign_in(api, address=f"198.51.100.{number}") for _ in range(3)))
            assert sorted(found) == [WRONG, WRONG, LIMITED]
        # The account is under attack: a new address has one wrong password, and any number of right ones.
        for address in ("192.0.2.1", "2001:db8::1"):
            for _ in range(3):
                assert code_of((await sign_in(api, password="correct horse", address=address)).json()) == ""
            assert [code_of((await sign_in(api, address=address)).json()) for _ in range(2)] == [WRONG, LIMITED]
        # At other accounts a new address has its usual limit.
        assert code_of((await sign_in(api, "bob", address="192.0.2.2")).json()) == WRONG
        assert code_of((await sign_in(api, "bob", address="192.0.2.2")).json()) == WRONG


async def test_limits_do_not_tell_whether_a_name_is_known(sqlite_settings: Settings) -> None:
    async with serving(behind_a_proxy(sqlite_settings, auth="1/minute")) as api:
        await api.register("ann")
        seen: dict[str, list[object]] = {}
        for place, name in enumerate(("ann", "nobody")):
            for number in range(12):
                for _ in range(2):
                    response = await sign_in(api, f" {name.upper()}", address=f"198.51.{place}.{number}")
                    limit = response.headers["ratelimit"].partition(";t=")[0]
                    seen.setdefault(name, []).append((response.status_code, code_of(response.json()), limit))
        assert seen["ann"] == seen["nobody"]


async def test_addresses_of_one_ipv6_network_count_as_one(sqlite_settings: Settings) -> None:
    async with serving(behind_a_proxy(sqlite_settings, auth="2/minute")) as api:
        addresses = ["2001:db8:1:2::1", "2001:db8:1:2::2", "2001:db8:1:2::3", "2001:db8:1:3::1"]
        found = [code_of((await sign_in(api, address=address)).json()) for address in addresses]
        assert found == [WRONG, WRONG, LIMITED, WRONG]


async def test_a_forwarded_address_is_not_believed_without_a_trusted_proxy(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, auth="2/minute")) as api:
        found = [code_of((await sign_in(api, address=f"192.0.2.{number}")).json()) for number in range(3)]
        assert found == [WRONG, WRONG, LIMITED]


# Operations


async def post(api: Api, query: str, by: Person | None = None, **headers: str) -> httpx.Response:
    if by is not None:
        headers["Authorization"] = by.token
    return await api.http.post("/graphql", json={"query": query}, headers=headers)


async def test_mutations_are_counted_by_person_and_refused_before_any_is_done(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, mutations="6/minute")) as api:
        ann, bob = await api.register("ann"), await api.register("bob")
        four = "mutation { " + " ".join(f"a{number}: {CREATE}" for number in range(4)) + " }"
        response = await post(api, four, ann)
        assert (response.status_code, response.headers["ratelimit"]) == (200, '"mutations";r=2;t=40')
        assert response.headers["ratelimit-policy"] == '"mutations";q=6;w=60'
        refused = await post(api, four, ann)
        assert refused.status_code == 429
        assert "data" not in refused.json()
        (error,) = refused.json()["errors"]
        assert error["extensions"]["code"] == LIMITED
        assert refused.headers["retry-after"] == str(error["extensions"]["retryAfter"])
        assert (await api.data("{ tasks { totalCount } }", by=ann)) == {"tasks": {"totalCount": 4}}
        assert (await post(api, four, bob)).status_code == 200


async def test_mutations_of_a_batch_are_counted_each(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, mutations="6/minute")) as api:
        ann = await api.register("ann")
        create = '{createTask: {title: "A task"}}'

        def batch(size: int, mode: str) -> str:
            given = f"{{mutations: [{', '.join([create] * size)}], mode: {mode}}}"
            return f"mutation {{ applyMutations(input: {given}) {{ errors {{ code }} }} }}"

        answers = [await post(api, batch(3, mode), ann) for mode in ("EACH", "ALL_OR_NOTHING")]
        assert [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers] == [
            '"mutations";r=3',
            '"mutations";r=0',
        ]
        assert (await post(api, batch(1, "EACH"), ann)).status_code == 429
        assert (await api.data("{ tasks { totalCount } }", by=ann)) == {"tasks": {"totalCount": 6}}


async def test_a_batch_beyond_the_limit_changes_nothing(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, mutations="6/minute")) as api:
        ann = await api.register("ann")
        await post(api, f"mutation {{ a: {CREATE} b: {CREATE} }}", ann)
        batch = ", ".join(['{createTask: {title: "A task"}}'] * 5)
        response = await post(
            api, f"mutation {{ applyMutations(input: {{mutations: [{batch}], mode: EACH}}) {{ replayed }} }}", ann
        )
        (error,) = response.json()["errors"]
        assert (response.status_code, response.json()["data"]) == (429, None)
        assert (error["path"], error["extensions"]["code"]) == (["applyMutations"], LIMITED)
        assert (await api.data("{ tasks { totalCount } }", by=ann)) == {"tasks": {"totalCount": 2}}


async def test_queries_are_counted_by_person_else_by_address(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, queries="3/minute")) as api:
        ann, bob = await api.register("ann"), await api.register("bob")
        # Fields that are the same run once.
        fields = (
            "{ me { id } ...F ... { me { username } } } fragment F on Query { a: serverInfo { name } me { email } }"
        )
        assert (await post(api, fields, ann)).headers["ratelimit"].startswith('"queries";r=1;')
        # A further token of the same person.
        token = (await sign_in(api, "ann", "correct horse")).json()["data"]["login"]["accessToken"]
        assert (await api.post(ME, by=token)) == {"data": {"me": {"username": "ann"}}}
        response = await post(api, ME, ann, Accept="application/graphql-response+json")
        assert (response.status_code, response.json()["errors"][0]["extensions"]["code"]) == (429, LIMITED)
        async with api.signed_in_socket(ann) as socket:
            await socket.subscribe(ME)
            message = await socket.receive()
            assert (message["type"], message["payload"][0]["extensions"]["code"]) == ("error", LIMITED)
        assert (await post(api, ME, bob)).status_code == 200
        # Neither a missing nor a bad token makes a new subject.
        for token in ("", "rubbish", "more"):
            assert (await post(api, "{ serverInfo { name } }", Authorization=token)).status_code == 200
        assert (await post(api, ME, Authorization="another")).status_code == 429


async def test_pages_may_read_the_headers(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings, queries="1/minute")) as api:
        for status in (200, 429):
            response = await post(api, "{ serverInfo { name } }", Origin="http://localhost:5173")
            assert response.status_code == status
            exposed = response.headers["access-control-expose-headers"]
            assert exposed == "RateLimit, RateLimit-Policy, Retry-After"


async def test_subscriptions_are_counted_on_sockets_and_in_streams(sqlite_settings: Settings) -> None:
    document = "subscription { taskChanged { kind } }"
    async with serving(limited(sqlite_settings, subscriptions="2/minute")) as api:
        ann = await api.register("ann")
        async with api.signed_in_socket(ann) as socket:
            for number in range(3):
                await socket.subscribe(document, id=str(number))
            message = await socket.receive()
            assert (message["type"], message["id"]) == ("error", "2")
            (error,) = message["payload"]
            assert (error["extensions"]["code"], type(error["extensions"]["retryAfter"])) == (LIMITED, int)
        response = await post(api, document, ann, Accept="text/event-stream")
        assert response.status_code == 200
        event, _, data = response.text.partition("\ndata: ")
        assert event.endswith("event: next")
        answer = json.loads(data.partition("\n")[0])
        assert [error["extensions"]["code"] for error in answer["errors"]] == [LIMITED]


async def test_a_group_that_is_off_has_no_headers(sqlite_settings: Settings) -> None:
    async with serving(limited(sqlite_settings)) as api:
        response = await post(api, ME)
        assert not any("ratelimit" in name for name in response.headers)


# Redis


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    with RedisServer() as server:
        yield server


@pytest.mark.slow
async def test_servers_with_one_redis_share_the_limit_of_wrong_passwords(
    sqlite_settings: Settings, redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = sqlite_settings.model_copy(update={"redis_url": redis_server.url()})
    async with (
        serving(limited(settings, auth="10/minute")) as one,
        serving(limited(settings, auth="10/minute")) as other,
    ):
        assert sorted(await outcomes(*(sign_in(api) for api in (one, other) for _ in range(8)))) == (
            [WRONG] * 10 + [LIMITED] * 6
        )
        assert [(await sign_in(api)).status_code for api in (one, other)] == [429, 429]


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["kill", "pause"])
async def test_without_redis_wrong_passwords_are_still_limited_and_no_request_waits_long(
    sqlite_settings: Settings, redis_server: RedisServer, outage: str
) -> None:
    settings = sqlite_settings.model_copy(update={"redis_url": redis_server.url()})
    async with serving(limited(settings, auth="3/minute")) as api:
        assert code_of((await sign_in(api)).json()) == WRONG
        getattr(redis_server, outage)()
        found, waits = [], []
        for _ in range(5):
            begun = time.monotonic()
            found.append(code_of((await sign_in(api)).json()))
            waits.append(time.monotonic() - begun)
        assert found == [WRONG] * 3 + [LIMITED] * 2
        assert max(waits) < 3
        if outage == "pause":
            redis_server.resume()
