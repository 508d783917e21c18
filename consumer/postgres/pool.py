"""The connections of a store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from consumer.errors import ConnectionLostError, TooSlowError, UnavailableError
from consumer.postgres.citus import repeated_errors
from consumer.postgres.client import UNPREPARED, Connector
from consumer.postgres.errors import classified
from consumer.settings import DatabaseSettings


def create_engine(settings: DatabaseSettings) -> AsyncEngine:
    """Connects when a connection is needed, not before."""
    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=Connector(settings),
        connect_args=UNPREPARED,
        pool_size=settings.writers + 1,
        max_overflow=0,
        pool_timeout=settings.command_timeout_seconds,
        isolation_level="AUTOCOMMIT",
        # Nothing is left to roll back: every transaction is a block of the driver's.
        pool_reset_on_return=None,
    )


class Pool:
    """The connections of an engine. When one is lost, all are replaced: what ended the one has likely ended the others.

    A connection is closed by aborting its socket. A goodbye would wait for a server that may not answer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        sa.event.listen(engine.sync_engine, "close", _abort)

    @property
    def in_use(self) -> int:
        return self._current.checkedout()

    @property
    def idle(self) -> int:
        return self._current.checkedin()

    @property
    def unopened(self) -> int:
        return self._current.size() - self.in_use - self.idle

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the driver's; each statement commits for itself, unless in a transaction.

        Errors are classified.
        """
        pool = self._current
        try:
            with classified():
                async with _checked_out(pool) as connection:
                    with repeated_errors(connection):
                        yield connection
        except UnavailableError as error:
            if _is_lost(error) and self._current is pool:
                await self._engine.dispose(close=False)
            raise
        finally:
            # Whoever leaves a pool that was replaced closes what lies in it: by now also the connection just returned.
            if self._current is not pool:
                await greenlet_spawn(pool.dispose)

    @property
    def _current(self) -> sa.QueuePool:
        assert isinstance(self._engine.pool, sa.QueuePool)
        return self._engine.pool


@asynccontextmanager
async def _checked_out(pool: sa.QueuePool) -> AsyncIterator[asyncpg.Connection]:
    """Straight from the pool: a connection of SQLAlchemy's around it would take as long as a statement.

    Nobody gets a connection again whose answer was not waited for: it would meet the next statement.
    """
    try:
        pooled = await greenlet_spawn(pool.connect)
    except AsyncAdapt_asyncpg_dbapi.Error as error:  # of the statements that SQLAlchemy sends over its first connection
        raise error.__cause__ or error from None
    try:
        yield pooled.driver_connection
    except (TimeoutError, TooSlowError, asyncio.CancelledError):
        pooled.invalidate()
        raise
    finally:
        await greenlet_spawn(pooled.close)


def _is_lost(error: UnavailableError) -> bool:
    """Whether the server or the way to it is gone. A server that lives ends a slow statement before the client does."""
    return isinstance(error, ConnectionLostError) or isinstance(error.__cause__, TimeoutError)


def _abort(connection: Any, _record: Any) -> None:
    connection.driver_connection.terminate()
