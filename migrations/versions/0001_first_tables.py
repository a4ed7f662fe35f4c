"""Users, sessions, tasks with their search, and the record of changes.

Revision ID: 0001
Revises:
Create Date: 2026-11-21
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

from taskflow_gql.database.types import UtcDateTime, WordList, sorted_text

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_big_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _enum(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=16)


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("email_key", sa.String(640), nullable=False),
        sa.Column("username", sa.String(50), nullable=False),
        sa.Column("username_key", sorted_text(50), nullable=False),
        sa.Column("full_name", sa.String(255), nullable=False),
        sa.Column("name_words", sa.String(1024), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("role", _enum("role", "MEMBER", "ADMIN"), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email_key", name="uq_users_email_key"),
        sa.UniqueConstraint("username_key", name="uq_users_username_key"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sessions_user_id_users", ondelete="CASCADE"),
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])
    op.create_table(
        "tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("title", sa.String(255), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("status", _enum("status", "PENDING", "IN_PROGRESS", "COMPLETED"), nullable=False),
        sa.Column("priority", _enum("priority", "LOW", "MEDIUM", "HIGH"), nullable=False),
        sa.Column("category", _enum("category", "WORK", "PERSONAL", "HOME", "OTHER"), nullable=False),
        sa.Column("due_date", UtcDateTime(), nullable=True),
        sa.Column("completed_at", UtcDateTime(), nullable=True),
        sa.Column("creator_id", sa.Uuid(), nullable=False),
        sa.Column("assignee_id", sa.Uuid(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("title_key", sorted_text(765), nullable=False),
        sa.Column("description_key", sa.Text(), nullable=True),
        sa.Column("search_words", WordList(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.ForeignKeyConstraint(["creator_id"], ["users.id"], name="fk_tasks_creator_id_users"),
        sa.ForeignKeyConstraint(["assignee_id"], ["users.id"], name="fk_tasks_assignee_id_users"),
        sa.CheckConstraint("version >= 1", name="version_positive"),
        sa.CheckConstraint("(status = 'COMPLETED') = (completed_at IS NOT NULL)", name="completed_at_matches_status"),
    )
    op.create_index("ix_tasks_created_at_id", "tasks", ["created_at", "id"])
    op.create_index("ix_tasks_creator_id_created_at_id", "tasks", ["creator_id", "created_at", "id"])
    op.create_index("ix_tasks_assignee_id_created_at_id", "tasks", ["assignee_id", "created_at", "id"])
    op.create_index("ix_tasks_updated_at_id", "tasks", ["updated_at", "id"])
    op.create_index("ix_tasks_title_key_id", "tasks", ["title_key", "id"])
    _index_expressions()
    op.create_table(
        "task_events",
        sa.Column("id", _big_id, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("kind", _enum("kind", "CREATED", "UPDATED", "DELETED"), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("creator_id", sa.Uuid(), nullable=False),
        sa.Column("assignee_id", sa.Uuid(), nullable=True),
        sa.Column("previous_assignee_id", sa.Uuid(), nullable=True),
        sa.Column("changed_fields", sa.String(255), nullable=False),
        sa.Column("before", sa.JSON(), nullable=True),
        sa.Column("after", sa.JSON(), nullable=True),
        sa.Column("occurred_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_task_events"),
        sa.UniqueConstraint("position", name="uq_task_events_position"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_task_events_unplaced",
        "task_events",
        ["id"],
        postgresql_where=sa.text("position IS NULL"),
        sqlite_where=sa.text("position IS NULL"),
    )
    op.create_index("ix_task_events_task_id_position", "task_events", ["task_id", "position"])
    state = op.create_table(
        "stream_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("stream_id", sa.String(16), nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.Column("expired_position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stream_state"),
        sa.CheckConstraint("id = 1", name="one_row"),
    )
    op.bulk_insert(state, [{"id": 1, "stream_id": secrets.token_hex(8), "last_position": 0, "expired_position": 0}])


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE task_search")
        op.execute("DROP TABLE task_search_ids")
    for table in ("stream_state", "task_events", "tasks", "sessions", "users"):
        op.drop_table(table)


def _index_expressions() -> None:
    """The indexes that Alembic cannot compare; the expressions are those of models/task.py, to the letter."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    last = "'9999-12-31 23:59:60'" if is_sqlite else "'infinity'::timestamptz"
    first = "''" if is_sqlite else "'-infinity'::timestamptz"
    for name, expression in (
        ("status_rank", "(CASE status WHEN 'PENDING' THEN 0 WHEN 'IN_PROGRESS' THEN 1 WHEN 'COMPLETED' THEN 2 END)"),
        ("priority_rank", "(CASE priority WHEN 'LOW' THEN 0 WHEN 'MEDIUM' THEN 1 WHEN 'HIGH' THEN 2 END)"),
        ("due_date_ascending", f"coalesce(due_date, {last})"),
        ("due_date_descending", f"coalesce(due_date, {first})"),
    ):
        op.execute(f"CREATE INDEX ex_tasks_{name} ON tasks ({expression}, id)")
    if not is_sqlite:
        op.execute(
            "CREATE INDEX ex_tasks_search ON tasks USING gin (array_to_tsvector(string_to_array(search_words, ' ')))"
        )
        return
    # FTS5 wants numbers for rows. SQLite's own row numbers may change when a file is vacuumed; these do not.
    op.execute("CREATE TABLE task_search_ids (id INTEGER PRIMARY KEY AUTOINCREMENT, task_id CHAR(32) NOT NULL UNIQUE)")
    op.execute("CREATE VIRTUAL TABLE task_search USING fts5(words, tokenize = 'ascii')")
    op.execute(
        "CREATE TRIGGER task_search_after_insert AFTER INSERT ON tasks BEGIN"
        " INSERT INTO task_search_ids (task_id) VALUES (NEW.id);"
        " INSERT INTO task_search (rowid, words) SELECT id, NEW.search_words FROM task_search_ids"
        " WHERE task_id = NEW.id; END"
    )
    op.execute(
        "CREATE TRIGGER task_search_after_update AFTER UPDATE OF search_words ON tasks"
        " WHEN OLD.search_words IS NOT NEW.search_words BEGIN"
        " UPDATE task_search SET words = NEW.search_words"
        " WHERE rowid = (SELECT id FROM task_search_ids WHERE task_id = NEW.id); END"
    )
    op.execute(
        "CREATE TRIGGER task_search_after_delete AFTER DELETE ON tasks BEGIN"
        " DELETE FROM task_search WHERE rowid = (SELECT id FROM task_search_ids WHERE task_id = OLD.id);"
        " DELETE FROM task_search_ids WHERE task_id = OLD.id; END"
    )
