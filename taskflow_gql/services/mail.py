"""Mail: an outbox that is part of the transaction.

`post_mail` writes the mail in the transaction of the change that it is about. After the commit a process claims it,
sends it and deletes the row. A claim is a lease: the process sets `next_attempt_at` to the end of the lease, and
commits. No transaction is open while it sends. If it dies, any process claims the mail again at the end of the lease.
So a mail is sent at least once, and one that is sent twice has the same Message-ID.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, cast
from uuid import UUID

from sqlalchemy import Integer, bindparam, delete, insert, or_, select, update

from taskflow_gql import clock
from taskflow_gql.database.sessions import DatabaseSession
from taskflow_gql.database.statements import Statement
from taskflow_gql.database.types import UtcDateTime
from taskflow_gql.models import OutgoingMail, User, UserRow
from taskflow_gql.services.ids import make_id

if TYPE_CHECKING:
    from sqlalchemy import Table

# The values that the caller gives to each template. All templates also get `valid_for` and `public_url`.
VALUES_BY_TEMPLATE: Mapping[str, frozenset[str]] = {
    "password_reset": frozenset({"name", "link"}),
    "confirm_email": frozenset({"name", "link"}),
    "email_changed": frozenset({"name", "new_email"}),
    "invitation": frozenset({"inviter", "link"}),
    "password_changed": frozenset({"name"}),
    "session_ended": frozenset({"name"}),
}

# The announcement of a unit of work that posted mail.
MAIL_POSTED = "mail posted"

# A mail that could not be sent for this long is given up, even if its link is still valid.
MAX_WAIT = timedelta(days=3)

# The least time between two notices to one person.
_TOLD_INTERVAL = timedelta(minutes=10)
# Longer than a process takes for one batch (stream/mail.py).
_LEASE = timedelta(minutes=3)
_FIRST_RETRY_SECONDS = 15.0
_MAX_RETRY_SECONDS = 3600.0

# Values are one line each, so that nobody adds a header to a mail, or a paragraph, by their name.
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class MailRow(NamedTuple):
    id: UUID
    recipient: str
    template: str
    values: dict[str, str]
    attempts: int
    expires_at: datetime


class GivenUp(NamedTuple):
    id: UUID
    template: str
    attempts: int


async def post_mail(
    session: DatabaseSession, *, to: str, template: str, values: Mapping[str, str], lifetime: timedelta = MAX_WAIT
) -> UUID:
    """Send the mail after the commit of the session. Returns its id, by which the log names it.

    `lifetime` is how long the link in the mail is valid. Ask `Settings.sends_mail` first: without it nobody sends the
    mail. Raises ValueError unless the values are those of VALUES_BY_TEMPLATE.
    """
    if values.keys() != VALUES_BY_TEMPLATE[template]:
        raise ValueError(f"{template} needs the values {sorted(VALUES_BY_TEMPLATE[template])}, not {sorted(values)}")
    now, mail_id = clock.now(), make_id()
    row = {
        "id": mail_id,
        "recipient": to,
        "template": template,
        "template_values": {
            **{name: one_line(value) for name, value in values.items()},
            "valid_for": in_words(lifetime),
        },
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
        "expires_at": now + min(lifetime, MAX_WAIT),
    }
    # Locking, because a session without locks would commit the insert at once.
    await session.run_locking(_INSERT, row)
    session.announcements.add(MAIL_POSTED)
    return mail_id


async def tell(session: DatabaseSession, user: UserRow, template: str, **values: str) -> None:
    """Post a mail to the address of the row that tells what has happened to the account.

    Not more often than once in ten minutes, so that nobody can make the server fill a mailbox.
    """
    now = clock.now()
    is_due = or_(User.told_at.is_(None), User.told_at <= now - _TOLD_INTERVAL)
    told = update(User).where(User.id == user.id, is_due).values(told_at=now).returning(User.id)
    if (await session.execute(told)).first() is not None:
        await post_mail(session, to=user.email, template=template, values={"name": user.username, **values})


def one_line(text: str) -> str:
    return _BREAKS.sub(" ", text).strip()


def in_words(time: timedelta) -> str:
    """In the largest unit of which there are at least two: "3 days", "36 hours", "60 minutes"."""
    minutes = int(time.total_seconds()) // 60
    for unit, size in (("days", 24 * 60), ("hours", 60)):
        if minutes >= 2 * size and minutes % size == 0:
            return f"{minutes // size} {unit}"
    return f"{minutes} minutes"


async def is_mail_due(session: DatabaseSession) -> bool:
    return bool(await session.run(_ANY_DUE, {"now": clock.now()}))


async def claim_mails(session: DatabaseSession, *, limit: int) -> list[MailRow]:
    """Lease mails that are due to the caller, at most `limit`. Several processes never claim the same one."""
    now = clock.now()
    rows = await session.run_locking(_CLAIM, {"now": now, "leased_until": now + _LEASE, "most": limit})
    return [MailRow._make(row) for row in rows]


async def delete_mail(session: DatabaseSession, mail: MailRow) -> None:
    """After it was sent or refused for good. Its link is not kept any longer than needed."""
    await session.execute(delete(OutgoingMail).where(OutgoingMail.id == mail.id))


async def postpone_mail(session: DatabaseSession, mail: MailRow) -> datetime:
    """Try the mail again later. Returns when: the time doubles with each attempt, up to an hour."""
    seconds = min(_FIRST_RETRY_SECONDS * 2.0 ** min(mail.attempts - 1, 20), _MAX_RETRY_SECONDS)
    # Jitter, so that mails that failed together do not come back together.
    seconds *= random.uniform(0.5, 1)  # noqa: S311
    next_attempt_at = min(clock.now() + timedelta(seconds=seconds), mail.expires_at)
    # With another number of attempts, another process has claimed it since.
    is_ours = (OutgoingMail.id == mail.id) & (OutgoingMail.attempts == mail.attempts)
    await session.execute(update(OutgoingMail).where(is_ours).values(next_attempt_at=next_attempt_at))
    return next_attempt_at


async def release_mails(session: DatabaseSession, mails: Sequence[MailRow]) -> None:
    """Return mails that were claimed and not tried."""
    for mail in mails:
        is_ours = (OutgoingMail.id == mail.id) & (OutgoingMail.attempts == mail.attempts)
        values = {"next_attempt_at": clock.now(), "attempts": mail.attempts - 1}
        await session.execute(update(OutgoingMail).where(is_ours).values(values))


async def give_up_mails(session: DatabaseSession) -> Collection[GivenUp]:
    """Delete the mails that have expired, and return them. A mail that is being sent stays."""
    now = clock.now()
    expired = (OutgoingMail.expires_at <= now) & (OutgoingMail.next_attempt_at <= now)
    columns = (OutgoingMail.id, OutgoingMail.template, OutgoingMail.attempts)
    return [
        GivenUp._make(row) for row in await session.execute(delete(OutgoingMail).where(expired).returning(*columns))
    ]


_MAILS = cast("Table", OutgoingMail.__table__)
_INSERT = Statement(insert(_MAILS).values({column.name: bindparam(column.name) for column in _MAILS.columns}).inline())
_NOW = bindparam("now", type_=UtcDateTime)
_ANY_DUE = Statement(select(_MAILS.c.id).where(_MAILS.c.next_attempt_at <= _NOW).limit(1))


def _claim() -> Statement:
    due = (
        select(_MAILS.c.id)
        .where(_MAILS.c.next_attempt_at <= _NOW, _MAILS.c.expires_at > _NOW)
        .order_by(_MAILS.c.next_attempt_at)
        .limit(bindparam("most", type_=Integer))
        # SQLite, which has one writer at a time, ignores it.
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    leased = (
        update(_MAILS)
        .where(_MAILS.c.id == due.c.id)
        .values(next_attempt_at=bindparam("leased_until"), attempts=_MAILS.c.attempts + 1)
    )
    names = ("id", "recipient", "template", "template_values", "attempts", "expires_at")
    return Statement(leased.returning(*(_MAILS.c[name] for name in names)))


_CLAIM = _claim()
