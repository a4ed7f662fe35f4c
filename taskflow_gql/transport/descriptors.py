"""How many connections the process has file descriptors for."""

from __future__ import annotations

import logging
import sys

from taskflow_gql.config import Settings

if sys.platform != "win32":
    import resource

log = logging.getLogger(__name__)

# Descriptors reserved for everything but connections: log, event loop, listener, SQLite, Redis, static files.
_OTHER_DESCRIPTORS = 64
# The fraction of descriptors to keep free: the event loop accepts a whole burst before `admit` sees its first one.
_SPARE_DESCRIPTORS = 0.1
_MAX_DESCRIPTORS = 1024 * 1024


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard limit: the soft limit is often 1,024."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError) as error:
            log.debug("The limit of open files stays at %d: %s", soft, error)


def descriptor_limit() -> int:
    if sys.platform == "win32":
        return _MAX_DESCRIPTORS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, _MAX_DESCRIPTORS)


def connections_by_descriptors(settings: Settings) -> int:
    """How many connections a process can hold and still have descriptors for its database and other files."""
    others = _OTHER_DESCRIPTORS + settings.database_pool_size + settings.database_max_overflow
    return max(16, int(descriptor_limit() * (1 - _SPARE_DESCRIPTORS)) - others)


def problem_of_descriptors(settings: Settings) -> str | None:
    """What the operator should do if there are too few descriptors for TASKFLOW_MAX_CONNECTIONS; otherwise None."""
    room = connections_by_descriptors(settings)
    if room >= settings.max_connections:
        return None
    return (
        f"The limit of {descriptor_limit()} open files leaves room for {room} connections, and "
        f"TASKFLOW_MAX_CONNECTIONS is {settings.max_connections}. Raise the limit (`ulimit -n 65536`, systemd: "
        "LimitNOFILE=65536, Docker: --ulimit nofile=65536:65536), or lower the setting"
    )
