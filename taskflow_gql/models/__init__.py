"""Tables, their constraints, and the named tuples that reads return."""

from taskflow_gql.database.types import Model
from taskflow_gql.models.event import Event, EventKind, Recorded, StreamState
from taskflow_gql.models.identity import ForeignIdentity
from taskflow_gql.models.mail import OutgoingMail
from taskflow_gql.models.password_reset import PasswordResetRequest, PasswordResetToken
from taskflow_gql.models.receipt import Receipt
from taskflow_gql.models.session import SESSION_COLUMNS, RefreshToken, Session, SessionRow
from taskflow_gql.models.task import (
    COLUMN_BY_FIELD,
    TASK_COLUMNS,
    Task,
    TaskCategory,
    TaskField,
    TaskPriority,
    TaskRow,
    TaskStatus,
)
from taskflow_gql.models.user import USER_COLUMNS, User, UserRole, UserRow

# The nouns whose changes are recorded, by their subject type in the record.
RECORDED = {
    "TASK": Recorded(TaskRow, COLUMN_BY_FIELD),
}

__all__ = [
    "COLUMN_BY_FIELD",
    "RECORDED",
    "SESSION_COLUMNS",
    "TASK_COLUMNS",
    "USER_COLUMNS",
    "Event",
    "EventKind",
    "ForeignIdentity",
    "Model",
    "OutgoingMail",
    "PasswordResetRequest",
    "PasswordResetToken",
    "Receipt",
    "Recorded",
    "RefreshToken",
    "Session",
    "SessionRow",
    "StreamState",
    "Task",
    "TaskCategory",
    "TaskField",
    "TaskPriority",
    "TaskRow",
    "TaskStatus",
    "User",
    "UserRole",
    "UserRow",
]
