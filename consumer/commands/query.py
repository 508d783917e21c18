"""Queries of the configured database, and whether its schema is one for this build."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from consumer import settings as configuration
from consumer.errors import ConfigurationError
from consumer.postgres.store import PostgresStore
from consumer.postgres.tables import REQUIRED_REVISION

T = TypeVar("T")


def ask(query: Callable[[PostgresStore], Coroutine[Any, Any, T]]) -> T:
    """Runs a query on the configured database."""

    async def work() -> T:
        async with PostgresStore.open(configuration.load().database) as store:
            return await query(store)

    return asyncio.run(work())


async def check_schema(store: PostgresStore) -> None:
    """Raises `ConfigurationError` if this build cannot run on the database's schema."""
    revision = await store.schema_revision()
    if revision is None or revision < REQUIRED_REVISION:
        raise ConfigurationError(
            f"the database's schema is at {revision or 'nothing'}, this build needs "
            f"{REQUIRED_REVISION}: run `conversation-consumer migrate`"
        )
