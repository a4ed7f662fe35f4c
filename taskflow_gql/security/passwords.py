"""Password hashing."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from passlib.context import CryptContext

# passlib raises for longer ones. No stored password is that long: services/checks.py allows 128 characters.
_MAX_PASSWORD_CHARACTERS = 4096
# Stored as the hash of a person who signs in elsewhere. No password matches it.
NO_PASSWORD = "!"  # noqa: S105


class PasswordHasher:
    """argon2id with the parameters that OWASP recommends (19 MiB, 2 passes, 1 lane), in a pool of threads.

    The pool is small: each hash takes 19 MiB and a core, and a flood of logins must not use up either.
    """

    def __init__(self, threads: int = 2) -> None:
        self._context = CryptContext(
            schemes=["argon2"],
            argon2__type="ID",
            argon2__memory_cost=19456,
            argon2__time_cost=2,
            argon2__parallelism=1,
        )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        # Verified for an unknown user, so that the answer takes as long as for a known one.
        self._dummy = self._context.hash("no such person")

    async def hash(self, password: str) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._context.hash, password)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether the password matches. No hash or an overlong password gives False after the same work."""
        if len(password) > _MAX_PASSWORD_CHARACTERS or password_hash == NO_PASSWORD:
            password, password_hash = "", None
        matches = await asyncio.get_running_loop().run_in_executor(
            self._pool, self._context.verify, password, password_hash or self._dummy
        )
        return bool(matches) and password_hash is not None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
