"""The `taskflow` command and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from taskflow_gql import __version__
from taskflow_gql.cli.console import out
from taskflow_gql.cli.data import create_admin, migrate_command, seed
from taskflow_gql.cli.doctor import doctor, healthcheck
from taskflow_gql.cli.keys import link, make_key
from taskflow_gql.cli.schema import explain, export_schema
from taskflow_gql.cli.serve import serve

app = typer.Typer(
    name="taskflow",
    help="A GraphQL API server for collaborative tasks. Settings come from the environment; see .env.example.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command("migrate")(migrate_command)
app.command()(seed)
app.command("create-admin")(create_admin)
app.command("make-key")(make_key)
app.command("link-identity")(link)
app.command("export-schema")(export_schema)
app.command()(explain)
app.command()(doctor)
app.command()(healthcheck)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Say the version and exit.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit
