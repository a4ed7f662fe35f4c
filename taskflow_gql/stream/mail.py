"""Sends the mails of the outbox, over SMTP or, in development without a server, to the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Set
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime, parseaddr
from typing import TypeAlias

from aiosmtplib import (
    SMTP,
    SMTPDataError,
    SMTPException,
    SMTPNotSupported,
    SMTPRecipientsRefused,
    SMTPResponseException,
)
from email_validator import EmailNotValidError, validate_email

from taskflow_gql import clock
from taskflow_gql.config import SmtpServer
from taskflow_gql.database.observers import DatabaseObserver
from taskflow_gql.database.units import Database
from taskflow_gql.services.mail import (
    MAIL_POSTED,
    MailRow,
    claim_mails,
    delete_mail,
    give_up_mails,
    is_mail_due,
    postpone_mail,
    release_mails,
)
from taskflow_gql.stream.background import Background
from taskflow_gql.stream.mail_templates import MailTemplates, RenderedMail

log = logging.getLogger(__name__)

# Connections to the SMTP server at once, of each process. A slow recipient delays the mails of one of them only.
_CONNECTIONS = 3
# Mails that one connection claims at a time.
_BATCH = 10
# How often to look for mails whose next attempt is due, and for those that a dead process had claimed.
_INTERVAL_SECONDS = 5.0
# A lease of three minutes is longer than connecting, sending and one last mail of five commands.
_CONNECT_SECONDS = 30.0
_SENDING_SECONDS = 60.0
_COMMAND_SECONDS = 10.0
_QUIT_SECONDS = 2.0

# The server wants something else first, such as a sign-in. They say nothing about the recipient.
_CODES_OF_THE_SESSION = {503, 530}
# The server closes the connection.
_CLOSING = 421

Send: TypeAlias = Callable[[MailRow], Awaitable[None]]
# Opens a connection, over which mails are sent one after the other.
Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[Send]]


class Mailer(DatabaseObserver):
    """Sends mails after each commit of its own process that posted some, and on a timer those that wait.

    Every process runs one. Without `connect` it only deletes mails that have expired.
    """

    def __init__(self, database: Database, connect: Connect | None) -> None:
        self._database = database
        self._connect = connect
        self._senders = [
            Background(f"mail-{number}", self._run, failure="Cannot send mail", interval_seconds=_INTERVAL_SECONDS)
            for number in range(_CONNECTIONS)
        ]

    def on_committed(self, announcements: Set[str]) -> None:
        if MAIL_POSTED in announcements:
            self._wake()

    def start(self) -> None:
        for sender in self._senders:
            sender.start()
        self._wake()

    def _wake(self) -> None:
        for sender in self._senders:
            sender.wake()

    async def close(self) -> None:
        """Cancels what is being sent. It is sent again when its lease ends."""
        for sender in self._senders:
            await sender.close()

    async def _run(self, _was_woken: bool) -> None:
        while await self._is_due():
            await self._give_up()
            if self._connect is None:
                return
            async with self._database.write() as session:
                mails = await claim_mails(session, limit=_BATCH)
            if not mails:
                return
            await self._send_batch(self._connect, mails)

    async def _is_due(self) -> bool:
        async with self._database.read() as session:
            return await is_mail_due(session)

    async def _give_up(self) -> None:
        async with self._database.write() as session:
            expired = await give_up_mails(session)
        for mail in expired:
            log.error("Gave up mail %s (%s) after %d attempts", mail.id, mail.template, mail.attempts)

    async def _send_batch(self, connect: Connect, mails: Sequence[MailRow]) -> None:
        """Send the mails over one connection. No transaction is open meanwhile."""
        stop_at = time.monotonic() + _CONNECT_SECONDS + _SENDING_SECONDS
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    send = await stack.enter_async_context(connect())
            except Exception as error:
                log.warning("Cannot use the SMTP server (%s); %d mails wait", _reason(error), len(mails))
                await self._postpone(mails)
                return
            for sent, mail in enumerate(mails, start=1):
                is_open = await self._send(send, mail)
                if not is_open or time.monotonic() > stop_at:
                    await self._release(mails[sent:])
                    return

    async def _send(self, send: Send, mail: MailRow) -> bool:
        """Whether the connection can be used for the next mail."""
        try:
            await send(mail)
        # Whatever is wrong with one mail, the others are sent.
        except Exception as error:
            if refusal := _refusal(error):
                log.warning("Dropped mail %s (%s): %s", mail.id, mail.template, refusal)
                await self._delete(mail)
            else:
                (next_attempt_at,) = await self._postpone([mail])
                log.warning(
                    "Could not send mail %s (%s): %s; the next attempt is at %s",
                    *(mail.id, mail.template, _reason(error), f"{next_attempt_at:%H:%M:%S} UTC"),
                )
            return not isinstance(error, OSError) and _code(error) != _CLOSING
        log.info("Sent mail %s (%s)", mail.id, mail.template)
        await self._delete(mail)
        return True

    async def _delete(self, mail: MailRow) -> None:
        async with self._database.write() as session:
            await delete_mail(session, mail)

    async def _postpone(self, mails: Sequence[MailRow]) -> list[datetime]:
        async with self._database.write() as session:
            return [await postpone_mail(session, mail) for mail in mails]

    async def _release(self, mails: Sequence[MailRow]) -> None:
        async with self._database.write() as session:
            await release_mails(session, mails)


def to_log(templates: MailTemplates) -> Connect:
    """Prints mails in the log, links included: for development only."""

    async def send(mail: MailRow) -> None:
        rendered = templates.render(mail.template, mail.values)
        log.info("Mail to %s: %s\n\n%s", mail.recipient, rendered.subject, rendered.text)

    @asynccontextmanager
    async def connect() -> AsyncIterator[Send]:
        yield send

    return connect


def over_smtp(server: SmtpServer, sender: str, templates: MailTemplates) -> Connect:
    """Sends mails from `sender`, such as `TaskFlow <noreply@app.example>`."""
    name, address = parseaddr(sender)
    from_address = _address(address, name)

    @asynccontextmanager
    async def connect() -> AsyncIterator[Send]:
        client = SMTP(
            hostname=server.host,
            port=server.port,
            username=server.username,
            password=server.password,
            # Otherwise the library asks the name server for the machine's name, which can take long.
            local_hostname=from_address.domain,
            timeout=_COMMAND_SECONDS,
            use_tls=server.uses_tls,
            start_tls=server.starttls,
        )

        async def send(mail: MailRow) -> None:
            to_address = _address(mail.recipient)
            rendered = templates.render(mail.template, mail.values)
            message = _message(mail, rendered, from_address, to_address)
            await client.send_message(message, sender=from_address.addr_spec, recipients=[to_address.addr_spec])

        try:
            await client.connect()
            yield send
            with suppress(SMTPException, OSError):
                await client.quit(timeout=_QUIT_SECONDS)
        finally:
            client.close()

    return connect


def _address(text: str, name: str = "") -> Address:
    """The domain in ASCII, so that only a local part beyond ASCII needs SMTPUTF8. Raises EmailNotValidError."""
    valid = validate_email(text, check_deliverability=False, test_environment=True)
    return Address(name, valid.local_part, valid.ascii_domain)


def _message(mail: MailRow, rendered: RenderedMail, from_address: Address, to_address: Address) -> EmailMessage:
    message = EmailMessage(policy=SMTP_POLICY)
    message["From"] = from_address
    message["To"] = to_address
    message["Subject"] = rendered.subject
    message["Date"] = format_datetime(clock.now())
    # The same at each attempt. A mailbox that gets the mail twice can show it once.
    message["Message-ID"] = f"<{mail.id}@{from_address.domain}>"
    # Asks for no automatic answers (RFC 3834).
    message["Auto-Submitted"] = "auto-generated"
    # Readable lines in transit: long links and text beyond ASCII fit into the lines that SMTP allows.
    message.set_content(rendered.text, cte="quoted-printable")
    message.add_alternative(rendered.html, subtype="html", cte="quoted-printable")
    return message


def _code(error: Exception) -> int | None:
    """The code of the server's answer, if that is the error."""
    if isinstance(error, SMTPRecipientsRefused):
        return error.recipients[0].code
    return error.code if isinstance(error, SMTPResponseException) else None


def _refusal(error: Exception) -> str | None:
    """Why no further attempt can succeed, or None if one can."""
    if isinstance(error, EmailNotValidError):
        return "its address is not valid"
    if isinstance(error, SMTPNotSupported):
        return "the SMTP server takes no addresses beyond ASCII"
    code = _code(error)
    is_of_the_mail = isinstance(error, SMTPRecipientsRefused | SMTPDataError)
    if is_of_the_mail and code is not None and 500 <= code < 600 and code not in _CODES_OF_THE_SESSION:
        return f"the SMTP server refuses it with {code}"
    return None


def _reason(error: Exception) -> str:
    """For the log, without the server's words: they can repeat the address."""
    if (code := _code(error)) is not None:
        return f"{type(error).__name__} {code}"
    # Messages of connecting, TLS and signing in. Those of other errors can quote the mail.
    is_of_the_connection = isinstance(error, SMTPException | OSError)
    return f"{type(error).__name__}: {error}" if is_of_the_connection else type(error).__name__
