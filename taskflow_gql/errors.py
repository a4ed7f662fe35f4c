"""The base of all errors that clients may see, and the refusals that every noun has.

A noun's own errors stand beside its service. `operations/errors.py` renders them, in payloads `api/mutations.py` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class TaskflowError(Exception):
    """A problem whose message may be shown to the person who caused it.

    `field` is the path inside the mutation's input, outermost first; None when the problem is about the
    whole request.
    """

    code: ClassVar[str]

    def __init__(self, message: str, *, field: Sequence[str] | str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = [field] if isinstance(field, str) else list(field) if field is not None else None

    @property
    def extensions(self) -> dict[str, object]:
        """What the error says in its `extensions` beside the code."""
        return {}


class Unauthenticated(TaskflowError):
    """Nobody, or nobody we can name. Always a top-level error, in mutations too."""

    code = "UNAUTHENTICATED"


class CursorExpired(TaskflowError):
    code = "CURSOR_EXPIRED"


class ServerStops(TaskflowError):
    """Ends the streams of a server that is going away. Over a WebSocket nobody reads it: it becomes a close code."""

    code = "SERVER_STOPS"

    def __init__(self) -> None:
        super().__init__("The server stops: come back with your last cursor")


# When to try again where too much is open. No clock runs there, but others close what they have open.
RETRY_AFTER_SECONDS = 10


class TooManySubscriptions(TaskflowError):
    code = "RATE_LIMITED"

    def __init__(self, limit: int) -> None:
        super().__init__(f"You have {limit} subscriptions open, which is the limit: close some first")

    @property
    def extensions(self) -> dict[str, object]:
        return {"retryAfter": RETRY_AFTER_SECONDS}


class Refusal(TaskflowError):
    """What a mutation answers in `payload.errors`, and a query at the top level."""

    @property
    def payload(self) -> dict[str, Any]:
        """What a mutation's payload shows beside `errors`, by field."""
        return {}


class BadUserInput(Refusal):
    code = "BAD_USER_INPUT"


class NotFound(Refusal):
    code = "NOT_FOUND"


class Forbidden(Refusal):
    code = "FORBIDDEN"


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
    """A setting or a surrounding part is not as the server needs it; the message is one line and says what to do."""
