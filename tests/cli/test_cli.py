"""The `taskflow` command: its output on stdout and stderr, and its exit codes."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from sqlalchemy import func, make_url, select
from typer.testing import CliRunner

from taskflow_gql import __version__
from taskflow_gql.cli.main import app
from taskflow_gql.config import Settings
from taskflow_gql.database.engines import create_engine
from taskflow_gql.database.migrations import head_revision
from taskflow_gql.database.units import Database
from taskflow_gql.models import User, UserRole
from taskflow_gql.services.positions import has_unplaced_events
from tests.support.client import Api
from tests.support.factories import make_task, make_user, make_viewer
from tests.support.processes import child
from tests.support.servers import RedisServer
from tests.support.serving import make_settings, serving

ROOT = Path(__file__).parents[2]
# A port on which nothing listens, and on which ordinary processes may not listen.
NOWHERE = "127.0.0.1:1"
ADMIN = {"--email": "ada@example.com", "--username": "ada", "--full-name": "Ada L.", "--password": "correct horse"}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, without `.env` and `.taskflow`."""
    monkeypatch.chdir(tmp_path)
    # With this PATH, messages name the command as `taskflow`.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    return tmp_path


@dataclass
class Ran:
    exit_code: int
    out: str
    err: str


async def taskflow(*arguments: str, typed: str = "", **environment: str) -> Ran:
    """Run the command in a thread of this process, which is faster than a new process."""

    def run() -> Ran:
        result = CliRunner().invoke(app, arguments, input=typed, env={"COLUMNS": "500", **environment})
        # Any other exception would be shown as a stack trace.
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return await asyncio.to_thread(run)


async def real_taskflow(*arguments: str, script: str = "", folder: Path | None = None, **environment: str) -> Ran:
    """Run the command in its own process."""
    program = [sys.executable, "-c", script] if script else [str(Path(sys.executable).with_name("taskflow"))]
    async with (
        child(
            *program,
            *arguments,
            cwd=folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
        asyncio.timeout(60),
    ):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


def refusal(ran: Ran, exit_code: int) -> str:
    """The single line on stderr that the command ended with."""
    assert (ran.exit_code, ran.out) == (exit_code, ""), ran
    assert ran.err.startswith("taskflow: "), ran
    assert ran.err.count("\n") == 1, ran
    return ran.err.removeprefix("taskflow: ").rstrip("\n")


def environment_of(settings: Settings) -> dict[str, str]:
    given = {
        "TASKFLOW_DATABASE_URL": settings.database_url,
        "TASKFLOW_REDIS_URL": settings.redis_url,
        "TASKFLOW_SECRET_KEY": settings.signing_key,
        "TASKFLOW_DATA_DIR": str(settings.data_dir),
    }
    return {name: value for name, value in given.items() if value is not None}


def options(given: dict[str, str]) -> list[str]:
    return [word for pair in given.items() for word in pair]


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new.sqlite3"
    url: str = request.getfixturevalue("new_postgres")
    return url


def shown(url: str) -> str:
    """The URL as the command prints it."""
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    made = make_url(url)
    return made.set(drivername=drivers[made.get_backend_name()]).render_as_string(hide_password=True)


# Help


GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = GROUP.commands


def unframed(text: str) -> str:
    """Only the words, without colours, frames and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[─│╭╮╰╯]", " ", text).split())


def test_all_commands_of_the_design_exist() -> None:
    needed = {"serve", "migrate", "seed", "create-admin", "export-schema", "explain", "doctor", "healthcheck"}
    assert needed - COMMANDS.keys() == set()


async def test_help_lists_every_command_with_a_description() -> None:
    for spelling in ("--help", "-h"):
        ran = await taskflow(spelling)
        assert (ran.exit_code, ran.err) == (0, "")
        said = unframed(ran.out)
        for name, command in COMMANDS.items():
            first_paragraph = command.help.split("\n\n")[0]
            assert f"{name} {unframed(first_paragraph)}" in said


@pytest.mark.parametrize("name", sorted(COMMANDS))
async def test_the_help_of_each_command_explains_it_and_each_option(name: str) -> None:
    ran = await taskflow(name, "--help", TASKFLOW_ADMIN_PASSWORD="correct horse")
    assert (ran.exit_code, ran.err) == (0, "")
    said = unframed(ran.out)
    assert unframed(COMMANDS[name].help) in said
    for parameter in COMMANDS[name].params:
        words = getattr(parameter, "help", None)
        assert words, f"{name} {parameter.name} is not explained"
        assert unframed(words) in said
    assert "correct horse" not in said


async def test_without_a_command_the_help_is_shown() -> None:
    ran = await taskflow()
    assert ran.exit_code == 2
    assert "Usage: " in ran.out + ran.err


async def test_version_prints_the_version() -> None:
    assert await taskflow("--version") == Ran(0, f"{__version__}\n", "")


# Runs `python -m taskflow_gql` and prints whether the garbage collector is enabled afterwards.
AS_MODULE = """
import gc, runpy
try:
    runpy.run_module("taskflow_gql", run_name="__main__")
finally:
    print(gc.isenabled())
"""


@pytest.mark.slow
async def test_python_m_taskflow_gql_is_the_command() -> None:
    assert await real_taskflow("--version", script=AS_MODULE) == Ran(0, f"{__version__}\nTrue\n", "")


@pytest.mark.parametrize(
    "arguments", [["sevre"], ["serve", "--prot", "1"], ["serve", "--port", "65536"], ["seed", "--users", "0"]]
)
async def test_bad_usage_exits_with_2_and_names_the_mistake(arguments: list[str]) -> None:
    ran = await taskflow(*arguments)
    assert (ran.exit_code, ran.out) == (2, "")
    assert arguments[-2 if arguments[0] != "sevre" else 0] in unframed(ran.err)


# export-schema


async def test_an_exported_schema_passes_the_check(empty_folder: Path) -> None:
    assert await taskflow("export-schema") == Ran(0, "", "")
    text = (empty_folder / "schema.graphql").read_text()
    assert text.endswith("}\n")
    assert "type Query {" in text
    assert await taskflow("export-schema", "--check") == Ran(0, "schema.graphql is up to date\n", "")


async def test_export_schema_takes_a_file_name(empty_folder: Path) -> None:
    assert await taskflow("export-schema", "other.graphql") == Ran(0, "", "")
    assert await taskflow("export-schema", "--check", "other.graphql") == Ran(0, "other.graphql is up to date\n", "")
    assert os.listdir(empty_folder) == ["other.graphql"]


async def test_the_exported_schema_does_not_depend_on_settings(empty_folder: Path) -> None:
    await taskflow("export-schema", "default.graphql")
    # A server would refuse to start with these settings.
    ran = await taskflow("export-schema", TASKFLOW_ENV="production", TASKFLOW_WORKERS="4", SECRET_KEY="short")
    assert ran == Ran(0, "", "")
    assert (empty_folder / "schema.graphql").read_bytes() == (empty_folder / "default.graphql").read_bytes()


@pytest.mark.parametrize("content", ["", "type Query\n", None])
async def test_check_of_an_outdated_schema_exits_with_1_and_leaves_the_file_unchanged(
    empty_folder: Path, content: str | None
) -> None:
    path = empty_folder / "schema.graphql"
    if content is not None:
        path.write_text(content)
    said = refusal(await taskflow("export-schema", "--check"), 1)
    assert said == "schema.graphql is not the schema of this code: run `taskflow export-schema` and commit it"
    assert path.exists() == (content is not None)
    assert content is None or path.read_text() == content


@pytest.mark.slow
async def test_a_dash_writes_the_schema_to_stdout(empty_folder: Path) -> None:
    await taskflow("export-schema")
    written = (empty_folder / "schema.graphql").read_text()
    assert await real_taskflow("export-schema", "-", folder=empty_folder) == Ran(0, written, "")
    assert os.listdir(empty_folder) == ["schema.graphql"]
    said = refusal(await taskflow("export-schema", "--check", "-"), 2)
    assert said == "--check needs the name of a file, not `-`"


async def test_a_schema_file_that_cannot_be_written_is_refused_in_one_line() -> None:
    said = refusal(await taskflow("export-schema", "nowhere/schema.graphql"), 3)
    assert said == "Cannot write nowhere/schema.graphql: No such file or directory"


# migrate


async def test_migrate_goes_up_and_down_and_reports_the_revision(new_database_url: str) -> None:
    async def migrate(*arguments: str) -> Ran:
        return await taskflow("migrate", *arguments, TASKFLOW_DATABASE_URL=new_database_url)

    url, head = shown(new_database_url), head_revision()
    assert await migrate("--status") == Ran(1, f"{url} has no tables yet; the newest is {head}\n", "")
    assert await migrate() == Ran(0, f"{url} went from no tables to revision {head}\n", "")
    assert await migrate("--status") == Ran(0, f"{url} is at revision {head}; the newest is {head}\n", "")
    assert await migrate() == Ran(0, f"{url} was up to date at revision {head}\n", "")
    assert await migrate("--to", "base") == Ran(0, f"{url} went from revision {head} to no tables\n", "")
    assert await migrate("--status") == Ran(1, f"{url} has no tables yet; the newest is {head}\n", "")
    assert await migrate("--to", "0001") == Ran(0, f"{url} went from no tables to revision 0001\n", "")


async def test_migrate_refuses_an_unknown_revision(new_database_url: str) -> None:
    said = refusal(await taskflow("migrate", "--to", "nonsense", TASKFLOW_DATABASE_URL=new_database_url), 2)
    assert said == (
        "Can't locate revision identified by 'nonsense'. `taskflow migrate --status` says where the database is"
    )


async def test_migrate_without_settings_creates_the_database_in_the_data_folder(empty_folder: Path) -> None:
    ran = await taskflow("migrate")
    assert ran == Ran(
        0, f"sqlite+aiosqlite:///.taskflow/taskflow.sqlite3 went from no tables to revision {head_revision()}\n", ""
    )
    assert (empty_folder / ".taskflow/taskflow.sqlite3").is_file()


async def test_no_command_shows_the_database_password() -> None:
    url = f"postgresql://user:hunter2@{NOWHERE}/tasks"
    for command in ("migrate", "doctor"):
        ran = await taskflow(command, TASKFLOW_DATABASE_URL=url)
        assert "user:***@" in ran.out + ran.err
        assert "hunter2" not in ran.out + ran.err


# create-admin


async def people(database: Database) -> list[tuple[Any, ...]]:
    statement = select(User.email, User.username, User.full_name, User.role, User.is_active)
    async with database.read() as session:
        return [tuple(row) for row in await session.execute(statement)]


LOGIN = """
mutation($input: LoginInput!) { login(input: $input) { user { username role } errors { code } } }
"""


async def test_an_admin_made_by_the_command_can_sign_in_at_a_running_server(
    api: Api, settings: Settings, database: Database
) -> None:
    ran = await taskflow("create-admin", *options(ADMIN), **environment_of(settings))
    assert ran == Ran(0, "Made the ADMIN ada. Sign in with the mutation `login`.\n", "")
    assert await people(database) == [("ada@example.com", "ada", "Ada L.", UserRole.ADMIN, True)]
    answer = await api.data(LOGIN, {"input": {"usernameOrEmail": "ada", "password": "correct horse"}})
    assert answer == {"login": {"user": {"username": "ada", "role": "ADMIN"}, "errors": []}}


async def test_the_admin_password_may_come_from_the_environment(api: Api, settings: Settings) -> None:
    without_password = {name: value for name, value in ADMIN.items() if name != "--password"}
    environment = environment_of(settings) | {"TASKFLOW_ADMIN_PASSWORD": "from elsewhere"}
    assert (await taskflow("create-admin", *options(without_password), **environment)).exit_code == 0
    answer = await api.data(LOGIN, {"input": {"usernameOrEmail": "ada", "password": "from elsewhere"}})
    assert answer["login"]["errors"] == []


async def taskflow_at_a_terminal(*arguments: str, typed: Mapping[str, str], **environment: str) -> Ran:
    """Run the command at a terminal and answer each prompt. `out` is everything that the terminal shows."""
    ours, theirs = os.openpty()
    try:
        command = [str(Path(sys.executable).with_name("taskflow")), *arguments]
        environment = os.environ | environment
        async with child(*command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
            shown = ""
            for prompt, answer in typed.items():
                async with asyncio.timeout(60):
                    while prompt not in shown.rpartition("\n")[2]:
                        shown += (await asyncio.to_thread(os.read, ours, 4096)).decode()
                os.write(ours, f"{answer}\n".encode())
            async with asyncio.timeout(60):
                await process.wait()
            os.write(theirs, b"\0")
            while not shown.endswith("\0"):
                shown += (await asyncio.to_thread(os.read, ours, 4096)).decode()
            assert process.returncode is not None
            return Ran(process.returncode, shown, "")
    finally:
        os.close(ours)
        os.close(theirs)


async def test_create_admin_prompts_for_missing_options_and_hides_the_password(api: Api, settings: Settings) -> None:
    typed = {
        "Email: ": "ada@example.com",
        "Username: ": "ada",
        "Full name: ": "Ada L.",
        "Password: ": "typed by hand",
        "Repeat for confirmation: ": "typed by hand",
    }
    ran = await taskflow_at_a_terminal("create-admin", typed=typed, **environment_of(settings))
    assert ran.exit_code == 0, ran
    assert "Made the ADMIN ada." in ran.out
    assert "typed by hand" not in ran.out
    answer = await api.data(LOGIN, {"input": {"usernameOrEmail": "ada", "password": "typed by hand"}})
    assert answer["login"]["errors"] == []


async def test_create_admin_without_a_terminal_names_the_missing_options(
    settings: Settings, database: Database
) -> None:
    environment = environment_of(settings)
    said = refusal(await taskflow("create-admin", typed="ada@example.com\nada\n", **environment), 2)
    assert said == ("There is no terminal to ask at: give --email, --username, --full-name, TASKFLOW_ADMIN_PASSWORD")
    without_name = {name: value for name, value in ADMIN.items() if name != "--full-name"}
    said = refusal(await taskflow("create-admin", *options(without_name), **environment), 2)
    assert said == "There is no terminal to ask at: give --full-name"
    assert await people(database) == []


async def test_create_admin_reports_all_problems_in_one_line_and_makes_nobody(
    settings: Settings, database: Database
) -> None:
    wrong = {"--email": "nonsense", "--username": "a", "--full-name": " ", "--password": "short"}
    said = refusal(await taskflow("create-admin", *options(wrong), **environment_of(settings)), 1)
    assert [word for word in ("mail", "sername", "ull name", "assword") if word not in said] == []
    assert said.count("; ") == 3
    assert "short" not in said.replace("too short", "")
    assert await people(database) == []


async def test_create_admin_refuses_a_taken_username_and_email(settings: Settings, database: Database) -> None:
    environment = environment_of(settings)
    await taskflow("create-admin", *options(ADMIN), **environment)
    said = refusal(
        await taskflow("create-admin", *options(ADMIN | {"--username": "ADA", "--full-name": "Other"}), **environment),
        1,
    )
    assert said == "Email already registered; Username already taken"
    assert await people(database) == [("ada@example.com", "ada", "Ada L.", UserRole.ADMIN, True)]


async def test_create_admin_may_be_the_first_command(empty_folder: Path) -> None:
    assert (await taskflow("create-admin", *options(ADMIN))).exit_code == 0
    database = Database(create_engine(make_settings(data_dir=empty_folder / ".taskflow")))
    assert await people(database) == [("ada@example.com", "ada", "Ada L.", UserRole.ADMIN, True)]
    await database.close()


# explain

PAGE = "query Page($first: Int) { tasks(first: $first) { nodes { title creator { username } assignee { username } } } }"
DELETE = "mutation Delete($id: ID!) { deleteTask(input: {id: $id}) { deletedTaskId } }"


@pytest.fixture
def page(empty_folder: Path) -> str:
    (empty_folder / "page.graphql").write_text(PAGE)
    return "page.graphql"


def sections(ran: Ran) -> dict[str, str]:
    """The output of `explain`, by section."""
    assert (ran.exit_code, ran.err) == (0, ""), ran
    plan, rest = ran.out.removeprefix("Plan\n\n").split("\n\nSQL", 1)
    statements, functions = rest.split("Generated functions\n\n")
    return {"plan": plan, "sql": statements, "functions": functions}


async def test_explain_shows_plan_statements_and_generated_functions(
    settings: Settings, database: Database, page: str
) -> None:
    async with database.write() as session:
        ann, bob = await make_user(session, "ann"), await make_user(session, "bob")
        for number in range(3):
            await make_task(session, make_viewer(ann.id), f"Task {number}", assignee_id=bob.id)
    variables = '{"first": 2}'
    ran = await taskflow("explain", page, "--as", "ann", "--variables", variables, **environment_of(settings))
    explained = sections(ran)
    assert explained["plan"] == (
        "query Page\n"
        "  tasks: TaskConnection!  resolved by TaskQueries.tasks\n"
        "    nodes: [Task!]!  by TaskConnection.nodes, called directly\n"
        "      title: String!  read from .title\n"
        "      creator: User!  loaded for all objects by users_by_id, key creator_id, unless they carry creator\n"
        "        username: String!  read from .username\n"
        "      assignee: User  loaded for all objects by users_by_id, key assignee_id, unless they carry assignee\n"
        "        username: String!  read from .username"
    )
    first_line, _, statements = explained["sql"].partition("\n\n")
    assert first_line == ", asked by ann (MEMBER)"
    assert re.findall("^-- [0-9].*", statements, re.MULTILINE) == ["-- 1"]
    assert "SELECT" in statements
    assert "tasks.title" in statements
    # One row more than the page has.
    assert re.search(r"LIMIT 3\b", statements)
    [parameters] = re.findall("^-- with (.*)", statements, re.MULTILINE)
    assert ann.id.hex in parameters.replace("-", "")
    assert statements.endswith("A request costs one statement more, the check of its token.\n\n")
    assert explained["functions"].startswith("# <plan Query>\ndef fill(run, answer, source, position):\n")
    assert "# <plan Query.tasks.nodes.creator>\n" in explained["functions"]


async def test_explain_counts_repeated_statements(settings: Settings, database: Database) -> None:
    async with database.write() as session:
        await make_user(session, "ann")
    page = 'users(first: 1, search: "a")'
    query = f"{{ me {{ username }} {page} {{ nodes {{ id }} }} again: {page} {{ nodes {{ username }} }} }}"
    ran = await taskflow("explain", "-", "--as", "ANN@example.com", typed=query, **environment_of(settings))
    statements = sections(ran)["sql"]
    assert re.findall("^-- [0-9].*", statements, re.MULTILINE) == ["-- 1, run 2 times"]
    assert statements.count("-- with ") == 2


async def test_explain_runs_anonymously_without_as(settings: Settings, page: str) -> None:
    statements = sections(await taskflow("explain", page, **environment_of(settings)))["sql"]
    assert statements == (
        ", asked by nobody\n\nNone.\n\nThe answer has an error at tasks: Not authenticated\nSay who asks with --as.\n\n"
    )


async def test_explain_does_not_write_to_the_database(settings: Settings, database: Database) -> None:
    async with database.write() as session:
        ann = await make_user(session, "ann")
        await make_task(session, make_viewer(ann.id))
    query = "{ tasks { changesCursor nodes { history(first: 1) { nodes { kind } } } } }"
    ran = await taskflow("explain", "-", "--as", "ann", typed=query, **environment_of(settings))
    assert "error" not in sections(ran)["sql"]
    # A server would have placed the event before it answered.
    async with database.read() as session:
        assert await has_unplaced_events(session)


@pytest.mark.parametrize(
    "document", [DELETE, "subscription { taskChanged { kind } }"], ids=["mutation", "subscription"]
)
async def test_explain_runs_only_queries(document: str) -> None:
    away = f"postgresql://u@{NOWHERE}/tasks"
    ran = await taskflow("explain", "-", "--variables", '{"id": "1"}', typed=document, DATABASE_URL=away)
    explained = sections(ran)
    kind = document.split()[0]
    assert explained["sql"] == f"\n\nNot shown: the {kind} would have to be run for it.\n\n"
    assert explained["plan"].startswith(kind)
    assert explained["functions"].startswith(f"# <plan {kind.title()}>\n")


async def test_explain_takes_variables_from_a_file_and_one_of_several_operations(empty_folder: Path) -> None:
    (empty_folder / "several.graphql").write_text(f"{PAGE} {DELETE}")
    (empty_folder / "variables.json").write_text('{"id": "1"}')
    arguments = ["several.graphql", "--operation", "Delete", "--variables", "@variables.json"]
    explained = sections(await taskflow("explain", *arguments))
    assert explained["plan"].splitlines()[0] == "mutation Delete, one field after the other"


@pytest.mark.parametrize(
    ("typed", "arguments", "problem"),
    [
        ("{ me ", [], "stdin:1:6: Syntax Error: Expected Name, found <EOF>."),
        ("{ me { name } }", [], "stdin:1:8: Cannot query field 'name' on type 'User'."),
        (f"{PAGE} {DELETE}", [], "stdin: There are several operations: choose one of Page, Delete with --operation"),
        (PAGE, ["--operation", "Delete"], "stdin: There is no operation Delete; there is Page"),
        ("{ me { id } }", ["--operation", "Me"], "stdin: There is no operation Me; there is one without a name"),
        (
            DELETE,
            [],
            "stdin:1:17: Variable '$id' has invalid value: Expected a value of non-null type 'ID!' to be provided. "
            "Variables are given with --variables",
        ),
        (PAGE, ["--variables", "[2]"], '--variables is not a JSON object; it looks like {"first": 10}'),
        (PAGE, ["--variables", "first"], "--variables is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
async def test_explain_reports_a_mistake_in_one_line(typed: str, arguments: list[str], problem: str) -> None:
    assert refusal(await taskflow("explain", "-", *arguments, typed=typed), 2) == problem


async def test_explain_names_a_file_that_it_cannot_read(empty_folder: Path, page: str) -> None:
    said = refusal(await taskflow("explain", "none.graphql"), 3)
    assert said == "Cannot read none.graphql: No such file or directory"
    said = refusal(await taskflow("explain", page, "--variables", "@none.json"), 3)
    assert said == "Cannot read none.json: No such file or directory"
    (empty_folder / "bytes.graphql").write_bytes(b"\xff\xfe")
    assert (
        refusal(await taskflow("explain", "bytes.graphql"), 2) == "Cannot read bytes.graphql: it is not text in UTF-8"
    )


async def test_explain_refuses_an_unknown_user(settings: Settings, page: str) -> None:
    said = refusal(await taskflow("explain", page, "--as", "bob", **environment_of(settings)), 2)
    assert said == ("There is nobody active called bob: --as wants the username or email address of an active account")


async def test_explain_refuses_operations_that_a_server_refuses(settings: Settings) -> None:
    deep = "{ me { createdTasks { nodes { " + "creator { createdTasks { nodes { " * 6 + "id" + " } } }" * 6 + " } } } }"
    said = refusal(await taskflow("explain", "-", typed=deep, **environment_of(settings)), 2)
    assert said == (
        "stdin:1:1: The operation asks for too much: 22 deep, counted in nested selections; the limit is 15"
    )


async def test_explain_needs_a_database_only_for_queries(new_database_url: str, page: str) -> None:
    said = refusal(await taskflow("explain", page, DATABASE_URL=new_database_url), 2)
    assert said == "The database has no tables yet: run `taskflow migrate`"
    said = refusal(await taskflow("explain", page, DATABASE_URL=f"postgres://u:hunter2@{NOWHERE}/tasks"), 3)
    assert said.startswith(f"The database at postgresql+asyncpg://u:***@{NOWHERE}/tasks cannot be used: ")


# seed


async def count_people(database: Database) -> int:
    async with database.read() as session:
        return int((await session.execute(select(func.count()).select_from(User))).scalar_one())


async def test_seed_reports_what_it_made_and_a_second_run_adds_more(settings: Settings, database: Database) -> None:
    ran = await taskflow("seed", "--users", "3", "--tasks", "4", **environment_of(settings))
    assert (ran.exit_code, ran.out) == (
        0,
        "Made user1 to user3 and 4 tasks.\nSign in as user1, an ADMIN, with the password `password`.\n",
    )
    assert [word for word in ("People", "3/3", "Tasks", "4/4") if word not in ran.err] == []

    ran = await taskflow("seed", "--users", "1", "--tasks", "0", **environment_of(settings))
    assert (ran.exit_code, ran.out) == (
        0,
        "Made user4 and 0 tasks.\nSign in as user4, an ADMIN, with the password `password`.\n",
    )
    assert await count_people(database) == 4


async def test_seed_refuses_production_because_its_password_is_known(
    postgresql_settings: Settings,
) -> None:
    environment = environment_of(postgresql_settings) | {"TASKFLOW_ENV": "production"}
    said = refusal(await taskflow("seed", **environment), 2)
    assert said == "This is production (TASKFLOW_ENV), and demonstration people have a known password"
    database = Database(create_engine(postgresql_settings))
    assert await count_people(database) == 0
    await database.close()


# doctor


async def examine(exit_code: int, **environment: str) -> dict[str, tuple[str, str]]:
    """Each line of the report, by the name of the part: its mark and its text."""
    ran = await taskflow("doctor", **environment)
    assert (ran.exit_code, ran.err) == (exit_code, ""), ran
    rows = {}
    for line in ran.out.splitlines():
        mark, name_and_words = line.split("  ", 1)
        name, words = name_and_words.split(maxsplit=1)
        rows[name] = (mark, words.strip())
    return rows


async def test_doctor_passes_an_empty_folder(empty_folder: Path) -> None:
    assert await examine(0, TASKFLOW_MAX_CONNECTIONS="100") == {
        "environment": ("–", "development"),
        "secret": ("ok", "kept in .taskflow/secret"),
        "database": (
            "ok",
            f"sqlite+aiosqlite:///.taskflow/taskflow.sqlite3: `taskflow serve` will migrate it to {head_revision()}",
        ),
        "redis": ("–", "not configured: one process only"),
        "descriptors": ("ok", "enough for 100 connections"),
        "graphiql": ("–", "on"),
    }


async def test_doctor_passes_a_production_setup(postgresql_settings: Settings) -> None:
    url = shown(str(postgresql_settings.database_url))
    environment = environment_of(postgresql_settings)
    environment |= {"TASKFLOW_ENV": "production", "TASKFLOW_MAX_CONNECTIONS": "100"}
    assert await examine(0, **environment) == {
        "environment": ("–", "production"),
        "secret": ("ok", "SECRET_KEY"),
        "database": ("ok", f"{url} at revision {head_revision()}"),
        "redis": ("ok", "reachable"),
        "descriptors": ("ok", "enough for 100 connections"),
        "graphiql": ("–", "off"),
    }


async def test_doctor_reports_a_database_that_is_not_migrated(new_postgres: str) -> None:
    rows = await examine(1, TASKFLOW_DATABASE_URL=new_postgres)
    assert rows["database"] == (
        "not ok",
        f"{shown(new_postgres)} has no tables yet: run `taskflow migrate`",
    )


async def test_doctor_reports_an_unreachable_database_and_redis(postgresql_settings: Settings) -> None:
    environment = environment_of(postgresql_settings)
    rows = await examine(1, **environment | {"TASKFLOW_DATABASE_URL": f"postgresql://u@{NOWHERE}/tasks"})
    assert rows["database"] == (
        "not ok",
        f"postgresql+asyncpg://u@{NOWHERE}/tasks: [Errno 111] Connect call failed ('127.0.0.1', 1)",
    )
    assert rows["redis"] == ("ok", "reachable")

    rows = await examine(1, **environment | {"TASKFLOW_REDIS_URL": f"redis://{NOWHERE}"})
    assert rows["database"][0] == "ok"
    assert rows["redis"][0] == "not ok"
    assert "127.0.0.1:1" in rows["redis"][1]


@pytest.mark.parametrize(
    ("environment", "part", "words"),
    [
        ({"REDIS_URL": "http://cache.example"}, "redis", "Redis URL must specify one of the following schemes"),
        ({"DATABASE_URL": "mysql://db.example/tasks"}, "settings", "DATABASE_URL names 'mysql'"),
        ({"TASKFLOW_DATA_DIR": "file/data"}, "settings", "Cannot make the data folder file/data: Not a directory"),
    ],
)
async def test_doctor_reports_bad_settings(
    empty_folder: Path, environment: dict[str, str], part: str, words: str
) -> None:
    (empty_folder / "file").write_text("")
    rows = await examine(1, **environment)
    assert rows[part][0] == "not ok"
    assert rows[part][1].startswith(words)


async def test_doctor_reports_a_damaged_secret(empty_folder: Path) -> None:
    (empty_folder / "secret").write_text("gnawed")
    rows = await examine(1, TASKFLOW_DATA_DIR=".")
    assert rows["settings"] == ("not ok", "The secret in secret is damaged. Delete the file; everybody signs in again")


async def test_doctor_warns_of_too_few_descriptors(empty_folder: Path) -> None:
    rows = await examine(0, TASKFLOW_MAX_CONNECTIONS="2000000000")
    mark, words = rows["descriptors"]
    assert mark == "warning"
    assert words.startswith("The limit of ")
    assert "TASKFLOW_MAX_CONNECTIONS is 2000000000. Raise the limit" in words


async def test_doctor_prints_brackets_in_a_path_unchanged(empty_folder: Path) -> None:
    rows = await examine(0, TASKFLOW_DATA_DIR="a[/b][red]")
    assert rows["secret"] == ("ok", "kept in a[/b][red]/secret")


async def test_doctor_warns_of_unknown_variables_and_passes(empty_folder: Path) -> None:
    (empty_folder / ".env").write_text("TASKFLOW_WORKER=2\nPOSTGRES_PASSWORD=x\n")
    rows = await examine(0, TASKFLOW_PORT="8001", TASKFLOW_ADMIN_PASSWORD="correct horse")
    assert rows["variable"] == ("warning", "TASKFLOW_WORKER is not a setting: did you mean TASKFLOW_WORKERS?")


async def test_bad_settings_also_name_unknown_variables() -> None:
    said = refusal(await taskflow("doctor", TASKFLOW_WORKERS="2", DATABASE_URL="postgres://h/x", TASKFLOW_REDIS="r"), 2)
    assert said == (
        "Bad settings: TASKFLOW_WORKERS=2 needs REDIS_URL (more than one worker needs Redis); "
        "TASKFLOW_REDIS is not a setting: did you mean TASKFLOW_REDIS_URL?"
    )


async def test_messages_name_the_command_as_it_must_be_typed(empty_folder: Path, new_postgres: str) -> None:
    async def hint(folder: Path, path: str) -> str:
        said = refusal(await real_taskflow("seed", folder=folder, DATABASE_URL=new_postgres, PATH=path), 2)
        return said.removeprefix("The database has no tables yet: run ")

    installed = Path(sys.executable).with_name("taskflow")
    project = installed.parents[2]
    assert await hint(project, "/usr/bin:/bin") == f"`{installed.relative_to(project)} migrate`"
    assert await hint(empty_folder, "/usr/bin:/bin") == f"`{installed} migrate`"
    assert await hint(empty_folder, f"{installed.parent}:/usr/bin") == "`taskflow migrate`"


# healthcheck


def port_of(api: Api) -> str:
    return api.url.rpartition(":")[2]


async def test_healthcheck_passes_for_a_ready_server(api: Api) -> None:
    assert await taskflow("healthcheck", TASKFLOW_PORT=port_of(api)) == Ran(0, "", "")
    assert await taskflow("healthcheck", TASKFLOW_PORT=port_of(api), TASKFLOW_HOST="0.0.0.0") == Ran(0, "", "")  # noqa: S104
    assert await taskflow("healthcheck", "--url", f"{api.url}/ready") == Ran(0, "", "")


async def test_healthcheck_ignores_a_proxy_in_the_environment(api: Api) -> None:
    assert await taskflow("healthcheck", TASKFLOW_PORT=port_of(api), http_proxy=f"http://{NOWHERE}") == Ran(0, "", "")


async def test_healthcheck_fails_without_a_server() -> None:
    said = refusal(await taskflow("healthcheck", TASKFLOW_PORT="1"), 1)
    assert said == ("http://127.0.0.1:1/ready does not answer: <urlopen error [Errno 111] Connection refused>")


async def test_healthcheck_fails_when_the_server_is_not_ready(postgresql_settings: Settings) -> None:
    with RedisServer() as redis:
        settings = postgresql_settings.model_copy(update={"redis_url": redis.url()})
        async with serving(settings) as api:
            redis.stop()
            said = refusal(await taskflow("healthcheck", TASKFLOW_PORT=port_of(api)), 1)
    assert said == (f'{api.url}/ready answered 503: {{"status":"unavailable","failing":["redis"]}}')


async def test_healthcheck_fails_when_something_else_answers_on_the_port(redis_url: str, api: Api) -> None:
    port = str(make_url(redis_url).port)
    said = refusal(await taskflow("healthcheck", TASKFLOW_PORT=port), 1)
    assert said.startswith(f"http://127.0.0.1:{port}/ready does not answer: ")
    said = refusal(await taskflow("healthcheck", "--url", f"{api.url}/nowhere"), 1)
    assert said == f"{api.url}/nowhere answered 404: Not Found"


async def test_healthcheck_refuses_urls_that_are_not_http() -> None:
    said = refusal(await taskflow("healthcheck", "--url", "file:///etc/passwd"), 2)
    assert said == "file:///etc/passwd is no http address"


# Errors outside the command: settings, database, files, ports

USES_DATABASE = [["serve"], ["migrate"], ["migrate", "--status"], ["seed"], ["create-admin", *options(ADMIN)]]
USES_SETTINGS = [*USES_DATABASE, ["explain", "-"], ["doctor"], ["healthcheck"]]


@pytest.mark.parametrize("arguments", USES_SETTINGS, ids=" ".join)
async def test_every_command_names_bad_settings(arguments: list[str]) -> None:
    said = refusal(await taskflow(*arguments, TASKFLOW_WORKERS="many", SECRET_KEY="short"), 2)
    assert said == (
        "Bad settings: TASKFLOW_WORKERS: Input should be a valid integer, unable to parse string as an integer; "
        "TASKFLOW_SECRET_KEY: must be at least 32 bytes; `openssl rand -hex 32` makes a good one"
    )


@pytest.mark.parametrize("arguments", USES_DATABASE, ids=" ".join)
async def test_a_bad_database_url_is_refused_in_one_line(arguments: list[str]) -> None:
    said = refusal(await taskflow(*arguments, DATABASE_URL="tasks"), 2)
    assert said == "DATABASE_URL is not a database URL; it looks like postgresql://user:password@host:5432/name"


@pytest.mark.parametrize("arguments", USES_DATABASE, ids=" ".join)
async def test_an_unreachable_database_is_reported_in_one_line(arguments: list[str]) -> None:
    said = refusal(await taskflow(*arguments, DATABASE_URL=f"postgres://u:hunter2@{NOWHERE}/tasks"), 3)
    assert said == (
        f"The database at postgresql+asyncpg://u:***@{NOWHERE}/tasks cannot be used: "
        "[Errno 111] Connect call failed ('127.0.0.1', 1)"
    )


@pytest.mark.parametrize("arguments", USES_DATABASE, ids=" ".join)
async def test_a_database_that_does_not_exist_is_reported_in_one_line(postgres_url: str, arguments: list[str]) -> None:
    url = make_url(postgres_url).set(database="nowhere").render_as_string(hide_password=False)
    said = refusal(await taskflow(*arguments, DATABASE_URL=url), 3)
    assert said == f'The database at {shown(url)} cannot be used: database "nowhere" does not exist'


@pytest.mark.parametrize("arguments", USES_DATABASE, ids=" ".join)
async def test_a_file_that_is_not_a_database_is_reported_in_one_line(empty_folder: Path, arguments: list[str]) -> None:
    (empty_folder / "notes.txt").write_text("Buy milk. " * 1000)
    said = refusal(await taskflow(*arguments, DATABASE_URL="sqlite:///notes.txt"), 3)
    assert said == "The database at sqlite+aiosqlite:///notes.txt cannot be used: file is not a database"


@pytest.mark.parametrize("arguments", USES_DATABASE, ids=" ".join)
async def test_a_data_folder_below_a_file_is_reported_in_one_line(empty_folder: Path, arguments: list[str]) -> None:
    (empty_folder / "file").write_text("")
    said = refusal(await taskflow(*arguments, TASKFLOW_DATA_DIR="file/data"), 2)
    assert said == "Cannot make the data folder file/data: Not a directory. Give rights on it, or set TASKFLOW_DATA_DIR"


@pytest.mark.parametrize("arguments", [["serve"], ["seed"], ["create-admin", *options(ADMIN)]], ids=" ".join)
async def test_a_postgresql_database_that_is_not_migrated_is_reported_with_the_remedy(
    new_postgres: str, arguments: list[str]
) -> None:
    said = refusal(await taskflow(*arguments, DATABASE_URL=new_postgres), 2)
    assert said == "The database has no tables yet: run `taskflow migrate`"


async def test_serve_reports_a_bad_and_an_unreachable_redis_url() -> None:
    said = refusal(await taskflow("serve", REDIS_URL="http://cache.example"), 2)
    assert said.startswith("REDIS_URL is not a Redis URL (")
    assert said.endswith("); it looks like redis://host:6379/0")
    said = refusal(await taskflow("serve", REDIS_URL=f"redis://{NOWHERE}"), 3)
    assert said.startswith("Redis at REDIS_URL cannot be reached: ")
    assert said.endswith(". Start it, or unset REDIS_URL")


async def test_serve_reports_a_damaged_secret(empty_folder: Path) -> None:
    (empty_folder / "secret").write_text("gnawed")
    said = refusal(await taskflow("serve", TASKFLOW_DATA_DIR="."), 2)
    assert said == "The secret in secret is damaged. Delete the file; everybody signs in again"


async def test_serve_reports_everything_that_production_lacks() -> None:
    said = refusal(await real_taskflow("serve", "--workers", "2", TASKFLOW_ENV="production"), 2)
    assert said == (
        "Bad settings: production needs SECRET_KEY, DATABASE_URL (a postgresql:// URL), "
        "REDIS_URL (more than one worker needs Redis)"
    )


async def test_serve_reports_what_several_workers_lack() -> None:
    said = refusal(await real_taskflow("serve", "--workers", "2"), 2)
    assert said == (
        "Bad settings: TASKFLOW_WORKERS=2 needs DATABASE_URL (more than one worker needs PostgreSQL), "
        "REDIS_URL (more than one worker needs Redis)"
    )


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_serve_reports_a_port_in_use(taken_port: int) -> None:
    said = refusal(await real_taskflow("serve", "--port", str(taken_port)), 3)
    assert said == (
        f"Cannot listen on 127.0.0.1:{taken_port}: it is in use. Stop what listens there, or choose another with --port"
    )


async def test_serve_reports_a_host_that_does_not_resolve() -> None:
    said = refusal(await taskflow("serve", TASKFLOW_HOST="nowhere.invalid"), 3)
    assert said.startswith("Cannot listen on nowhere.invalid:8000: ")
    assert said.endswith(". Choose another address with --host")


# Runs the real command without rights: when the tests run as root, it drops them first.
AS_NOBODY = """
import os
from taskflow_gql.cli.main import app
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
app()
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter. pytest's own folders are closed to other users."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def locked_folder(open_folder: Path) -> Path:
    open_folder.chmod(0o555)
    return open_folder


@pytest.mark.slow
async def test_serve_reports_a_data_folder_that_it_may_not_make(locked_folder: Path) -> None:
    said = refusal(await real_taskflow("serve", script=AS_NOBODY, folder=locked_folder), 2)
    assert said == (
        "Cannot make the data folder .taskflow: Permission denied. Give rights on it, or set TASKFLOW_DATA_DIR"
    )


@pytest.mark.slow
async def test_serve_reports_a_data_folder_that_it_may_not_write(locked_folder: Path) -> None:
    said = refusal(await real_taskflow("serve", script=AS_NOBODY, folder=locked_folder, TASKFLOW_DATA_DIR="."), 2)
    assert said == "No right to read and write the data folder .. Give rights on it, or set TASKFLOW_DATA_DIR"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("secret", "Cannot read secret: Permission denied. Set SECRET_KEY, or give rights"),
        (".env", "Cannot read the settings in the file .env: [Errno 13] Permission denied: '.env'"),
    ],
)
async def test_serve_reports_a_file_that_it_may_not_read(open_folder: Path, name: str, problem: str) -> None:
    (open_folder / name).touch(0o000)
    ran = await real_taskflow("serve", script=AS_NOBODY, folder=open_folder, TASKFLOW_DATA_DIR=".")
    assert refusal(ran, 2) == problem
