"""The base class of all errors that clients may see, and the generic ones.

Errors of one noun are defined in its service. `operations/errors.py` renders errors, and `api/payloads.py` renders
those in payloads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class TaskflowError(Exception):
    """A problem whose message may be shown to the client.

    `field` is the path inside the mutation's input, outermost first; None if the problem concerns the whole request.
    """

    code: ClassVar[str]

    def __init__(self, message: str, *, field: Sequence[str] | str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = [field] if isinstance(field, str) else list(field) if field is not None else None

    @property
    def extensions(self) -> dict[str, object]:
        """Entries of the error's `extensions`, in addition to the code."""
        return {}


class Unauthenticated(TaskflowError):
    """The token is missing or invalid. Always a top-level error, also in mutations."""

    code = "UNAUTHENTICATED"


class RateLimited(TaskflowError):
    """Too many attempts in a short time. Always a top-level error, also in mutations."""

    code = "RATE_LIMITED"

    def __init__(self, group: str, seconds: int) -> None:
        super().__init__(f"Too many attempts, which the rate limit {group} counts: try again in {seconds} s")
        self.seconds = seconds

    @property
    def extensions(self) -> dict[str, object]:
        return {"retryAfter": self.seconds}


class ServerStops(TaskflowError):
    """Ends the streams of a server that shuts down. On a WebSocket it becomes a close code."""

    code = "SERVER_STOPS"

    def __init__(self) -> None:
        super().__init__("The server stops: come back with your last cursor")


# Suggested when too many operations, streams or connections are open. A guess: they close at unknown times.
RETRY_AFTER_SECONDS = 10


class Refusal(TaskflowError):
    """Reported in `payload.errors` by mutations, and at the top level by queries."""

    # Fields of the input that somebody else has changed, if that is what is wrong.
    conflicting_fields: Sequence[str] = ()

    @property
    def payload(self) -> dict[str, Any]:
        """Values of further fields of the mutation's payload, by field name."""
        return {}


class BadUserInput(Refusal):
    code = "BAD_USER_INPUT"


class NotFound(Refusal):
    code = "NOT_FOUND"


class Forbidden(Refusal):
    code = "FORBIDDEN"


class VersionConflict(Refusal):
    """The payload's field `noun` is the current row, so that the client can merge and retry."""

    code = "VERSION_CONFLICT"

    def __init__(self, noun: str, row: Any, expected_version: int, *, conflicting_fields: Sequence[str] = ()) -> None:
        found = f"The {noun} is at version {row.version}, not {expected_version}"
        if conflicting_fields:
            found += ", and what you change was changed since"
        super().__init__(f"{found}: read it again and repeat the change", field="expected_version")
        self.conflicting_fields = conflicting_fields
        self._payload = {noun: row}

    @property
    def payload(self) -> dict[str, Any]:
        return self._payload


class Refusals(TaskflowError):
    """Several problems of one input, reported together. Never empty."""

    code = BadUserInput.code

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        super().__init__("; ".join(refusal.message for refusal in refusals))
        self.refusals = list(refusals)


def refuse_if_any(refusals: Sequence[Refusal]) -> None:
    """Raise `Refusals` unless the list is empty."""
    if refusals:
        raise Refusals(refusals)


class ConfigurationError(Exception):
    """A setting or the environment is wrong. The message is one line and says what to do."""
