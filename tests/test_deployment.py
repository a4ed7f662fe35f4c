"""The files that install, start and deploy the server agree with its settings and with each other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from taskflow_gql.cli.main import app
from taskflow_gql.config import Settings

ROOT = Path(__file__).parent.parent
SECRETS = {"SECRET_KEY": "0123456789abcdef" * 4, "POSTGRES_PASSWORD": "fedcba9876543210" * 4}


def read(name: str) -> str:
    return (ROOT / name).read_text()


def names_of(name: str, field: FieldInfo) -> list[str]:
    """The environment variables that set a field, ours first."""
    if isinstance(field.validation_alias, AliasChoices):
        return [str(choice) for choice in field.validation_alias.choices]
    return [f"TASKFLOW_{name.upper()}"]


SETTINGS = {name: names_of(name, field) for name, field in Settings.model_fields.items()}
SETTING_NAMES = {name for names in SETTINGS.values() for name in names}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Clear the settings from the environment, and return a working folder without `.env`."""
    for name in {*SETTING_NAMES, *SECRETS}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# .env.example


def env_example() -> list[tuple[str, str]]:
    return re.findall(r"^#([A-Z_]+)=(.*)$", read(".env.example"), re.MULTILINE)


def test_env_example_lists_every_setting_once_and_nothing_else() -> None:
    listed = [name for name, _ in env_example()]
    assert sorted(listed) == sorted([names[-1] for names in SETTINGS.values()] + ["POSTGRES_PASSWORD"])


def test_env_example_sets_nothing_and_explains_each_line() -> None:
    lines = read(".env.example").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
    unexplained = [line for above, line in pairwise(lines) if re.match("#[A-Z]", line) and not above.startswith("# ")]
    assert unexplained == []


def test_env_example_gives_the_defaults(bare_environment: Path) -> None:
    defaults = Settings().model_dump()
    (bare_environment / ".env").write_text("\n".join(f"{name}={value}" for name, value in env_example()))
    assert Settings().model_dump() == defaults

    # An empty value counts as unset, so any default would pass. Check that only unset defaults are empty.
    empty = {name for name, value in env_example() if not value}
    unset = {names[-1] for field, names in SETTINGS.items() if defaults[field] in (None, [])}
    assert empty == unset | {"POSTGRES_PASSWORD"}


# docker-compose.yml


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))
    return loaded


def interpolated(text: str, environment: dict[str, str]) -> str:
    """Interpolate `${NAME:-default}` and `${NAME:?message}` as Compose does."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if environment.get(name):
            return environment[name]
        assert kind == "-", f"{name} is required: {rest}"
        return rest

    return re.sub(r"\$\{([A-Z_]+):([-?])([^}]*)\}", value, text)


def test_compose_sets_only_settings_that_exist() -> None:
    services = compose()["services"]
    assert set(services["api"]["environment"]) - SETTING_NAMES == set()
    assert services["migrate"]["environment"] == services["api"]["environment"]


def test_compose_uses_only_variables_of_env_example() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+)", read("docker-compose.yml")))
    assert asked - {name for name, _ in env_example()} == set()


def test_compose_runs_in_production_with_graphiql(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in compose()["services"]["api"]["environment"].items():
        monkeypatch.setenv(name, interpolated(value, SECRETS))
    settings = Settings()
    assert settings.is_production
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)  # noqa: S104, inside a container
    assert settings.database_url == f"postgresql://taskflow:{SECRETS['POSTGRES_PASSWORD']}@postgres:5432/taskflow"
    assert settings.redis_url == "redis://redis:6379/0"
    assert settings.signing_key == SECRETS["SECRET_KEY"]
    assert settings.shows_graphiql
    assert settings.allows_introspection


def test_compose_contains_no_secret_and_says_how_to_make_one() -> None:
    services = compose()["services"]
    for holder, name in [
        (services["api"]["environment"]["TASKFLOW_SECRET_KEY"], "SECRET_KEY"),
        (services["postgres"]["environment"]["POSTGRES_PASSWORD"], "POSTGRES_PASSWORD"),
    ]:
        assert re.fullmatch(rf"\$\{{{name}:\?.*openssl rand -hex 32.*\}}", holder)
    assert "taskflow:${POSTGRES_PASSWORD:?" in services["api"]["environment"]["TASKFLOW_DATABASE_URL"]


def test_compose_waits_for_healthy_services_and_the_migration() -> None:
    services = compose()["services"]
    assert services["api"]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "postgres": {"condition": "service_healthy"},
        "redis": {"condition": "service_healthy"},
    }
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["migrate"]["command"] == ["migrate"]
    lasting = {name: service for name, service in services.items() if name != "migrate"}
    assert {name for name, service in lasting.items() if "test" in service["healthcheck"]} == set(lasting)
    assert {service["restart"] for service in lasting.values()} == {"unless-stopped"}


def test_compose_waits_longer_than_the_servers_shutdown() -> None:
    grace = compose()["services"]["api"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > Settings().shutdown_timeout_seconds


def test_compose_keeps_data_in_named_volumes() -> None:
    loaded = compose()
    mounts = [mount for service in loaded["services"].values() for mount in service.get("volumes", [])]
    assert sorted(mounts) == ["postgres-data:/var/lib/postgresql", "redis-data:/data"]
    assert sorted(loaded["volumes"]) == ["postgres-data", "redis-data"]


def test_compose_publishes_only_the_server_and_only_to_this_machine() -> None:
    services = compose()["services"]
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert list(ports) == ["api"]
    assert [interpolated(port, {}) for port in ports["api"]] == ["127.0.0.1:8000:8000"]


def test_docker_compose_accepts_the_file_where_it_is_installed(bare_environment: Path) -> None:
    def docker_compose(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "compose", *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    if shutil.which("docker") is None or docker_compose("version").returncode != 0:
        return  # The tests above read the file without Docker.

    # Use another project folder, so that a developer's own .env is not read.
    config = [
        "--project-directory",
        str(bare_environment),
        "--file",
        str(ROOT / "docker-compose.yml"),
        "config",
    ]
    without_secrets = docker_compose(*config)
    assert without_secrets.returncode != 0
    assert "openssl rand -hex 32" in without_secrets.stderr
    done = docker_compose(*config, "--format", "json", **SECRETS)
    assert done.stderr == ""
    assert sorted(json.loads(done.stdout)["services"]) == ["api", "migrate", "postgres", "redis"]


# Dockerfile


def dockerfile(stage: int) -> list[tuple[str, str]]:
    """The instructions of a stage, with their arguments."""
    text = re.sub(r"^#.*\n", "", read("Dockerfile"), flags=re.MULTILINE).replace("\\\n", "")
    split = [line.partition(" ") for line in text.splitlines() if line]
    instructions = [(word, rest.strip()) for word, _, rest in split]
    starts = [index for index, (word, _) in enumerate(instructions) if word == "FROM"]
    return instructions[starts[stage] : [*starts, len(instructions)][stage + 1]]


def test_the_image_runs_the_server_as_an_unprivileged_user() -> None:
    image = dict(dockerfile(1))
    assert int(image["USER"]) > 0
    assert json.loads(image["ENTRYPOINT"]) == ["taskflow"]
    assert json.loads(image["CMD"]) == ["serve"]
    assert re.findall(r"CMD (.*)", image["HEALTHCHECK"]) == ['["taskflow", "healthcheck"]']


def test_the_image_listens_on_all_interfaces_and_sets_only_existing_settings() -> None:
    image = dict(dockerfile(1))
    variables = dict(pair.split("=", 1) for pair in image["ENV"].split())
    assert {name for name in variables if name.startswith("TASKFLOW_")} - SETTING_NAMES == set()
    assert variables["TASKFLOW_HOST"] == "0.0.0.0"  # noqa: S104, inside a container
    assert variables["TASKFLOW_PORT"] == image["EXPOSE"]


def test_the_image_has_the_migrations_and_no_development_dependencies() -> None:
    copied = [rest.split()[:-1] for word, rest in dockerfile(0) if word == "COPY"]
    admitted = re.findall(r"^!(.*)$", read(".dockerignore"), re.MULTILINE)
    assert sorted(name for names in copied for name in names) == sorted(admitted)
    assert set(admitted) == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "taskflow_gql", "migrations"}
    assert "*" in read(".dockerignore").splitlines()
    assert not re.search(r"\[(test|lint)", read("Dockerfile"))


def test_containers_run_commands_that_exist() -> None:
    image, services = dict(dockerfile(1)), compose()["services"]
    asked = [
        *json.loads(image["CMD"]),
        *services["api"]["command"],
        *services["migrate"]["command"],
        services["api"]["healthcheck"]["test"][-1],
    ]
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    assert set(asked) - set(command.commands) == set()


# constraints.txt


def test_every_dependency_is_locked_to_one_version_and_no_address() -> None:
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+-]+", line)] == []
    locked = {Requirement(line).name.lower().replace("_", "-") for line in lines}
    project = tomllib.loads(read("pyproject.toml"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {Requirement(text).name.lower() for group in groups for text in group}
    assert wanted - locked == set()


def test_locked_versions_are_within_the_bounds() -> None:
    pairs = re.findall(r"^([\w.-]+)==(.+)$", read("constraints.txt"), re.MULTILINE)
    locked = {name.lower().replace("_", "-"): version for name, version in pairs}
    project = tomllib.loads(read("pyproject.toml"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(text) for group in groups for text in group]
    outside = [str(one) for one in wanted if not one.specifier.contains(locked[one.name.lower()])]
    assert outside == []


def test_the_makefile_and_the_image_install_what_is_locked() -> None:
    recipes = read("Makefile").split("# The stamps")[1]
    installs = [line for line in recipes.splitlines() if "pip install" in line]
    assert [line for line in installs if "--constraint constraints.txt" not in line] == []
    assert len(installs) == recipes.count("pyproject.toml constraints.txt\n")
    steps = [rest for word, rest in dockerfile(0) if word == "RUN" and "requirements.txt" in rest]
    assert ["--constraint constraints.txt" in step for step in steps] == [True]


# Makefile and .ci/run


def test_makefile_has_every_target_that_the_readme_names() -> None:
    text = read("Makefile")
    explained = re.findall(r"^([a-z-]+):.* ## .+$", text, re.MULTILINE)
    assert explained == [
        "help",
        "serve",
        "test",
        "quick",
        "browser-test",
        "client-test",
        "faults",
        "coverage",
        "bench",
        "lint",
        "schema",
        "lock",
        "newest",
        "clean",
    ]
    assert re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE) == [" ".join(explained)]
    named = re.findall(r"(?:^|`)make ([a-z-]+)", read("README.md"), re.MULTILINE)
    assert set(named) - set(explained) == set()


def test_ci_runs_every_check_and_ends_with_the_tests() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)
    lines = read(".ci/run").splitlines()
    assert lines[:1] == ["#!/usr/bin/env bash"]
    assert "set -euo pipefail" in lines
    commands = [line for line in lines if line.startswith(("make ", ".venv/"))]
    assert commands == [
        "make lint",
        ".venv/bin/taskflow export-schema --check",
        ".venv/bin/pytest --quiet tests/test_releases.py",
        "make browser-test",
        "make client-test",
        "make test",
    ]
    assert lines[-1] == "make test"
