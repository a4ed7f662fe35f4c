"""The commands migrate, seed and create-admin."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from alembic.util import CommandError

from taskflow_gql.cli.console import (
    BAD_SETTINGS,
    NOT_SO,
    err,
    fail,
    out,
    run,
    settings_or_exit,
    shown_url,
    typed,
)
from taskflow_gql.cli.seeding import Seeding, seed_database
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import current_revision, head_revision, migrate
from taskflow_gql.database.units import Database
from taskflow_gql.errors import ConfigurationError, Refusals
from taskflow_gql.models import UserRole
from taskflow_gql.security.passwords import PasswordHasher
from taskflow_gql.services import accounts

NO_TABLES = "has no tables yet"


def migrate_command(
    to: Annotated[str, typer.Option(help="Revision to go to, up or down; `base` drops everything.")] = "head",
    status: Annotated[
        bool, typer.Option("--status", help="Only say where the database is; exit 1 when it is not up to date.")
    ] = False,
) -> None:
    """Bring the database's tables up to date."""
    settings = settings_or_exit()

    async def work() -> tuple[str | None, str | None]:
        engine = create_engine(settings, command_timeout_seconds=None)
        try:
            before = await current_revision(engine)
            if not status:
                await migrate(engine, to)
            return before, await current_revision(engine)
        finally:
            await engine.dispose()

    try:
        before, after = run(work(), settings)
    except CommandError as error:
        fail(f"{error}. {typed('migrate --status')} says where the database is", BAD_SETTINGS)
    head = head_revision()
    if status:
        state = f"is at revision {after}" if after else NO_TABLES
        out.print(f"{shown_url(settings)} {state}; the newest is {head}", markup=False, soft_wrap=True)
        raise typer.Exit(0 if after == head else NOT_SO)
    before, after = (f"revision {revision}" if revision else "no tables" for revision in (before, after))
    done = f"was up to date at {after}" if before == after else f"went from {before} to {after}"
    out.print(f"{shown_url(settings)} {done}", markup=False, soft_wrap=True)


def seed(
    users: Annotated[int, typer.Option(help="How many people.", min=1, max=1_000_000)] = 20,
    tasks: Annotated[int, typer.Option(help="How many tasks.", min=0, max=100_000_000)] = 500,
    random_seed: Annotated[int, typer.Option(help="The same number makes the same data in the same database.")] = 1,
) -> None:
    """Add demonstration data to what is there: people user1, user2, … with the password `password`, and their tasks.

    Numbers that are taken are passed over, so a second run adds more people. The first of a run is an ADMIN.
    Seeded rows are not changes: the stream and the history know nothing of them.
    """
    settings = settings_or_exit()
    if settings.is_production:
        fail("This is production (TASKFLOW_ENV), and demonstration people have a known password", BAD_SETTINGS)

    async def work() -> tuple[int, int]:
        await prepare_database(settings)
        # No time limit: the statement may wait for another `seed`.
        engine = create_engine(settings, command_timeout_seconds=None)
        try:
            return await seed_database(engine, Seeding(users=users, tasks=tasks, random_seed=random_seed), err)
        finally:
            await engine.dispose()

    first, last = run(work(), settings)
    people = f"user{first}" if first == last else f"user{first} to user{last}"
    out.print(f"Made {people} and {tasks} tasks.")
    out.print(f"Sign in as user{first}, an ADMIN, with the password `password`.")


def create_admin(
    email: Annotated[str | None, typer.Option(help="Email address; asked for when left out.")] = None,
    username: Annotated[str | None, typer.Option(help="Username, for signing in; asked for when left out.")] = None,
    full_name: Annotated[str | None, typer.Option(help="The name that others see; asked for when left out.")] = None,
    password: Annotated[
        str | None,
        typer.Option(
            help="Password; asked for when left out. Prefer TASKFLOW_ADMIN_PASSWORD in scripts: "
            "arguments can be seen by others on the machine.",
            envvar="TASKFLOW_ADMIN_PASSWORD",
        ),
    ] = None,
) -> None:
    """Make an account with the role ADMIN."""
    settings = settings_or_exit()
    given = {"--email": email, "--username": username, "--full-name": full_name, "TASKFLOW_ADMIN_PASSWORD": password}
    missing = [name for name, value in given.items() if value is None]
    if missing and not sys.stdin.isatty():
        fail(f"There is no terminal to ask at: give {', '.join(missing)}", BAD_SETTINGS)
    email = email if email is not None else typer.prompt("Email")
    username = username if username is not None else typer.prompt("Username")
    full_name = full_name if full_name is not None else typer.prompt("Full name")
    password = password if password is not None else typer.prompt("Password", hide_input=True, confirmation_prompt=True)

    async def work() -> str:
        await prepare_database(settings)
        database, hasher = Database(create_engine(settings)), PasswordHasher()
        try:
            async with database.read() as session:
                registration = await accounts.check_registration(
                    session, email=email, username=username, full_name=full_name, password=password
                )
            password_hash = await hasher.hash(registration.password)
            async with database.write() as session:
                user = await accounts.create_user(session, registration, password_hash, role=UserRole.ADMIN)
            return user.username
        finally:
            hasher.close()
            await database.close()

    try:
        made = run(work(), settings)
    except Refusals as refused:
        fail(str(refused), NOT_SO)
    out.print(f"Made the ADMIN {made}. Sign in with the mutation `login`.", markup=False)


async def prepare_database(settings: Settings, *, may_migrate: bool = True) -> None:
    engine = create_engine(settings)
    try:
        current = await current_revision(engine)
        if current == head_revision():
            return
        if settings.is_sqlite and may_migrate:
            await migrate(engine)
        else:
            state = f"is at revision {current}, this server needs {head_revision()}" if current else NO_TABLES
            raise ConfigurationError(f"The database {state}: run {typed('migrate')}")
    finally:
        await engine.dispose()
