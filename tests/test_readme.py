"""The README's tour, run as written against a server started as written."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from graphql import build_schema, parse, validate

from tests.processes import blocking_child
from tests.servers import wait_until

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[str]:
    tour = README.read_text().split("## A tour in five minutes")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", tour, re.DOTALL)


def answers(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_the_tour_answers_as_it_says(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "TASKFLOW_DATA_DIR": str(tmp_path / "data"), "HOME": str(tmp_path)}
    command: list[str | Path] = [Path(sys.executable).with_name("taskflow"), "serve", "--port", str(port)]
    with blocking_child(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            assert wait_until(lambda: _answers(port), 30)
            script = "set -e\n" + "\n".join(blocks()).replace("localhost:8000", f"127.0.0.1:{port}")
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            server.terminate()
    assert done.returncode == 0, done.stderr
    register, refused, created, listed, started, conflict, deleted, changes = answers(done.stdout)
    assert register["data"]["register"]["user"]["username"] == "ada"  # type: ignore[index]
    assert [error["field"] for error in refused["data"]["createTask"]["errors"]] == [["title"], ["assigneeId"]]  # type: ignore[index]
    assert created["data"]["createTask"]["task"]["version"] == 1  # type: ignore[index]
    assert listed["data"]["tasks"]["totalCount"] == 1  # type: ignore[index]
    assert started["data"]["setTaskStatus"]["errors"] == []  # type: ignore[index]
    assert conflict["data"]["updateTask"]["errors"][0]["code"] == "VERSION_CONFLICT"  # type: ignore[index]
    assert deleted["data"]["deleteTask"]["errors"] == []  # type: ignore[index]
    assert [node["kind"] for node in changes["data"]["taskChanges"]["nodes"]] == ["UPDATED", "UPDATED", "DELETED"]  # type: ignore[index]
    streamed = [
        json.loads(line.removeprefix("data: "))["data"]["taskChanged"]
        for line in done.stdout.splitlines()
        if line.startswith("data: {")
    ]
    assert [change["task"]["status"] for change in streamed] == ["IN_PROGRESS", "COMPLETED"]


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("document", re.findall(r"```graphql\n(.*?)```", README.read_text(), re.DOTALL))
def test_the_queries_are_valid(document: str) -> None:
    schema = build_schema(README.with_name("schema.graphql").read_text())
    assert validate(schema, parse(document)) == []
