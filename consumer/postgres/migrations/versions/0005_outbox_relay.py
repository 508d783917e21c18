"""When a transition was recorded, for the relay; an outbox that stays small although all its rows come and go."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "transition_outbox",
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.execute(
        "ALTER TABLE transition_outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, "
        "autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000, "
        "autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000)"
    )


def downgrade() -> None:
    op.execute(
        "ALTER TABLE transition_outbox RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, "
        "autovacuum_vacuum_insert_scale_factor, autovacuum_vacuum_insert_threshold, "
        "autovacuum_analyze_scale_factor, autovacuum_analyze_threshold)"
    )
    op.drop_column("transition_outbox", "recorded_at")
