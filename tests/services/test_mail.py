"""The outbox: posting, claiming, postponing and giving up mails."""

from __future__ import annotations

import asyncio
from collections.abc import Set
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from taskflow_gql import clock
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.observers import DatabaseObserver
from taskflow_gql.database.units import Database
from taskflow_gql.models import OutgoingMail
from taskflow_gql.services.mail import (
    MAIL_POSTED,
    MailRow,
    claim_mails,
    delete_mail,
    give_up_mails,
    in_words,
    is_mail_due,
    one_line,
    post_mail,
    postpone_mail,
    release_mails,
)

VALUES = {"name": "Ann", "link": "https://app.example/reset?token=abc"}


class Announced(DatabaseObserver):
    def __init__(self, database: Database) -> None:
        self.heard: list[Set[str]] = []
        database.observe(self)

    def on_committed(self, announcements: Set[str]) -> None:
        self.heard.append(announcements)


async def post(database: Database, *recipients: str, lifetime: timedelta = timedelta(hours=1)) -> None:
    async with database.write() as session:
        for to in recipients:
            await post_mail(session, to=to, template="password_reset", values=VALUES, lifetime=lifetime)


async def claim(database: Database, limit: int = 10) -> list[MailRow]:
    async with database.write() as session:
        return await claim_mails(session, limit=limit)


async def rows(database: Database) -> list[Any]:
    async with database.read() as session:
        return list(await session.execute(select(OutgoingMail.__table__).order_by(OutgoingMail.id)))


async def set_all(database: Database, **values: Any) -> None:
    async with database.write() as session:
        await session.execute(update(OutgoingMail).values(**values))


def recipients(mails: list[MailRow]) -> list[str]:
    return sorted(mail.recipient for mail in mails)


async def test_a_mail_is_posted_and_announced_by_the_commit(database: Database) -> None:
    announced = Announced(database)
    before = clock.now()
    async with database.write() as session:
        mail_id = await post_mail(session, to="ann@example.com", template="password_reset", values=VALUES)
        assert announced.heard == []
    assert announced.heard == [{MAIL_POSTED}]
    (row,) = await rows(database)
    assert (row.id, row.recipient, row.template, row.attempts) == (mail_id, "ann@example.com", "password_reset", 0)
    assert row.template_values == {**VALUES, "valid_for": "3 days"}
    assert before <= row.created_at == row.next_attempt_at <= clock.now()


@pytest.mark.parametrize("locks", [True, False])
async def test_a_rolled_back_mail_is_neither_posted_nor_announced(database: Database, locks: bool) -> None:
    announced = Announced(database)
    with suppress(ZeroDivisionError):
        async with database.write(locks=locks) as session:
            await post_mail(session, to="ann@example.com", template="password_reset", values=VALUES)
            raise ZeroDivisionError
    assert await rows(database) == []
    assert announced.heard == []


async def test_a_commit_without_mail_announces_nothing(database: Database) -> None:
    announced = Announced(database)
    async with database.write() as session:
        await is_mail_due(session)
    assert announced.heard == []


@pytest.mark.parametrize("values", [{}, {"name": "Ann"}, {**VALUES, "more": "x"}])
async def test_values_that_a_template_does_not_have_are_refused(database: Database, values: dict[str, str]) -> None:
    async with database.write() as session:
        with pytest.raises(ValueError, match="password_reset needs the values"):
            await post_mail(session, to="ann@example.com", template="password_reset", values=values)
    assert await rows(database) == []


async def test_a_mail_lives_as_long_as_its_link_and_at_most_three_days(database: Database) -> None:
    await post(database, "ann@example.com", lifetime=timedelta(hours=1))
    await post(database, "bob@example.com", lifetime=timedelta(days=7))
    short, long = await rows(database)
    assert short.expires_at - short.created_at == timedelta(hours=1)
    assert long.expires_at - long.created_at == timedelta(days=3)
    assert (short.template_values["valid_for"], long.template_values["valid_for"]) == ("60 minutes", "7 days")


async def test_values_are_stored_as_one_line(database: Database) -> None:
    async with database.write() as session:
        values = {"name": "Ann\r\nBcc: all@example.com\x00", "link": "https://app.example"}
        await post_mail(session, to="ann@example.com", template="confirm_email", values=values)
    assert (await rows(database))[0].template_values["name"] == "Ann Bcc: all@example.com"


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\x00"])
def test_every_line_break_becomes_a_space(separator: str) -> None:
    assert one_line(f" a{separator}b ") == "a b"


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (timedelta(minutes=15), "15 minutes"),
        (timedelta(hours=1), "60 minutes"),
        (timedelta(minutes=90), "90 minutes"),
        (timedelta(hours=2), "2 hours"),
        (timedelta(days=1), "24 hours"),
        (timedelta(days=3), "3 days"),
    ],
)
def test_times_in_words(time: timedelta, words: str) -> None:
    assert in_words(time) == words


async def test_a_claimed_mail_is_not_claimed_again_before_its_lease_ends(database: Database) -> None:
    await post(database, "ann@example.com", "bob@example.com", "eva@example.com")
    first, second = await claim(database, limit=2), await claim(database, limit=2)
    assert [len(first), len(second)] == [2, 1]
    assert recipients(first + second) == ["ann@example.com", "bob@example.com", "eva@example.com"]
    assert {mail.attempts for mail in first} == {1}
    assert await claim(database) == []
    async with database.read() as session:
        assert not await is_mail_due(session)

    await set_all(database, next_attempt_at=clock.now())
    again = await claim(database)
    assert recipients(again) == recipients(first + second)
    assert {mail.attempts for mail in again} == {2}


async def test_claims_at_the_same_time_wait_for_none_and_share_the_mails(postgresql_settings: Settings) -> None:
    database = Database(create_engine(postgresql_settings))
    await post(database, *(f"person{number}@example.com" for number in range(6)))
    async with database.write() as one, database.write() as other, asyncio.timeout(5):
        mails = [*await claim_mails(one, limit=4), *await claim_mails(other, limit=4)]
    assert recipients(mails) == [f"person{number}@example.com" for number in range(6)]
    await database.close()


async def test_waits_double_up_to_an_hour_and_end_before_the_mail_expires(database: Database) -> None:
    await post(database, "ann@example.com", lifetime=timedelta(days=3))
    (mail,) = await claim(database)
    for attempts, seconds in ((1, 15), (2, 30), (3, 60), (8, 1920), (9, 3600), (1000, 3600)):
        await set_all(database, attempts=attempts)
        async with database.write() as session:
            wait = await postpone_mail(session, mail._replace(attempts=attempts)) - clock.now()
        assert timedelta(seconds=seconds / 2 - 1) <= wait <= timedelta(seconds=seconds)
    soon = clock.now() + timedelta(seconds=1)
    async with database.write() as session:
        assert await postpone_mail(session, mail._replace(attempts=1000, expires_at=soon)) == soon
    assert [row.next_attempt_at for row in await rows(database)] == [soon]


async def test_a_process_that_lost_its_lease_changes_nothing(database: Database) -> None:
    await post(database, "ann@example.com")
    (lost,) = await claim(database)
    await set_all(database, next_attempt_at=clock.now())
    await claim(database)
    before = await rows(database)
    async with database.write() as session:
        await postpone_mail(session, lost)
        await release_mails(session, [lost])
    assert await rows(database) == before


async def test_released_mails_are_due_and_their_attempt_does_not_count(database: Database) -> None:
    await post(database, "ann@example.com", "bob@example.com")
    sent, *others = await claim(database)
    async with database.write() as session:
        await delete_mail(session, sent)
        await release_mails(session, others)
    assert [mail.attempts for mail in await claim(database)] == [1]


async def test_expired_mails_are_given_up_unless_they_are_being_sent(database: Database) -> None:
    await post(database, "ann@example.com")
    (mail,) = await claim(database)
    await set_all(database, expires_at=clock.now())
    async with database.write() as session:
        assert await give_up_mails(session) == []
    await set_all(database, next_attempt_at=clock.now())
    assert await claim(database) == []
    async with database.write() as session:
        assert await give_up_mails(session) == [(mail.id, "password_reset", 1)]
    assert await rows(database) == []
