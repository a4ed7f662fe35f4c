"""GraphQL enums and their descriptions."""

from __future__ import annotations

from enum import Enum, StrEnum

import strawberry

from taskflow_gql.execution.strawberry import enum_definition
from taskflow_gql.models import TaskCategory, TaskField, TaskPriority, TaskStatus, UserRole
from taskflow_gql.services.changes import TaskChangeKind
from taskflow_gql.services.merging import ConflictPolicy
from taskflow_gql.services.task_orders import TaskOrderField


def describe_enum(enum: type[Enum], description: str, **values: str) -> None:
    """Make the enum a GraphQL type. Every value needs a description.

    strawberry.enum_value() would need the descriptions in the body of the enum, and the models do not use them.
    """
    for value in enum_definition(strawberry.enum(enum, description=description)).values:
        value.description = values.pop(value.name)
    assert not values, f"{enum.__name__} has no {', '.join(values)}"


describe_enum(
    UserRole,
    "What a person may do. Registration always makes a MEMBER.",
    MEMBER="Works with the tasks that they created or that are assigned to them.",
    ADMIN="Sees and changes every task, and manages people.",
)
describe_enum(
    TaskStatus,
    "How far a task is.",
    PENDING="Nobody has begun; every task starts here.",
    IN_PROGRESS="Somebody is at work on it.",
    COMPLETED="Done; `completedAt` says since when.",
)
describe_enum(
    TaskPriority,
    "How urgent a task is. Sorts LOW < MEDIUM < HIGH.",
    LOW="Can wait.",
    MEDIUM="The usual; what a new task gets when nothing is said.",
    HIGH="Before the others.",
)
describe_enum(
    TaskCategory,
    "The part of life that a task belongs to.",
    WORK="The job.",
    PERSONAL="Oneself.",
    HOME="The household.",
    OTHER="Anything else; what a new task gets when nothing is said.",
)
describe_enum(
    TaskField,
    "A field of a task that people change. Version and timestamps follow from these and are not listed.",
    TITLE="`title`",
    DESCRIPTION="`description`",
    STATUS="`status`, and with it `completed` and `completedAt`",
    PRIORITY="`priority`",
    CATEGORY="`category`",
    DUE_DATE="`dueDate`",
    ASSIGNEE="`assignee`",
)
describe_enum(
    TaskOrderField,
    "What tasks can be sorted by.",
    CREATED_AT="`createdAt`",
    UPDATED_AT="`updatedAt`",
    DUE_DATE="`dueDate`; a task without one comes last in either direction.",
    PRIORITY="`priority`: LOW < MEDIUM < HIGH",
    STATUS="`status`: PENDING < IN_PROGRESS < COMPLETED",
    TITLE="`title`, without regard to case, by code point",
)


class OrderDirection(StrEnum):
    ASC = "ASC"
    DESC = "DESC"


describe_enum(OrderDirection, "Which way to sort.", ASC="The least first.", DESC="The most first.")


describe_enum(
    TaskChangeKind,
    "What happened, as it looks to you.",
    CREATED="The task is new.",
    UPDATED="The task changed; you could see it before and you can see it now.",
    DELETED="The task is gone for good.",
    ENTERED="The change brought the task into your view: you may see it now, or the filter finds it now.",
    LEFT="The change took the task out of your view: you may no longer see it, or the filter no longer finds it.",
)
describe_enum(
    ConflictPolicy,
    "What to do if the task is no longer at the `expectedVersion`. Without an `expectedVersion` there is no conflict.",
    REFUSE="VERSION_CONFLICT, whatever was changed since.",
    MERGE=(
        "Do it if nobody has since changed the same fields to other values. What you change are the given fields whose "
        "values differ from those at the `expectedVersion`, so you may send a whole form: a value that you left as it "
        "was does not undo what somebody else changed. VERSION_CONFLICT if the changes do conflict, and if the "
        "`expectedVersion` is more than 1,000 changes old or no longer in the record, which keeps 30 days unless the "
        "server is set otherwise."
    ),
)
