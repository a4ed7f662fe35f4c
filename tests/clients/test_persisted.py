"""Clients that name a document by its hash are told to send the text, and do so."""

from __future__ import annotations

import json
from asyncio.subprocess import PIPE

import pytest

from taskflow_gql.config import Settings
from tests.clients.node import HERE, node
from tests.support.processes import child
from tests.support.serving import serving

pytestmark = pytest.mark.clients


@pytest.mark.parametrize("get", [False, True], ids=["POST", "GET"])
@pytest.mark.parametrize("client", ["apollo", "urql"])
async def test_a_client_with_persisted_queries_falls_back_to_sending_documents(
    sqlite_settings: Settings, client: str, get: bool
) -> None:
    async with serving(sqlite_settings) as api:
        given = json.dumps({"client": client, "url": f"{api.url}/graphql", "get": get})
        async with child(node(), HERE / "persisted.mjs", given, stdout=PIPE, stderr=PIPE) as process:
            output, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    found = json.loads(output)
    assert found["names"] == ["TaskFlow GQL", "TaskFlow GQL"]
    first, *others = found["sent"]
    assert first == {"method": "GET" if get else "POST", "hash": True, "text": False}
    # The refused request is sent again with its text, and the next one has its text at once.
    assert [request["text"] for request in others] == [True, True]
