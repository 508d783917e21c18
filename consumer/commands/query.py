"""Queries of the configured database."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from consumer import settings as configuration
from consumer.postgres.store import PostgresStore

T = TypeVar("T")


def ask(query: Callable[[PostgresStore], Coroutine[Any, Any, T]]) -> T:
    """Runs a query on the configured database."""

    async def work() -> T:
        async with PostgresStore.open(configuration.load().database) as store:
            return await query(store)

    return asyncio.run(work())
