"""The judge of a fault run. It decides only from what clients logged and from the final state of the database.

It implements the contract without a line of the server's code: who may see a task, which filter finds it, and how
each user is shown a change.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple


class Seen(NamedTuple):
    """The part of a task that clients are shown."""

    title: str
    status: str
    priority: str
    assignee_id: str | None
    version: int


# A task as stored in an event: the JSON of `events.before` and `.after`.
Snapshot = Mapping[str, Any]


class Event(NamedTuple):
    """A row of `events`. `position` is None until the relay has placed it."""

    position: int | None
    task_id: str
    before: Snapshot | None
    after: Snapshot | None
    mutation_id: str | None = None


class Answer(NamedTuple):
    """One answer to a mutation that a client sent with an id, perhaps several times."""

    mutation_id: str
    # The payload as JSON, but for `replayed` and cursors, so that answers can be compared.
    payload: str
    was_refused: bool
    # The positions of its changes, in order.
    positions: tuple[int, ...]
    is_replay: bool


class Acknowledged(NamedTuple):
    """The answer to a mutation: the task after it, or None for a deletion."""

    task_id: str
    task: Seen | None


class Told(NamedTuple):
    """One change as a client received it."""

    position: int
    kind: str
    task_id: str
    task: Seen | None
    # The version before the change, if the client was shown the task before it.
    previous: int | None


@dataclass
class Listener:
    """The log of one client with a replica: its user, its filter, its first cursor and the changes it received."""

    name: str
    user_id: str
    is_admin: bool = False
    filter: str = "everything"
    since: int = 0
    told: list[Told] = field(default_factory=list)
    replica: dict[str, Seen] = field(default_factory=dict)
    # The answer to a query of the same user with the same filter, at the end.
    fresh: dict[str, Seen] = field(default_factory=dict)

    def hear(self, told: Told) -> None:
        self.told.append(told)
        if told.task is None:
            self.replica.pop(told.task_id, None)
        else:
            self.replica[told.task_id] = told.task

    def sees(self, task: Snapshot | None) -> bool:
        return task is not None and (self.is_admin or self.user_id in (task["creator_id"], task["assignee_id"]))

    def finds(self, task: Snapshot | None) -> bool:
        if task is None or not self.sees(task):
            return False
        match self.filter:
            case "everything":
                return True
            case "pending":
                return bool(task["status"] == "PENDING")
            case "mine":
                return bool(task["assignee_id"] == self.user_id)
            case "high or done":
                return bool(task["priority"] == "HIGH" or task["status"] == "COMPLETED")
        raise AssertionError(self.filter)

    def kind_of(self, event: Event) -> str | None:
        """The kind of the change for this listener, or None if it must not be sent."""
        match self.finds(event.before), self.finds(event.after):
            case False, False:
                return None
            case False, True:
                return "CREATED" if event.before is None else "ENTERED"
            case True, False:
                return "DELETED" if event.after is None else "LEFT"
        return "UPDATED"


FILTERS: dict[str, dict[str, Any] | None] = {
    "everything": None,
    "pending": {"status": {"eq": "PENDING"}},
    "mine": {"assignee": {"isMe": True}},
    "high or done": {"or": [{"priority": {"eq": "HIGH"}}, {"status": {"eq": "COMPLETED"}}]},
}


@dataclass
class Verdict:
    """The violations found, by promise. Each list is empty if the promise was kept."""

    acknowledged_writes_lost: list[str] = field(default_factory=list)
    mutations_done_twice: list[str] = field(default_factory=list)
    mutations_answered_differently: list[str] = field(default_factory=list)
    mutations_refused_and_done: list[str] = field(default_factory=list)
    batches_half_done: list[str] = field(default_factory=list)
    positions_wrong: list[str] = field(default_factory=list)
    changes_missed: list[str] = field(default_factory=list)
    repeats: list[str] = field(default_factory=list)
    order_violations: list[str] = field(default_factory=list)
    events_never_committed: list[str] = field(default_factory=list)
    events_without_permission: list[str] = field(default_factory=list)
    changes_of_wrong_kind: list[str] = field(default_factory=list)
    replicas_unlike_query: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {each.name: len(getattr(self, each.name)) for each in fields(self)}

    def complaints(self) -> list[str]:
        return [f"{each.name}: {words}" for each in fields(self) for words in getattr(self, each.name)]


def seen(task: Snapshot) -> Seen:
    return Seen(task["title"], task["status"], task["priority"], task["assignee_id"], task["version"])


def check(
    record: Iterable[Event],
    tasks: Mapping[str, Seen],
    acknowledged: Iterable[Acknowledged],
    listeners: Iterable[Listener],
    answers: Iterable[Answer] = (),
    batches: Mapping[str, int] = {},
) -> Verdict:
    """`record` is all of `events`, and `tasks` all of `tasks`, read when everything has settled.

    `batches` holds how many changes each ALL_OR_NOTHING batch makes if it is done, by mutation id.
    """
    verdict = Verdict()
    events = list(record)
    _check_positions(events, verdict)
    _check_writes(events, tasks, acknowledged, verdict)
    _check_answers(events, answers, batches, verdict)
    placed = {event.position: event for event in events if event.position is not None}
    for listener in listeners:
        _check_listener(listener, placed, verdict)
    return verdict


def _check_positions(events: list[Event], verdict: Verdict) -> None:
    """Positions run from 1 without a gap, and those of one task follow its versions.

    A deletion is a version too, which a task that comes back has behind it.
    """
    positions = sorted(event.position or 0 for event in events)
    if positions != list(range(1, len(events) + 1)):
        verdict.positions_wrong.append(f"{len(events)} events have the positions {positions[:3]}…{positions[-3:]}")
    versions: dict[str, int] = {}
    for event in sorted(events, key=lambda event: event.position or 0):
        last = versions.get(event.task_id, 0)
        before = event.before["version"] if event.before else last
        after = event.after["version"] if event.after else last + 1
        if (before, after) != (last, last + 1):
            verdict.positions_wrong.append(f"{event.task_id} at {event.position} follows on a version not its own")
        versions[event.task_id] = after


def _check_writes(
    events: list[Event], tasks: Mapping[str, Seen], acknowledged: Iterable[Acknowledged], verdict: Verdict
) -> None:
    recorded = {(event.task_id, seen(event.after) if event.after else None) for event in events}
    for write in acknowledged:
        if write not in recorded:
            verdict.acknowledged_writes_lost.append(f"{write} is not in the record")
    last: dict[str, Seen | None] = {}
    for event in sorted(events, key=lambda event: event.position or 0):
        last[event.task_id] = seen(event.after) if event.after else None
    for task_id in last.keys() | tasks.keys():
        if last.get(task_id) != tasks.get(task_id):
            verdict.acknowledged_writes_lost.append(
                f"{task_id} is {tasks.get(task_id)}, and by the record {last.get(task_id)}"
            )


def _check_answers(
    events: list[Event], answers: Iterable[Answer], batches: Mapping[str, int], verdict: Verdict
) -> None:
    """A mutation with an id is done once or not at all, as all its answers say. None changes a task twice."""
    positions: defaultdict[str, list[int]] = defaultdict(list)
    task_ids: defaultdict[str, list[str]] = defaultdict(list)
    for event in events:
        if event.mutation_id is not None:
            positions[event.mutation_id].append(event.position or 0)
            task_ids[event.mutation_id].append(event.task_id)
    for mutation_id, ids in task_ids.items():
        if len(set(ids)) < len(ids):
            verdict.mutations_done_twice.append(f"{mutation_id} made the events at {positions[mutation_id]}")
    for mutation_id, count in batches.items():
        if len(positions[mutation_id]) not in (0, count):
            verdict.batches_half_done.append(f"{mutation_id} made {positions[mutation_id]} of {count} changes")
    first_answers: dict[str, Answer] = {}
    for answer in answers:
        first = first_answers.setdefault(answer.mutation_id, answer)
        if (first.payload, first.positions) != (answer.payload, answer.positions):
            verdict.mutations_answered_differently.append(f"{first} and {answer}")
        if not answer.is_replay and first is not answer and not first.is_replay:
            verdict.mutations_answered_differently.append(f"{answer.mutation_id} was twice answered as new")
        if answer.was_refused and positions[answer.mutation_id]:
            verdict.mutations_refused_and_done.append(f"{answer}")
        elif sorted(positions[answer.mutation_id]) != sorted(answer.positions):
            verdict.acknowledged_writes_lost.append(f"{answer}, and the record has {positions[answer.mutation_id]}")


def _check_listener(listener: Listener, placed: Mapping[int, Event], verdict: Verdict) -> None:
    name = listener.name
    times_told = Counter(told.position for told in listener.told)
    for position, event in placed.items():
        if position > listener.since and listener.kind_of(event) and not times_told[position]:
            verdict.changes_missed.append(f"{name} was not told of {position}")
    verdict.repeats += [
        f"{name} was told of {position} {times} times" for position, times in times_told.items() if times > 1
    ]

    last_position: defaultdict[str, int] = defaultdict(int)
    for told in listener.told:
        if told.position < last_position[told.task_id]:
            verdict.order_violations.append(f"{name} was told of {told.position} after {last_position[told.task_id]}")
        last_position[told.task_id] = max(last_position[told.task_id], told.position)
        _check_told(listener, told, placed.get(told.position), verdict)

    for task_id in listener.replica.keys() | listener.fresh.keys():
        if listener.replica.get(task_id) != listener.fresh.get(task_id):
            verdict.replicas_unlike_query.append(
                f"{name} has {task_id} as {listener.replica.get(task_id)}, a query {listener.fresh.get(task_id)}"
            )


def _check_told(listener: Listener, told: Told, event: Event | None, verdict: Verdict) -> None:
    name = listener.name
    if event is None or event.task_id != told.task_id:
        verdict.events_never_committed.append(f"{name} was told {told}")
        return
    if told.task is not None and (event.after is None or seen(event.after) != told.task):
        verdict.events_never_committed.append(f"{name} was told {told}, committed was {event.after}")
    may_be_told = listener.sees(event.before) or listener.sees(event.after)
    shown_too_much = (told.task is not None and not listener.sees(event.after)) or (
        told.previous is not None and not listener.sees(event.before)
    )
    if not may_be_told or shown_too_much:
        verdict.events_without_permission.append(f"{name} was told {told}")
    elif told.kind != listener.kind_of(event):
        verdict.changes_of_wrong_kind.append(f"{name} was told {told}, which is {listener.kind_of(event)} to them")
