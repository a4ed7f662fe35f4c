"""Runs a plan once.

The first part is synchronous and depth first, as in graphql-core: generated functions fill in the answer. For an
awaitable they leave a `Wait` in the answer, and for a batched relation a key in `asked`. The second part, `_settle`,
awaits what was left and completes it. A completion may leave more of both, so `_settle` goes on until nothing is left.

Every value is completed as soon as it arrives, in the task that awaited it, and never waits for its neighbours. A load
starts after one turn of the event loop: everything that was asked for in the same turn is one batch.

Context variables are visible where they are under graphql-core. It awaits the only awaitable of an object or list in
the current task, and several awaitables in a task each, with a copy of the context. Likewise, if a completion leaves a
single thing, that goes on in the same context; if it leaves several, each has a copy.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextvars import Context, copy_context
from time import perf_counter
from typing import Any, TypeAlias

from graphql import FieldNode, GraphQLError
from graphql.pyutils import Path

from .arguments import Unusual
from .batch import Batch
from .completion import resume
from .core import FieldDetailsList, GroupedFieldSet, IncrementalExecutor, arguments_of, root_fields
from .tree import Field, Fill, Info, Level, Position, Selection, Slot, Wait, in_context, is_below, path_of

# The requests of one completion under one field: the completion's context (None for the caller's), whether this is
# the only thing that it has left, the field, and the objects.
_Asked: TypeAlias = "tuple[Context | None, bool, Field, list[Slot]]"

# Loaded values are completed in parts of so many objects. After so many seconds the event loop gets a turn in between.
MAX_SLOTS_OF_PART = 8
MAX_PART_SECONDS = 0.01

# Classes of argument values that resolvers may share, since no resolver can change them.
_IMMUTABLE = frozenset({str, int, float, bool, type(None)})


def has_changed(context: Context, untouched: Context) -> bool:
    """Tell whether a variable has another value than in the original of this copy. Fast if none has been set."""
    try:
        return context != untouched
    except Exception:  # the values cannot be compared
        return True


class Run:
    """One execution of a plan."""

    # These exist once something has to be awaited, from `_fill_rest` on.
    _to_load: list[_Asked]  # what completions have asked for, until it is loaded
    _tasks: dict[asyncio.Task[None], Wait | None]  # running, with the awaitable that each began with; None for loads
    _unwanted: set[asyncio.Task[None]]  # the tasks whose value is needed no more
    _wake: asyncio.Future[None] | None
    _in_parts: int  # the number of loads that are being completed in parts
    _broken: BaseException | None  # what a task has raised
    _rising: list[tuple[Level, Path, GraphQLError]]  # errors to propagate: the level and path that they come from

    def __init__(self, executor: IncrementalExecutor) -> None:
        self.executor = executor
        self.is_awaitable: Callable[[Any], bool] = executor.is_awaitable
        self.answer: dict[str, Any] = {}
        # The requests of the current completion: the objects by field.
        self.asked: defaultdict[Field, list[Slot]] = defaultdict(list)
        self._waits: list[Wait] = []
        self._arguments: dict[Field, dict[str, Any]] = {}
        # What `details` has collected.
        self._groups: dict[Selection | None, GroupedFieldSet] | None = None

    def fill(self, fills: Sequence[Fill]) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        """Fill in the answer of the root object. Each function's part is settled before the next one is called."""
        for index, fill in enumerate(fills):
            self._fill_root(fill)
            if self._waits or self.asked:
                return self._fill_rest(fills[index + 1 :])
        return self.answer

    async def _fill_rest(self, fills: Sequence[Fill]) -> dict[str, Any]:
        self._to_load = []
        self._tasks = {}
        self._unwanted = set()
        self._wake = self._broken = None
        self._in_parts = 0
        self._rising = []
        await self._settle()
        for fill in fills:
            self._fill_root(fill)
            await self._settle()
        return self.answer

    def _fill_root(self, fill: Fill) -> None:
        try:
            fill(self, self.answer, self.executor.root_value, None)
        except BaseException:
            self._give_up(self._waits)
            raise

    # Called by the generated functions and by completions

    def info(self, field: Field, position: Position) -> Info:
        return self.executor.build_resolve_info(
            field.definition, self._nodes(field), field.parent_type, path_of(position)
        )

    def info_at(self, level: Level, position: Position) -> Info:
        """Return the info of the level's field, which the items of a list share."""
        while level is not level.field.level:
            assert level.parent is not None
            level, position = level.parent, position[0]
        return self.info(level.field, position)

    def details(self, field: Field) -> FieldDetailsList:
        """Return the field's nodes in the executed document, which may be another parse of the planned one."""
        if field.plan.operation is self.executor.operation:
            return field.details
        if self._groups is None:
            self._groups = {}
        # Collect them as graphql-core does, beginning below the innermost selection that is already collected.
        selections = []
        selection: Selection | None = field.selection
        while selection is not None and selection not in self._groups:
            selections.append(selection)
            selection = selection.level.field.selection if selection.level is not None else None
        groups: GroupedFieldSet = {} if selection is None else self._groups[selection]
        for inner in reversed(selections):
            groups = self._groups[inner] = self._collect(inner, groups)
        return groups[field.name]

    def _collect(self, selection: Selection, around: GroupedFieldSet) -> GroupedFieldSet:
        executor = self.executor
        if selection.level is not None:
            return executor.collect_subfields(selection.type, around[selection.level.field.name]).grouped_field_set
        # Collect the root once: each field of a mutation has a selection of its own.
        assert self._groups is not None
        if None not in self._groups:
            self._groups[None] = root_fields(
                executor.schema,
                executor.fragments,
                executor.variable_values,
                selection.type,
                executor.operation,
                executor.hide_suggestions,
            )
        return self._groups[None]

    def _nodes(self, field: Field) -> list[FieldNode]:
        if field.plan.operation is self.executor.operation:
            return field.nodes
        return [detail.node for detail in self.details(field)]

    def arguments(self, field: Field) -> dict[str, Any]:
        arguments = self._arguments.get(field)
        if arguments is None:
            arguments = self._read_arguments(field)
            # A batch function is called once. A resolver is called often, and gets fresh values if one is mutable.
            if field.batch is not None or all(type(value) in _IMMUTABLE for value in arguments.values()):
                self._arguments[field] = arguments
        return arguments

    def _read_arguments(self, field: Field) -> dict[str, Any]:
        executor = self.executor
        if field.read_arguments is not None and field.plan.operation is executor.operation:
            try:
                values: dict[str, Any] = field.read_arguments(executor.variable_values.coerced)
            except Unusual:
                pass
            else:
                return values
        return arguments_of(
            field.definition, self._nodes(field)[0], executor.variable_values, executor.hide_suggestions
        )

    def wait(
        self,
        level: Level,
        position: Position,
        awaitable: Awaitable[Any],
        complete: Callable[[Any], Any] | None = None,
    ) -> Wait:
        wait = Wait(level, position, awaitable, complete)
        self._waits.append(wait)
        return wait

    def exact(self, level: Level, value: Any, position: Position, info: Info | None) -> Any:
        """Let graphql-core complete the value and everything below it."""
        completed = self.executor.complete_value(
            level.type,
            self.details(level.field),
            info or self.info_at(level, position),
            path_of(position),
            value,
            None,
        )
        return self.wait(level, position, completed) if self.is_awaitable(completed) else completed

    def exact_fields(self, selection: Selection, value: Any, position: Position) -> Any:
        """Let graphql-core execute the selection on an object whose type is already checked."""
        level = selection.level
        assert level is not None
        completed: Any = self.executor.collect_and_execute_subfields(
            selection.type, self.details(level.field), path_of(position), value, None
        )
        return self.wait(level, position, completed) if self.is_awaitable(completed) else completed

    def field_failed(self, field: Field, error: Exception, position: Position) -> None:
        """Record the error of a field, given the position of its object. Raise it if the field may not be null."""
        path = Path(path_of(position), field.name, field.parent_type.name)
        try:
            self.executor.handle_field_error(error, field.level.type, self.details(field), path)
        finally:
            # The raised error may be this one. Its traceback has this frame, so the frame must not keep it.
            del error

    def item_failed(self, level: Level, error: Exception, position: Position, items: Sequence[Any]) -> Any:
        """Record the error of a list's item and return null. If the item may not be null, the error is raised."""
        try:
            self.executor.handle_field_error(error, level.type, self.details(level.field), path_of(position))
        except GraphQLError:
            # The list is lost, but its remaining awaitables still have to be awaited.
            self.executor.track_async_work(items[position[1] + 1 :])
            raise
        finally:
            del error

    # Settling

    async def _settle(self) -> None:
        try:
            alone = self._take_alone(is_callers=True)
            while True:
                if alone is not None:
                    # Nothing else runs meanwhile, so this needs no task.
                    await self._carry(alone, is_callers=True)
                # A task may have failed between the parts of a load, when nothing waited for `_wake`.
                self._raise_broken()
                if self._rising:
                    self._raise_errors()
                # The keys that all parts of a load ask for are loaded together.
                loads = self._take_loads() if self._to_load and not self._in_parts else []
                if self._rising:  # keys without a hash are errors
                    self._raise_errors()
                if len(loads) == 1 and not self._tasks:
                    alone = await self._load_alone(loads[0])
                    continue
                alone = None
                for load in loads:
                    self._start(self._load(load), None, load.context)
                if not self._tasks:
                    return
                await self._woken()
        except BaseException as error:
            for task in self._tasks:
                task.cancel()
            self._give_up(self._waits)
            # A coroutine that is closed, not cancelled, must not await any more.
            if self._tasks and not isinstance(error, GeneratorExit):
                await asyncio.gather(*self._tasks, return_exceptions=True)
            raise

    def _leave(self) -> None:
        """Start what a completion has left. Must be called in the completion's context."""
        alone = self._take_alone()
        if alone is not None:
            self._start(self._carry(alone), alone)

    def _take_alone(self, *, is_callers: bool = False) -> Wait | None:
        """Start what a completion has left. A single awaitable is returned instead of started."""
        if self.executor.collected_errors.errors:
            self._drop_lost()
        waits, asked = self._waits, self.asked
        if waits:
            self._waits = []
            if len(waits) == 1 and not asked:
                return waits[0]
            for wait in waits:
                self._start(self._carry(wait), wait)
        if asked:
            self.asked = defaultdict(list)
            is_alone = not waits and len(asked) == 1 and all(len(slots) == 1 for slots in asked.values())
            context = None if is_alone and is_callers else copy_context()
            for field, slots in asked.items():
                self._to_load.append((context, is_alone, field, slots))
            self._wake_up()
        return None

    async def _carry(self, wait: Wait, *, is_callers: bool = False) -> None:
        """Await the value and complete it. Repeat that as long as the completion leaves a single awaitable."""
        left: Wait | None = wait
        while left is not None:
            wait = left
            try:
                value = await wait.awaitable
                if self._is_lost(wait.position):
                    wait.forget()
                    return
                if wait.complete is not None:
                    value = wait.complete(value)
                    if type(value) is Wait:
                        value.place(wait.container, wait.key)
            except Exception as error:
                self._give_up_below(wait.position)
                self._fail(wait.level, error, wait.position, wait.container, wait.key)
                return
            except BaseException:
                wait.forget()
                raise
            wait.container[wait.key] = value
            left = self._take_alone(is_callers=is_callers)

    def _start(self, work: Coroutine[Any, Any, None], wait: Wait | None, context: Context | None = None) -> None:
        """Start a task, with a copy of the current context unless one is given."""
        task = asyncio.create_task(work, context=context)
        self._tasks[task] = wait
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        wait = self._tasks.pop(task)
        if task.cancelled() and wait is not None and asyncio.iscoroutine(wait.awaitable):
            # If the task was cancelled before it began, the coroutine was never awaited.
            wait.awaitable.close()
            wait.forget()
        if task in self._unwanted:
            self._unwanted.remove(task)
            # The error has to be retrieved, or asyncio logs it.
            _ = task.cancelled() or task.exception()
        elif task.cancelled():
            self._broken = asyncio.CancelledError()
        elif task.exception() is not None:
            self._broken = task.exception()
        if not self._tasks or self._broken is not None:
            self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _woken(self) -> None:
        """Wait until there is something to load or an error to propagate, or until no task is running."""
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake
        if self._rising and self._tasks:
            # graphql-core takes two turns of the event loop to raise an error out of a task and cancel the others. It
            # also reports what fails in the meantime.
            await asyncio.sleep(0)

    def _raise_broken(self) -> None:
        if self._broken is not None:
            try:
                raise self._broken
            finally:
                # The error's traceback has this frame, so keeping the error would be a reference cycle.
                self._broken = None

    # Loading

    def _take_loads(self) -> list[_Load]:
        """Make one load for each batch function and set of arguments, which different fields may share."""
        to_load, self._to_load = self._to_load, []
        loads: list[_Load] = []
        by_field: dict[Field, _Load] = {}
        has_errors = bool(self.executor.collected_errors.errors)
        for one in to_load:
            context, _, field, slots = one
            load = by_field.get(field)
            if load is None:
                load = by_field[field] = self._load_of(field, loads, context)
            if has_errors:
                slots[:] = [slot for slot in slots if not self._is_lost(slot[2])]
            try:
                for slot in slots:
                    load.keys[slot[1]] = None
            except TypeError:  # a key without a hash
                slots[:] = [slot for slot in slots if self._add_key(load, field, slot)]
            load.asked.append(one)
        return [load for load in loads if load.keys]

    def _load_of(self, field: Field, loads: list[_Load], context: Context | None) -> _Load:
        batch, arguments = field.batch, self.arguments(field)
        assert batch is not None
        load = next((load for load in loads if load.is_of(batch, arguments)), None)
        if load is None:
            load = _Load(batch, arguments, copy_context() if context is None else context.copy())
            loads.append(load)
        return load

    def _add_key(self, load: _Load, field: Field, slot: Slot) -> bool:
        answer, key, position = slot
        try:
            load.keys[key] = None
        except TypeError as error:
            self._slot_failed(field, error, answer, position)
            return False
        return True

    async def _load_alone(self, load: _Load) -> Wait | None:
        """Load without a task, since nothing else runs meanwhile, but in the context that a task would have."""
        try:
            loaded = await in_context(load.context, load.load(self.executor.context_value))
        except Exception as error:
            self._load_failed(load, error)
            return None
        return await self._loaded_in_parts(load, loaded)

    async def _load(self, load: _Load) -> None:
        try:
            loaded = await load.load(self.executor.context_value)
        except Exception as error:
            self._load_failed(load, error)
        else:
            await self._loaded_in_parts(load, loaded)

    def _load_failed(self, load: _Load, error: Exception) -> None:
        for _context, _is_alone, field, slots in load.asked:
            for answer, _key, position in slots:
                self._slot_failed(field, error, answer, position)

    async def _loaded_in_parts(self, load: _Load, loaded: Any) -> Wait | None:
        """Complete what was loaded, in parts. When that takes long, the event loop gets a turn between them."""
        left: Wait | None = None
        began = perf_counter()
        self._in_parts += 1
        try:
            for part in load.parts():
                if perf_counter() - began > MAX_PART_SECONDS:
                    await asyncio.sleep(0)
                    began = perf_counter()
                left = self._loaded(part, loaded)
        finally:
            self._in_parts -= 1
            self._wake_up()
        return left

    def _loaded(self, load: _Load, loaded: Any) -> Wait | None:
        """Complete what was loaded. Return what a load for a single object leaves, as `_take_alone` does."""
        for context, is_alone, field, slots in load.asked:
            if context is None:
                self._complete_slots(load.batch, loaded, field, slots, is_callers=True)
                return self._take_alone(is_callers=True)
            if is_alone:
                context.run(self._complete_slots, load.batch, loaded, field, slots)
                continue
            # Each object has a copy of the context. They share one copy until a variable is set.
            remaining = iter(slots)
            is_at_end = False
            while not is_at_end:
                own = context.copy()
                is_at_end = own.run(self._complete_slots, load.batch, loaded, field, remaining, own, context)
        return None

    def _complete_slots(
        self,
        batch: Batch,
        loaded: Any,
        field: Field,
        slots: Iterable[Slot],
        own: Context | None = None,
        untouched: Context | None = None,
        *,
        is_callers: bool = False,
    ) -> bool:
        """Complete objects until one of them has changed the context. Return whether these were all."""
        # A boolean, because the tracebacks of the errors themselves may have this frame.
        has_errors = bool(self.executor.collected_errors.errors)
        level, name, type_name = field.level, field.name, field.parent_type.name
        for answer, key, position in slots:
            if has_errors and self._is_lost(position):
                continue
            at = (position, name, type_name)
            try:
                item = batch.value_of(loaded, key)
                fill = level.fills.get(type(item))
                if fill is not None:
                    completed: Any = {}
                    fill(self, completed, item, at)
                else:
                    completed = resume(self, level, item, at)
                    if type(completed) is Wait:
                        completed.place(answer, name)
            except Exception as error:
                self._give_up_below(at)
                self._fail(level, error, at, answer, name)
            else:
                answer[name] = completed
            if own is not None and untouched is not None and has_changed(own, untouched):
                self._set_apart(at, untouched)
                return False
        if not is_callers and (self._waits or self.asked):
            self._leave()
        return True

    def _set_apart(self, at: Position, untouched: Context) -> None:
        """Start what was left below this position in the current context, and the rest in the untouched one."""
        waits, asked = self._take_below(at)
        untouched.copy().run(self._leave)
        self._waits, self.asked = waits, asked
        self._leave()

    def _take_below(self, at: Position) -> tuple[list[Wait], defaultdict[Field, list[Slot]]]:
        """Take what the current completion has left below this position."""
        waits, self._waits = self._waits, []
        asked, self.asked = self.asked, defaultdict(list)
        below_waits: list[Wait] = []
        below_asked: defaultdict[Field, list[Slot]] = defaultdict(list)
        for wait in waits:
            (below_waits if is_below(wait.position, at) else self._waits).append(wait)
        for field, slots in asked.items():
            for slot in slots:
                (below_asked if is_below(slot[2], at) else self.asked)[field].append(slot)
        return below_waits, below_asked

    # Failing. graphql-core raises through its coroutines; here the answer is changed from outside

    def _slot_failed(self, field: Field, error: Exception, answer: dict[str, Any], position: Position) -> None:
        at = (position, field.name, field.parent_type.name)
        self._fail(field.level, error, at, answer, field.name)

    def _fail(self, level: Level, error: Exception, position: Position, container: Any, key: str | int) -> None:
        path = path_of(position)
        try:
            self.executor.handle_field_error(error, level.type, self.details(level.field), path)
        except GraphQLError as located_error:
            self._rising.append((level, path, located_error))
            self._wake_up()
        # The field has no value, even if more of the answer is lost with it.
        container[key] = None

    def _raise_errors(self) -> None:
        rising, self._rising = self._rising, []
        for level, path, error in rising:
            if not self._null_around(level, path, error):
                rising.clear()
                try:
                    raise error
                finally:
                    # The error's traceback has this frame, so keeping the error would be a reference cycle.
                    del error
        self._cancel_lost()

    def _null_around(self, level: Level, path: Path, error: GraphQLError) -> bool:
        """Set the nearest enclosing nullable position to null. Return whether there is one."""
        around, at = level.parent, path.prev
        while around is not None and not around.nullable:
            assert at is not None
            around, at = around.parent, at.prev
        if at is None:
            return False
        self.executor.collected_errors.add(error, at)
        container: Any = self.answer
        *keys, last = at.as_list()
        for key in keys:
            container = container[key]
            if container is None:
                return True
        container[last] = None
        return True

    def _is_lost(self, position: Position) -> bool:
        """Tell whether an error has set a part of the answer to null that contains the position."""
        errors = self.executor.collected_errors
        return bool(errors.errors) and errors.has_nulled_position(path_of(position))

    def _drop_lost(self) -> None:
        """Drop what was left in parts of the answer that are null by now."""
        if not self.executor.collected_errors.errors:
            return
        kept: list[Wait] = []
        lost: list[Wait] = []
        for wait in self._waits:
            (lost if self._is_lost(wait.position) else kept).append(wait)
        self._waits = kept
        self._give_up(lost)
        for field, slots in list(self.asked.items()):
            self.asked[field] = [slot for slot in slots if not self._is_lost(slot[2])]
            if not self.asked[field]:
                del self.asked[field]

    def _cancel_lost(self) -> None:
        for task, wait in self._tasks.items():
            if wait is not None and task not in self._unwanted and self._is_lost(wait.position):
                self._unwanted.add(task)
                task.cancel()

    def _give_up_below(self, at: Position) -> None:
        if self._waits or self.asked:
            waits, _ = self._take_below(at)
            self._give_up(waits)

    def _give_up(self, waits: list[Wait]) -> None:
        if waits:
            for wait in waits:
                wait.forget()
            self.executor.settle_in_background([wait.awaitable for wait in waits])


class _Load:
    """One call of a batch function: its keys, the context of the first that asked, and all that was asked for."""

    def __init__(self, batch: Batch, arguments: dict[str, Any], context: Context) -> None:
        self.batch = batch
        self.arguments = arguments
        self.context = context
        # A dict instead of a set, for its order: every key once, in the order of first asking.
        self.keys: dict[Any, None] = {}
        self.asked: list[_Asked] = []

    def is_of(self, batch: Batch, arguments: dict[str, Any]) -> bool:
        return (
            self.batch.load == batch.load
            and self.batch.many == batch.many
            and self.arguments == arguments
            # 1 and True are equal but different arguments.
            and repr(self.arguments) == repr(arguments)
        )

    def parts(self) -> Iterator[_Load]:
        """Split the load into parts for a few objects each."""
        for context, is_alone, field, slots in self.asked:
            for start in range(0, len(slots), MAX_SLOTS_OF_PART):
                part = _Load(self.batch, self.arguments, self.context)
                part.asked.append((context, is_alone, field, slots[start : start + MAX_SLOTS_OF_PART]))
                yield part

    async def load(self, context: Any) -> Any:
        return await self.batch.load(context, list(self.keys), **self.arguments)
