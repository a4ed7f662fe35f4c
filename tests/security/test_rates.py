"""Rate limits: in memory, and on a real Redis that is frozen, killed and started again."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
from limits import parse

from taskflow_gql.security import rates
from taskflow_gql.security.rates import Buckets, MemoryWindows, RateLimits, Usage, network_of
from tests.support.client import PATIENCE_SECONDS
from tests.support.servers import RedisServer

KEY = secrets.token_bytes()


@asynccontextmanager
async def limiting(
    redis_url: str | None = None, *, key: bytes = KEY, **groups: str | None
) -> AsyncIterator[RateLimits]:
    limits = RateLimits(groups, redis_url=redis_url, key=key)
    try:
        yield limits
    finally:
        await limits.close()


async def refusals(limits: RateLimits, count: int, *, subject: str = "ann") -> list[bool]:
    """Whether each of so many attempts at the group `auth` is refused."""
    usages = [(await limits.attempt("auth", subject)).usage for _ in range(count)]
    return [usage is not None and usage.is_refused for usage in usages]


# Buckets


@pytest.mark.parametrize("now", [0.0, *(10**n / 7 for n in range(7))])
def test_a_bucket_refuses_when_it_is_empty_and_fills_evenly(now: float) -> None:
    bucket = Buckets("queries", parse("6/minute"))
    assert bucket.take("ann", 4, now) == Usage("queries", 2, 40, False)
    assert bucket.take("ann", 3, now) == Usage("queries", 0, 10, True)
    # The refused ones were not taken.
    assert bucket.take("ann", 2, now) == Usage("queries", 0, 60, False)
    assert bucket.take("ann", 1, now + 5) == Usage("queries", 0, 5, True)
    assert bucket.take("ann", 1, now + 10) == Usage("queries", 0, 60, False)
    assert bucket.take("bob", 1, now + 10) == Usage("queries", 5, 10, False)
    assert bucket.take("ann", 1, now + 1000) == Usage("queries", 5, 10, False)


def test_more_than_a_bucket_holds_takes_all_of_it() -> None:
    bucket = Buckets("queries", parse("6/minute"))
    assert bucket.take("ann", 100, 0.0) == Usage("queries", 0, 60, False)
    assert bucket.take("ann", 100, 0.0) == Usage("queries", 0, 60, True)
    assert bucket.take("ann", 100, 60.0) == Usage("queries", 0, 60, False)


@pytest.mark.parametrize("rate", ["7/second", "30000/minute", "60000/minute", "13 per 7 hours"])
def test_a_bucket_gives_exactly_its_amount_at_once(rate: str) -> None:
    amount = parse(rate).amount
    bucket = Buckets("queries", parse(rate))
    taken = [bucket.take("ann", 1, 12345.678) for _ in range(amount + 1)]
    assert [usage.remaining for usage in taken[:-1]] == list(range(amount - 1, -1, -1))
    assert [usage.is_refused for usage in taken] == [False] * amount + [True]


def test_ever_new_subjects_take_bounded_memory_and_evict_those_seen_least_recently() -> None:
    bucket = Buckets("queries", parse("2/minute"))
    for number in range(2 * rates._MAX_SUBJECTS):
        bucket.take(str(number), 1, 0.0)
        bucket.take("ann", 1, 0.0)
    assert len(bucket._full_at) == rates._MAX_SUBJECTS
    assert not bucket.take("0", 2, 0.0).is_refused


# Windows in memory


async def test_a_window_in_memory_counts_the_hits_of_its_period() -> None:
    windows = MemoryWindows()
    assert [await windows.acquire_entry("ann", 2, 60) for _ in range(3)] == [True, True, False]
    assert await windows.acquire_entry("bob", 2, 60)
    oldest, count = await windows.get_moving_window("ann", 2, 60)
    assert (count, 0 <= time.time() - oldest < 60) == (2, True)
    await windows.give_back("ann")
    assert [await windows.acquire_entry("ann", 2, 60) for _ in range(2)] == [True, False]
    # A shorter period: what is older is not counted.
    assert await windows.acquire_entry("ann", 2, -1)
    await windows.give_back("nobody")


async def test_windows_in_memory_are_bounded() -> None:
    windows = MemoryWindows()
    for number in range(rates._MAX_SUBJECTS + 1):
        await windows.acquire_entry(str(number), 2, 60)
        await windows.get_moving_window("ann", 2, 60)
    assert len(windows._hits) == rates._MAX_SUBJECTS
    assert "ann" in windows._hits


# Limits


async def test_an_attempt_beyond_the_limit_is_refused_until_the_oldest_is_out_of_the_period() -> None:
    async with limiting(auth="3 per 2 seconds") as limits:
        assert await refusals(limits, 4) == [False, False, False, True]
        assert await refusals(limits, 1, subject="bob") == [False]
        usage = (await limits.attempt("auth", "ann")).usage
        assert usage in (Usage("auth", 0, 1, True), Usage("auth", 0, 2, True))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await refusals(limits, 1)) == [True]:
                pass


async def test_a_refusal_is_a_warning_at_most_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async with limiting(auth="1/minute") as limits:
        for address in ("192.0.2.1", "192.0.2.2"):
            await refusals(limits, 5, subject=address)
    assert [record.getMessage() for record in caplog.records] == [
        "The rate limit auth refuses 192.0.2.1. If that is a proxy, name it in TASKFLOW_TRUSTED_PROXIES"
    ]


async def test_an_attempt_that_is_given_back_is_not_counted() -> None:
    async with limiting(auth="2/minute") as limits:
        for _ in range(5):
            await (await limits.attempt("auth", "ann")).give_back()
        assert await refusals(limits, 3) == [False, False, True]


async def test_a_group_that_is_switched_off_counts_nothing() -> None:
    async with limiting(auth=None) as limits:
        assert await refusals(limits, 100) == [False] * 100
        async with limits.guess("auth", "192.0.2.1", "ann") as attempt:
            await attempt.give_back()
        assert (attempt.usage, limits.buckets) == (None, {})


async def guesses(limits: RateLimits, addresses: Sequence[str], account: str, each: int) -> int:
    """How many of `each` wrong guesses from each address are not refused."""
    count = 0
    for address in addresses:
        for _ in range(each):
            async with limits.guess("auth", address, account) as attempt:
                count += not attempt.is_refused
    return count


@pytest.mark.parametrize("account", ["ann", "nobody"])
async def test_many_addresses_get_one_guess_each_once_an_account_is_under_attack(account: str) -> None:
    async with limiting(auth="10/minute") as limits:
        attackers = [f"198.51.100.{number}" for number in range(50)]
        assert await guesses(limits, attackers[:10], account, 20) == 100
        assert await guesses(limits, attackers[10:], account, 20) == 40
        # Other accounts are not affected, and refused guesses are not counted.
        assert await guesses(limits, ["192.0.2.1"], "bob", 20) == 10
        assert await guesses(limits, attackers[10:11], "cia", 20) == 9


async def test_the_owner_of_an_account_under_attack_gets_in_from_any_address() -> None:
    async with limiting(auth="10/minute") as limits:
        await guesses(limits, [f"198.51.100.{number}" for number in range(50)], "ann", 20)
        for address in ("192.0.2.1", "192.0.2.2"):
            for _ in range(20):
                async with limits.guess("auth", address, "ann") as attempt:
                    assert not attempt.is_refused
                    await attempt.give_back()


async def test_right_passwords_of_one_address_at_the_same_time_wait_for_each_other() -> None:
    async with limiting(auth="3/minute") as limits:
        started: list[asyncio.Event] = []

        async def sign_in(is_right: bool) -> bool:
            async with limits.guess("auth", "192.0.2.1", "ann") as attempt:
                if attempt.is_refused:
                    return False
                started.append(checked := asyncio.Event())
                await checked.wait()
                if is_right:
                    await attempt.give_back()
                return True

        async with asyncio.timeout(PATIENCE_SECONDS):
            signing_in = [asyncio.create_task(sign_in(number != 0)) for number in range(8)]
            for number in range(8):
                while len(started) <= number:  # noqa: ASYNC110  (the event loop runs them)
                    await asyncio.sleep(0)
                # One is wrong, so that from then on two are checked at the same time.
                assert len(started) <= number + 3
                started[number].set()
            assert await asyncio.gather(*signing_in) == [True] * 8
            assert await guesses(limits, ["192.0.2.1"], "ann", 5) == 2


async def test_a_block_that_raises_gives_the_guess_back() -> None:
    async with limiting(auth="1/minute") as limits:
        for _ in range(3):
            with pytest.raises(OSError, match="the database is away"):
                async with limits.guess("auth", "192.0.2.1", "ann"):
                    raise OSError("the database is away")
        assert await guesses(limits, ["192.0.2.1"], "ann", 2) == 1
        assert len(limits._lines) == 0


async def test_the_headers_tell_the_limit_and_what_is_left() -> None:
    async with limiting(auth="10/minute", queries="100 per 2 hours") as limits:
        usages = [Usage("queries", 99, 72, False), Usage("auth", 0, 17, True)]
        assert limits.headers(usages) == [
            (b"ratelimit-policy", b'"queries";q=100;w=7200, "auth";q=10;w=60'),
            (b"ratelimit", b'"queries";r=99;t=72, "auth";r=0;t=17'),
        ]


@pytest.mark.parametrize(
    ("hosts", "network"),
    [
        (["192.0.2.7", "::ffff:192.0.2.7"], "192.0.2.7"),
        (["2001:db8:1:2::3", "2001:db8:1:2:ffff::"], "2001:db8:1:2::/64"),
        ([""], ""),
        (["unknown"], "unknown"),
    ],
)
def test_an_ipv6_client_is_its_network_of_64_bits(hosts: list[str], network: str) -> None:
    assert [network_of(host) for host in hosts] == [network] * len(hosts)


# Redis


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    with RedisServer() as server:
        yield server


@pytest.mark.slow
async def test_processes_with_one_redis_share_their_limits(redis_url: str) -> None:
    key = secrets.token_bytes()
    async with (
        limiting(redis_url, key=key, auth="3/minute") as one,
        limiting(redis_url, key=key, auth="3/minute") as other,
        limiting(redis_url, key=secrets.token_bytes(), auth="3/minute") as stranger,
    ):
        assert await refusals(one, 2) == [False, False]
        attempt = await other.attempt("auth", "ann")
        assert attempt.usage is not None
        assert (attempt.usage.remaining, attempt.usage.is_refused) == (0, False)
        assert 50 < attempt.usage.seconds <= 60
        assert await refusals(one, 1) == [True]
        await attempt.give_back()
        assert await refusals(one, 2) == [False, True]
        assert await refusals(stranger, 1) == [False]


@pytest.mark.slow
async def test_redis_learns_no_names_and_forgets_by_itself(redis_server: RedisServer) -> None:
    async with limiting(redis_server.url(), auth="3/minute") as limits:
        await guesses(limits, ["192.0.2.1"], "ann@example.com", 1)
        redis = limits._windows._redis
        assert redis is not None
        keys = [key.decode() async for key in redis._redis.scan_iter()]
        assert sorted(key.rpartition(":")[0] for key in keys) == [
            "taskflow:rates:auth:account",
            "taskflow:rates:auth:guesses",
        ]
        assert "192" not in "".join(keys)
        assert all([0 < await redis._redis.ttl(key) <= 3600 for key in keys])


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["kill", "pause"])
async def test_without_redis_attempts_are_counted_in_memory_without_delay_until_it_is_back(
    redis_server: RedisServer, outage: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with limiting(redis_server.url(), auth="3/minute") as limits:
        assert await refusals(limits, 3) == [False] * 3
        getattr(redis_server, outage)()
        before = time.monotonic()
        assert await refusals(limits, 1) == [False]
        assert time.monotonic() - before < 2
        before = time.monotonic()
        assert await refusals(limits, 3) == [False, False, True]
        # Nobody waits for a Redis that has just failed.
        assert time.monotonic() - before < rates._REDIS_SECONDS
        redis_server.resume() if outage == "pause" else redis_server.start()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while limits._windows._is_away:
                await limits.attempt("auth", "somebody")
                await asyncio.sleep(0.05)
        if outage == "pause":
            # Redis has kept its count. After a kill it has lost it.
            assert await refusals(limits, 1) == [True]
        said = [each.getMessage() for each in caplog.records if each.name == rates.__name__ and "Redis" in each.msg]
        assert len(said) == 2
        assert said[0].startswith("Redis counts no attempts (")
        assert said[1] == "Redis counts attempts again"


async def test_an_attempt_can_be_given_back_after_redis_is_gone() -> None:
    async with limiting("redis://127.0.0.1:1/0", auth="3/minute") as limits:
        redis = limits._windows._redis
        assert redis is not None
        attempt = await limits.attempt("auth", "ann")
        await rates.Attempt(hits=[rates._Hit(redis, "key", True, 0, 1)]).give_back()
        await attempt.give_back()
        assert await refusals(limits, 4) == [False, False, False, True]
