"""The commands export-schema and explain."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from graphql import GraphQLError, OperationType
from rich.syntax import Syntax

from taskflow_gql.api.schema import make_schema
from taskflow_gql.cli.console import (
    BAD_SETTINGS,
    NOT_SO,
    UNREACHABLE,
    fail,
    out,
    run,
    settings_or_exit,
    typed,
)
from taskflow_gql.cli.data import prepare_database
from taskflow_gql.cli.explain import Answer, Operation
from taskflow_gql.config import Settings
from taskflow_gql.errors import NotFound, Unauthenticated


def export_schema(
    path: Annotated[Path, typer.Argument(help="The file to write or check; `-` writes to standard output.")] = Path(
        "schema.graphql"
    ),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 when the file differs.")] = False,
) -> None:
    """Write the schema as SDL, the contract that clients generate their code from."""
    # Default settings, not those of the environment: the schema does not depend on them.
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
    # Strawberry would log the errors of the answer, which are printed below.
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
    """The error on one line: its location, its message, and a hint to the right option."""
    name = "stdin" if str(path) == "-" else str(path)
    place = "".join(f":{at.line}:{at.column}" for at in (error.locations or [])[:1])
    hint = " Variables are given with --variables" if error.message.startswith("Variable ") else ""
    return f"{name}{place}: {' '.join(error.message.split())}{hint}"


def heading(words: str) -> None:
    out.print(f"{words}\n", style="bold", markup=False)


def show_code(code: str, language: str) -> None:
    """Print code, highlighted on a terminal."""
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
    """Parameters on one line: at most 20 values of at most 60 characters."""
    values = list(parameters.values() if isinstance(parameters, dict) else parameters)
    shown = [repr(value) if isinstance(value, str) else str(value) for value in values[:20]]
    more = [f"and {len(values) - 20} more"] if len(values) > 20 else []
    return ", ".join([*(text if len(text) <= 60 else f"{text[:60]}…" for text in shown), *more])
