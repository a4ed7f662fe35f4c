"""Output and exit codes of the commands.

Exit codes: 0 success, 1 a check failed or the input was refused (`--check`, `doctor`, `healthcheck`, `create-admin`),
2 bad usage or settings, 3 a file, port, database or Redis cannot be used.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import asyncpg
import typer
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from taskflow_gql.config import Settings, load_settings
from taskflow_gql.database.engines import database_url
from taskflow_gql.errors import ConfigurationError

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

NOT_SO, BAD_SETTINGS, UNREACHABLE = 1, 2, 3

Result = TypeVar("Result")


def fail(message: str, code: int) -> NoReturn:
    err.print(f"taskflow: {message}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(code)


def settings_or_exit() -> Settings:
    try:
        return load_settings()
    except ConfigurationError as error:
        fail(str(error), BAD_SETTINGS)


def typed(arguments: str) -> str:
    """The command in a form that the reader can run. After `make serve`, for example, `taskflow` is not on the PATH."""
    if shutil.which("taskflow"):
        return f"`taskflow {arguments}`"
    installed = Path(sys.executable).with_name("taskflow")
    if not installed.exists():
        return f"`{sys.executable} -m taskflow_gql {arguments}`"
    folder = Path.cwd()
    return f"`{installed.relative_to(folder) if installed.is_relative_to(folder) else installed} {arguments}`"


def run(work: Coroutine[Any, Any, Result], settings: Settings) -> Result:
    """Run the coroutine. Errors of the configuration or the database exit with a one-line message."""
    try:
        return asyncio.run(work)
    except ConfigurationError as error:
        fail(str(error), BAD_SETTINGS)
    # asyncpg raises its own errors from COPY, which bypasses SQLAlchemy.
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        fail(f"The database at {shown_url(settings)} cannot be used: {reason(error)}", UNREACHABLE)


def shown_url(settings: Settings) -> str:
    return database_url(settings).render_as_string(hide_password=True)


def reason(error: BaseException) -> str:
    """The first line of the driver's message, without SQLAlchemy's additions."""
    cause = getattr(error, "orig", None) or error
    words = str(cause).strip().splitlines()
    first = words[0] if words else type(cause).__name__
    return first.split(">: ", 1)[-1]


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
