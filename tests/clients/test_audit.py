"""The audits of the graphql-http package, which check GraphQL over HTTP against its specification."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.clients.node import HERE, node
from tests.support.cluster import TaskflowServer

pytestmark = pytest.mark.clients


def test_all_graphql_http_audits_pass() -> None:
    with TaskflowServer({}) as server:
        command = [node(), str(HERE / "audit.mjs"), f"http://127.0.0.1:{server.port}/graphql"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [result for result in results if result["status"] != "ok"] == []
    assert len(results) == 61
