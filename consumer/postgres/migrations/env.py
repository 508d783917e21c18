"""Alembic's entry: one asyncpg connection, one transaction, one migrator at a time."""

import asyncio

import asyncpg
import sqlalchemy as sa
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine

from consumer.postgres.client import APPLICATION, UNPREPARED
from consumer.postgres.errors import connecting
from consumer.postgres.migrations import Progress
from consumer.postgres.tables import SCHEMA_LOCK, metadata


def migrate(connection: sa.Connection | None, progress: Progress) -> None:
    context.configure(
        connection=connection,
        dialect_name="postgresql",
        target_metadata=metadata,
        transactional_ddl=True,
        literal_binds=connection is None,
        on_version_apply=lambda *, step, **_: progress.applied(step.up_revision_id),
    )
    with context.begin_transaction():
        if connection is not None:
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})"))
            progress.start(context.get_context().get_current_heads())
        if not progress.database_is_newer:
            context.run_migrations()


async def migrate_online(url: str, progress: Progress) -> None:
    async def connect() -> asyncpg.Connection:
        with connecting(url):
            return await asyncpg.connect(
                url, timeout=10, statement_cache_size=0, server_settings={"application_name": APPLICATION}
            )

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=connect, connect_args=UNPREPARED, poolclass=sa.NullPool
    )
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate, progress)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    migrate(None, context.config.attributes["progress"])
else:
    asyncio.run(migrate_online(context.config.attributes["url"], context.config.attributes["progress"]))
