"""A real SMTP server in the event loop of the test, and the mails that it has taken."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTPUTF8
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from taskflow_gql import clock
from taskflow_gql.config import SmtpServer
from tests.support.client import PATIENCE_SECONDS
from tests.support.serving import make_settings

SENDER = "TaskFlow <noreply@app.example>"

# Gets the recipient or the mail, and returns the answer to it. It may wait, or close the connection and return "".
Answer = Callable[[SMTP, str], Awaitable[str]]


class Received(NamedTuple):
    sender: str
    recipients: Sequence[str]
    message: EmailMessage

    @property
    def text(self) -> str:
        return part(self.message, "plain")

    @property
    def html(self) -> str:
        return part(self.message, "html")


def part(message: EmailMessage, subtype: str) -> str:
    body = message.get_body((subtype,))
    assert body is not None
    return cast(str, body.get_content()).replace("\r\n", "\n")


async def accept(_server: SMTP, _subject: str) -> str:
    return "250 OK"


class Inbox:
    """What the server does. Tests replace the answers."""

    def __init__(self) -> None:
        self.port = 0
        self.received: list[Received] = []
        self.sign_ins: list[tuple[bytes, bytes]] = []
        self.answer_recipient: Answer = accept
        # The mail is in `received` before its answer is asked for.
        self.answer_mail: Answer = accept
        self._news = asyncio.Event()

    def url(self, scheme: str = "smtp", sign_in: str = "", query: str = "") -> str:
        return f"{scheme}://{sign_in}127.0.0.1:{self.port}{query}"

    def server(self, scheme: str = "smtp", sign_in: str = "", query: str = "") -> SmtpServer:
        return smtp_server_of(self.url(scheme, sign_in, query))

    async def until_received(self, count: int) -> list[Received]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.received) < count:
                self._news.clear()
                await self._news.wait()
        return self.received

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, _session: object, envelope: Envelope, address: str, _options: object
    ) -> str:
        answer = await self.answer_recipient(server, address)
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: SMTP, _session: object, envelope: Envelope) -> str:  # noqa: N802
        content = cast(bytes, envelope.content)
        message = cast(EmailMessage, message_from_bytes(content, policy=cast(Any, SMTPUTF8)))
        self.received.append(Received(str(envelope.mail_from), list(envelope.rcpt_tos), message))
        self._news.set()
        return await self.answer_mail(server, str(message["Message-ID"]))

    def authenticate(
        self, _server: object, _session: object, _envelope: object, _mechanism: str, given: LoginPassword
    ) -> AuthResult:
        self.sign_ins.append((given.login, given.password))
        return AuthResult(success=given.password != b"wrong", handled=False)


def smtp_server_of(url: str) -> SmtpServer:
    server = make_settings(smtp_url=url, mail_from=SENDER, public_url="https://app.example").smtp_server
    assert server is not None
    return server


@asynccontextmanager
async def smtp_server(
    *, tls: ssl.SSLContext | None = None, starttls: ssl.SSLContext | None = None, takes_utf8: bool = True
) -> AsyncIterator[Inbox]:
    inbox = Inbox()
    loop = asyncio.get_running_loop()

    def connection() -> SMTP:
        return SMTP(
            inbox,
            hostname="smtp.example",
            loop=loop,
            tls_context=starttls,
            enable_SMTPUTF8=takes_utf8,
            authenticator=inbox.authenticate,
            auth_require_tls=False,
        )

    server = await loop.create_server(connection, "127.0.0.1", 0, ssl=tls)
    inbox.port = server.sockets[0].getsockname()[1]
    try:
        yield inbox
    finally:
        server.close()


def make_certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate of 127.0.0.1: its file, for clients that trust it, and the context of a server."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "smtp.example")])
    now = clock.now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path, key_path = folder / "certificate.pem", folder / "key.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, key_path)
    return path, context
