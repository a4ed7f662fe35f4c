"""Mails of the outbox are sent to a real SMTP server, over its delays, refusals and deaths."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from aiosmtpd.smtp import SMTP
from sqlalchemy import select, text, update

from taskflow_gql import clock
from taskflow_gql.app import create_app
from taskflow_gql.config import Settings, SmtpServer
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.units import Database
from taskflow_gql.models import OutgoingMail
from taskflow_gql.services.mail import MAIL_POSTED, post_mail
from taskflow_gql.stream import mail as mail_module
from taskflow_gql.stream.mail import Connect, Mailer, over_smtp, to_log
from taskflow_gql.stream.mail_templates import MailTemplates
from tests.support.client import PATIENCE_SECONDS
from tests.support.processes import child
from tests.support.serving import make_settings
from tests.support.smtp import SENDER, Inbox, accept, make_certificate, smtp_server

ROOT = Path(__file__).parents[2]
TEMPLATES = MailTemplates(None, public_url="https://app.example")
SECRET = "c2VjcmV0"
LINK = f"https://app.example/reset?token={SECRET}&for=ann"


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    async with smtp_server() as inbox:
        yield inbox


@pytest.fixture
async def sqlite_database(sqlite_settings: Settings) -> AsyncIterator[Database]:
    """For what does not depend on the database."""
    database = Database(create_engine(sqlite_settings))
    yield database
    await database.close()


def is_ours(logger: str) -> bool:
    return logger.startswith("taskflow_gql.")


def smtp(server: SmtpServer) -> Connect:
    return over_smtp(server, SENDER, TEMPLATES)


@asynccontextmanager
async def mailing(database: Database, connect: Connect | None) -> AsyncIterator[None]:
    mailer = Mailer(database, connect)
    stop = database.observe(mailer)
    mailer.start()
    try:
        yield
    finally:
        stop()
        await mailer.close()


async def post(database: Database, *recipients: str, name: str = "Ann", link: str = LINK) -> list[UUID]:
    async with database.write() as session:
        return [
            await post_mail(session, to=to, template="password_reset", values={"name": name, "link": link})
            for to in recipients
        ]


async def rows(database: Database) -> list[Any]:
    async with database.read() as session:
        return list(await session.execute(select(OutgoingMail.__table__).order_by(OutgoingMail.id)))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():
            pass


async def until_empty(database: Database) -> None:
    async def is_empty() -> bool:
        return not await rows(database)

    await until(is_empty)


async def until_waiting(database: Database) -> Any:
    """The one mail in the outbox, when it waits for its next attempt after a failure."""

    async def is_waiting() -> bool:
        (row,) = await rows(database)
        return bool(row.attempts) and row.next_attempt_at < clock.now() + timedelta(seconds=60)

    await until(is_waiting)
    (row,) = await rows(database)
    return row


async def until_waiting_alone(database: Database) -> Any:
    async def is_alone() -> bool:
        return len(await rows(database)) == 1

    await until(is_alone)
    return await until_waiting(database)


async def make_due(database: Database) -> None:
    """End the leases and the waits for a next attempt, and wake the mailer."""
    async with database.write() as session:
        session.announcements.add(MAIL_POSTED)
        await session.execute(update(OutgoingMail).values(next_attempt_at=clock.now()))


async def test_a_mail_is_sent_once_and_its_row_is_deleted(database: Database, inbox: Inbox) -> None:
    async with mailing(database, smtp(inbox.server())):
        (mail_id,) = await post(database, "ann@example.com")
        (received,) = await inbox.until_received(1)
        await until_empty(database)
    assert inbox.received == [received]
    assert (received.sender, received.recipients) == ("noreply@app.example", ["ann@example.com"])
    headers = {name: str(received.message[name]) for name in ("From", "To", "Subject", "Message-ID", "Auto-Submitted")}
    assert headers == {
        "From": "TaskFlow <noreply@app.example>",
        "To": "ann@example.com",
        "Subject": "Set a new password",
        "Message-ID": f"<{mail_id}@app.example>",
        "Auto-Submitted": "auto-generated",
    }
    assert received.message["Date"].datetime - clock.now() < timedelta(minutes=1)
    assert received.message.get_content_type() == "multipart/alternative"
    assert "Hello Ann," in received.text
    assert f"\n{LINK}\n" in received.text
    assert f'href="{LINK.replace("&", "&amp;")}"' in received.html


async def test_mails_posted_before_the_start_are_sent(database: Database, inbox: Inbox) -> None:
    await post(database, "ann@example.com", "bob@example.com")
    async with mailing(database, smtp(inbox.server())):
        received = await inbox.until_received(2)
        await until_empty(database)
    assert sorted(mail.recipients[0] for mail in received) == ["ann@example.com", "bob@example.com"]


async def test_a_slow_server_delays_neither_other_mails_nor_writes(database: Database, inbox: Inbox) -> None:
    is_asked, may_answer = asyncio.Event(), asyncio.Event()

    async def answer(_server: SMTP, address: str) -> str:
        if address == "slow@example.com":
            is_asked.set()
            await may_answer.wait()
        return "250 OK"

    inbox.answer_recipient = answer
    async with mailing(database, smtp(inbox.server())), asyncio.timeout(PATIENCE_SECONDS):
        await post(database, "slow@example.com")
        await is_asked.wait()
        # A write also shows that SQLite's only writer is free.
        await post(database, "ann@example.com")
        (first,) = await inbox.until_received(1)
        assert first.recipients == ["ann@example.com"]
        if not database.is_sqlite:
            assert await count_open_transactions(database) == 0
        may_answer.set()
        await inbox.until_received(2)
        await until_empty(database)


async def count_open_transactions(database: Database) -> int:
    """Transactions of this database that wait for their client."""
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND datname = current_database()"
    )
    async with database.read() as session:
        return int((await session.execute(text(statement))).scalar_one())


async def test_a_silent_server_is_left_after_a_timeout_and_tried_again(
    database: Database, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(_server: SMTP, _subject: str) -> str:
        await asyncio.Event().wait()
        return ""

    inbox.answer_mail = hang
    monkeypatch.setattr(mail_module, "_COMMAND_SECONDS", 1)
    async with mailing(database, smtp(inbox.server())):
        (mail_id,) = await post(database, "ann@example.com")
        row = await until_waiting(database)
    assert row.attempts == 1
    assert [record.levelname for record in caplog.records if is_ours(record.name)] == ["WARNING"]
    assert f"Could not send mail {mail_id} (password_reset): SMTPReadTimeoutError" in caplog.text


async def test_a_permanent_refusal_drops_the_mail(
    database: Database, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(_server: SMTP, address: str) -> str:
        return f"550 5.1.1 No such mailbox: {address}" if address == "gone@example.com" else "250 OK"

    inbox.answer_recipient = refuse
    async with mailing(database, smtp(inbox.server())):
        mail_id, _ = await post(database, "gone@example.com", "ann@example.com")
        (received,) = await inbox.until_received(1)
        await until_empty(database)
    assert received.recipients == ["ann@example.com"]
    assert f"Dropped mail {mail_id} (password_reset): the SMTP server refuses it with 550" in caplog.text
    # The SMTP server of the test logs too.
    assert not any("gone@" in record.getMessage() for record in caplog.records if record.name != "mail.log")


@pytest.mark.parametrize("answer", ["450 4.2.0 Greylisted", "421 4.7.0 Too many", "530 5.7.0 Sign in first"])
async def test_a_temporary_refusal_is_tried_again_as_the_same_mail(
    database: Database, inbox: Inbox, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [answer, "250 OK"]

    async def refuse_once(_server: SMTP, _subject: str) -> str:
        return answers.pop(0)

    inbox.answer_recipient = refuse_once
    async with mailing(database, smtp(inbox.server())):
        (mail_id,) = await post(database, "ann@example.com")
        row = await until_waiting(database)
        assert row.next_attempt_at > clock.now()
        assert f"SMTPRecipientsRefused {answer[:3]}; the next attempt is at" in caplog.text
        await make_due(database)
        (received,) = await inbox.until_received(1)
        await until_empty(database)
    assert received.message["Message-ID"] == f"<{mail_id}@app.example>"


async def test_a_server_that_dies_before_its_answer_gets_the_same_mail_again(database: Database, inbox: Inbox) -> None:
    is_first = True

    async def die_once(server: SMTP, _subject: str) -> str:
        nonlocal is_first
        if is_first:
            is_first = False
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
        return "250 OK"

    inbox.answer_mail = die_once
    async with mailing(database, smtp(inbox.server())):
        (mail_id,) = await post(database, "ann@example.com")
        await until_waiting(database)
        await make_due(database)
        received = await inbox.until_received(2)
        await until_empty(database)
    assert [mail.message["Message-ID"] for mail in received] == [f"<{mail_id}@app.example>"] * 2


async def test_a_broken_connection_delays_one_mail_of_its_batch_only(database: Database, inbox: Inbox) -> None:
    async def break_off(server: SMTP, address: str) -> str:
        if address == "poison@example.com":
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
        return "250 OK"

    inbox.answer_recipient = break_off
    await post(database, "poison@example.com", "ann@example.com", "bob@example.com")
    async with mailing(database, smtp(inbox.server())):
        received = await inbox.until_received(2)
        assert sorted(mail.recipients[0] for mail in received) == ["ann@example.com", "bob@example.com"]
        row = await until_waiting_alone(database)
    assert (row.recipient, row.attempts) == ("poison@example.com", 1)


async def test_an_unreachable_server_is_tried_again(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    async with smtp_server() as inbox:
        pass
    async with mailing(database, smtp(inbox.server(sign_in="ann:hunter2@"))):
        await post(database, "ann@example.com")
        await until_waiting(database)
    assert "Cannot use the SMTP server (SMTPConnectError: " in caplog.text
    assert "1 mails wait" in caplog.text
    assert "hunter2" not in caplog.text


async def test_two_processes_do_not_send_the_same_mail(settings: Settings, inbox: Inbox) -> None:
    databases = [Database(create_engine(settings)) for _ in range(2)]
    people = [f"person{number}@example.com" for number in range(40)]
    connect = smtp(inbox.server())
    async with mailing(databases[0], connect), mailing(databases[1], connect):
        for to in people[:20]:
            await post(databases[0], to)
        await post(databases[1], *people[20:])
        await inbox.until_received(40)
        await until_empty(databases[0])
    assert sorted(mail.recipients[0] for mail in inbox.received) == sorted(people)
    for database in databases:
        await database.close()


SEND_MAILS = """
import asyncio, sys
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.units import Database
from taskflow_gql.app import mail_connection
from taskflow_gql.stream.mail import Mailer

async def main():
    settings = Settings(
        _env_file=None, database_url=sys.argv[1], smtp_url=sys.argv[2],
        mail_from="noreply@app.example", public_url="https://app.example",
    )
    Mailer(Database(create_engine(settings)), mail_connection(settings)).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_mail_of_a_killed_process_is_sent_by_another_after_the_lease(
    settings: Settings, database: Database, inbox: Inbox
) -> None:
    async def hang(_server: SMTP, _subject: str) -> str:
        await asyncio.Event().wait()
        return ""

    inbox.answer_mail = hang
    (mail_id,) = await post(database, "ann@example.com")
    command = (sys.executable, "-c", SEND_MAILS, str(settings.database_url), inbox.url())
    async with child(*command, cwd=ROOT, env=dict(os.environ)) as process:
        await inbox.until_received(1)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    (row,) = await rows(database)
    assert row.attempts == 1
    assert row.next_attempt_at > clock.now() + timedelta(seconds=60)

    inbox.answer_mail = accept
    async with mailing(database, smtp(inbox.server())):
        await make_due(database)
        received = await inbox.until_received(2)
        await until_empty(database)
    assert [mail.message["Message-ID"] for mail in received] == [f"<{mail_id}@app.example>"] * 2


async def test_an_expired_mail_is_given_up_with_an_error(
    database: Database, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    (mail_id,) = await post(database, "ann@example.com")
    async with database.write() as session:
        await session.execute(update(OutgoingMail).values(expires_at=clock.now(), attempts=7))
    async with mailing(database, smtp(inbox.server())):
        await until_empty(database)
    assert inbox.received == []
    (message,) = [message for name, level, message in caplog.record_tuples if level == logging.ERROR and is_ours(name)]
    assert message == f"Gave up mail {mail_id} (password_reset) after 7 attempts"


async def test_without_a_server_in_production_mails_only_expire(database: Database) -> None:
    await post(database, "ann@example.com")
    kept, _ = await post(database, "bob@example.com", "eva@example.com")
    async with database.write() as session:
        await session.execute(update(OutgoingMail).where(OutgoingMail.id != kept).values(expires_at=clock.now()))

    async def is_one_left() -> bool:
        return [row.id for row in await rows(database)] == [kept]

    async with mailing(database, None):
        await until(is_one_left)
    ((attempts,),) = [[row.attempts] for row in await rows(database)]
    assert attempts == 0


async def test_one_bad_mail_does_not_stop_the_others(
    database: Database, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    await post(database, "ann@example.com", "bob@example.com", "not an address")
    async with database.write() as session:
        # A template of a newer release.
        of_bob = OutgoingMail.recipient == "bob@example.com"
        await session.execute(update(OutgoingMail).where(of_bob).values(template="digest"))
    async with mailing(database, smtp(inbox.server())):
        await inbox.until_received(1)
        row = await until_waiting_alone(database)
    assert (row.recipient, row.template) == ("bob@example.com", "digest")
    assert "(digest): TemplateNotFound: 'digest.txt' not found" in caplog.text
    assert "(password_reset): its address is not valid" in caplog.text


# TLS and signing in


async def test_starttls_is_used_if_the_server_offers_it(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, context = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with smtp_server(starttls=context) as inbox:
        for query, count in (("", 1), ("?starttls=true", 2)):
            async with mailing(sqlite_database, smtp(inbox.server(sign_in="ann:p%40ss@", query=query))):
                await post(sqlite_database, "ann@example.com")
                await inbox.until_received(count)
                await until_empty(sqlite_database)
        assert inbox.sign_ins == [(b"ann", b"p@ss")] * 2


async def test_smtps_uses_tls_from_the_start(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, context = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with smtp_server(tls=context) as inbox, mailing(sqlite_database, smtp(inbox.server("smtps"))):
        await post(sqlite_database, "ann@example.com")
        await inbox.until_received(1)
        await until_empty(sqlite_database)


@pytest.mark.parametrize(
    ("scheme", "query", "is_offered", "reason"),
    [
        ("smtps", "", True, "certificate verify failed"),
        ("smtp", "", True, "certificate verify failed"),
        ("smtp", "?starttls=true", False, "STARTTLS extension not supported"),
    ],
)
async def test_nothing_is_sent_without_the_tls_that_is_wanted(
    sqlite_database: Database,
    tmp_path: Path,
    scheme: str,
    query: str,
    is_offered: bool,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, context = make_certificate(tmp_path)
    tls = context if scheme == "smtps" else None
    starttls = context if scheme == "smtp" and is_offered else None
    async with (
        smtp_server(tls=tls, starttls=starttls) as inbox,
        mailing(sqlite_database, smtp(inbox.server(scheme, "ann:pw@", query))),
    ):
        await post(sqlite_database, "ann@example.com")
        await until_waiting(sqlite_database)
    assert (inbox.received, inbox.sign_ins) == ([], [])
    assert reason in caplog.text


async def test_a_refused_sign_in_is_tried_again_and_its_password_is_not_logged(
    sqlite_database: Database, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    async with mailing(sqlite_database, smtp(inbox.server(sign_in="ann:wrong@"))):
        await post(sqlite_database, "ann@example.com")
        await until_waiting(sqlite_database)
    assert inbox.received == []
    ours = [record.getMessage() for record in caplog.records if is_ours(record.name)]
    assert ours == ["Cannot use the SMTP server (SMTPAuthenticationError 535); 1 mails wait"]


# What is in a mail, and what is in the log


async def test_no_log_line_has_the_link_or_the_address(
    database: Database, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "taskflow_gql")

    async def refuse(_server: SMTP, address: str) -> str:
        refused = {"gone@example.com": "550", "later@example.com": "450"}
        return f"{refused[address]} {address} {LINK}" if address in refused else "250 OK"

    inbox.answer_recipient = refuse
    async with mailing(database, smtp(inbox.server())):
        await post(database, "ann@example.com", "gone@example.com", "later@example.com")
        await inbox.until_received(1)
        await until_waiting_alone(database)
    ours = [record.getMessage() for record in caplog.records if is_ours(record.name)]
    assert len(ours) == 3
    assert [line for line in ours if SECRET in line or "@example.com" in line] == []


async def test_in_development_mails_are_printed_in_the_log(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with mailing(database, to_log(TEMPLATES)):
        await post(database, "ann@example.com")
        await until_empty(database)
    assert "Mail to ann@example.com: Set a new password\n\nHello Ann,\n" in caplog.text
    assert f"\n{LINK}\n" in caplog.text


async def test_values_cannot_add_headers_or_markup(database: Database, inbox: Inbox) -> None:
    inviter = 'Eve\r\nBcc: all@example.com\n\n<a href="https://evil.example">'
    async with mailing(database, smtp(inbox.server())):
        async with database.write() as session:
            values = {"inviter": inviter, "link": LINK}
            await post_mail(session, to="ann@example.com", template="invitation", values=values)
        (received,) = await inbox.until_received(1)
        await until_empty(database)
    one_line = 'Eve Bcc: all@example.com <a href="https://evil.example">'
    assert received.message["Subject"] == f"{one_line} invites you to TaskFlow"
    assert received.message["Bcc"] is None
    assert received.recipients == ["ann@example.com"]
    assert one_line in received.text
    assert '<a href="https://evil.example">' not in received.html
    assert "&lt;a href=&#34;https://evil.example&#34;&gt;" in received.html


@pytest.mark.parametrize(
    ("address", "sent_to"),
    [("bücher@example.com", "bücher@example.com"), ("ann@bücher.example", "ann@xn--bcher-kva.example")],
)
async def test_addresses_and_names_beyond_ascii(database: Database, inbox: Inbox, address: str, sent_to: str) -> None:
    async with mailing(database, smtp(inbox.server())):
        await post(database, address, name="Zoë 山田")
        (received,) = await inbox.until_received(1)
        await until_empty(database)
    assert received.recipients == [sent_to]
    assert str(received.message["To"]) == sent_to
    assert "Hello Zoë 山田," in received.text


async def test_an_address_beyond_ascii_is_dropped_by_a_server_that_takes_none(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with smtp_server(takes_utf8=False) as inbox, mailing(database, smtp(inbox.server())):
        await post(database, "bücher@example.com", "ann@example.com")
        await inbox.until_received(1)
        await until_empty(database)
    assert [mail.recipients for mail in inbox.received] == [["ann@example.com"]]
    assert "the SMTP server takes no addresses beyond ASCII" in caplog.text


# The application


async def test_the_application_sends_what_its_units_of_work_post(settings: Settings, inbox: Inbox) -> None:
    given = {"smtp_url": inbox.url(), "mail_from": SENDER, "public_url": "https://app.example"}
    app = create_app(make_settings(**settings.model_dump(exclude={"secret_key"}, exclude_none=True) | given))
    async with app.router.lifespan_context(app):
        await post(app.state.parts.database, "ann@example.com")
        await inbox.until_received(1)
        await until_empty(app.state.parts.database)
