"""Conversations, their archive and history, the outbox, and the offsets."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.Text(collation="C")
TIME = sa.DateTime(timezone=True)


def session_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("session", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("accepted_at", TIME),
        sa.Column("accepted_by", sa.Text),
        sa.Column("last_activity_at", TIME, nullable=False),
        sa.Column("last_user_message_at", TIME),
        sa.Column("last_agent_message_at", TIME),
        sa.Column("user_messages", sa.Integer, nullable=False),
        sa.Column("agent_messages", sa.Integer, nullable=False),
        sa.Column("idle_at", TIME),
        sa.Column("expires_at", TIME),
        sa.Column("closed_at", TIME),
        sa.Column("closed_by", sa.Text),
        sa.Column("close_reason", sa.Text),
        sa.Column("reclassified_at", TIME),
    ]


def upgrade() -> None:
    create_conversation()
    create_archive()
    create_history()
    create_outbox_and_offsets()


def create_conversation() -> None:
    op.create_table(
        "conversation",
        sa.Column("conversation_id", ID, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        *session_columns(),
        sa.Column("wake_at", TIME),
        sa.CheckConstraint("(closed_at IS NULL) = (expires_at IS NOT NULL)", name="conversation_open_or_closed"),
    )
    # Room on each page for the next version of its rows, so that updates need no new index entries.
    op.execute("ALTER TABLE conversation SET (fillfactor = 75)")
    op.create_index(
        "conversation_wake_at", "conversation", ["wake_at"], postgresql_where=sa.text("wake_at IS NOT NULL")
    )


def create_archive() -> None:
    op.create_table(
        "conversation_session_archive",
        sa.Column("conversation_id", ID),
        *session_columns(),
        sa.PrimaryKeyConstraint("conversation_id", "session"),
    )
    columns = ", ".join(["conversation_id", *(column.name for column in session_columns())])
    op.execute(
        f"CREATE VIEW conversation_session AS SELECT {columns} FROM conversation "
        f"UNION ALL SELECT {columns} FROM conversation_session_archive"
    )


def create_history() -> None:
    op.create_table(
        "conversation_event",
        sa.Column("conversation_id", ID),
        sa.Column("source", ID),
        sa.Column("event_id", ID),
        sa.Column("session", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("occurred_at", TIME, nullable=False),
        sa.Column("recorded_at", TIME, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("requested", sa.Text),
        sa.Column("from_status", sa.Text),
        sa.Column("to_status", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("conversation_id", "source", "event_id"),
    )


def create_outbox_and_offsets() -> None:
    op.create_table(
        "transition_outbox",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("conversation_id", ID, nullable=False),
        sa.Column("session", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("from_status", sa.Text),
        sa.Column("to_status", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("occurred_at", TIME, nullable=False),
    )
    op.create_table(
        "kafka_offset",
        sa.Column("consumer_group", ID),
        sa.Column("topic", ID),
        sa.Column("partition", sa.Integer),
        sa.Column("cluster_id", sa.Text, nullable=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("consumer_group", "topic", "partition"),
    )


def downgrade() -> None:
    op.execute("DROP VIEW conversation_session")
    for table in (
        "kafka_offset",
        "transition_outbox",
        "conversation_event",
        "conversation_session_archive",
        "conversation",
    ):
        op.drop_table(table)
