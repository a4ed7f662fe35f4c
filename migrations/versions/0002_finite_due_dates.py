"""No task is due at the first or the last moment there is.

asyncpg wrote the two as -infinity and infinity, which PostgreSQL sorts among tasks without a due date. They move by a
microsecond, on SQLite too, and the server refuses them from now on.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-24
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op

from taskflow_gql.database.types import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_tasks = sa.table("tasks", sa.column("due_date", UtcDateTime()))
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def upgrade() -> None:
    for moment, moved in ((_FIRST, _FIRST + _MICROSECOND), (_LAST, _LAST - _MICROSECOND)):
        op.execute(sa.update(_tasks).where(_tasks.c.due_date == moment).values(due_date=moved))
    if op.get_bind().dialect.name == "postgresql":
        op.create_check_constraint(op.f("ck_tasks_due_date_finite"), "tasks", "isfinite(due_date)")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint(op.f("ck_tasks_due_date_finite"), "tasks")
