"""Relations that are loaded for many objects at once.

A field declares its `Batch` under `GraphQLField.extensions[BATCH]`. The compiling executor reads the keys of all
objects of a level and calls `load` once. Every other executor uses the field's resolver. `batch_resolver` makes it
from the same declaration; the keys that are asked for in one turn of the event loop then share one call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from graphql import GraphQLResolveInfo

BATCH = "execution.batch"

Key = Hashable
Load = Callable[..., Awaitable[Mapping[Any, Any]]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Declares how the values of a relation field are loaded.

    `load(context, keys, **arguments)` takes distinct keys in the order of their objects, and the field's arguments by
    their Python names. No key is None. It returns values by key. A value that is an exception is the error of the
    fields that asked for that key.

    `key` is the attribute (or mapping entry) of the object that holds the key, or a function of the object. If the key
    is None, the field is null.

    A key without a value is null, or an empty list if `many` is set.

    If the object's class has an attribute named by `carried_as`, the object carries the value and nothing is loaded.
    Fields with arguments ignore `carried_as`.
    """

    load: Load
    key: str | Callable[[Any], Key | None]
    many: bool = False
    carried_as: str | None = None

    def is_carried_by(self, cls: type) -> bool:
        return self.carried_as is not None and hasattr(cls, self.carried_as)

    def key_of(self, source: Any) -> Any:
        if not isinstance(self.key, str):
            return self.key(source)
        return source[self.key] if isinstance(source, Mapping) else getattr(source, self.key)

    def value_of(self, loaded: Mapping[Any, Any], key: Key) -> Any:
        value = loaded.get(key)
        return [] if value is None and self.many else value


def batch_resolver(batch: Batch) -> Callable[..., Any]:
    """Make a resolver for executors that do not know batches.

    Keys that are asked for in one turn of the event loop, with the same context and equal arguments, share one call of
    `load`. Nothing has to be kept in the context for it.
    """

    def resolve(source: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        if not arguments and batch.is_carried_by(type(source)):
            return getattr(source, batch.carried_as or "")
        key = batch.key_of(source)
        return None if key is None else _value(batch, info.context, arguments, key)

    return resolve


async def _value(batch: Batch, context: Any, arguments: dict[str, Any], key: Key) -> Any:
    loop = asyncio.get_running_loop()
    # Argument values may have no hash (lists, dicts), and 1 and True are equal but print differently.
    name = (id(loop), id(context), batch, repr(sorted(arguments.items())))
    loader = _collecting.get(name)
    # A loader keeps its loop and context alive, so an id in a name is not reused while the loader collects keys.
    if loader is None or loader.loop is not loop or loader.arguments != arguments:
        loader = _collecting[name] = _Loader(name, loop, batch, context, arguments)
        loop.call_soon(loader.dispatch)
    return await loader.value(key)


class _Loader:
    """Collects keys for one turn of the event loop. Values are not kept: a mutation may change them."""

    def __init__(
        self,
        name: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        batch: Batch,
        context: Any,
        arguments: dict[str, Any],
    ) -> None:
        self.name = name
        self.loop = loop
        self.batch = batch
        self.context = context
        self.arguments = arguments
        self.waiting: dict[Key, asyncio.Future[Any]] = {}

    async def value(self, key: Key) -> Any:
        future = self.waiting.get(key)
        if future is None:
            future = self.waiting[key] = self.loop.create_future()
        # One caller's cancellation must not cancel the load for the others.
        return await asyncio.shield(future)

    def dispatch(self) -> None:
        if _collecting.get(self.name) is self:
            del _collecting[self.name]
        task = self.loop.create_task(self.load())
        # The event loop keeps only a weak reference to a task.
        _loading.add(task)
        task.add_done_callback(_loading.discard)

    async def load(self) -> None:
        waiting = self.waiting
        try:
            loaded = await self.batch.load(self.context, list(waiting), **self.arguments)
            values = {key: self.batch.value_of(loaded, key) for key in waiting}
        except asyncio.CancelledError:
            for future in waiting.values():
                future.cancel()
            raise
        except Exception as error:
            for future in waiting.values():
                future.set_exception(error)
                # If the caller is gone nobody retrieves the error, and asyncio would log that.
                future.exception()
            return
        for key, future in waiting.items():
            future.set_result(values[key])


# The loaders that collect keys in the current turn of their event loop. Event loops in other threads have other names.
_collecting: dict[tuple[Any, ...], _Loader] = {}
_loading: set[asyncio.Task[None]] = set()
