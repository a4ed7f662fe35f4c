"""README's tour, run as written against a server started as written."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from graphql import build_schema, parse, validate

from tests.support.processes import blocking_child
from tests.support.servers import wait_until

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[str]:
    tour = README.read_text().split("## A tour in five minutes")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", tour, re.DOTALL)


def answers(output: str) -> list[Any]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_the_tour_gives_the_described_answers_twice_and_leaves_no_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    data, folder = tmp_path / "data", tmp_path / "folder"
    folder.mkdir()
    environment = {"PATH": os.environ["PATH"], "TASKFLOW_DATA_DIR": str(data), "HOME": str(folder)}
    command = [str(Path(sys.executable).with_name("taskflow")), "serve", "--port", str(port)]
    with blocking_child(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL):
        assert wait_until(lambda: _answers(port), 30)
        # The tour runs twice in one shell, and once more in another.
        tour = "\n".join(blocks()).replace("localhost:8000", f"127.0.0.1:{port}")
        first, second = halves(shell(f"{tour}\necho again\n{tour}", folder, environment))
        check_tour(first, registered={"user": {"username": "ada"}, "errors": []})
        taken = [{"code": "EMAIL_TAKEN", "field": ["email"]}, {"code": "USERNAME_TAKEN", "field": ["username"]}]
        check_tour(second, registered={"user": None, "errors": taken})
        check_tour(shell(tour, folder, environment), registered={"user": None, "errors": taken})
    assert list(folder.iterdir()) == []


def halves(output: str) -> tuple[str, str]:
    first, _, second = output.partition("\nagain\n")
    return first, second


def shell(script: str, folder: Path, environment: dict[str, str]) -> str:
    """The output that a terminal would show."""
    with blocking_child(
        ["bash", "-c", f"set -euo pipefail\n{script}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return str(said)


def check_tour(output: str, *, registered: dict[str, Any]) -> None:
    signed_in, refused, created, listed, started, conflict, deleted, changes = (
        answer["data"] for answer in answers(output)
    )
    assert without(signed_in["register"], "id", "message") == registered
    assert signed_in["login"]["accessToken"]
    assert [error["field"] for error in refused["createTask"]["errors"]] == [["title"], ["assigneeId"]]
    assert created["createTask"]["task"]["version"] == 1
    assert listed["tasks"]["totalCount"] == 1
    assert started["setTaskStatus"]["errors"] == []
    assert conflict["updateTask"]["errors"][0]["code"] == "VERSION_CONFLICT"
    assert deleted["deleteTask"]["errors"] == []
    assert [node["kind"] for node in changes["taskChanges"]["nodes"]] == ["UPDATED", "UPDATED", "DELETED"]
    streamed = [
        json.loads(line.removeprefix("data: "))["data"]["taskChanged"]
        for line in output.splitlines()
        if line.startswith("data: {")
    ]
    assert [change["task"]["status"] for change in streamed] == ["IN_PROGRESS", "COMPLETED"]


def without(value: Any, *names: str) -> Any:
    """The value without these keys, at every depth."""
    if isinstance(value, list):
        return [without(item, *names) for item in value]
    if isinstance(value, dict):
        return {name: without(item, *names) for name, item in value.items() if name not in names}
    return value


def test_graphiql_and_the_tour_use_the_same_password() -> None:
    welcome = (README.parent / "taskflow_gql/static/graphiql/app.js").read_text()
    passwords = re.findall(r'password: \\?"([^"\\]*)', "".join(blocks()) + welcome)
    assert len(passwords) == 4
    assert set(passwords) == {"correct horse battery"}


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("document", re.findall(r"```graphql\n(.*?)```", README.read_text(), re.DOTALL))
def test_the_queries_of_the_readme_are_valid(document: str) -> None:
    schema = build_schema(README.with_name("schema.graphql").read_text())
    assert validate(schema, parse(document)) == []


def test_the_documents_name_files_and_tests_that_exist() -> None:
    root = README.parent
    sources = "".join(path.read_text() for path in (root / "tests").rglob("test_*.py"))
    missing = []
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/benchmarks.md"):
        text, folder = (root / name).read_text(), (root / name).parent
        missing += [f"{name}: {test}" for test in re.findall(r"`(test_\w+)`", text) if f"def {test}(" not in sources]
        links = re.findall(r"\]\(([^)#]+)", text)
        missing += [f"{name}: {link}" for link in links if not (folder / link).exists()]
        for file in re.findall(r"`((?:\w+/)+\w+\.(?:py|md))`", text):
            # `Comment` is the example of a noun to add.
            if "comment" not in file and not any((place / file).exists() for place in (root, root / "taskflow_gql")):
                missing.append(f"{name}: {file}")
    assert missing == []
