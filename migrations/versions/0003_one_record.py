"""One record for all nouns: `task_events` becomes `events`.

PostgreSQL renames the table and adds columns, which takes milliseconds whatever its size. Servers of the previous
release go on: a view `task_events` takes their statements. SQLite cannot drop a NOT NULL or rename a constraint, so the
rows are copied; one process owns the file. See docs/decisions/0011-one-record.md.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-24
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEPT = "id, position, kind, actor_id, changed_fields, before, after, occurred_at"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _copy_up()
    else:
        _rename_up()


def downgrade() -> None:
    """The previous release knows tasks only: events of other nouns are deleted."""
    op.execute("DELETE FROM events WHERE subject_type <> 'TASK'")
    if op.get_bind().dialect.name == "sqlite":
        _copy_down()
    else:
        _rename_down()


# PostgreSQL

_RENAMED = (
    "ALTER TABLE {table} RENAME CONSTRAINT pk_{old} TO pk_{new}",
    "ALTER TABLE {table} RENAME CONSTRAINT uq_{old}_position TO uq_{new}_position",
    "ALTER TABLE {table} RENAME CONSTRAINT ck_{old}_kind TO ck_{new}_kind",
    "ALTER INDEX ix_{old}_unplaced RENAME TO ix_{new}_unplaced",
    "ALTER SEQUENCE {old}_id_seq RENAME TO {new}_id_seq",
)


def _rename_up() -> None:
    # Statements of servers queue behind an ALTER that waits for its lock. Better to fail and be run again.
    op.execute("SET LOCAL lock_timeout = '10s'")
    op.execute("ALTER TABLE task_events RENAME TO events")
    for statement in _RENAMED:
        op.execute(statement.format(table="events", old="task_events", new="events"))
    op.execute("ALTER TABLE events RENAME COLUMN task_id TO subject_id")
    op.execute("ALTER INDEX ix_task_events_task_id_position RENAME TO ix_events_subject_id_position")
    # A constant default rewrites no row. It is for the rows that exist, so it goes again.
    op.execute(
        "ALTER TABLE events"
        " ALTER COLUMN creator_id DROP NOT NULL,"
        " ADD COLUMN subject_type varchar(16) NOT NULL DEFAULT 'TASK',"
        " ADD COLUMN audience uuid[] NOT NULL DEFAULT '{}',"
        " ADD COLUMN mutation_id varchar(64)"
    )
    op.execute("ALTER TABLE events ALTER COLUMN subject_type DROP DEFAULT, ALTER COLUMN audience DROP DEFAULT")
    _make_view()


def _make_view() -> None:
    """The table as the previous release knows it, for its SELECT, INSERT, UPDATE and DELETE.

    PostgreSQL passes UPDATE and DELETE on to the table by itself. INSERT names columns that are computed here, and so
    has a trigger.
    """
    op.execute(
        "CREATE VIEW task_events AS SELECT id, position, kind, subject_id AS task_id, actor_id,"
        " coalesce(creator_id, (coalesce(after, before) ->> 'creator_id')::uuid) AS creator_id,"
        " coalesce(assignee_id, (after ->> 'assignee_id')::uuid) AS assignee_id,"
        " coalesce(previous_assignee_id, (before ->> 'assignee_id')::uuid) AS previous_assignee_id,"
        " changed_fields, before, after, occurred_at"
        " FROM events WHERE subject_type = 'TASK'"
    )
    op.execute(
        "CREATE FUNCTION insert_task_event() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO events (subject_type, subject_id, kind, actor_id, audience, changed_fields, before, after,"
        " occurred_at) VALUES ('TASK', NEW.task_id, NEW.kind, NEW.actor_id,"
        " array_remove(ARRAY[NEW.creator_id, NEW.assignee_id, NEW.previous_assignee_id], NULL),"
        " NEW.changed_fields, NEW.before, NEW.after, NEW.occurred_at);"
        " RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER task_events_insert INSTEAD OF INSERT ON task_events"
        " FOR EACH ROW EXECUTE FUNCTION insert_task_event()"
    )


def _rename_down() -> None:
    op.execute("DROP VIEW task_events")
    op.execute("DROP FUNCTION insert_task_event()")
    op.execute(
        "UPDATE events SET creator_id = (coalesce(after, before) ->> 'creator_id')::uuid,"
        " assignee_id = (after ->> 'assignee_id')::uuid, previous_assignee_id = (before ->> 'assignee_id')::uuid"
        " WHERE creator_id IS NULL"
    )
    op.execute(
        "ALTER TABLE events ALTER COLUMN creator_id SET NOT NULL,"
        " DROP COLUMN subject_type, DROP COLUMN audience, DROP COLUMN mutation_id"
    )
    op.execute("ALTER INDEX ix_events_subject_id_position RENAME TO ix_task_events_task_id_position")
    op.execute("ALTER TABLE events RENAME COLUMN subject_id TO task_id")
    for statement in _RENAMED:
        op.execute(statement.format(table="events", old="events", new="task_events"))
    op.execute("ALTER TABLE events RENAME TO task_events")


# SQLite


def _copy_up() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("subject_type", sa.String(16), nullable=False),
        sa.Column("subject_id", sa.Uuid(), nullable=False),
        sa.Column("kind", _kind(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("audience", sa.Text(), nullable=False),
        sa.Column("changed_fields", sa.String(255), nullable=False),
        sa.Column("before", sa.JSON(), nullable=True),
        sa.Column("after", sa.JSON(), nullable=True),
        sa.Column("mutation_id", sa.String(64), nullable=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("creator_id", sa.Uuid(), nullable=True),
        sa.Column("assignee_id", sa.Uuid(), nullable=True),
        sa.Column("previous_assignee_id", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sa.UniqueConstraint("position", name="uq_events_position"),
        sqlite_autoincrement=True,
    )
    op.execute(
        f"INSERT INTO events ({_quoted()}, subject_type, subject_id, audience) SELECT {_quoted()}, 'TASK', task_id,"  # noqa: S608
        " creator_id || coalesce(' ' || assignee_id, '') || coalesce(' ' || previous_assignee_id, '')"
        " FROM task_events ORDER BY id"
    )
    _keep_sequence("task_events", "events")
    op.drop_table("task_events")
    _index_unplaced("events")
    op.create_index("ix_events_subject_id_position", "events", ["subject_id", "position"])


def _copy_down() -> None:
    op.create_table(
        "task_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("kind", _kind(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("creator_id", sa.Uuid(), nullable=False),
        sa.Column("assignee_id", sa.Uuid(), nullable=True),
        sa.Column("previous_assignee_id", sa.Uuid(), nullable=True),
        sa.Column("changed_fields", sa.String(255), nullable=False),
        sa.Column("before", sa.JSON(), nullable=True),
        sa.Column("after", sa.JSON(), nullable=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_task_events"),
        sa.UniqueConstraint("position", name="uq_task_events_position"),
        sqlite_autoincrement=True,
    )
    op.execute(
        f"INSERT INTO task_events ({_quoted()}, task_id, creator_id, assignee_id, previous_assignee_id)"  # noqa: S608
        f" SELECT {_quoted()}, subject_id,"
        " replace(json_extract(coalesce(\"after\", \"before\"), '$.creator_id'), '-', ''),"
        " replace(json_extract(\"after\", '$.assignee_id'), '-', ''),"
        " replace(json_extract(\"before\", '$.assignee_id'), '-', '')"
        " FROM events ORDER BY id"
    )
    _keep_sequence("events", "task_events")
    op.drop_table("events")
    _index_unplaced("task_events")
    op.create_index("ix_task_events_task_id_position", "task_events", ["task_id", "position"])


def _kind() -> sa.Enum:
    return sa.Enum("CREATED", "UPDATED", "DELETED", name="kind", native_enum=False, create_constraint=True, length=16)


def _quoted() -> str:
    """BEFORE and AFTER are keywords of SQLite."""
    return ", ".join(f'"{name}"' for name in _KEPT.split(", "))


def _keep_sequence(old: str, new: str) -> None:
    """The highest id ever assigned, which may be above the highest one copied."""
    op.execute(f"DELETE FROM sqlite_sequence WHERE name = '{new}'")  # noqa: S608
    op.execute(f"INSERT INTO sqlite_sequence (name, seq) SELECT '{new}', seq FROM sqlite_sequence WHERE name = '{old}'")  # noqa: S608


def _index_unplaced(table: str) -> None:
    op.create_index(f"ix_{table}_unplaced", table, ["id"], sqlite_where=sa.text("position IS NULL"))
