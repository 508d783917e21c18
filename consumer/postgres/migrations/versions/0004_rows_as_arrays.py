"""The types of the rows that travel as arrays of rows: one parameter a statement instead of one a column."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

ID = sa.Text(collation="C")
TIME = sa.DateTime(timezone=True)
CONVERSATION_VERSION: Sequence[tuple[str, Any]] = [("conversation_id", ID), ("version", sa.BigInteger())]
EVENT_IDENTITY: Sequence[tuple[str, Any]] = [("conversation_id", ID), ("source", ID), ("event_id", ID)]
CONVERSATION_WRITE: Sequence[tuple[str, Any]] = [
    ("loaded", sa.BigInteger()),
    ("conversation_id", ID),
    ("version", sa.BigInteger()),
    ("session", sa.Integer()),
    ("status", sa.Text()),
    ("opened_at", TIME),
    ("accepted_at", TIME),
    ("accepted_by", sa.Text()),
    ("last_activity_at", TIME),
    ("last_user_message_at", TIME),
    ("last_agent_message_at", TIME),
    ("user_messages", sa.Integer()),
    ("agent_messages", sa.Integer()),
    ("idle_at", TIME),
    ("expires_at", TIME),
    ("closed_at", TIME),
    ("closed_by", sa.Text()),
    ("close_reason", sa.Text()),
    ("reclassified_at", TIME),
]


def upgrade() -> None:
    create_type("conversation_version", CONVERSATION_VERSION)
    create_type("event_identity", EVENT_IDENTITY)
    create_type("conversation_write", CONVERSATION_WRITE)


def create_type(name: str, attributes: Sequence[tuple[str, sa.types.TypeEngine[Any]]]) -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    columns = ", ".join(f"{attribute} {kind.compile(dialect)}" for attribute, kind in attributes)
    op.execute(f"CREATE TYPE {name} AS ({columns})")


def downgrade() -> None:
    op.execute("DROP TYPE conversation_write")
    op.execute("DROP TYPE event_identity")
    op.execute("DROP TYPE conversation_version")
