"""Tests of the checker, with logs that have one thing wrong: a checker that never complains proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.checker import Acknowledged, Answer, Event, Listener, Snapshot, Told, Verdict, check, seen

ANN, BOB, EVE = "ann", "bob", "eve"


def task(version: int, *, status: str = "PENDING", assignee: str | None = None, title: str = "A task") -> Snapshot:
    return {
        "title": title,
        "status": status,
        "priority": "LOW",
        "creator_id": ANN,
        "assignee_id": assignee,
        "version": version,
    }


# Ann creates t, assigns it to Bob, unassigns it, creates u, completes t and deletes u.
T = [task(1), task(2, assignee=BOB), task(3), task(4, status="COMPLETED")]
U = [task(1, title="Another")]
RECORD = [
    Event(1, "t", None, T[0]),
    Event(2, "t", T[0], T[1]),
    Event(3, "u", None, U[0]),
    Event(4, "t", T[1], T[2]),
    Event(5, "t", T[2], T[3]),
    Event(6, "u", U[0], None),
]
TASKS = {"t": seen(T[3])}
ACKNOWLEDGED = [
    *(Acknowledged("t", seen(each)) for each in T),
    Acknowledged("u", seen(U[0])),
    Acknowledged("u", None),
]
ANN_TOLD = [
    Told(1, "CREATED", "t", seen(T[0]), None),
    Told(2, "UPDATED", "t", seen(T[1]), 1),
    Told(3, "CREATED", "u", seen(U[0]), None),
    Told(4, "UPDATED", "t", seen(T[2]), 2),
    Told(5, "UPDATED", "t", seen(T[3]), 3),
    Told(6, "DELETED", "u", None, 1),
]
BOB_TOLD = [Told(2, "ENTERED", "t", seen(T[1]), None), Told(4, "LEFT", "t", None, 2)]


def listener(name: str, told: list[Told], **fields: object) -> Listener:
    made = Listener(name, name, **fields)  # type: ignore[arg-type]
    for each in told:
        made.hear(each)
    return made


def verdict_on(*listeners: Listener) -> Verdict:
    return check(RECORD, TASKS, ACKNOWLEDGED, listeners)


def ann(told: list[Told] = ANN_TOLD) -> Listener:
    return listener(ANN, told, fresh={"t": seen(T[3])})


def found(verdict: Verdict) -> dict[str, int]:
    return {name: count for name, count in verdict.counts().items() if count}


def test_a_run_without_errors_has_no_complaints() -> None:
    pending = listener(
        ANN,
        [
            ANN_TOLD[0],
            ANN_TOLD[1],
            ANN_TOLD[2],
            ANN_TOLD[3],
            Told(5, "LEFT", "t", None, 3),
            ANN_TOLD[5],
        ],
        filter="pending",
    )
    admin = listener(EVE, ANN_TOLD, is_admin=True, fresh={"t": seen(T[3])})
    late = listener(BOB, BOB_TOLD[1:], since=2)
    mine = listener(BOB, BOB_TOLD, filter="mine")
    assert verdict_on(ann(), pending, admin, listener(BOB, BOB_TOLD), late, mine, listener(EVE, [])) == Verdict()


@pytest.mark.parametrize("index", range(len(ANN_TOLD)))
def test_each_left_out_event_is_reported_as_missed(index: int) -> None:
    assert verdict_on(ann(ANN_TOLD[:index] + ANN_TOLD[index + 1 :])).changes_missed == [
        f"ann was not told of {index + 1}"
    ]


def test_events_before_the_cursor_are_not_missed() -> None:
    late = ann(ANN_TOLD[3:])
    late.since = 3
    assert verdict_on(late) == Verdict()


@pytest.mark.parametrize("index", range(len(ANN_TOLD)))
def test_each_event_told_twice_is_reported_as_a_repeat(index: int) -> None:
    twice = ann(ANN_TOLD[: index + 1] + ANN_TOLD[index:])
    assert found(verdict_on(twice)) == {"repeats": 1}


def test_a_repeat_after_later_changes_also_breaks_the_order() -> None:
    verdict = verdict_on(ann([*ANN_TOLD[:4], ANN_TOLD[0], *ANN_TOLD[4:]]))
    assert found(verdict) == {"repeats": 1, "order_violations": 1}


def test_swapped_changes_of_one_task_are_reported() -> None:
    swapped = [ANN_TOLD[1], ANN_TOLD[0], *ANN_TOLD[2:]]
    assert verdict_on(ann(swapped)).order_violations == ["ann was told of 1 after 2"]
    other_tasks = [ANN_TOLD[0], ANN_TOLD[2], ANN_TOLD[1], *ANN_TOLD[3:]]
    assert verdict_on(ann(other_tasks)) == Verdict()


@pytest.mark.parametrize(
    "phantom",
    [
        Told(7, "UPDATED", "t", seen(task(5, title="Rolled back")), 4),
        Told(7, "DELETED", "t", None, 4),
        Told(3, "CREATED", "t", seen(T[0]), None),
    ],
)
def test_an_event_that_is_not_in_the_record_is_reported_as_never_committed(phantom: Told) -> None:
    told = [each for each in ANN_TOLD if each.position != phantom.position]
    assert len(verdict_on(ann([*told, phantom])).events_never_committed) == 1


def test_content_that_differs_from_the_record_is_reported_as_never_committed() -> None:
    false = ANN_TOLD[1]._replace(task=seen(task(2, assignee=BOB, title="Rolled back")))
    assert found(verdict_on(ann([ANN_TOLD[0], false, *ANN_TOLD[2:]]))) == {"events_never_committed": 1}


def test_an_event_of_somebody_elses_task_is_reported_as_seen_without_permission() -> None:
    assert found(verdict_on(listener(EVE, [Told(6, "DELETED", "u", None, 1)]))) == {"events_without_permission": 1}
    assert found(verdict_on(listener(BOB, [*BOB_TOLD, Told(5, "UPDATED", "t", seen(T[3]), 3)], fresh=TASKS))) == {
        "events_without_permission": 1
    }


def test_showing_the_hidden_side_of_a_change_is_reported_as_seen_without_permission() -> None:
    before = listener(BOB, [BOB_TOLD[0]._replace(previous=1), BOB_TOLD[1]])
    after = listener(BOB, [BOB_TOLD[0], BOB_TOLD[1]._replace(task=seen(T[2]))], fresh={"t": seen(T[2])})
    assert found(verdict_on(before)) == {"events_without_permission": 1}
    assert found(verdict_on(after)) == {"events_without_permission": 1}


def test_a_change_of_the_wrong_kind_is_reported() -> None:
    told = [BOB_TOLD[0]._replace(kind="CREATED"), BOB_TOLD[1]]
    assert found(verdict_on(listener(BOB, told))) == {"changes_of_wrong_kind": 1}
    assert found(verdict_on(listener(ANN, ANN_TOLD[:5], filter="mine", fresh=TASKS, since=6))) == {
        "changes_of_wrong_kind": 5,
        "replicas_unlike_query": 1,
    }


def test_a_replica_that_differs_from_a_query_is_reported() -> None:
    replica = ann()
    replica.fresh = {"t": seen(T[2])}
    assert len(verdict_on(replica).replicas_unlike_query) == 1
    replica.fresh = {}
    assert len(verdict_on(replica).replicas_unlike_query) == 1


@pytest.mark.parametrize(
    "lost", [Acknowledged("t", seen(task(5))), Acknowledged("t", None), Acknowledged("v", seen(task(1)))], ids=str
)
def test_an_acknowledged_write_that_is_not_in_the_record_is_reported_as_lost(lost: Acknowledged) -> None:
    assert check(RECORD, TASKS, [*ACKNOWLEDGED, lost], []).acknowledged_writes_lost == [f"{lost} is not in the record"]


@pytest.mark.parametrize(
    "tasks", [{}, {"t": seen(T[2])}, {"t": seen(T[3]), "u": seen(U[0])}, {"t": seen(T[3]), "v": seen(U[0])}]
)
def test_tasks_that_differ_from_the_record_are_reported_as_lost_writes(tasks: dict[str, object]) -> None:
    assert len(check(RECORD, tasks, [], []).acknowledged_writes_lost) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record[:2] + record[3:5],
        lambda record: [*record[:5], record[5]._replace(position=None)],
        lambda record: [*record[:5], record[5]._replace(position=5)],
        lambda record: [record[1]._replace(position=1), record[0]._replace(position=2), *record[2:]],
    ],
    ids=["a gap", "not placed", "placed twice", "against the versions"],
)
def test_wrong_positions_are_reported(spoil: Callable[[list[Event]], list[Event]]) -> None:
    assert check(spoil(RECORD), TASKS, [], []).positions_wrong != []


def test_complaints_name_the_promise_and_the_client() -> None:
    verdict = verdict_on(ann(ANN_TOLD[:5]), replace(ann(), name="ann on SSE", told=ANN_TOLD[1:]))
    assert verdict.complaints() == [
        "changes_missed: ann was not told of 6",
        "changes_missed: ann on SSE was not told of 1",
        f"replicas_unlike_query: ann has u as {seen(U[0])}, a query None",
    ]


ONCE = [Event(1, "t", None, T[0], "m"), Event(2, "t", T[0], T[1])]
DONE = Answer("m", "{}", was_refused=False, positions=(1,), is_replay=False)


@pytest.mark.parametrize(
    ("record", "answers", "wrong"),
    [
        (ONCE, [DONE, DONE._replace(is_replay=True)], None),
        (ONCE, [DONE._replace(is_replay=True), DONE], None),
        (ONCE[1:], [DONE._replace(was_refused=True, positions=())], None),
        ([ONCE[0], ONCE[1]._replace(mutation_id="m")], [], "mutations_done_twice"),
        (ONCE, [DONE, DONE._replace(payload="[]", is_replay=True)], "mutations_answered_differently"),
        (ONCE, [DONE, DONE._replace(payload="{}")], "mutations_answered_differently"),
        (ONCE, [DONE._replace(was_refused=True, positions=())], "mutations_refused_and_done"),
        (ONCE, [DONE._replace(mutation_id="lost")], "acknowledged_writes_lost"),
        (ONCE, [DONE._replace(positions=(2,))], "acknowledged_writes_lost"),
    ],
)
def test_answers_to_mutations_with_an_id(record: list[Event], answers: list[Answer], wrong: str | None) -> None:
    counts = check(record, {"t": seen(T[1])}, [], [], answers).counts()
    found = {name for name, count in counts.items() if count}
    assert found - {"positions_wrong"} == ({wrong} if wrong else set())


@pytest.mark.parametrize(("changes", "is_wrong"), [(0, False), (2, False), (1, True)])
def test_a_batch_of_all_or_nothing_makes_all_its_changes_or_none(changes: int, is_wrong: bool) -> None:
    made = [Event(1, "t", None, T[0], "m"), Event(2, "u", None, U[0], "m")][:changes]
    counts = check(made, {}, [], [], batches={"m": 2}).counts()
    assert counts["batches_half_done"] == is_wrong


@pytest.mark.parametrize(("version", "is_wrong"), [(3, False), (1, True), (2, True)])
def test_a_task_that_comes_back_has_the_version_after_its_deletion(version: int, is_wrong: bool) -> None:
    record = [
        Event(1, "t", None, T[0]),
        Event(2, "t", T[0], None),
        Event(3, "t", None, {**T[0], "version": version}),
    ]
    assert check(record, {}, [], []).counts()["positions_wrong"] == is_wrong
