"""Checks of input: names, addresses, titles, passwords and dates.

Each `check_` function returns the value as it will be stored and appends its problems to `problems`, so that all
problems of an input are reported together.
"""

from __future__ import annotations

import re
from datetime import datetime

from email_validator import EmailNotValidError, validate_email

from taskflow_gql.database.types import FIRST_MOMENT, LAST_MOMENT
from taskflow_gql.errors import BadUserInput, Refusal

MIN_PASSWORD_LENGTH, MAX_PASSWORD_LENGTH = 8, 128
MIN_USERNAME_LENGTH, MAX_USERNAME_LENGTH = 3, 50
MIN_TITLE_LENGTH, MAX_TITLE_LENGTH = 3, 255
MAX_FULL_NAME_LENGTH = 255
MAX_EMAIL_LENGTH = 254
MAX_DESCRIPTION_LENGTH = 10_000

_USERNAME = re.compile(r"[A-Za-z0-9_.-]*")


def check_email(email: str, problems: list[Refusal]) -> str:
    email = email.strip()
    if len(email) > MAX_EMAIL_LENGTH:
        # Before the syntax: its messages quote what was sent.
        message = f"Email address is not valid: it has more than {MAX_EMAIL_LENGTH} characters"
        problems.append(BadUserInput(message, field="email"))
        return email
    try:
        # Syntax only: only sending mail shows whether it arrives, so do not query a name server here.
        validate_email(email, check_deliverability=False, test_environment=True)
    except EmailNotValidError as error:
        problems.append(BadUserInput(f"Email address is not valid: {error}", field="email"))
    return email


def check_username(username: str, problems: list[Refusal]) -> str:
    username = username.strip()
    if len(username) < MIN_USERNAME_LENGTH:
        problems.append(BadUserInput("Username must be at least 3 characters long", field="username"))
    elif len(username) > MAX_USERNAME_LENGTH:
        problems.append(BadUserInput("Username must be at most 50 characters long", field="username"))
    elif not _USERNAME.fullmatch(username):
        problems.append(BadUserInput("Username may only have letters, digits, _, . and -", field="username"))
    return username


def check_full_name(full_name: str, problems: list[Refusal]) -> str:
    full_name = full_name.strip()
    if not full_name:
        problems.append(BadUserInput("Full name must not be empty", field="full_name"))
    elif len(full_name) > MAX_FULL_NAME_LENGTH:
        problems.append(BadUserInput("Full name must be at most 255 characters long", field="full_name"))
    return full_name


def check_password(password: str, problems: list[Refusal], *, field: str = "password") -> str:
    if len(password) < MIN_PASSWORD_LENGTH:
        problems.append(BadUserInput("Password must be at least 8 characters long", field=field))
    elif len(password) > MAX_PASSWORD_LENGTH:
        problems.append(BadUserInput("Password must be at most 128 characters long", field=field))
    return password


def check_title(title: str, problems: list[Refusal]) -> str:
    title = title.strip()
    if len(title) < MIN_TITLE_LENGTH:
        problems.append(BadUserInput("Title must be at least 3 characters long", field="title"))
    elif len(title) > MAX_TITLE_LENGTH:
        problems.append(BadUserInput("Title must be at most 255 characters long", field="title"))
    return title


def check_description(description: str | None, problems: list[Refusal]) -> str | None:
    if description is not None and len(description) > MAX_DESCRIPTION_LENGTH:
        problems.append(BadUserInput("Description must be at most 10000 characters long", field="description"))
    return description


def check_due_date(due_date: datetime | None, problems: list[Refusal]) -> datetime | None:
    """Refuses the first and the last time: PostgreSQL would sort them among tasks without a due date."""
    if due_date is not None and not FIRST_MOMENT < due_date < LAST_MOMENT:
        message = "Due date must be after 0001-01-01T00:00:00Z and before 9999-12-31T23:59:59.999999Z"
        problems.append(BadUserInput(message, field="due_date"))
    return due_date
