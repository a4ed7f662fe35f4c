"""Relations that are loaded for many objects at once.

A field declares its `Batch` under `GraphQLField.extensions[BATCH]`. The compiling executor reads the keys of all
objects of a level and calls `load` once. Any other executor uses the field's resolver, which `batch_resolver` makes
from the same declaration: there the keys asked for in one turn of the event loop make up one call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from graphql import GraphQLResolveInfo

BATCH = "execution.batch"

Key = Hashable
Load = Callable[..., Awaitable[Mapping[Any, Any]]]


@dataclass(frozen=True, slots=True)
class Batch:
    """How the values of a relation field are loaded.

    `load(context, keys, **arguments)` takes distinct keys, none of them None, in the order they were met, and the
    field's arguments by their Python names. It returns values by key; a value that is an exception is the error of
    the fields that asked for that key.

    `key` is the attribute (or mapping entry) of the object that holds the key, or a function of the object. An object
    whose key is None has no related value: null.

    A key without a value is null, or an empty list for a relation to `many`.

    An object whose class has an attribute called `carried_as` has the value with it, and nothing is loaded for it. Not
    for fields with arguments.
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


def batch_resolver(batch: Batch, loaders_of: Callable[[Any], dict[Any, Any]]) -> Callable[..., Any]:
    """A resolver for executors that know nothing of batches.

    `loaders_of(context)` returns the dict in which the loaders of one operation are kept: the same one for the same
    context, a fresh one for every operation.
    """

    def resolve(source: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        if not arguments and batch.is_carried_by(type(source)):
            return getattr(source, batch.carried_as or "")
        key = batch.key_of(source)
        if key is None:
            return None
        # Equal arguments share a call. Arguments may have no hash (lists, dicts), and 1 and True are equal.
        loader_key = (batch, repr(sorted(arguments.items())))
        loaders = loaders_of(info.context)
        loader = cast("_Loader | None", loaders.get(loader_key))
        if loader is None or loader.arguments != arguments:
            loader = loaders[loader_key] = _Loader(batch, info.context, arguments)
        return loader.value(key)

    return resolve


class _Loader:
    """Collects keys for one turn of the event loop. Keeps no values: a mutation may have changed them since."""

    def __init__(self, batch: Batch, context: Any, arguments: dict[str, Any]) -> None:
        self.batch = batch
        self.context = context
        self.arguments = arguments
        self.waiting: dict[Key, asyncio.Future[Any]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def value(self, key: Key) -> Any:
        future = self.waiting.get(key)
        if future is None:
            loop = asyncio.get_running_loop()
            if not self.waiting:
                loop.call_soon(self.dispatch)
            future = self.waiting[key] = loop.create_future()
        # One caller's cancellation must not take the value from the others.
        return await asyncio.shield(future)

    def dispatch(self) -> None:
        waiting, self.waiting = self.waiting, {}
        task = asyncio.ensure_future(self.fulfil(waiting))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def fulfil(self, waiting: dict[Key, asyncio.Future[Any]]) -> None:
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
                # Whoever asked may be gone; its error is then nobody's to retrieve.
                future.exception()
            return
        for key, future in waiting.items():
            future.set_result(values[key])
