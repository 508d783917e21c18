"""Alembic's entry: one asyncpg connection, one transaction, one migrator at a time."""

import asyncio

import asyncpg
import sqlalchemy as sa
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine

from consumer.postgres.errors import classified
from consumer.postgres.tables import metadata

LOCK = 0x636F6E766572  # "conver": pg_advisory_xact_lock, so that replicas may migrate at once


def migrate(connection: sa.Connection | None) -> None:
    context.configure(
        connection=connection,
        dialect_name="postgresql",
        target_metadata=metadata,
        transactional_ddl=True,
        literal_binds=connection is None,
    )
    with context.begin_transaction():
        if connection is not None:
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        context.run_migrations()


async def migrate_online(url: str) -> None:
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url, timeout=10), poolclass=sa.NullPool
    )
    try:
        with classified():
            async with engine.begin() as connection:
                await connection.run_sync(migrate)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    migrate(None)
else:
    asyncio.run(migrate_online(context.config.attributes["url"]))
