"""Two pages of a list in a normalised cache, with a change between them: the merged list ends up to date."""

from __future__ import annotations

import asyncio
import json
import subprocess
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from taskflow_gql.config import Settings
from tests.clients.node import HERE, PACKAGES, node
from tests.support.processes import child
from tests.support.serving import serving

pytestmark = pytest.mark.clients

ROOT = HERE.parent.parent
# As in the source of an application, for Relay's compiler.
RELAY_DOCUMENTS = """
graphql`
  query PageQuery($after: String) {
    tasks(first: 3, after: $after) @connection(key: "Pages_tasks") {
      changesCursor
      edges { cursor node { id title version } }
      pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    }
  }
`
graphql`
  subscription ChangesSubscription($after: String) {
    taskChanged(after: $after) { cursor kind taskId task { id title version } }
  }
`
"""
TASKS = "{ tasks { nodes { id title version } } }"


@pytest.fixture(scope="module")
def relay_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents as compiled by Relay's compiler against this repository's schema."""
    project = tmp_path_factory.mktemp("relay")
    artifacts = project / "artifacts"
    artifacts.mkdir()
    (project / "Pages.js").write_text(RELAY_DOCUMENTS)
    (project / "schema.graphql").write_text((ROOT / "schema.graphql").read_text())
    config = {
        "src": ".",
        "schema": "schema.graphql",
        "language": "javascript",
        "artifactDirectory": "artifacts",
        "eagerEsModules": False,
    }
    (project / "relay.config.json").write_text(json.dumps(config))
    command = [node(), str(PACKAGES / "relay-compiler/cli.js"), "relay.config.json"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return artifacts


@pytest.mark.parametrize("cache", ["apollo", "urql", "relay"])
async def test_a_change_between_two_pages_reaches_the_merged_list(
    settings: Settings, cache: str, relay_artifacts: Path
) -> None:
    async with serving(settings) as api:
        ann = await api.register("ann")
        for number in range(5):
            await api.create_task(ann, f"Task {number}")
        given = {"cache": cache, "url": f"{api.url}/graphql", "token": ann.token, "artifacts": str(relay_artifacts)}
        async with child(node(), HERE / "pages.mjs", json.dumps(given), stdout=PIPE, stderr=PIPE) as process:
            async with asyncio.timeout(60):
                output, complaints = await process.communicate()
        assert process.returncode == 0, complaints.decode()
        found = json.loads(output)
        fresh = (await api.data(TASKS, by=ann))["tasks"]["nodes"]
    titles = ["Changed between the pages", "Task 3", "Task 2", "Task 1", "Changed after the pages"]
    assert [task["title"] for task in fresh] == titles
    assert found["tasks"] == fresh
    # The second page has the first page's `changesCursor`.
    assert found["cursors"][0] == found["cursors"][1]
