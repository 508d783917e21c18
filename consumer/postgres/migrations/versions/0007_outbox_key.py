"""The outbox's key has the conversation too: where tables are distributed by it, every unique key must.

`id` comes first, so that the index still serves the relay: the oldest rows, and rows by their id.
"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    replace_key("id, conversation_id")


def downgrade() -> None:
    replace_key("id")


def replace_key(columns: str) -> None:
    op.execute(
        "ALTER TABLE transition_outbox DROP CONSTRAINT transition_outbox_pkey, "
        f"ADD CONSTRAINT transition_outbox_pkey PRIMARY KEY ({columns})"
    )
