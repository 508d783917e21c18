"""The offset of a partition carries a mark, renewed by each transaction of its owner: no rewind goes unnoticed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("kafka_offset", sa.Column("mark", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("kafka_offset", "mark")
