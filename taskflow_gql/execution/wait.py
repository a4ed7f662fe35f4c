"""A value that is not there yet."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .plan import Level
    from .run import Position


class Wait:
    """An awaitable, how its value is completed, and the place in the answer the value goes to.

    Until then the Wait stands there itself. `complete` is None when the awaited value needs no completion.
    """

    __slots__ = ("awaitable", "complete", "container", "group", "key", "level", "position")

    def __init__(
        self,
        level: "Level",
        position: "Position",
        awaitable: Awaitable[Any],
        complete: Callable[[Any], Any] | None,
    ) -> None:
        self.level = level
        self.position = position
        self.awaitable = awaitable
        self.complete = complete
        self.container: Any = None
        self.key: Any = None
        self.group = Group()

    def place(self, container: dict[str, Any] | list[Any], key: str | int) -> None:
        self.container = container
        self.key = key


class Group:
    """The waits of one level that were left together, and are completed together when the last has its value."""

    __slots__ = ("missing", "values", "waits")

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self.values: dict[Wait, Any] = {}
        self.missing = 0
