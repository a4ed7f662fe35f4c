"""Settings from the environment, from `.env`, and from the secret kept in the data folder."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer.main

from taskflow_gql.cli.main import app
from taskflow_gql.config import DEFAULT_RATES, Settings, SmtpServer, load_settings, unknown_variables
from taskflow_gql.errors import ConfigurationError
from tests.support.processes import blocking_child
from tests.support.servers import DATABASE_URL_VARIABLE, REDIS_URL_VARIABLE

LONG = "a secret of at least thirty-two bytes"
POSTGRESQL = "postgresql://user:pass@db.example:5432/taskflow"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, without a `.env`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return load_settings()


def refusal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        load(monkeypatch, **environment)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_defaults_are_development_with_a_local_database_file(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch)
    assert (settings.env, settings.host, settings.port, settings.workers) == ("development", "127.0.0.1", 8000, 1)
    assert settings.data_dir == Path(".taskflow")
    assert (settings.database_url, settings.redis_url, settings.secret_key) == (None, None, None)
    assert (settings.database_pool_size, settings.database_max_overflow) == (10, 20)
    assert settings.access_token_expire_minutes == 30
    assert settings.allowed_origins == ["http://localhost:3000", "http://localhost:5173"]
    assert (settings.cors_headers, settings.trusted_proxies) == ([], [])
    assert (settings.log_level, settings.log_format) == ("INFO", "console")
    assert (settings.is_embedded, settings.is_sqlite, settings.is_production) == (True, True, False)
    assert (settings.shows_graphiql, settings.allows_introspection) == (True, True)


def test_reading_settings_creates_no_file(monkeypatch: pytest.MonkeyPatch, empty_folder: Path) -> None:
    load(monkeypatch)
    assert list(empty_folder.iterdir()) == []


def test_every_setting_is_read_with_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        TASKFLOW_HOST="api.example",
        TASKFLOW_PORT="9000",
        TASKFLOW_DATABASE_URL=POSTGRESQL,
        TASKFLOW_REDIS_URL="redis://cache.example:6379/1",
        TASKFLOW_SECRET_KEY=LONG,
        TASKFLOW_DATABASE_POOL_SIZE="3",
        TASKFLOW_GRAPHIQL="no",
        TASKFLOW_LOG_FORMAT="json",
    )
    assert (settings.host, settings.port) == ("api.example", 9000)
    assert (settings.database_url, settings.redis_url) == (POSTGRESQL, "redis://cache.example:6379/1")
    assert settings.signing_key == LONG
    assert (settings.database_pool_size, settings.shows_graphiql, settings.log_format) == (3, False, "json")


@pytest.mark.parametrize(
    ("name", "value"),
    [("DATABASE_URL", POSTGRESQL), ("REDIS_URL", "redis://cache.example:6379/1"), ("SECRET_KEY", LONG)],
)
def test_platform_variables_are_read_without_the_prefix_and_prefixed_ones_win(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    def read(**environment: str) -> object:
        settings = load(monkeypatch, **environment)
        read = getattr(settings, name.lower())
        return settings.signing_key if name == "SECRET_KEY" else read

    assert read(**{name: value}) == value
    assert read(**{name: f"{value}-other", f"TASKFLOW_{name}": value}) == value
    # An empty value counts as unset: `docker compose` passes unset variables on as empty ones.
    assert read(**{name: value, f"TASKFLOW_{name}": ""}) == value


def test_other_variables_are_not_read_without_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, PORT="9000", HOST="elsewhere", ENV="production", WORKERS="8") == load(monkeypatch)


def test_the_environment_overrides_the_env_file(monkeypatch: pytest.MonkeyPatch, empty_folder: Path) -> None:
    (empty_folder / ".env").write_text("TASKFLOW_PORT=9000\nTASKFLOW_HOST=file.example\nUNKNOWN=ignored\n")
    settings = load(monkeypatch, TASKFLOW_PORT="9001")
    assert (settings.host, settings.port) == ("file.example", 9001)


def test_an_env_file_in_another_encoding_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, empty_folder: Path
) -> None:
    (empty_folder / ".env").write_bytes("TASKFLOW_HOST=Grüße".encode("latin-1"))
    assert refusal(monkeypatch).startswith("Cannot read the settings in the file .env: 'utf-8' codec can't decode")


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        ("https://a.example", ["https://a.example"]),
        (" https://a.example/ ,, http://b.example:3000,", ["https://a.example", "http://b.example:3000"]),
        (",", []),
    ],
)
def test_cors_origins_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, given: str, origins: list[str]) -> None:
    assert load(monkeypatch, TASKFLOW_CORS_ORIGINS=given).cors_origins == origins


def test_all_origins_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, TASKFLOW_CORS_ORIGINS="*").allowed_origins == ["*"]


def test_cors_headers_and_proxies_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        TASKFLOW_CORS_HEADERS="X-Tenant, X-Device,",
        TASKFLOW_TRUSTED_PROXIES="127.0.0.1, 10.0.0.0/8, 2001:db8::/32",
    )
    assert settings.cors_headers == ["X-Tenant", "X-Device"]
    assert [str(network) for network in settings.trusted_proxies] == ["127.0.0.1/32", "10.0.0.0/8", "2001:db8::/32"]


# Bad values


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("TASKFLOW_ENV", "prod", "Input should be 'development' or 'production'"),
        ("TASKFLOW_PORT", "http", "Input should be a valid integer, unable to parse string as an integer"),
        ("TASKFLOW_PORT", "65536", "Input should be less than or equal to 65535"),
        ("TASKFLOW_WORKERS", "0", "Input should be greater than or equal to 1"),
        ("TASKFLOW_DATABASE_POOL_SIZE", "0", "Input should be greater than or equal to 1"),
        ("TASKFLOW_DATABASE_MAX_OVERFLOW", "-1", "Input should be greater than or equal to 0"),
        ("TASKFLOW_ACCESS_TOKEN_EXPIRE_MINUTES", "0", "Input should be greater than or equal to 1"),
        ("TASKFLOW_GRAPHIQL", "maybe", "Input should be a valid boolean, unable to interpret input"),
        ("TASKFLOW_LOG_LEVEL", "LOUD", "Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("TASKFLOW_LOG_FORMAT", "xml", "Input should be 'console' or 'json'"),
        (
            "TASKFLOW_CORS_ORIGINS",
            "https://a.example, localhost:3000",
            "'localhost:3000' is no origin; they look like https://app.example or http://localhost:5173",
        ),
        (
            "TASKFLOW_CORS_ORIGINS",
            "https://a.example/path",
            "'https://a.example/path' is no origin; they look like https://app.example or http://localhost:5173",
        ),
        (
            "TASKFLOW_TRUSTED_PROXIES",
            "10.0.0.1, *",
            "'*' is no address or network; they look like 127.0.0.1 or 10.0.0.0/8",
        ),
        (
            "TASKFLOW_TRUSTED_PROXIES",
            "10.0.0.1/8",
            "'10.0.0.1/8' is no address or network; they look like 127.0.0.1 or 10.0.0.0/8",
        ),
        (
            "TASKFLOW_SECRET_KEY",
            "a" * 31,
            "must be at least 32 bytes; `openssl rand -hex 32` makes a good one",
        ),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    assert refusal(monkeypatch, **{name: value}) == f"Bad settings: {name}: {problem}"


def test_every_number_setting_refuses_text_and_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [name for name, field in Settings.model_fields.items() if field.annotation is int]
    assert "port" in numbers
    for name in numbers:
        variable = f"TASKFLOW_{name.upper()}"
        assert refusal(monkeypatch, **{variable: "many"}).startswith(f"Bad settings: {variable}: ")


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, TASKFLOW_ENV="prod", TASKFLOW_PORT="-1", SECRET_KEY="short")
    assert re.findall(r"(TASKFLOW_[A-Z_]+):", message) == ["TASKFLOW_ENV", "TASKFLOW_PORT", "TASKFLOW_SECRET_KEY"]


def test_a_refusal_does_not_show_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hunter2" not in refusal(monkeypatch, SECRET_KEY="hunter2")


def test_other_secrets_are_separated_by_commas_and_all_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = load(monkeypatch, TASKFLOW_OTHER_SECRET_KEYS=f"{LONG}, {LONG}-2").other_secret_keys
    assert [secret.get_secret_value() for secret in secrets] == [LONG, f"{LONG}-2"]
    message = refusal(monkeypatch, TASKFLOW_OTHER_SECRET_KEYS=f"{LONG},hunter2")
    assert message.startswith("Bad settings: TASKFLOW_OTHER_SECRET_KEYS: must be at least 32 bytes")
    assert "hunter2" not in message


def test_the_length_of_a_secret_is_counted_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, SECRET_KEY="ä" * 16).signing_key == "ä" * 16


# Unknown variables


def unknown(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[str]:
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return unknown_variables()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("TASKFLOW_PROT", "did you mean TASKFLOW_PORT?"),
        ("taskflow_log_levle", "did you mean TASKFLOW_LOG_LEVEL?"),
        ("TASKFLOW_CORS_ORIGIN", "did you mean TASKFLOW_CORS_ORIGINS?"),
        ("TASKFLOW_DATABSE_URL", "did you mean TASKFLOW_DATABASE_URL?"),
        ("TASKFLOW_XYZZY", ".env.example lists all settings"),
    ],
)
def test_an_unknown_variable_is_reported_with_the_nearest_setting(
    monkeypatch: pytest.MonkeyPatch, empty_folder: Path, name: str, hint: str
) -> None:
    sentence = f"{name.upper()} is not a setting: {hint}"
    assert unknown(monkeypatch, **{name: "1"}) == [sentence]
    (empty_folder / ".env").write_text(f"{name}=1\nPOSTGRES_PASSWORD=x\n")
    assert unknown(monkeypatch) == [sentence]
    # Set in both places, it is reported once. Other settings are still read.
    assert unknown(monkeypatch, **{name: "1"}) == [sentence]
    assert load(monkeypatch, **{name: "1"}) == load(monkeypatch)


def test_variables_of_settings_commands_and_tests_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: Any = typer.main.get_command(app)
    of_commands = {
        parameter.envvar for command in commands.commands.values() for parameter in command.params if parameter.envvar
    }
    assert "TASKFLOW_ADMIN_PASSWORD" in of_commands
    of_settings = {f"TASKFLOW_{name.upper()}" for name in Settings.model_fields}
    of_tests = {DATABASE_URL_VARIABLE, REDIS_URL_VARIABLE, "TASKFLOW_FAULT_SECONDS", "TASKFLOW_FAULT_SEED"}
    assert unknown(monkeypatch, **dict.fromkeys(of_commands | of_settings | of_tests, "1")) == []


def test_all_hints_for_making_a_secret_give_the_same_command() -> None:
    root = Path(__file__).parents[1]
    files = ("README.md", ".env.example", "docker-compose.yml", "taskflow_gql/config.py")
    hints = {name: set(re.findall(r"openssl [a-z0-9 -]*[a-z0-9]", (root / name).read_text())) for name in files}
    assert hints == {name: {"openssl rand -hex 32"} for name in files}


# Settings that depend on each other


def test_production_names_everything_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, TASKFLOW_ENV="production", TASKFLOW_WORKERS="2") == (
        "Bad settings: production needs SECRET_KEY, DATABASE_URL (a postgresql:// URL), "
        "REDIS_URL (more than one worker needs Redis)"
    )


def test_production_refuses_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, TASKFLOW_ENV="production", SECRET_KEY=LONG, DATABASE_URL="sqlite:///tasks.sqlite3")
    assert message == "Bad settings: production needs DATABASE_URL (a postgresql:// URL)"


def test_production_turns_introspection_and_graphiql_off_unless_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    production = {"TASKFLOW_ENV": "production", "SECRET_KEY": LONG, "DATABASE_URL": POSTGRESQL}
    settings = load(monkeypatch, **production)
    assert (settings.is_production, settings.is_embedded) == (True, False)
    assert (settings.shows_graphiql, settings.allows_introspection) == (False, False)
    settings = load(monkeypatch, **production, TASKFLOW_GRAPHIQL="true", TASKFLOW_INTROSPECTION="1")
    assert (settings.shows_graphiql, settings.allows_introspection) == (True, True)


def test_production_allows_only_listed_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    production = {"TASKFLOW_ENV": "production", "SECRET_KEY": LONG, "DATABASE_URL": POSTGRESQL}
    assert load(monkeypatch, **production).allowed_origins == []
    settings = load(monkeypatch, **production, TASKFLOW_CORS_ORIGINS="https://app.example")
    assert settings.allowed_origins == ["https://app.example"]


def test_several_workers_need_postgresql_and_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, TASKFLOW_WORKERS="2") == (
        "Bad settings: TASKFLOW_WORKERS=2 needs DATABASE_URL (more than one worker needs PostgreSQL), "
        "REDIS_URL (more than one worker needs Redis)"
    )
    settings = load(monkeypatch, TASKFLOW_WORKERS="2", DATABASE_URL=POSTGRESQL, REDIS_URL="redis://cache.example")
    assert settings.workers == 2


def test_several_workers_need_redis_in_production_too(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(
        monkeypatch, TASKFLOW_ENV="production", SECRET_KEY=LONG, DATABASE_URL=POSTGRESQL, TASKFLOW_WORKERS="2"
    )
    assert message == "Bad settings: production needs REDIS_URL (more than one worker needs Redis)"


# Mail

MAIL = {"TASKFLOW_MAIL_FROM": "TaskFlow <noreply@app.example>", "TASKFLOW_PUBLIC_URL": "https://app.example"}


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://smtp.example", SmtpServer("smtp.example", 25, None, None, False, None)),
        ("smtp://smtp.example:2525?starttls=false", SmtpServer("smtp.example", 2525, None, None, False, False)),
        ("smtp://ann:pw@smtp.example?starttls=true", SmtpServer("smtp.example", 587, "ann", "pw", False, True)),
        ("smtps://smtp.example/", SmtpServer("smtp.example", 465, None, None, True, False)),
        (
            "smtps://ann%40app.example:p%3Aw%40%2F%25@[::1]:1465",
            SmtpServer("::1", 1465, "ann@app.example", "p:w@/%", True, False),
        ),
    ],
)
def test_an_smtp_url_names_a_server(monkeypatch: pytest.MonkeyPatch, url: str, server: SmtpServer) -> None:
    assert load(monkeypatch, TASKFLOW_SMTP_URL=url, **MAIL).smtp_server == server


@pytest.mark.parametrize(
    "url",
    [
        "smtp.example",
        "http://ann:hunter2@smtp.example",
        "smtp://ann:hunter2@",
        "smtp://ann:hunter2/x@smtp.example",
        "smtp://ann:hunter2#x@smtp.example",
        "smtp://ann:hunter2@smtp.example:hunter2",
        "smtp://ann:hunter2@[smtp.example",
        "smtp://ann:hunter2@smtp.example/path",
        "smtp://ann:hunter2@smtp.example?tls=true",
        "smtp://ann:hunter2@smtp.example?starttls=hunter2",
        "smtps://ann:hunter2@smtp.example?starttls=true",
    ],
)
def test_a_bad_smtp_url_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(ConfigurationError, match="Bad settings: TASKFLOW_SMTP_URL: ") as refused:
        load(monkeypatch, TASKFLOW_SMTP_URL=url, **MAIL)
    # A traceback shows the causes too.
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_the_password_of_the_smtp_server_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, TASKFLOW_SMTP_URL="smtp://ann:hunter2@smtp.example", **MAIL)
    assert "hunter2" not in f"{settings!r} {settings.smtp_server!r}"


def test_an_smtp_server_needs_a_sender_and_a_base_of_links(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, TASKFLOW_SMTP_URL="smtp://smtp.example")
    assert message == "Bad settings: TASKFLOW_SMTP_URL needs TASKFLOW_MAIL_FROM, TASKFLOW_PUBLIC_URL"


@pytest.mark.parametrize(
    "sender", ["noreply", "TaskFlow <noreply>", "a@b.example, c@d.example", "a@b.example\nX: y", "<>"]
)
def test_a_bad_sender_is_refused(monkeypatch: pytest.MonkeyPatch, sender: str) -> None:
    assert refusal(monkeypatch, TASKFLOW_MAIL_FROM=sender) == (
        "Bad settings: TASKFLOW_MAIL_FROM: is no sender; they look like TaskFlow <noreply@app.example> or "
        "noreply@app.example"
    )


@pytest.mark.parametrize(
    "url", ["app.example", "ftp://app.example", "https://", "https://a@app.example", "https://a?b"]
)
def test_a_bad_base_of_links_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert refusal(monkeypatch, TASKFLOW_PUBLIC_URL=url) == (
        "Bad settings: TASKFLOW_PUBLIC_URL: is no base of links; they look like https://app.example or "
        "https://app.example/tasks"
    )


def test_mail_can_be_sent_in_development_and_with_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    production = {"TASKFLOW_ENV": "production", "SECRET_KEY": LONG, "DATABASE_URL": POSTGRESQL}
    settings = load(monkeypatch)
    assert (settings.sends_mail, settings.smtp_server, settings.links_base) == (True, None, "http://localhost:3000")
    assert not load(monkeypatch, **production).sends_mail
    settings = load(monkeypatch, TASKFLOW_SMTP_URL="smtp://smtp.example", **MAIL, **production)
    assert settings.sends_mail
    assert load(monkeypatch, TASKFLOW_PUBLIC_URL="https://app.example/tasks/").links_base == "https://app.example/tasks"


# The secret in the data folder


def test_a_secret_is_made_once_and_readable_only_by_its_owner(
    monkeypatch: pytest.MonkeyPatch, empty_folder: Path
) -> None:
    first = load(monkeypatch).signing_key
    assert len(first.encode()) >= 32
    assert load(monkeypatch).signing_key == first

    folder = empty_folder / ".taskflow"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600


def test_the_kept_secret_has_mode_0600_under_any_umask(monkeypatch: pytest.MonkeyPatch, empty_folder: Path) -> None:
    before = os.umask(0)
    try:
        load(monkeypatch).signing_key  # noqa: B018
    finally:
        os.umask(before)
    assert stat.S_IMODE((empty_folder / ".taskflow/secret").stat().st_mode) == 0o600


def test_two_data_folders_have_different_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {load(monkeypatch, TASKFLOW_DATA_DIR=name).signing_key for name in ("one", "two")}
    assert len(secrets) == 2


def test_a_configured_secret_is_not_written_to_a_file(monkeypatch: pytest.MonkeyPatch, empty_folder: Path) -> None:
    assert load(monkeypatch, SECRET_KEY=LONG).signing_key == LONG
    assert list(empty_folder.iterdir()) == []


REPORT_SECRETS_WHEN_TOLD = """
import sys
from taskflow_gql.config import Settings

print("ready", flush=True)
sys.stdin.readline()
print(*(Settings(_env_file=None, data_dir=f"{sys.argv[1]}/{number}").signing_key for number in range(50)))
"""


@pytest.mark.slow
def test_processes_started_at_once_agree_on_the_secret(empty_folder: Path) -> None:
    """Fifty times, because a single race is rarely lost."""
    command = [sys.executable, "-c", REPORT_SECRETS_WHEN_TOLD, str(empty_folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ExitStack() as stack:
        processes = [stack.enter_context(blocking_child(command, text=True, **pipes)) for _ in range(4)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        reported = [process.communicate()[0].split() for process in processes]
    kept = [(empty_folder / str(number) / "secret").read_text() for number in range(50)]
    assert reported == [kept] * 4
    assert {path.name for folder in empty_folder.iterdir() for path in folder.iterdir()} == {"secret"}


@pytest.mark.parametrize("content", [b"", b"short\n", b"\n" * 40, b"\xff" * 64])
def test_a_damaged_secret_is_refused_and_left_unchanged(
    monkeypatch: pytest.MonkeyPatch, empty_folder: Path, content: bytes
) -> None:
    (empty_folder / "secret").write_bytes(content)
    settings = load(monkeypatch, TASKFLOW_DATA_DIR=str(empty_folder))
    with pytest.raises(ConfigurationError) as refused:
        settings.signing_key  # noqa: B018
    assert str(refused.value) == (
        f"The secret in {empty_folder}/secret is damaged. Delete the file; everybody signs in again"
    )
    assert (empty_folder / "secret").read_bytes() == content


def test_a_data_folder_below_a_file_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, empty_folder: Path) -> None:
    (empty_folder / "file").write_text("")
    with pytest.raises(ConfigurationError) as refused:
        load(monkeypatch, TASKFLOW_DATA_DIR="file/data").signing_key  # noqa: B018
    assert str(refused.value) == (
        "Cannot make the data folder file/data: Not a directory. Give rights on it, or set TASKFLOW_DATA_DIR"
    )


# Rate limits


def test_rate_limits_are_json_by_group_over_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch).rate_limits == DEFAULT_RATES
    given = '{"auth": "5 per 2 hours", "queries": 0, "mutations": null}'
    assert load(monkeypatch, TASKFLOW_RATE_LIMITS=given).rate_limits == DEFAULT_RATES | {
        "auth": "5 per 2 hours",
        "queries": None,
        "mutations": None,
    }


NO_RATES: list[Any] = ["often", "10/fortnight", "0/minute", "-1/minute", "1/second;5/minute", "", 10, 1.5, [], {}]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("10/minute", 'must be a JSON object such as {"auth": "10/minute"}'),
        ('["10/minute"]', 'must be a JSON object such as {"auth": "10/minute"}'),
        (
            '{"login": "10/minute"}',
            "'login' is no group; the groups are auth, refresh, mutations, queries, subscriptions",
        ),
        *(
            (
                f'{{"auth": {json.dumps(rate)}}}',
                f"{rate!r} is no rate; they look like 10/minute or 100 per 2 hours, and 0 switches a group off",
            )
            for rate in NO_RATES
        ),
    ],
)
def test_a_bad_rate_limit_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch, given: str, problem: str) -> None:
    assert refusal(monkeypatch, TASKFLOW_RATE_LIMITS=given) == f"Bad settings: TASKFLOW_RATE_LIMITS: {problem}"
