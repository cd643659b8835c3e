"""Plans, tenants, keys, the audit log, and answers to repeats."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "state",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("audit_number", sa.BigInteger, nullable=False),
        sa.Column("audit_hash", sa.String(64), nullable=False),
        sa.CheckConstraint("one = 1"),
    )
    op.execute(f"INSERT INTO state VALUES (1, 0, 0, '{'0' * 64}')")  # noqa: S608  # a constant
    for table in ("plans", "tenants", "keys"):
        op.create_table(
            table,
            sa.Column("name", sa.String(63), primary_key=True),
            sa.Column("document", sa.JSON, nullable=False),
            sa.Column("version", sa.BigInteger, nullable=False),
            sa.Column("created_at", sa.Float(53), nullable=False),
            sa.Column("updated_at", sa.Float(53), nullable=False),
        )
    op.create_table("removed_tenants", sa.Column("name", sa.String(63), primary_key=True))
    op.create_table(
        "audit_events",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant_id", sa.String(63), nullable=False),
        sa.Column("refused", sa.Boolean, nullable=False),
        sa.Column("action", sa.JSON, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("audit_events_tenant", "audit_events", ["tenant_id", "number"])
    op.create_table(
        "answers",
        sa.Column("request_id", sa.String(32), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("response", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
    )
    op.create_table(
        "imports",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
    )
