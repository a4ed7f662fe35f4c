"""Tables, their constraints, and the light rows that reads return."""

from taskflow_gql.database.types import Model
from taskflow_gql.models.event import EventKind, StreamState, TaskEvent
from taskflow_gql.models.session import Session
from taskflow_gql.models.task import TASK_COLUMNS, Task, TaskCategory, TaskPriority, TaskRow, TaskStatus
from taskflow_gql.models.user import USER_COLUMNS, User, UserRole, UserRow

__all__ = [
    "TASK_COLUMNS",
    "USER_COLUMNS",
    "EventKind",
    "Model",
    "Session",
    "StreamState",
    "Task",
    "TaskCategory",
    "TaskEvent",
    "TaskPriority",
    "TaskRow",
    "TaskStatus",
    "User",
    "UserRole",
    "UserRow",
]
