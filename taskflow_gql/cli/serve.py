"""The command serve."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from typing import Annotated

import typer
from redis.exceptions import RedisError

from taskflow_gql import __version__
from taskflow_gql.cli.console import (
    BAD_SETTINGS,
    UNREACHABLE,
    bracketed,
    err,
    fail,
    out,
    reason,
    run,
    settings_or_exit,
    shown_url,
    typed,
)
from taskflow_gql.cli.data import prepare_database
from taskflow_gql.config import Settings, unknown_variables
from taskflow_gql.errors import ConfigurationError
from taskflow_gql.security.keys import read_keys
from taskflow_gql.stream.bus import make_bus
from taskflow_gql.stream.mail_templates import MailTemplates
from taskflow_gql.telemetry.logs import configure_logging
from taskflow_gql.transport.descriptors import problem_of_descriptors, raise_descriptor_limit
from taskflow_gql.transport.private import run_server
from taskflow_gql.transport.server import uvicorn_config

log = logging.getLogger(__name__)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; TASKFLOW_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; TASKFLOW_PORT.", min=0, max=65535)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; TASKFLOW_WORKERS.", min=1)] = None,
) -> None:
    """Serve the API. On a SQLite file it migrates by itself; on PostgreSQL run `taskflow migrate` first."""
    # Passed on through the environment, from which each worker reads its settings.
    for name, value in (("HOST", host), ("PORT", port), ("WORKERS", workers)):
        if value is not None:
            os.environ[f"TASKFLOW_{name}"] = str(value)
    settings = settings_or_exit()
    try:
        settings.signing_key  # noqa: B018  (creates the key once, before any worker, or raises now)
        if settings.signing_keys is not None:
            read_keys(settings.signing_keys)
        MailTemplates(settings.mail_templates, public_url=settings.links_base)
    except ConfigurationError as error:
        fail(str(error), BAD_SETTINGS)
    run(prepare_database(settings), settings)
    if settings.redis_url is not None:
        check_redis(settings)
    raise_descriptor_limit()
    if problem := problem_of_descriptors(settings):
        err.print(f"taskflow: {problem}", style="yellow", markup=False, soft_wrap=True)
    listener = listen(settings)
    # uvicorn raises the signal again after its shutdown. These handlers then exit with code 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    configure_logging(settings)
    for warning in unknown_variables():
        log.warning("%s", warning)
    greet(settings, listener.getsockname()[1])
    config = uvicorn_config("taskflow_gql.app:create_server", settings, is_factory=True)
    if not run_server(config, listener):
        raise typer.Exit(UNREACHABLE)


def listen(settings: Settings) -> socket.socket:
    """Bind and listen before anything starts, so that a port in use gives a one-line error and not a stack trace.

    Connections made before the server is ready wait in the backlog.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # The kernel resets connections of lost clients, which the server does not notice while it expects nothing from
        # them. In milliseconds. Ten times the server's own time-out, because a slow reader with a large receive buffer
        # can acknowledge nothing for minutes.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000 * settings.stream_send_timeout_seconds)
    listener.set_inheritable(True)
    try:
        listener.bind((settings.host, settings.port))
        # With SO_REUSEADDR two processes can bind the port, but only one can listen on it.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        match error.errno:
            case errno.EADDRINUSE:
                hint = "it is in use. Stop what listens there, or choose another with --port"
            case errno.EACCES:
                hint = "that needs more rights. Choose a port above 1023 with --port"
            case _:
                hint = f"{error.strerror}. Choose another address with --host"
        fail(f"Cannot listen on {settings.host}:{settings.port}: {hint}", UNREACHABLE)
    return listener


def check_redis(settings: Settings) -> None:
    async def ping() -> None:
        bus = make_bus(settings.redis_url)
        try:
            await bus.ping()
        finally:
            await bus.close()

    try:
        asyncio.run(ping())
    except ValueError as error:
        fail(f"REDIS_URL is not a Redis URL ({error}); it looks like redis://host:6379/0", BAD_SETTINGS)
    except (RedisError, OSError, TimeoutError) as error:
        fail(f"Redis at REDIS_URL cannot be reached: {reason(error)}. Start it, or unset REDIS_URL", UNREACHABLE)


def greet(settings: Settings, port: int) -> None:
    shown = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else settings.host  # noqa: S104
    address = f"http://{bracketed(shown)}:{port}"
    lines = [f"  API       {address}/graphql"]
    if settings.shows_graphiql:
        lines.append(f"  GraphiQL  {address}/graphql  (open it in a browser)")
    lines.append(f"  Database  {shown_url(settings)}")
    if settings.is_embedded:
        lines.append(f"  Mode      embedded: one process, everything kept under {settings.data_dir}/")
    else:
        lines.append(f"  Mode      {settings.workers} worker(s), Redis {'on' if settings.redis_url else 'off'}")
    lines.append(f"  Account   {typed('create-admin')} makes an ADMIN; the mutation `register` makes a MEMBER.")
    lines.append("  Stop with Ctrl+C.")
    out.print(f"TaskFlow GQL {__version__}", style="bold")
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
