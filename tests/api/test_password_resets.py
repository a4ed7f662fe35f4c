"""Setting a new password by a link that comes by mail, over a real SMTP server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from taskflow_gql import clock
from taskflow_gql.config import Settings
from taskflow_gql.database.units import Database
from taskflow_gql.models import OutgoingMail, PasswordResetRequest, PasswordResetToken, User
from taskflow_gql.security.opaque import OpaqueTokens
from taskflow_gql.services.password_resets import MAX_LINKS, expire_reset_tokens
from taskflow_gql.stream.password_resets import PasswordResets
from tests.support.accounts import CHANGE_PASSWORD, login
from tests.support.client import Api, Person
from tests.support.factories import noting_statements
from tests.support.serving import make_admin, serving
from tests.support.smtp import SENDER, Inbox, smtp_server

REQUEST = """
mutation($input: RequestPasswordResetInput!) {
  requestPasswordReset(input: $input) { replayed errors { code message field } }
}
"""
RESET = "mutation($input: ResetPasswordInput!) { resetPassword(input: $input) { replayed errors { code field } } }"
SEND = """
mutation($input: SendPasswordResetInput!) {
  sendPasswordReset(input: $input) { user { username } errors { code field } }
}
"""
END = """
mutation($input: EndSessionsOfUserInput!) {
  endSessionsOfUser(input: $input) { user { username } endedCount errors { code field } }
}
"""
NOTHING = {"replayed": False, "errors": []}


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    async with smtp_server() as inbox:
        yield inbox


@pytest.fixture
async def mailing(settings: Settings, inbox: Inbox) -> AsyncIterator[Api]:
    """A server that sends mail."""
    given = {"smtp_url": SecretStr(inbox.url()), "mail_from": SENDER, "public_url": "https://app.example"}
    async with serving(settings.model_copy(update=given)) as api:
        yield api


async def request(api: Api, email: str, **given: str) -> dict[str, Any]:
    payload: dict[str, Any] = (await api.data(REQUEST, {"input": {"email": email, **given}}))["requestPasswordReset"]
    return payload


async def reset(api: Api, token: str, password: str = "battery staple", **given: str) -> list[str]:
    variables = {"token": token, "newPassword": password, **given}
    payload = (await api.data(RESET, {"input": variables}))["resetPassword"]
    return [error["code"] for error in payload["errors"]]


async def token_in_mail(inbox: Inbox, number: int = 1) -> str:
    mail = (await inbox.until_received(number))[-1]
    (token,) = re.findall(r"https://app\.example/reset-password#token=(tfw_\w+)", mail.text)
    assert token in mail.html
    assert isinstance(token, str)
    return token


async def until_answered(database: Database) -> None:
    async with asyncio.timeout(10):
        while True:
            async with database.read() as session:
                if (await session.execute(select(PasswordResetRequest.id))).first() is None:
                    return
            await asyncio.sleep(0.02)


async def test_a_link_sets_a_new_password_once_and_signs_out_everywhere(mailing: Api, inbox: Inbox) -> None:
    ann, bob = await mailing.register("ann"), await mailing.register("bob")
    assert await request(mailing, "ANN@example.com") == NOTHING
    (mail,) = await inbox.until_received(1)
    assert mail.recipients == ["ann@example.com"]
    token = await token_in_mail(inbox)
    assert await reset(mailing, token, "short") == ["BAD_USER_INPUT"]
    assert await reset(mailing, token) == []
    assert await mailing.codes("{ me { id } }", by=ann) == ["UNAUTHENTICATED"]
    assert await mailing.codes("{ me { id } }", by=bob) == []
    assert (await login(mailing, "ann", ann.password))["errors"][0]["code"] == "INVALID_CREDENTIALS"
    assert (await login(mailing, "ann", "battery staple"))["errors"] == []
    assert await reset(mailing, token, "another one") == ["INVALID_TOKEN"]
    told = (await inbox.until_received(2))[-1]
    assert (told.recipients, "password" in told.message["subject"].lower()) == (["ann@example.com"], True)


async def test_an_unknown_address_gets_the_same_answer_and_no_mail(
    mailing: Api, inbox: Inbox, database: Database
) -> None:
    await mailing.register("ann")
    async with database.write() as session:
        await session.execute(update(User).values(is_active=False))
    for email in ("nobody@example.com", "ann@example.com"):
        assert await request(mailing, email) == NOTHING
    await until_answered(database)
    async with database.read() as session:
        assert (await session.execute(select(PasswordResetToken.user_id))).all() == []
    payload = await request(mailing, "no address")
    assert [(error["code"], error["field"]) for error in payload["errors"]] == [("BAD_USER_INPUT", ["email"])]


async def test_the_request_itself_does_not_look_for_the_person(
    settings: Settings, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PasswordResets, "on_committed", lambda *_: None)
    given = {"smtp_url": SecretStr(inbox.url()), "mail_from": SENDER, "public_url": "https://app.example"}
    async with serving(settings.model_copy(update=given)) as api:
        await api.register("ann")
        for email in ("ann@example.com", "nobody@example.com"):
            statements: list[str] = []
            with noting_statements(statements.append):
                assert await request(api, email) == NOTHING
            assert [sql for sql in statements if "users" in sql] == []


async def test_all_links_of_a_person_become_invalid_when_one_is_used(mailing: Api, inbox: Inbox) -> None:
    await mailing.register("ann")
    for _ in range(2):
        await request(mailing, "ann@example.com")
    mails = await inbox.until_received(2)
    first, second = (re.findall(r"token=(tfw_\w+)", mail.text)[0] for mail in mails)
    assert first != second
    assert await reset(mailing, second) == []
    assert await reset(mailing, first) == ["INVALID_TOKEN"]


async def test_nobody_fills_a_mailbox(mailing: Api, inbox: Inbox, database: Database) -> None:
    await mailing.register("ann")
    for _ in range(MAX_LINKS + 5):
        assert await request(mailing, "ann@example.com") == NOTHING
    await until_answered(database)
    await inbox.until_received(MAX_LINKS)
    async with database.read() as session:
        assert len((await session.execute(select(PasswordResetToken.user_id))).all()) == MAX_LINKS


async def test_a_link_expires(mailing: Api, inbox: Inbox, database: Database) -> None:
    ann = await mailing.register("ann")
    await request(mailing, "ann@example.com")
    token = await token_in_mail(inbox)
    async with database.write() as session:
        await session.execute(update(PasswordResetToken).values(expires_at=clock.now() - timedelta(seconds=1)))
    assert await reset(mailing, token) == ["INVALID_TOKEN"]
    assert (await login(mailing, "ann", ann.password))["errors"] == []
    async with database.write() as session:
        assert await expire_reset_tokens(session, clock.now(), limit=10) == 1


async def test_a_deactivated_person_cannot_use_a_link(mailing: Api, inbox: Inbox, database: Database) -> None:
    await mailing.register("ann")
    await request(mailing, "ann@example.com")
    token = await token_in_mail(inbox)
    async with database.write() as session:
        await session.execute(update(User).values(is_active=False))
    assert await reset(mailing, token) == ["INVALID_TOKEN"]


async def test_of_concurrent_uses_of_a_link_one_counts(mailing: Api, inbox: Inbox) -> None:
    await mailing.register("ann")
    await request(mailing, "ann@example.com")
    token = await token_in_mail(inbox)
    passwords = [f"battery staple {number}" for number in range(5)]
    answers = await asyncio.gather(*(reset(mailing, token, password) for password in passwords))
    assert sorted(answers) == [[], *[["INVALID_TOKEN"]] * 4]
    used = passwords[answers.index([])]
    for password in passwords:
        errors = (await login(mailing, "ann", password))["errors"]
        assert (errors == []) is (password == used)


async def test_a_repeated_reset_gets_the_first_answer(mailing: Api, inbox: Inbox) -> None:
    await mailing.register("ann")
    await request(mailing, "ann@example.com")
    token = await token_in_mail(inbox)
    for _ in range(2):
        assert await reset(mailing, token, mutationId="m") == []


@pytest.mark.parametrize("token", ["", "x", "tfw_" + "0" * 49, "tfr_" + "0" * 49, "t" * 100_000, "é"])
async def test_other_tokens_are_refused(mailing: Api, token: str) -> None:
    assert await reset(mailing, token) == ["INVALID_TOKEN"]
    assert await reset(mailing, OpaqueTokens("tfw_").make()) == ["INVALID_TOKEN"]


async def test_the_database_and_the_log_hold_no_link_after_it_was_sent(
    mailing: Api, inbox: Inbox, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await mailing.register("ann")
    await request(mailing, "ann@example.com", mutationId="m")
    token = await token_in_mail(inbox)
    async with asyncio.timeout(10):
        rows = token
        while token in rows:
            await asyncio.sleep(0.02)
            async with database.connect() as connection:
                tables = ("outgoing_mails", "password_reset_tokens", "password_reset_requests", "receipts")
                rows = str(
                    [(await connection.exec_driver_sql(f"SELECT * FROM {table}")).all() for table in tables]  # noqa: S608
                )
    assert token not in caplog.text


async def test_a_server_that_sends_no_mail_says_so(sqlite_settings: Settings, database: Database) -> None:
    given = sqlite_settings.model_copy(update={"env": "production"})
    async with serving(given) as api:
        payload = await request(api, "ann@example.com")
        assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]


async def test_a_changed_password_is_told_by_mail(mailing: Api, inbox: Inbox) -> None:
    ann = await mailing.register("ann")
    given = {"currentPassword": ann.password, "newPassword": "battery staple"}
    assert (await mailing.data(CHANGE_PASSWORD, {"input": given}, by=ann))["changePassword"]["errors"] == []
    (mail,) = await inbox.until_received(1)
    assert mail.recipients == ["ann@example.com"]


@pytest.fixture
async def root(mailing: Api, database: Database) -> Person:
    person = await mailing.register("root")
    await make_admin(database, person.id)
    return person


async def test_an_admin_sends_a_link_and_signs_somebody_out(mailing: Api, inbox: Inbox, root: Person) -> None:
    ann = await mailing.register("ann")
    await login(mailing, "ann", ann.password)
    given = {"input": {"userId": ann.id}}
    for by, expected in ((ann, "FORBIDDEN"), (root, None)):
        payload = (await mailing.data(SEND, given, by=by))["sendPasswordReset"]
        assert [error["code"] for error in payload["errors"]] == ([expected] if expected else [])
        payload = (await mailing.data(END, given, by=root if expected is None else by))["endSessionsOfUser"]
        assert [error["code"] for error in payload["errors"]] == ([expected] if expected else [])
    assert (payload["endedCount"], payload["user"]) == (2, {"username": "ann"})
    assert await mailing.codes("{ me { id } }", by=ann) == ["UNAUTHENTICATED"]
    assert await reset(mailing, await token_in_mail(inbox)) == []
    for document in (SEND, END):
        (payload,) = (await mailing.data(document, {"input": {"userId": root.id[:-4] + "0000"}}, by=root)).values()
        assert payload["errors"] == [{"code": "NOT_FOUND", "field": ["userId"]}]


UPDATE = """
mutation($input: UpdateProfileInput!) { updateProfile(input: $input) { user { email } errors { code } } }
"""


async def test_a_stolen_access_token_does_not_take_the_account(mailing: Api, inbox: Inbox, database: Database) -> None:
    ann = await mailing.register("ann")
    await request(mailing, ann.email)
    old_link = await token_in_mail(inbox)
    payload = (await mailing.data(UPDATE, {"input": {"email": "thief@example.com"}}, by=ann))["updateProfile"]
    assert payload == {"user": {"email": "thief@example.com"}, "errors": []}
    (_, told) = await inbox.until_received(2)
    assert (told.recipients, "thief@example.com" in told.text) == (["ann@example.com"], True)
    await request(mailing, "thief@example.com")
    await until_answered(database)
    async with database.read() as session:
        assert (await session.execute(select(PasswordResetToken.user_id))).all() == []
    assert await reset(mailing, old_link) == ["INVALID_TOKEN"]
    async with database.write() as session:
        await session.execute(update(User).values(email_changed_at=clock.now() - timedelta(days=4)))
    await request(mailing, "thief@example.com")
    assert (await inbox.until_received(3))[-1].recipients == ["thief@example.com"]


async def test_notices_are_sent_once_in_ten_minutes(mailing: Api, inbox: Inbox, database: Database) -> None:
    ann = await mailing.register("ann")
    given = {"currentPassword": ann.password, "newPassword": ann.password}
    for _ in range(5):
        assert (await mailing.data(CHANGE_PASSWORD, {"input": given}, by=ann))["changePassword"]["errors"] == []
    await inbox.until_received(1)
    async with database.read() as session:
        assert (await session.execute(select(OutgoingMail.template).where(OutgoingMail.attempts == 0))).all() == []
    assert len(inbox.received) == 1


async def test_a_changed_password_makes_links_invalid(mailing: Api, inbox: Inbox) -> None:
    ann = await mailing.register("ann")
    await request(mailing, ann.email)
    token = await token_in_mail(inbox)
    given = {"currentPassword": ann.password, "newPassword": "battery staple"}
    assert (await mailing.data(CHANGE_PASSWORD, {"input": given}, by=ann))["changePassword"]["errors"] == []
    assert await reset(mailing, token, "another one") == ["INVALID_TOKEN"]
