"""One execution of a plan.

The first part is synchronous and depth first, as in graphql-core: generated functions fill in the answer. Where
something has to be awaited they leave a `Wait` in the answer, and where a batch has to be loaded a key in `asked`.
The second part, `_settle`, awaits what was left and completes it, which may leave more, until the answer is whole.

What one field left at one level is completed together, so its relations in turn are one batch. Different fields do
not wait for each other.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from graphql import GraphQLError, GraphQLResolveInfo
from graphql.execution.values import get_argument_values
from graphql.pyutils import Path

from .arguments import Unusual
from .batch import Batch
from .completion import resume
from .wait import Group, Wait

if TYPE_CHECKING:
    from .executor import CompilingExecutor
    from .plan import Field, Fill, Level, Selection

Info: TypeAlias = GraphQLResolveInfo[Any]

# What `Path` holds (previous position, key, type name) in a bare tuple: cheaper to make, and rarely looked at.
Position: TypeAlias = Any

# An object that asks for a related one: its answer, the key, its position.
Slot: TypeAlias = tuple[dict[str, Any], Any, Position]

# Argument values that a resolver cannot change under its neighbour.
_IMMUTABLE = frozenset({str, int, float, bool, type(None)})


def path_of(position: Position) -> Any:
    # Not recursive: there is no limit to how deep an asynchronous answer may be.
    inner: list[tuple[Position, str | int, str | None]] = []
    while type(position) is tuple:
        inner.append(position)
        position = position[0]
    path = position
    for _, key, type_name in reversed(inner):
        path = Path(path, key, type_name)
    return path


class Run:
    def __init__(self, executor: "CompilingExecutor") -> None:
        self.executor = executor
        self.is_awaitable: Callable[[Any], bool] = executor.is_awaitable
        self.answer: dict[str, Any] = {}
        self.asked: defaultdict[Field, list[Slot]] = defaultdict(list)
        self._waits: list[Wait] = []
        self._arguments: dict[Field, dict[str, Any]] = {}
        # What is under way; None for tasks whose value nobody wants any more.
        self._tasks: dict[asyncio.Future[Any], Wait | _Load | None] = {}
        self._landed: list[asyncio.Future[Any]] = []
        self._wake: asyncio.Future[None] | None = None
        # Errors on their way up: the level and path they came from.
        self._rising: list[tuple[Level, Path, GraphQLError]] = []

    def fill(self, fills: "Sequence[Fill]") -> dict[str, Any] | Awaitable[dict[str, Any]]:
        """Fill in the answer of the root object. Each function's part is settled before the next is called."""
        for index, fill in enumerate(fills):
            self._fill_root(fill)
            if self._waits or self.asked:
                return self._fill_rest(fills[index + 1 :])
        return self.answer

    async def _fill_rest(self, fills: "Sequence[Fill]") -> dict[str, Any]:
        await self._settle()
        for fill in fills:
            self._fill_root(fill)
            await self._settle()
        return self.answer

    def _fill_root(self, fill: "Fill") -> None:
        try:
            fill(self, self.answer, self.executor.root_value, None)
        except BaseException:
            self._give_up(self._waits)
            raise
        self._drop_lost()

    # For the generated functions and their completion

    def info(self, field: "Field", position: Position) -> Info:
        return self.executor.build_resolve_info(field.definition, field.nodes, field.parent_type, path_of(position))

    def info_at(self, level: "Level", position: Position) -> Info:
        """The info of the level's field, which its items share."""
        while level is not level.field.level:
            assert level.parent is not None
            level, position = level.parent, position[0]
        return self.info(level.field, position)

    def arguments(self, field: "Field") -> dict[str, Any]:
        arguments = self._arguments.get(field)
        if arguments is None:
            arguments = self._read_arguments(field)
            # A batch function is called once, a resolver often: each time with values nobody has had before.
            if field.batch is not None or all(type(value) in _IMMUTABLE for value in arguments.values()):
                self._arguments[field] = arguments
        return arguments

    def _read_arguments(self, field: "Field") -> dict[str, Any]:
        executor = self.executor
        if field.read_arguments is not None:
            try:
                values: dict[str, Any] = field.read_arguments(executor.variable_values.coerced)
            except Unusual:
                pass
            else:
                return values
        return get_argument_values(
            field.definition, field.nodes[0], executor.variable_values, None, executor.hide_suggestions
        )

    def wait(
        self,
        level: "Level",
        position: Position,
        awaitable: Awaitable[Any],
        complete: Callable[[Any], Any] | None = None,
    ) -> Wait:
        wait = Wait(level, position, awaitable, complete)
        self._waits.append(wait)
        return wait

    def exact(self, level: "Level", value: Any, position: Position, info: Info | None) -> Any:
        """Have graphql-core complete the value, with all that is below it."""
        completed = self.executor.complete_value(
            level.type,
            level.field.details,
            info or self.info_at(level, position),
            path_of(position),
            value,
            None,
        )
        return self.wait(level, position, completed) if self.is_awaitable(completed) else completed

    def exact_fields(self, selection: "Selection", value: Any, position: Position) -> Any:
        """Have graphql-core execute the selection on an object whose type has been checked."""
        level = selection.level
        assert level is not None
        completed: Any = self.executor.collect_and_execute_subfields(
            selection.type, level.field.details, path_of(position), value, None
        )
        return self.wait(level, position, completed) if self.is_awaitable(completed) else completed

    def field_failed(self, field: "Field", error: Exception, position: Position) -> None:
        """Record the error of a field, given the position of its object. Raises it if the field may not be null."""
        path = Path(path_of(position), field.name, field.parent_type.name)
        self.executor.handle_field_error(error, field.level.type, field.details, path)

    def item_failed(self, level: "Level", error: Exception, position: Position, items: Sequence[Any]) -> Any:
        """Record the error of an item of a list; its value is null, or else the list is lost and the error raised."""
        try:
            self.executor.handle_field_error(error, level.type, level.field.details, path_of(position))
        except GraphQLError:
            # The list is lost. Awaitables further on in it still have to be awaited by someone.
            self.executor.track_async_work(items[position[1] + 1 :])
            raise

    # Settling

    async def _settle(self) -> None:
        try:
            while True:
                jobs = self._take_jobs()
                if len(jobs) == 1 and not self._tasks:
                    await self._await_alone(jobs[0])
                    continue
                for job in jobs:
                    self._start(job)
                if not self._tasks:
                    return
                await self._any_landing()
                self._land()
        except BaseException as error:
            for task in self._tasks:
                task.cancel()
            self._give_up(self._waits)
            # When the coroutine is closed, not cancelled, it may not await any more.
            if self._tasks and not isinstance(error, GeneratorExit):
                await asyncio.gather(*self._tasks, return_exceptions=True)
            raise

    def _take_jobs(self) -> "list[Wait | _Load]":
        self._drop_lost()
        asked, self.asked = self.asked, defaultdict(list)
        loads = self._loads(asked)
        if self._rising:
            self._raise_errors()
            self._drop_lost()
        waits, self._waits = self._waits, []
        groups: defaultdict[Level, Group] = defaultdict(Group)
        for wait in waits:
            wait.group = groups[wait.level]
            wait.group.waits.append(wait)
            wait.group.missing += 1
        return [*waits, *loads]

    def _loads(self, asked: "dict[Field, list[Slot]]") -> "list[_Load]":
        """One load for each batch function and arguments: two fields that load the same things do it together."""
        loads: list[_Load] = []
        for field, slots in asked.items():
            batch, arguments = field.batch, self.arguments(field)
            assert batch is not None
            load = next((load for load in loads if load.is_of(batch, arguments)), None)
            if load is None:
                load = _Load(batch, arguments)
                loads.append(load)
            for answer, key, position in slots:
                try:
                    load.keys[key] = None
                except TypeError as error:  # a key without a hash
                    self._slot_failed(field, error, answer, position)
                else:
                    load.slots.append((field, answer, key, position))
        return [load for load in loads if load.keys]

    async def _await_alone(self, job: "Wait | _Load") -> None:
        # Nothing else to do meanwhile: no need of a task.
        try:
            value = await self._awaitable_of(job)
        except Exception as error:
            self._failed(job, error)
        else:
            self._succeeded(job, value)
        self._raise_errors()

    def _awaitable_of(self, job: "Wait | _Load") -> Awaitable[Any]:
        return job.awaitable if isinstance(job, Wait) else job.load(self.executor.context_value)

    def _start(self, job: "Wait | _Load") -> None:
        awaitable = self._awaitable_of(job)
        task = asyncio.create_task(awaitable if asyncio.iscoroutine(awaitable) else _await(awaitable))
        self._tasks[task] = job
        task.add_done_callback(self._on_landing)

    def _on_landing(self, task: asyncio.Future[Any]) -> None:
        self._landed.append(task)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _any_landing(self) -> None:
        if not self._landed:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def _land(self) -> None:
        landed, self._landed = self._landed, []
        for task in landed:
            job = self._tasks.pop(task)
            if job is None:
                # Dropped. Its error, if any, has to be looked at or asyncio reports it.
                _ = task.cancelled() or task.exception()
                continue
            try:
                value = task.result()
            except Exception as error:
                self._failed(job, error)
            else:
                self._succeeded(job, value)
        if self._rising:
            self._raise_errors()
            self._cancel_lost()

    def _succeeded(self, job: "Wait | _Load", value: Any) -> None:
        if isinstance(job, Wait):
            job.group.values[job] = value
            self._one_less(job.group)
            return
        errors = self.executor.collected_errors.errors
        for field, answer, key, position in job.slots:
            if errors and self._is_lost(position):
                continue
            at = (position, field.name, field.parent_type.name)
            try:
                item = job.batch.value_of(value, key)
                fill = field.level.fills.get(type(item))
                if fill is not None:
                    completed: Any = {}
                    fill(self, completed, item, at)
                else:
                    completed = resume(self, field.level, item, at)
                    if type(completed) is Wait:
                        completed.place(answer, field.name)
            except Exception as error:
                self._fail(field.level, error, at, answer, field.name)
            else:
                answer[field.name] = completed

    def _failed(self, job: "Wait | _Load", error: Exception) -> None:
        if isinstance(job, Wait):
            # At once, not with the group: the error may make the rest of it pointless.
            self._fail(job.level, error, job.position, job.container, job.key)
            self._one_less(job.group)
            return
        for field, answer, _, position in job.slots:
            self._slot_failed(field, error, answer, position)

    def _one_less(self, group: Group) -> None:
        group.missing -= 1
        if group.missing:
            return
        for wait in group.waits:
            if wait in group.values and not self._is_lost(wait.position):
                self._complete(wait, group.values[wait])
        # The waits know the group: let go, or all of them stay until the garbage collector comes.
        group.waits.clear()
        group.values.clear()

    def _complete(self, wait: Wait, value: Any) -> None:
        try:
            if wait.complete is not None:
                value = wait.complete(value)
                if type(value) is Wait:
                    value.place(wait.container, wait.key)
        except Exception as error:
            self._fail(wait.level, error, wait.position, wait.container, wait.key)
        else:
            wait.container[wait.key] = value

    # Failing: what graphql-core does by raising through its coroutines, done from outside

    def _slot_failed(self, field: "Field", error: Exception, answer: dict[str, Any], position: Position) -> None:
        at = (position, field.name, field.parent_type.name)
        self._fail(field.level, error, at, answer, field.name)

    def _fail(self, level: "Level", error: Exception, position: Position, container: Any, key: str | int) -> None:
        path = path_of(position)
        try:
            self.executor.handle_field_error(error, level.type, level.field.details, path)
        except GraphQLError as located_error:
            self._rising.append((level, path, located_error))
        else:
            container[key] = None

    def _raise_errors(self) -> None:
        # After everything that landed at the same time, as it takes graphql-core a turn of the event loop to raise an
        # error through its coroutines: what fails meanwhile is reported too.
        rising, self._rising = self._rising, []
        for level, path, error in rising:
            self._null_around(level, path, error)

    def _null_around(self, level: "Level", path: Path, error: GraphQLError) -> None:
        """Make the nearest position around that may be null null. Raises the error if there is none."""
        around, at = level.parent, path.prev
        while around is not None and not around.nullable:
            assert at is not None
            around, at = around.parent, at.prev
        if at is None:
            raise error
        self.executor.collected_errors.add(error, at)
        container: Any = self.answer
        *keys, last = at.as_list()
        for key in keys:
            container = container[key]
            if container is None:
                return
        container[last] = None

    def _is_lost(self, position: Position) -> bool:
        """Whether the position is in a part of the answer that an error has made null."""
        errors = self.executor.collected_errors
        return bool(errors.errors) and errors.has_nulled_position(path_of(position))

    def _drop_lost(self) -> None:
        """Forget what was left in parts of the answer that are null by now."""
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
        for task, job in self._tasks.items():
            if isinstance(job, Wait) and self._is_lost(job.position):
                self._tasks[task] = None
                task.cancel()
                self._one_less(job.group)

    def _give_up(self, waits: list[Wait]) -> None:
        if waits:
            self.executor.settle_in_background([wait.awaitable for wait in waits])


class _Load:
    """One call of a batch function: the keys, and who asked for them."""

    def __init__(self, batch: Batch, arguments: dict[str, Any]) -> None:
        self.batch = batch
        self.arguments = arguments
        # A dict for its order: every key once, as first asked for.
        self.keys: dict[Any, None] = {}
        self.slots: list[tuple[Field, dict[str, Any], Any, Position]] = []

    def is_of(self, batch: Batch, arguments: dict[str, Any]) -> bool:
        return (
            self.batch.load == batch.load
            and self.batch.many == batch.many
            and self.arguments == arguments
            # 1 and True are equal, and yet two arguments.
            and repr(self.arguments) == repr(arguments)
        )

    async def load(self, context: Any) -> Any:
        return await self.batch.load(context, list(self.keys), **self.arguments)


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
