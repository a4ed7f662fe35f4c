"""Random programs of mutations, repeats, batches and undos by several people, beside a model of what they mean."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskflow_gql.database.units import Database
from tests.support.client import Api, Person
from tests.support.serving import make_admin

pytestmark = pytest.mark.slow

ERRORS = "errors { code field conflictingFields }"
TASK = "task { id title status priority assignee { username } version }"
PAYLOADS = ("CreateTask", "UpdateTask", "SetTaskStatus", "ToggleTaskCompletion")
RESULTS = " ".join(f"... on {name}Payload {{ {TASK} {ERRORS} }}" for name in PAYLOADS)
BATCH = f"results {{ __typename {RESULTS} ... on DeleteTaskPayload {{ deletedTaskId {ERRORS} }} }} replayed {ERRORS}"
SELECTIONS = {
    "deleteTask": f"deletedTaskId replayed {ERRORS}",
    "applyMutations": BATCH,
    "undo": f"undone {{ taskId kind }} conflicts {{ subjectId fields }} replayed {ERRORS}",
}
READ = f"query($ids: [ID!]!) {{ nodes(ids: $ids) {{ ... on Task {{ {TASK[7:-2]} }} }} }}"
HISTORY = "query($id: ID!) { task(id: $id) { history(first: 100) { nodes { kind mutationId task { version } } } } }"

PEOPLE = ("ann", "bob", "root")
FIELDS = ("title", "status", "priority", "assignee")
TaskState: TypeAlias = dict[str, Any]
Change: TypeAlias = tuple[str, TaskState | None, TaskState | None, int]


# Programs. Tasks and earlier mutations are named by numbers that are taken modulo how many there are.

people = st.sampled_from(PEOPLE)
numbers = st.integers(0, 7)
# Few tasks, so that they are changed often.
few = st.integers(0, 2)
titles = st.sampled_from(["One title", "Two titles", "Three titles"])
statuses = st.sampled_from(["PENDING", "IN_PROGRESS", "COMPLETED"])
changes = st.fixed_dictionaries(
    {},
    optional={
        "title": titles,
        "status": statuses,
        "priority": st.sampled_from(["LOW", "HIGH"]),
        "assignee": st.none() | people,
    },
)
# How many versions before the present one the client expects, and whether it merges; None to expect nothing.
expected = st.none() | st.tuples(st.sampled_from([-1, 0, 1, 1, 2, 3]), st.booleans())
mutations = st.one_of(
    st.tuples(st.just("createTask"), titles, st.none() | people, st.none() | st.none() | few),
    st.tuples(st.just("updateTask"), few, changes, expected),
    st.tuples(st.just("updateTask"), few, changes, st.tuples(st.sampled_from([1, 2]), st.just(True))),
    st.tuples(st.just("updateTask"), few, changes, st.none()),
    st.tuples(st.just("setTaskStatus"), few, statuses, expected),
    st.tuples(st.just("toggleTaskCompletion"), few, expected),
    st.tuples(st.just("deleteTask"), few, expected),
)
steps = st.one_of(
    st.tuples(people, mutations),
    st.tuples(people, mutations),
    st.tuples(
        people,
        st.tuples(
            st.just("applyMutations"),
            st.sampled_from(["ALL_OR_NOTHING", "EACH"]),
            st.lists(mutations, min_size=1, max_size=5),
        ),
    ),
    st.tuples(people, st.tuples(st.just("undo"), numbers, st.sampled_from(["SKIP", "REFUSE"]))),
    st.tuples(people, st.tuples(st.just("undo"), numbers, st.just("SKIP"))),
    st.tuples(people, st.tuples(st.just("repeat"), numbers)),
)


class Refused(Exception):
    def __init__(self, code: str, *, task: TaskState | None = None, fields: tuple[str, ...] = ()) -> None:
        self.code, self.task, self.fields = code, task, fields


@dataclass
class Model:
    """Tasks, their versions, and what each mutation did."""

    tasks: dict[str, TaskState] = field(default_factory=dict)
    # The states of a task by version, and all ids that were ever used.
    versions: dict[tuple[str, int], TaskState] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    # How often each task was deleted.
    deletions: Counter[str] = field(default_factory=Counter)
    # The changes of the mutation that runs: the state of a task before and after, and the number of its deletions.
    log: list[Change] = field(default_factory=list)

    def sees(self, who: str, task: TaskState) -> bool:
        return who == "root" or who in (task["creator"], task["assignee"])

    def owns(self, who: str, task: TaskState) -> bool:
        return who in ("root", task["creator"])

    def write(self, id_: str, after: TaskState | None) -> None:
        before = self.tasks.get(id_)
        self.deletions[id_] += after is None
        self.log.append((id_, before, after, self.deletions[id_]))
        if after is None:
            del self.tasks[id_]
        else:
            self.tasks[id_] = self.versions[id_, after["version"]] = after
            self.used.add(id_)

    def change(self, id_: str, values: TaskState) -> TaskState:
        task = self.tasks[id_]
        if any(task[name] != value for name, value in values.items()):
            self.write(id_, {**task, **values, "version": task["version"] + 1})
        return self.tasks[id_]

    def run(self, who: str, name: str, given: dict[str, Any]) -> Any:
        """The task that the payload shows, or the id of the deleted one. Raises Refused."""
        if name == "createTask":
            if given["id"] in self.used:
                raise Refused("ID_TAKEN")
            task = {"title": given["title"], "status": "PENDING", "priority": "MEDIUM", "assignee": given["assignee"]}
            self.write(given["id"], {"id": given["id"], **task, "creator": who, "version": 1})
            return self.tasks[given["id"]]
        found = self.tasks.get(given["id"])
        if found is None or not self.sees(who, found):
            raise Refused("NOT_FOUND")
        if name in ("updateTask", "deleteTask") and not self.owns(who, found):
            raise Refused("FORBIDDEN")
        seen = self.seen(who, found, given, merges=name != "deleteTask")
        if name == "deleteTask":
            self.write(found["id"], None)
            return found["id"]
        if name == "updateTask":
            values = {key: given[key] for key in FIELDS if key in given}
        elif name == "setTaskStatus":
            values = {"status": given["status"]}
        else:
            values = {"status": "PENDING" if seen["status"] == "COMPLETED" else "COMPLETED"}
        values = {key: value for key, value in values.items() if value != seen[key]}
        conflicting = tuple(key for key, value in values.items() if found[key] not in (seen[key], value))
        if conflicting:
            raise Refused("VERSION_CONFLICT", task=found, fields=conflicting)
        return self.change(found["id"], values)

    def seen(self, who: str, found: TaskState, given: dict[str, Any], *, merges: bool) -> TaskState:
        version = given.get("expectedVersion")
        if version in (None, found["version"]):
            return found
        seen = self.versions.get((found["id"], version)) if version < found["version"] else None
        if given["onConflict"] == "MERGE" and merges and seen is not None and self.sees(who, seen):
            return seen
        raise Refused("VERSION_CONFLICT", task=found)

    def undo(self, who: str, log: list[Change], policy: str) -> tuple[list[tuple[str, str]], dict[str, set[str]]]:
        """The changes by task and kind, and the fields in conflict by task."""
        wanted, conflicts = self.wanted(log)
        for id_, want in wanted.items():
            self.forbid(who, id_, want, log, wanted, conflicts)
        conflicts = {id_: names for id_, names in conflicts.items() if names}
        if conflicts and policy == "REFUSE":
            raise Refused("VERSION_CONFLICT")
        undone = []
        for id_, want in wanted.items():
            found = self.tasks.get(id_)
            if want == found:
                continue
            undone.append((id_, "DELETED" if want is None else "CREATED" if found is None else "UPDATED"))
            version = want and (want["version"] + 2 if found is None else found["version"] + 1)
            self.write(id_, want and {**want, "version": version})
        return undone, {id_: names - {""} for id_, names in conflicts.items()}

    def wanted(self, log: list[Change]) -> tuple[dict[str, TaskState | None], dict[str, set[str]]]:
        wanted = {id_: copy.copy(self.tasks.get(id_)) for id_, *_ in log}
        conflicts: dict[str, set[str]] = {id_: set() for id_ in wanted}
        for id_, before, after, deletion in reversed(log):
            want = wanted[id_]
            if before is None:
                assert after is not None
                differing = {name for name in FIELDS if want is not None and want[name] != after[name]}
                conflicts[id_] |= differing
                wanted[id_] = want if differing else None
                continue
            if after is None:
                if want is None and deletion == self.deletions[id_]:
                    wanted[id_] = dict(before)
                elif want is None:
                    conflicts[id_].add("")
                continue
            for name in FIELDS:
                if before[name] == after[name]:
                    continue
                if want is None or want[name] not in (before[name], after[name]):
                    conflicts[id_].add(name)
                else:
                    want[name] = before[name]
        return wanted, conflicts

    def forbid(
        self,
        who: str,
        id_: str,
        want: TaskState | None,
        log: list[Change],
        wanted: dict[str, TaskState | None],
        conflicts: dict[str, set[str]],
    ) -> None:
        found = self.tasks.get(id_)
        theirs = {
            name
            for each, before, after, _ in log
            if each == id_ and before is not None and after is not None
            for name in FIELDS
            if before[name] != after[name]
        }
        is_hidden = found is not None and not self.sees(who, found)
        is_not_theirs = found is None and want is not None and not self.owns(who, want)
        if is_hidden or is_not_theirs or (found is not None and want is None and not self.owns(who, found)):
            wanted[id_], conflicts[id_] = found, theirs or {""}
        elif found is not None and want is not None:
            for name in FIELDS:
                if want[name] != found[name] and name != "status" and not self.owns(who, found):
                    conflicts[id_].add(name)
                    want[name] = found[name]


class Program:
    """One program: it sends each step to the server and to the model, and compares the answers."""

    def __init__(self, api: Api, people: dict[str, Person], taken: Counter[str]) -> None:
        self.api, self.people, self.taken = api, people, taken
        self.model = Model()
        self.ids: list[str] = []
        # For each mutation sent: who, its field, its input, its answer, and what it did.
        self.sent: list[tuple[str, str, dict[str, Any], Any, list[Any]]] = []

    async def run(self, program: list[tuple[str, Any]]) -> None:
        for who, other in (("ann", "bob"), ("bob", "ann"), ("ann", None)):
            _, given = self.part(who, ("createTask", "First title", other, None)).popitem()
            await self.send(who, "createTask", given)
            # Versions to merge with.
            await self.send(who, "updateTask", {"id": given["id"], "title": "Next title"})
        for who, step in program:
            match step:
                case "repeat", int(number):
                    await self.repeat(number)
                case "applyMutations", str(mode), list(parts):
                    # A task that an earlier part makes can be named by a later one.
                    given = {"mode": mode, "mutations": [self.part(who, part) for part in parts]}
                    await self.send(who, "applyMutations", given)
                case "undo", int(number), str(policy):
                    # Sometimes another person's, which is not found.
                    known = [each for each in self.sent if each[0] == who or number == 7] or self.sent
                    _, _, earlier, _, _ = known[-1 - number % len(known)]
                    await self.send(who, "undo", {"undoes": earlier["mutationId"], "onConflict": policy})
                case mutation:
                    name, given = self.part(who, mutation).popitem()
                    await self.send(who, name, given)

    def part(self, who: str, mutation: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
        name, *arguments = mutation
        if name == "createTask":
            title, assignee, number = arguments
            given = {"title": title, "id": str(uuid4())}
            if number is not None:
                given["id"] = self.ids[number % len(self.ids)]
            else:
                self.ids.append(given["id"])
            return {name: given | {"assigneeId": assignee and self.people[assignee].id}}
        number, *values, expects = arguments
        given = {"id": self.ids[number % len(self.ids)]}
        for value in values:
            given |= value if isinstance(value, dict) else {"status": value}
        if "assignee" in given:
            assignee = given.pop("assignee")
            given["assigneeId"] = assignee and self.people[assignee].id
        task = self.model.tasks.get(given["id"])
        if expects is not None and task is not None:
            behind, merges = expects
            given |= {"expectedVersion": task["version"] - behind, "onConflict": "MERGE" if merges else "REFUSE"}
        return {name: given}

    async def ask(self, who: str, name: str, given: dict[str, Any]) -> Any:
        kind = f"{name[0].upper()}{name[1:]}Input"
        selection = SELECTIONS.get(name, f"{TASK} replayed {ERRORS}")
        document = f"mutation($input: {kind}!) {{ {name}(input: $input) {{ {selection} }} }}"
        return (await self.api.data(document, {"input": given}, by=self.people[who]))[name]

    async def send(self, who: str, name: str, given: dict[str, Any]) -> None:
        given = given | {"mutationId": str(uuid4())}
        answer = await self.ask(who, name, given)
        self.model.log = []
        expected = self.answer(who, name, given)
        assert comparable(answer) == comparable(expected), (who, name, given)
        self.sent.append((who, name, given, answer, self.model.log))

    async def repeat(self, number: int) -> None:
        who, name, given, answer, _ = self.sent[number % len(self.sent)]
        again = await self.ask(who, name, given)
        self.taken["repeat"] += 1
        assert again.pop("replayed") is True
        assert again == {key: value for key, value in answer.items() if key != "replayed"}

    def answer(self, who: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
        if name == "applyMutations":
            return self.answer_of_batch(who, given)
        if name == "undo":
            return self.answer_of_undo(who, given)
        return self.answer_of_mutation(who, name, given)

    def answer_of_mutation(self, who: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
        given = dict(given)
        if "assigneeId" in given:
            by_id = {person.id: username for username, person in self.people.items()}
            given["assignee"] = given["assigneeId"] and by_id[given["assigneeId"]]
        entity = "deletedTaskId" if name == "deleteTask" else "task"
        try:
            found = self.model.run(who, name, given)
        except Refused as refused:
            self.taken[refused.code] += 1
            shown = None if name == "deleteTask" else refused.task
            return {entity: shown, "errors": [(refused.code, sorted(refused.fields))]}
        if entity == "task" and given.get("onConflict") == "MERGE" and given["expectedVersion"] < found["version"] - 1:
            self.taken["merge"] += 1
        return {entity: found, "errors": []}

    def answer_of_batch(self, who: str, given: dict[str, Any]) -> dict[str, Any]:
        before = copy.deepcopy(self.model)
        results: list[dict[str, Any]] = []
        for index, part in enumerate(given["mutations"]):
            ((name, values),) = part.items()
            results.append(self.answer_of_mutation(who, name, values))
            if results[-1]["errors"] and given["mode"] == "ALL_OR_NOTHING":
                self.model = before
                self.taken["not applied"] += 1
                refused = results[-1]
                if refused.get("task"):
                    # As it stands: what earlier mutations of the batch made of it was rolled back.
                    stands = before.tasks.get(refused["task"]["id"])
                    refused["task"] = stands if stands and before.sees(who, stands) else None
                results = [
                    {"deletedTaskId" if "deleteTask" in each else "task": None, "errors": [("NOT_APPLIED", [])]}
                    for each in given["mutations"]
                ]
                results[index] = refused
                return {"results": results, "errors": [("NOT_APPLIED", [])]}
        self.taken["batch"] += 1
        return {"results": results, "errors": []}

    def answer_of_undo(self, who: str, given: dict[str, Any]) -> dict[str, Any]:
        logs = [log for sender, _, each, _, log in self.sent if (sender, each["mutationId"]) == (who, given["undoes"])]
        if not logs:
            return {"undone": [], "conflicts": [], "errors": [("NOT_FOUND", [])]}
        (log,) = logs
        before = copy.deepcopy(self.model)
        try:
            undone, conflicts = self.model.undo(who, log, given["onConflict"])
        except Refused as refused:
            _, conflicts = before.undo(who, log, "SKIP")
            self.taken["undo refused"] += 1
            return {"undone": [], "conflicts": conflicts, "errors": [(refused.code, [])]}
        self.taken["undo of nothing" if not undone else "undo in part" if conflicts else "undo"] += 1
        return {"undone": undone, "conflicts": conflicts, "errors": []}

    async def check(self) -> None:
        """Every person has the list and the histories that the model has."""
        for who, person in self.people.items():
            ids = self.ids[:100]
            nodes = (await self.api.data(READ, {"ids": ids}, by=person))["nodes"]
            tasks = map(self.model.tasks.get, ids)
            seen = [(task and self.model.sees(who, task) and task_of(task)) or None for task in tasks]
            assert [node and task_of(node) for node in nodes] == seen
        for id_ in self.model.tasks:
            nodes = (await self.api.data(HISTORY, {"id": id_}, by=self.people["root"]))["task"]["history"]["nodes"]
            versions = [version for each, version in self.model.versions if each == id_]
            assert [node["task"]["version"] for node in nodes if node["task"]] == versions


def task_of(task: dict[str, Any]) -> TaskState:
    assignee = task["assignee"]
    username = assignee["username"] if isinstance(assignee, dict) else assignee
    return {name: task[name] for name in ("id", "title", "status", "priority", "version")} | {"assignee": username}


def comparable(answer: dict[str, Any]) -> Any:
    """What the answers of the server and the model have in common, in one form."""
    if "results" in answer:
        return [*map(comparable, answer["results"])], errors_of(answer)
    if "undone" in answer:
        undone = [(each["taskId"], each["kind"]) if isinstance(each, dict) else each for each in answer["undone"]]
        return sorted(undone), dict(conflicts_of(answer["conflicts"])), errors_of(answer)
    if "deletedTaskId" in answer:
        return answer["deletedTaskId"], errors_of(answer)
    return answer["task"] and task_of(answer["task"]), errors_of(answer)


def conflicts_of(conflicts: Any) -> Iterator[tuple[str, list[str]]]:
    found: dict[str, set[str]] = dict(conflicts) if isinstance(conflicts, dict) else {}
    if isinstance(conflicts, list):
        for each in conflicts:
            found.setdefault(each["subjectId"], set()).update(each["fields"])
    for id_, names in found.items():
        yield id_, sorted("assignee" if name == "assigneeId" else name for name in names)


def errors_of(answer: dict[str, Any]) -> list[Any]:
    return [
        (each["code"], sorted("assignee" if name == "assigneeId" else name for name in each["conflictingFields"]))
        if isinstance(each, dict)
        else each
        for each in answer["errors"]
    ]


@pytest.fixture(scope="module")
def taken() -> Iterator[Counter[str]]:
    """How often each rare path was taken."""
    counter: Counter[str] = Counter()
    yield counter
    print(json.dumps(counter))


@pytest.fixture
async def people_of_api(api: Api, database: Database) -> dict[str, Person]:
    found = {name: await api.register(name) for name in PEOPLE}
    await make_admin(database, found["root"].id)
    return found


@settings(
    max_examples=40,
    deadline=None,
    # All examples share one server and its people, and have their own tasks.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=st.lists(steps, min_size=8, max_size=30))
async def test_programs_have_the_answers_and_the_results_of_the_model(
    api: Api, people_of_api: dict[str, Person], taken: Counter[str], program: list[tuple[str, Any]]
) -> None:
    made = Program(api, people_of_api, taken)
    await made.run(program)
    await made.check()
