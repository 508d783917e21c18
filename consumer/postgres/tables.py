"""The tables as migrations leave them."""

from typing import Any

import asyncpg
import sqlalchemy as sa

REQUIRED_REVISION = "0005"
"""The oldest schema that this build runs on. Revisions are numbers: later ones compare greater."""
SCHEMA_LOCK = 0x636F6E766572  # "conver": pg_advisory_xact_lock, so that replicas may migrate at once
CONVERSATION_TABLES = ("conversation", "conversation_session_archive", "conversation_event", "transition_outbox")
"""All that have rows of a conversation."""
metadata = sa.MetaData()
_ID = sa.Text(collation="C")
_TIME = sa.DateTime(timezone=True)


def session_columns() -> list[sa.Column[Any]]:
    """The columns that `conversation` and its archive share: the fields of `Session`, in their order."""
    return [
        sa.Column("session", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("opened_at", _TIME, nullable=False),
        sa.Column("accepted_at", _TIME),
        sa.Column("accepted_by", sa.Text),
        sa.Column("last_activity_at", _TIME, nullable=False),
        sa.Column("last_user_message_at", _TIME),
        sa.Column("last_agent_message_at", _TIME),
        sa.Column("user_messages", sa.Integer, nullable=False),
        sa.Column("agent_messages", sa.Integer, nullable=False),
        sa.Column("idle_at", _TIME),
        sa.Column("expires_at", _TIME),
        sa.Column("closed_at", _TIME),
        sa.Column("closed_by", sa.Text),
        sa.Column("close_reason", sa.Text),
        sa.Column("reclassified_at", _TIME),
    ]


conversation = sa.Table(
    "conversation",
    metadata,
    sa.Column("conversation_id", _ID, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    *session_columns(),
    sa.Column("wake_at", _TIME),
    sa.CheckConstraint("(closed_at IS NULL) = (expires_at IS NOT NULL)", name="conversation_open_or_closed"),
)
sa.Index("conversation_wake_at", conversation.c.wake_at, postgresql_where=conversation.c.wake_at.is_not(None))

conversation_session_archive = sa.Table(
    "conversation_session_archive",
    metadata,
    sa.Column("conversation_id", _ID),
    *session_columns(),
    sa.PrimaryKeyConstraint("conversation_id", "session"),
)

conversation_event = sa.Table(
    "conversation_event",
    metadata,
    sa.Column("conversation_id", _ID),
    sa.Column("source", _ID),
    sa.Column("event_id", _ID),
    sa.Column("session", sa.Integer, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("occurred_at", _TIME, nullable=False),
    sa.Column("recorded_at", _TIME, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("requested", sa.Text),
    sa.Column("from_status", sa.Text),
    sa.Column("to_status", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.PrimaryKeyConstraint("conversation_id", "source", "event_id"),
)

transition_outbox = sa.Table(
    "transition_outbox",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True)),
    sa.Column("conversation_id", _ID),
    sa.Column("session", sa.Integer, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("from_status", sa.Text),
    sa.Column("to_status", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("occurred_at", _TIME, nullable=False),
    sa.Column("recorded_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.PrimaryKeyConstraint("id", "conversation_id"),
)

kafka_offset = sa.Table(
    "kafka_offset",
    metadata,
    sa.Column("consumer_group", _ID),
    sa.Column("topic", _ID),
    sa.Column("partition", sa.Integer),
    sa.Column("cluster_id", sa.Text, nullable=False),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
    sa.Column("mark", sa.BigInteger, nullable=False, server_default="0"),
    sa.PrimaryKeyConstraint("consumer_group", "topic", "partition"),
)


async def schema_revision(connection: asyncpg.Connection) -> str | None:
    """The newest migration that was applied; null on a database without any."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return revision
