"""The `taskflow` command.

Exit codes: 0 done, 1 what was asked for is not so (`--check`, `doctor`, `healthcheck`), 2 bad usage or settings,
3 a part that is needed cannot be reached.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import logging
import os
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import asyncpg
import typer
import uvicorn
from alembic.util import CommandError
from graphql import GraphQLError, OperationType
from redis.exceptions import RedisError
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError
from uvicorn.supervisors import Multiprocess

from taskflow_gql import __version__
from taskflow_gql.api.schema import make_schema
from taskflow_gql.cli.explain import Answer, Operation
from taskflow_gql.cli.seeding import Seeding, seed_database
from taskflow_gql.config import Settings, load_settings, unknown_variables
from taskflow_gql.database.migrations import current_revision, head_revision, migrate
from taskflow_gql.database.sessions import Database, create_engine, database_url
from taskflow_gql.errors import ConfigurationError, NotFound, Refusals, Unauthenticated
from taskflow_gql.models import UserRole
from taskflow_gql.security.tokens import PasswordHasher
from taskflow_gql.services import accounts
from taskflow_gql.stream.bus import make_bus
from taskflow_gql.telemetry.logs import configure_logging
from taskflow_gql.transport.connections import problem_of_descriptors, raise_descriptor_limit, uvicorn_config

log = logging.getLogger(__name__)

app = typer.Typer(
    name="taskflow",
    help="A GraphQL API server for collaborative tasks. Settings come from the environment; see .env.example.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

NOT_SO, BAD_SETTINGS, UNREACHABLE = 1, 2, 3
NO_TABLES = "has no tables yet"

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
    """The command for a message, as the reader has to type it: after `make serve` it is not on the PATH."""
    if shutil.which("taskflow"):
        return f"`taskflow {arguments}`"
    installed = Path(sys.executable).with_name("taskflow")
    if not installed.exists():
        return f"`{sys.executable} -m taskflow_gql {arguments}`"
    folder = Path.cwd()
    return f"`{installed.relative_to(folder) if installed.is_relative_to(folder) else installed} {arguments}`"


def run(work: Coroutine[Any, Any, Result], settings: Settings) -> Result:
    """Run to the end; what goes wrong around us becomes one line that says what to do."""
    try:
        return asyncio.run(work)
    except ConfigurationError as error:
        fail(str(error), BAD_SETTINGS)
    # asyncpg's own errors come from COPY, which SQLAlchemy does not know.
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        fail(f"The database at {shown_url(settings)} cannot be used: {reason(error)}", UNREACHABLE)


def shown_url(settings: Settings) -> str:
    return database_url(settings).render_as_string(hide_password=True)


def reason(error: BaseException) -> str:
    """The driver's own words, on one line, without SQLAlchemy's around them."""
    cause = getattr(error, "orig", None) or error
    words = str(cause).strip().splitlines()
    first = words[0] if words else type(cause).__name__
    return first.split(">: ", 1)[-1]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; TASKFLOW_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; TASKFLOW_PORT.", min=0, max=65535)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; TASKFLOW_WORKERS.", min=1)] = None,
) -> None:
    """Serve the API. On a SQLite file it migrates by itself; on PostgreSQL run `taskflow migrate` first."""
    # Through the environment, because each worker reads its settings there.
    for name, value in (("HOST", host), ("PORT", port), ("WORKERS", workers)):
        if value is not None:
            os.environ[f"TASKFLOW_{name}"] = str(value)
    settings = settings_or_exit()
    try:
        settings.signing_key  # noqa: B018  (made now, by one process, or the error shown now)
    except ConfigurationError as error:
        fail(str(error), BAD_SETTINGS)
    run(prepare_database(settings), settings)
    if settings.redis_url is not None:
        check_redis(settings)
    raise_descriptor_limit()
    if problem := problem_of_descriptors(settings):
        err.print(f"taskflow: {problem}", style="yellow", markup=False, soft_wrap=True)
    listener = listen(settings)
    # Asked to stop, we end with exit code 0; uvicorn, when it has stopped, ends with the signal it was sent.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    configure_logging(settings)
    for warning in unknown_variables():
        log.warning("%s", warning)
    greet(settings, listener.getsockname()[1])
    config = uvicorn_config("taskflow_gql.app:create_server", settings, is_factory=True)
    if settings.workers > 1:
        Multiprocess(config, sockets=[listener]).run()
    else:
        server = uvicorn.Server(config)
        server.run(sockets=[listener])
        if not server.started:
            raise typer.Exit(UNREACHABLE)


def listen(settings: Settings) -> socket.socket:
    """The port is taken here, before anything starts, so that a port in use is one line and not a stack. Who connects
    meanwhile waits.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Who takes nothing for so long is cut off by the kernel too, where we wait for nothing and so notice nothing.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * settings.stream_send_timeout_seconds)
    listener.set_inheritable(True)
    try:
        listener.bind((settings.host, settings.port))
        # With SO_REUSEADDR the port is ours only now: two can bind it, one can listen.
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
    address = f"http://{_bracketed(shown)}:{port}"
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


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@app.command("migrate")
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


@app.command()
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
        # No time limit: it may wait for another seeding.
        engine = create_engine(settings, command_timeout_seconds=None)
        try:
            return await seed_database(engine, Seeding(users=users, tasks=tasks, random_seed=random_seed), err)
        finally:
            await engine.dispose()

    first, last = run(work(), settings)
    people = f"user{first}" if first == last else f"user{first} to user{last}"
    out.print(f"Made {people} and {tasks} tasks.")
    out.print(f"Sign in as user{first}, an ADMIN, with the password `password`.")


@app.command("create-admin")
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


@app.command("export-schema")
def export_schema(
    path: Annotated[Path, typer.Argument(help="The file to write or check; `-` writes to standard output.")] = Path(
        "schema.graphql"
    ),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 when the file differs.")] = False,
) -> None:
    """Write the schema as SDL, the contract that clients generate their code from."""
    # The defaults, whatever the environment says: the schema is the same under all settings.
    text = (make_schema(Settings.model_construct()).as_str().rstrip() + "\n").encode()
    if str(path) == "-":
        if check:
            fail("--check needs the name of a file, not `-`", BAD_SETTINGS)
        sys.stdout.buffer.write(text)
        return
    try:
        if not check:
            path.write_bytes(text)
            return
        is_equal = path.is_file() and path.read_bytes() == text
    except OSError as error:
        fail(f"Cannot {'read' if check else 'write'} {path}: {error.strerror}", UNREACHABLE)
    if not is_equal:
        fail(f"{path} is not the schema of this code: run {typed('export-schema')} and commit it", NOT_SO)
    out.print(f"{path} is up to date", markup=False)


@app.command()
def explain(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A file with GraphQL; `-` is standard input.")],
    operation: Annotated[str | None, typer.Option(help="Its name, where the file has several.")] = None,
    variables: Annotated[str, typer.Option(help="A JSON object, or @ and the name of a file with one.")] = "{}",
    username: Annotated[
        str | None, typer.Option("--as", help="Who asks, by username or email address; nobody when left out.")
    ] = None,
) -> None:
    """Show how an operation is executed: the plan, the SQL statements, the generated functions.

    A query is run for its statements, on connections that cannot write. Other operations are not run.
    """
    settings = settings_or_exit()
    # Strawberry logs the errors of an answer, which are shown.
    logging.getLogger("strawberry.execution").setLevel(logging.CRITICAL)
    text, values = read_text(path), read_variables(variables)

    async def answer(subject: Operation) -> Answer:
        await prepare_database(settings, may_migrate=False)
        return await subject.answer(username)

    try:
        subject = Operation(settings, text, name=operation, variables=values)
        answered = run(answer(subject), settings) if subject.type is OperationType.QUERY else None
    except GraphQLError as error:
        fail(complaint(error, path), BAD_SETTINGS)
    except NotFound as error:
        fail(f"{error}: --as wants the username or email address of an active account", BAD_SETTINGS)

    heading("Plan")
    out.print(f"{subject.explanation.plan}\n", markup=False, soft_wrap=True)
    if answered is None:
        heading("SQL")
        out.print(f"Not shown: the {subject.type.value} would have to be run for it.\n")
    else:
        show_answer(answered)
    if subject.explanation.source:
        heading("Generated functions")
        show_code(subject.explanation.source, "python")


def read_text(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text()
    except OSError as error:
        fail(f"Cannot read {path}: {error.strerror}", UNREACHABLE)
    except UnicodeDecodeError:
        fail(f"Cannot read {path}: it is not text in UTF-8", BAD_SETTINGS)


def read_variables(given: str) -> dict[str, Any]:
    text = read_text(Path(given[1:])) if given.startswith("@") else given
    try:
        variables = json.loads(text)
    except ValueError as error:
        fail(f"--variables is not JSON: {error}", BAD_SETTINGS)
    if not isinstance(variables, dict):
        fail('--variables is not a JSON object; it looks like {"first": 10}', BAD_SETTINGS)
    return variables


def complaint(error: GraphQLError, path: Path) -> str:
    """Where and what, on one line, with the option that helps."""
    name = "stdin" if str(path) == "-" else str(path)
    place = "".join(f":{at.line}:{at.column}" for at in (error.locations or [])[:1])
    hint = " Variables are given with --variables" if error.message.startswith("Variable ") else ""
    return f"{name}{place}: {' '.join(error.message.split())}{hint}"


def heading(words: str) -> None:
    out.print(f"{words}\n", style="bold", markup=False)


def show_code(code: str, language: str) -> None:
    """In colours on a terminal, and as it is elsewhere."""
    out.print(Syntax("", language, theme="ansi_dark").highlight(code), soft_wrap=True)


def show_answer(answer: Answer) -> None:
    who = "nobody" if answer.user is None else f"{answer.user.username} ({answer.user.role})"
    heading(f"SQL, asked by {who}")
    for number, statement in enumerate(answer.statements, start=1):
        times = len(statement.parameters)
        title = f"-- {number}" if times == 1 else f"-- {number}, run {times} times"
        given = [f"-- with {shown_parameters(parameters)}" for parameters in statement.parameters[:3] if parameters]
        show_code("\n".join([title, *given, statement.sql]), "sql")
    if not answer.statements:
        out.print("None.\n")
    if answer.user is not None:
        out.print("A request costs one statement more, the check of its token.\n", soft_wrap=True)
    for error in answer.errors:
        place = ".".join(map(str, error.path or ()))
        out.print(f"The answer has an error at {place}: {error.message}", markup=False, soft_wrap=True)
        if answer.user is None and isinstance(error.original_error, Unauthenticated):
            out.print("Say who asks with --as.")
        out.print()


def shown_parameters(parameters: Any) -> str:
    """On one line that is not too long."""
    values = list(parameters.values() if isinstance(parameters, dict) else parameters)
    shown = [repr(value) if isinstance(value, str) else str(value) for value in values[:20]]
    more = [f"and {len(values) - 20} more"] if len(values) > 20 else []
    return ", ".join([*(text if len(text) <= 60 else f"{text[:60]}…" for text in shown), *more])


@app.command()
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


@app.command()
def healthcheck(
    url: Annotated[str | None, typer.Option(help="Where to ask; the configured port by default.")] = None,
) -> None:
    """Ask a running server whether it is ready; exit 1 when it is not. For container images."""
    settings = settings_or_exit()
    # A server that listens on all addresses listens on this one.
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    address = url or f"http://{_bracketed(host)}:{settings.port}/ready"
    if not address.startswith(("http://", "https://")):
        fail(f"{address} is no http address", BAD_SETTINGS)
    # Not through the proxy of the environment, which knows nothing of this machine's own addresses.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=5) as response:
            json.load(response)
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(500).decode(errors="replace").split())
        fail(f"{address} answered {error.code}: {said}", NOT_SO)
    except (OSError, ValueError, http.client.HTTPException) as error:
        fail(f"{address} does not answer: {reason(error)}", NOT_SO)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Say the version and exit.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit
