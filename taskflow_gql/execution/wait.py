"""A value that is not there yet."""

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import Position
    from .tree import Level


class Wait:
    """An awaitable, how its value is completed, and the place in the answer the value goes to.

    Until then the Wait stands there itself. `complete` is None when the awaited value needs no completion.
    """

    __slots__ = ("awaitable", "complete", "container", "key", "level", "position")

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

    def place(self, container: dict[str, Any] | list[Any], key: str | int) -> None:
        self.container = container
        self.key = key

    def forget(self) -> None:
        """Forget what would be done with the value, when none will come: the Wait may stay in the answer for good, and
        would be part of a reference cycle.
        """
        self.container = None
        self.complete = None


@types.coroutine
def in_context(context: Context, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await the coroutine in the current task, but with a context of its own.

    A task would do that as well, for ten times the price.
    """
    try:
        awaited = context.run(coroutine.send, None)
        while True:
            try:
                value = yield awaited
            except GeneratorExit:
                context.run(coroutine.close)
                raise
            except BaseException as error:
                awaited = context.run(coroutine.throw, error)
            else:
                awaited = context.run(coroutine.send, value)
    except StopIteration as stop:
        return stop.value
