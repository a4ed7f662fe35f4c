"""Receipts of mutations: a repeated request gets the answer of the first one.

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-24
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "receipts",
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("mutation_id", sa.String(64), nullable=False),
        sa.Column("field", sa.String(64), nullable=False),
        sa.Column("input_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("event_ids", sa.ARRAY(sa.BigInteger()).with_variant(sa.JSON(), "sqlite"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner_id", "mutation_id", name="pk_receipts"),
    )
    op.create_index("ix_receipts_created_at", "receipts", ["created_at"])


def downgrade() -> None:
    """The previous release does not know repeats: a repeated request would be done again."""
    op.drop_table("receipts")
