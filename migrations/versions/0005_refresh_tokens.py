"""Sessions that last: refresh tokens, and what a person sees of a session.

Revision ID: 0005
Revises: 0004
Create Date: 2026-12-01
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from taskflow_gql.database.types import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Sessions of the previous release end with their access token.
    with op.batch_alter_table("sessions") as sessions:
        sessions.add_column(sa.Column("last_seen_at", UtcDateTime()))
        sessions.add_column(sa.Column("ip_address", sa.String(64)))
        sessions.add_column(sa.Column("user_agent", sa.String(255)))
        sessions.add_column(sa.Column("nonce", sa.LargeBinary(32)))
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"])
    op.create_table(
        "refresh_tokens",
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("replaced_at", UtcDateTime()),
        sa.Column("nonce", sa.LargeBinary(32)),
        sa.PrimaryKeyConstraint("token_hash", name="pk_refresh_tokens"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_refresh_tokens_session_id_sessions", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_refresh_tokens_session_id", "refresh_tokens", ["session_id"])
    op.create_index("ix_refresh_tokens_replaced_at", "refresh_tokens", ["replaced_at"])


def downgrade() -> None:
    """Everybody signs in again when their access token expires."""
    op.drop_table("refresh_tokens")
    op.drop_index("ix_sessions_expires_at", "sessions")
    with op.batch_alter_table("sessions") as sessions:
        for column in ("nonce", "user_agent", "ip_address", "last_seen_at"):
            sessions.drop_column(column)
