"""Rate limits: how often a person or an address may try something (docs/rates.md).

The groups `auth` and `refresh` are counted in Redis, for all processes together, and in memory without Redis. The other
groups are counted in the memory of each process: a round trip to Redis would cost as much as a small query.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network, ip_address
from math import ceil
from time import monotonic, time
from typing import NamedTuple, Protocol
from uuid import UUID
from weakref import WeakValueDictionary

from limits import RateLimitItem, parse
from limits.aio.storage import RedisStorage
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from taskflow_gql.short_keys import cached_for_short_keys

log = logging.getLogger(__name__)

# The least recently counted subject is forgotten first. A subject takes some hundred bytes.
_MAX_SUBJECTS = 20_000
_PREFIX = "taskflow:rates"
# How long a request waits for Redis at most, and how long Redis is left alone after a failure.
_REDIS_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_UNREACHABLE = (RedisError, OSError, TimeoutError)
_SECONDS_BETWEEN_WARNINGS = 60
# An account is under attack after this many times the limit of an address, in this many times its period.
_ATTACK_AMOUNT, _ATTACK_PERIODS = 10, 60


class Usage(NamedTuple):
    """How much of a limit is used, as the header `RateLimit` tells it."""

    group: str
    remaining: int
    # Whole seconds: after a refusal until the next attempt may succeed, else until more is left.
    seconds: int
    is_refused: bool


# Counted in Redis


class Windows(Protocol):
    """Counts hits of the last seconds, by key. The methods with the names of `limits` do what they do there."""

    async def acquire_entry(self, key: str, limit: int, expiry: int) -> bool:
        """Count a hit and return True, unless there are `limit` hits already."""

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """The time of the oldest hit in seconds since 1970, and the number of hits."""

    async def give_back(self, key: str) -> None:
        """Stop counting the newest hit."""


class MemoryWindows:
    """In place of the memory storage of `limits`, which starts a task for each hit and keeps any number of keys."""

    def __init__(self) -> None:
        self._hits: OrderedDict[str, deque[float]] = OrderedDict()

    async def acquire_entry(self, key: str, limit: int, expiry: int) -> bool:
        hits = self._current(key, expiry)
        if len(hits) >= limit:
            return False
        hits.append(time())
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        hits = self._current(key, expiry)
        return hits[0] if hits else time(), len(hits)

    async def give_back(self, key: str) -> None:
        if hits := self._hits.get(key):
            hits.pop()
            if not hits:
                # Attempts that are given back must not push out others.
                del self._hits[key]

    def _current(self, key: str, expiry: int) -> deque[float]:
        hits = self._hits.setdefault(key, deque())
        self._hits.move_to_end(key)
        if len(self._hits) > _MAX_SUBJECTS:
            self._hits.popitem(last=False)
        begin = time() - expiry
        while hits and hits[0] < begin:
            hits.popleft()
        return hits


class RedisWindows:
    """Counts for all processes, with the scripts of `limits`."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(
            url,
            socket_connect_timeout=_REDIS_SECONDS,
            socket_timeout=_REDIS_SECONDS,
            # Once more at once: a pooled connection may be from before a restart of Redis.
            retry=Retry(NoBackoff(), 1),
        )
        # With our own pool, because `limits` would not read all URLs that redis-py reads. By default it uses coredis.
        self._storage = RedisStorage(
            "redis://",
            implementation="redispy",
            key_prefix=_PREFIX,
            connection_pool=self._redis.connection_pool,  # type: ignore[arg-type]
        )

    async def acquire_entry(self, key: str, limit: int, expiry: int) -> bool:
        return await self._storage.acquire_entry(key, limit, expiry)

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        return await self._storage.get_moving_window(key, limit, expiry)

    async def give_back(self, key: str) -> None:
        # `limits` cannot do this. It keeps the times of a moving window in a list, the newest first.
        await self._redis.lpop(f"{_PREFIX}:{key}")

    async def close(self) -> None:
        await self._redis.aclose()


@dataclass(frozen=True)
class _Hit:
    windows: Windows
    key: str
    is_counted: bool
    remaining: int
    # Until the oldest hit is no longer counted.
    seconds: int


class _SharedWindows:
    """Windows in Redis, and in memory while Redis is unreachable.

    After a failure Redis is left alone for a while. Then one request tries it again, and the others do not wait.
    """

    def __init__(self, redis_url: str | None) -> None:
        self._redis = None if redis_url is None else RedisWindows(redis_url)
        self._memory = MemoryWindows()
        self._is_away = False
        self._retry_at = 0.0

    async def hit(self, key: str, rate: RateLimitItem) -> _Hit:
        if self._redis is not None and monotonic() >= self._retry_at:
            if self._is_away:
                self._retry_at = monotonic() + _RETRY_SECONDS
            try:
                async with asyncio.timeout(_REDIS_SECONDS):
                    hit = await _hit(self._redis, key, rate)
            except _UNREACHABLE as error:
                self._note_failure(error)
            else:
                self._note_success()
                return hit
        return await _hit(self._memory, key, rate)

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.close()

    def _note_failure(self, error: Exception) -> None:
        self._retry_at = monotonic() + _RETRY_SECONDS
        if not self._is_away:
            self._is_away = True
            reason = str(error) or type(error).__name__
            log.warning("Redis counts no attempts (%s); until it is back, each process counts its own", reason)

    def _note_success(self) -> None:
        if self._is_away:
            self._is_away = False
            log.warning("Redis counts attempts again")


async def _hit(windows: Windows, key: str, rate: RateLimitItem) -> _Hit:
    limit, expiry = rate.amount, rate.get_expiry()
    is_counted = await windows.acquire_entry(key, limit, expiry)
    oldest, count = await windows.get_moving_window(key, limit, expiry)
    seconds = max(1, ceil(oldest + expiry - time()))
    return _Hit(windows, key, is_counted, max(0, limit - count), seconds)


@dataclass
class Attempt:
    """An attempt that was counted, or refused."""

    # None if the group is switched off.
    usage: Usage | None = None
    hits: list[_Hit] = field(default_factory=list)

    @property
    def is_refused(self) -> bool:
        return self.usage is not None and self.usage.is_refused

    async def give_back(self) -> None:
        """Stop counting the attempt."""
        hits, self.hits = self.hits, []
        if self.usage is not None and hits:
            self.usage = self.usage._replace(remaining=self.usage.remaining + 1)
        for hit in hits:
            with suppress(*_UNREACHABLE):
                async with asyncio.timeout(_REDIS_SECONDS):
                    await hit.windows.give_back(hit.key)


class _Line:
    """The guesses of one address in this process: counted one after the other, checked side by side."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.running = 0
        # Set when a guess has ended since the last refusal.
        self.ended = asyncio.Event()


# Counted in memory


# Seconds. Sums of times are inexact, and must not round up to a second more.
_ROUNDING = 1e-6


class Buckets:
    """A bucket for each subject: it holds `rate.amount`, and what is taken flows back evenly over the period."""

    def __init__(self, group: str, rate: RateLimitItem) -> None:
        self._group = group
        self._amount = rate.amount
        self._period = rate.get_expiry()
        self._seconds_each = self._period / self._amount
        # Answers say how much is left from here on. Before, the headers would cost each small query some percent.
        self.shown_from = self._amount // 2
        # When the bucket will be full again.
        self._full_at: OrderedDict[UUID | str, float] = OrderedDict()

    def take(self, subject: UUID | str, times: int, now: float) -> Usage:
        """Take so many, or none if not enough are left. More than the bucket holds counts as all of it."""
        full_at = self._full_at.get(subject, now)
        full_at = (full_at if full_at > now else now) + min(times, self._amount) * self._seconds_each
        missing = full_at - now - self._period
        if missing > _ROUNDING:
            return Usage(self._group, 0, ceil(missing - _ROUNDING), True)
        self._full_at[subject] = full_at
        self._full_at.move_to_end(subject)
        if len(self._full_at) > _MAX_SUBJECTS:
            self._full_at.popitem(last=False)
        return Usage(self._group, int(-missing / self._seconds_each + 1e-3), ceil(full_at - now - _ROUNDING), False)


class RateLimits:
    """The limits of one process. `rates` has the rate of each group, such as 10/minute; None switches it off.

    `key` hides names and addresses from readers of Redis. All processes need the same.
    """

    def __init__(self, rates: Mapping[str, str | None], *, redis_url: str | None, key: bytes) -> None:
        self._rates = {group: parse(rate) for group, rate in rates.items() if rate is not None}
        self._policies = {
            group: f'"{group}";q={rate.amount};w={rate.get_expiry()}' for group, rate in self._rates.items()
        }
        # The groups that are not switched off. Every operation reads it, so there is no method in between.
        self.buckets = {group: Buckets(group, rate) for group, rate in self._rates.items()}
        self._windows = _SharedWindows(redis_url)
        self._warned_at: float | None = None
        self._lines: WeakValueDictionary[str, _Line] = WeakValueDictionary()
        self._key = key

    async def close(self) -> None:
        await self._windows.close()

    async def attempt(self, group: str, subject: UUID | str) -> Attempt:
        """Count for all processes."""
        rate = self._rates.get(group)
        if rate is None:
            return Attempt()
        attempt = await self._attempt(group, rate, "subject", str(subject))
        if attempt.is_refused:
            self._warn(group, str(subject))
        return attempt

    @asynccontextmanager
    async def guess(self, group: str, address: str, account: str) -> AsyncIterator[Attempt]:
        """Count an attempt to tell the password of an account, which need not exist. The block checks the password.

        The block gives the attempt back unless the password is wrong; a block that raises does so too. An attempt that
        would be refused waits while others of its address are checked, because they may be right.
        """
        line = self._lines.get(address) or _Line()
        self._lines[address] = line
        async with line.turn:
            attempt = await self._guess(group, address, account)
            while attempt.is_refused and (line.running or line.ended.is_set()):
                await line.ended.wait()
                line.ended.clear()
                attempt = await self._guess(group, address, account)
            line.running += not attempt.is_refused
        if attempt.is_refused:
            # Without the account: people type passwords into the wrong field.
            self._warn(group, address)
        try:
            yield attempt
        except Exception:
            await attempt.give_back()
            raise
        finally:
            if not attempt.is_refused:
                line.running -= 1
                line.ended.set()

    async def _guess(self, group: str, address: str, account: str) -> Attempt:
        """All guesses of an address count together, whatever the account.

        While an account is under attack, each address has one guess in a period at it. So many addresses together guess
        little, and the owner, who knows the password, gets in from any address.
        """
        rate = self._rates.get(group)
        if rate is None:
            return Attempt()
        # Apart from registrations and resets, which would keep others of the address from signing in.
        attempt = await self._attempt(group, rate, "guesses", address)
        if attempt.is_refused:
            return attempt
        attack = type(rate)(_ATTACK_AMOUNT * rate.amount, _ATTACK_PERIODS * rate.multiples)
        hit = await self._windows.hit(self._name(group, "account", account), attack)
        if hit.is_counted:
            attempt.hits.append(hit)
            return attempt
        careful = await self._attempt(group, type(rate)(1, rate.multiples), "pair", f"{address} {account}")
        if careful.is_refused:
            await attempt.give_back()
            return careful
        return Attempt(careful.usage, [*attempt.hits, *careful.hits])

    async def _attempt(self, group: str, rate: RateLimitItem, kind: str, subject: str) -> Attempt:
        hit = await self._windows.hit(self._name(group, kind, subject), rate)
        usage = Usage(group, hit.remaining, hit.seconds, not hit.is_counted)
        return Attempt(usage, [hit] if hit.is_counted else [])

    def _warn(self, group: str, subject: str) -> None:
        now = monotonic()
        if self._warned_at is None or now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = now
            advice = "If that is a proxy, name it in TASKFLOW_TRUSTED_PROXIES"
            log.warning("The rate limit %s refuses %.100s. %s", group, subject, advice)

    def _name(self, group: str, kind: str, subject: str) -> str:
        digest = hmac.digest(self._key, subject.encode(errors="replace"), "sha256")
        return f"{group}:{kind}:{digest[:16].hex()}"

    def headers(self, usages: Collection[Usage]) -> list[tuple[bytes, bytes]]:
        """The headers of draft-ietf-httpapi-ratelimit-headers-11."""
        policies = ", ".join([self._policies[usage.group] for usage in usages])
        left = ", ".join([f'"{usage.group}";r={usage.remaining};t={usage.seconds}' for usage in usages])
        return [(b"ratelimit-policy", policies.encode()), (b"ratelimit", left.encode())]


# An address has at most 45 characters, and a name for its interface.
@cached_for_short_keys(maxsize=1024, max_length=64)
def network_of(host: str) -> str:
    """The name under which a client is counted: its IPv4 address, or the /64 of its IPv6 address."""
    try:
        address = ip_address(host)
    except ValueError:
        # A Unix socket, or what a trusted proxy has sent.
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(IPv6Network((address, 64), strict=False))
        address = address.ipv4_mapped
    return str(address)
