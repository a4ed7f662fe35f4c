"""Observers of the database: the relay, metrics, tracing, `explain` and tests are told in the same way."""

from __future__ import annotations

from collections.abc import Set
from typing import Any


class DatabaseObserver:
    """Override what you want to be told. The methods run in the event loop: they are quick, and raise nothing."""

    def on_statement(self, sql: str, parameters: Any) -> None:
        """A statement is about to be sent. The parameters are in the form of the driver."""

    def on_event_committed(self) -> None:
        """A unit of work that recorded an event was committed."""

    def on_committed(self, announcements: Set[str]) -> None:
        """A unit of work that announced something was committed; `DatabaseSession.announcements` has the names."""
