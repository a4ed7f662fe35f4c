"""Foreign identities: people who come with tokens of trusted issuers.

Revision ID: 0006
Revises: 0005
Create Date: 2026-12-01
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "foreign_identities",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("issuer", sa.String(255), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], ondelete="CASCADE", name="fk_foreign_identities_user_id_users"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_foreign_identities"),
        sa.UniqueConstraint("subject", "issuer", name="uq_foreign_identities_subject_issuer"),
    )
    op.create_index("ix_foreign_identities_user_id", "foreign_identities", ["user_id"])


def downgrade() -> None:
    """The people stay. They cannot sign in, because they have no password."""
    op.drop_table("foreign_identities")
