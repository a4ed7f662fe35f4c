"""The commands doctor and healthcheck."""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from typing import Annotated

import typer
from redis.exceptions import RedisError
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from taskflow_gql.cli.console import (
    BAD_SETTINGS,
    NOT_SO,
    bracketed,
    fail,
    out,
    reason,
    settings_or_exit,
    shown_url,
    typed,
)
from taskflow_gql.cli.data import NO_TABLES
from taskflow_gql.config import Settings, unknown_variables
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import current_revision, head_revision
from taskflow_gql.errors import ConfigurationError
from taskflow_gql.security.keys import read_keys
from taskflow_gql.stream.bus import make_bus
from taskflow_gql.transport.descriptors import problem_of_descriptors, raise_descriptor_limit


def doctor() -> None:
    """Say what is configured, reachable and migrated; exit 1 when something is not as it should be."""
    settings = settings_or_exit()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    is_well = True

    def row(name: str, fine: bool | None, words: str) -> None:
        nonlocal is_well
        is_well = is_well and fine is not False
        mark = {True: "[green]ok[/green]", False: "[red]not ok[/red]", None: "[dim]–[/dim]"}[fine]
        table.add_row(f"{mark}  {name}", Text(words))

    def warn(name: str, words: str) -> None:
        table.add_row(f"[yellow]warning[/yellow]  {name}", Text(words))

    row("environment", None, settings.env)
    for warning in unknown_variables():
        warn("variable", warning)
    try:
        key = "SECRET_KEY" if settings.secret_key else f"kept in {settings.data_dir}/secret"
        row("secret", bool(settings.signing_key), key)
        if settings.signing_keys is not None:
            keys = read_keys(settings.signing_keys)
            signing = next((f"{key.kid} ({key.algorithm})" for key in keys if key.signing is not None), "the secret")
            row("keys", True, f"{len(keys)} in {settings.signing_keys}; {signing} signs")
        row("database", *asyncio.run(_examine_database(settings)))
        row("redis", *asyncio.run(_examine_redis(settings)))
    except ConfigurationError as error:
        row("settings", False, str(error))
    raise_descriptor_limit()
    if problem := problem_of_descriptors(settings):
        warn("descriptors", problem)
    else:
        row("descriptors", True, f"enough for {settings.max_connections} connections")
    row("graphiql", None, "on" if settings.shows_graphiql else "off")
    out.print(table)
    raise typer.Exit(0 if is_well else NOT_SO)


async def _examine_database(settings: Settings) -> tuple[bool, str]:
    engine = create_engine(settings)
    try:
        current, head = await current_revision(engine), head_revision()
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        return False, f"{shown_url(settings)}: {reason(error)}"
    finally:
        await engine.dispose()
    if current == head:
        return True, f"{shown_url(settings)} at revision {current}"
    if settings.is_sqlite:
        return True, f"{shown_url(settings)}: {typed('serve')} will migrate it to {head}"
    state = f"is at revision {current}, not {head}" if current else NO_TABLES
    return False, f"{shown_url(settings)} {state}: run {typed('migrate')}"


async def _examine_redis(settings: Settings) -> tuple[bool | None, str]:
    if settings.redis_url is None:
        return None, "not configured: one process only"
    try:
        bus = make_bus(settings.redis_url)
        try:
            await bus.ping()
        finally:
            await bus.close()
    except (RedisError, OSError, TimeoutError, ValueError) as error:
        return False, reason(error)
    return True, "reachable"


def healthcheck(
    url: Annotated[str | None, typer.Option(help="Where to ask; the configured port by default.")] = None,
) -> None:
    """Ask a running server whether it is ready; exit 1 when it is not. For container images."""
    settings = settings_or_exit()
    # A server that listens on all addresses also listens on this one.
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    address = url or f"http://{bracketed(host)}:{settings.port}/ready"
    if not address.startswith(("http://", "https://")):
        fail(f"{address} is no http address", BAD_SETTINGS)
    # Ignore the environment's proxy, which cannot reach this machine's loopback address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=5) as response:
            json.load(response)
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(500).decode(errors="replace").split())
        fail(f"{address} answered {error.code}: {said}", NOT_SO)
    except (OSError, ValueError, http.client.HTTPException) as error:
        fail(f"{address} does not answer: {reason(error)}", NOT_SO)
