"""The first tables: runs, models, datasets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("queued", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("ended", sa.Float),
        sa.Column("stopping", sa.Float),
        sa.Column("model", sa.String(1000), nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("dataset", sa.JSON, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("ancestors", sa.JSON, nullable=False),
        sa.Column("digest", sa.JSON, nullable=False),
        sa.Column("events_offset", sa.Integer, nullable=False),
    )
    op.create_index("ix_runs_status", "runs", ["status", "queued"])
    op.create_index("ix_runs_name", "runs", ["name"])
    op.create_table(
        "models",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("info", sa.JSON, nullable=False),
    )
    op.create_table(
        "datasets",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
    )
