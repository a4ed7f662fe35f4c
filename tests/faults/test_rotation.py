"""Refresh tokens under fire: tabs that share one token, connections that are cut, and servers that are killed."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.support.cluster import Cluster

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("TASKFLOW_FAULT_SECONDS", "6"))
BROWSERS, TABS = 3, 20
FIELDS = "accessToken refreshToken errors { code }"
REGISTER = f"mutation($input: RegisterInput!) {{ register(input: $input) {{ {FIELDS} }} }}"
REFRESH = f"mutation($input: RefreshTokenInput!) {{ refreshToken(input: $input) {{ {FIELDS} }} }}"


@dataclass
class Browser:
    """Tabs that share a stored refresh token, as local storage does."""

    token: str
    # In order of their first use, and how often each successor came from it.
    used: list[str] = field(default_factory=list)
    successors: dict[str, set[str]] = field(default_factory=dict)


class Fire:
    """The run, and what was counted in it."""

    def __init__(self, cluster: Cluster, random_seed: int) -> None:
        self.cluster = cluster
        self.choose = random.Random(random_seed)
        self.counts: Counter[str] = Counter()
        self.until = time.monotonic() + SECONDS
        self.http = httpx.AsyncClient(timeout=10)

    async def post(self, document: str, given: dict[str, str]) -> dict[str, Any] | None:
        """The payload of the mutation; None if no answer came."""
        url = self.choose.choice(self.cluster.urls)
        try:
            response = await self.http.post(f"{url}/graphql", json={"query": document, "variables": {"input": given}})
            (payload,) = response.json()["data"].values()
        # No or half an answer, or an error of a server that has no database.
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
            return None
        assert isinstance(payload, dict)
        return payload

    async def answer(self, document: str, given: dict[str, str]) -> dict[str, Any]:
        """The payload. Sends again, as after a fault a pooled connection may be dead."""
        async with asyncio.timeout(30):
            while (payload := await self.post(document, given)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        return payload

    async def open_browser(self, name: str) -> Browser:
        given = {"email": f"{name}@example.com", "username": name, "fullName": name, "password": "correct horse"}
        return Browser((await self.answer(REGISTER, given))["refreshToken"])

    async def run_tab(self, browser: Browser) -> None:
        while time.monotonic() < self.until:
            await self.refresh(browser)
            await asyncio.sleep(self.choose.random() * 0.02)

    async def refresh(self, browser: Browser) -> None:
        """As a tab does it: send what is stored until an answer comes, and store what comes."""
        token = browser.token
        if token not in browser.successors:
            browser.used.append(token)
        payload = await self.post(REFRESH, {"refreshToken": token})
        if payload is None:
            self.counts["unanswered"] += 1
        elif payload["errors"]:
            self.counts["signed out"] += 1
        else:
            found = browser.successors.setdefault(token, set())
            self.counts["repeated" if found else "rotations"] += 1
            found.add(payload["refreshToken"])
            browser.token = payload["refreshToken"]

    async def cut(self) -> None:
        while time.monotonic() < self.until:
            await asyncio.sleep(self.choose.uniform(0.2, 1))
            for proxy in self.cluster.proxies:
                self.counts["cut"] += proxy.cut(lambda: self.choose.choice([0, 1, 50, 300, 1000]))

    async def kill(self) -> None:
        """Kill a server between its commit and its answer, and start it again."""
        while time.monotonic() < self.until:
            await asyncio.sleep(self.choose.uniform(0.5, 1.5))
            number = self.choose.randrange(2)
            proxy, server = self.cluster.proxies[number], self.cluster.servers[number]
            with suppress(TimeoutError):
                async with proxy.withholding(), asyncio.timeout(2):
                    await proxy.has_withheld.wait()
                    await asyncio.to_thread(server.kill)
                    self.counts["killed before the answer"] += 1
            await self.cluster.start_again(server)


async def test_nobody_honest_is_signed_out_and_no_older_token_works() -> None:
    async with Cluster({}) as cluster:
        fire = Fire(cluster, random_seed=int(os.environ.get("TASKFLOW_FAULT_SEED", "1")))
        browsers = [await fire.open_browser(f"person{number}") for number in range(BROWSERS)]
        fire.until = time.monotonic() + SECONDS
        tabs = [fire.run_tab(browser) for browser in browsers for _ in range(TABS)]
        await asyncio.gather(*tabs, fire.cut(), fire.kill())
        await cluster.heal()
        for browser in browsers:
            assert all(len(found) == 1 for found in browser.successors.values())
        print(dict(fire.counts))
        assert fire.counts["signed out"] == 0
        assert fire.counts["rotations"] > 2 * SECONDS
        assert min(fire.counts[name] for name in ("repeated", "unanswered", "killed before the answer")) > 0

        async with cluster.database.connect() as connection:
            await connection.exec_driver_sql(
                "UPDATE refresh_tokens SET replaced_at = replaced_at - interval '61 seconds'"
            )
            await connection.commit()
        for browser in browsers:
            older = fire.choose.sample(browser.used[:-1], min(20, len(browser.used) - 1))
            for token in [*older, browser.token]:
                payload = await fire.answer(REFRESH, {"refreshToken": token})
                # The first one has ended the session, and with it the newest token.
                assert [error["code"] for error in payload["errors"]] == ["INVALID_TOKEN"]
        await fire.http.aclose()
