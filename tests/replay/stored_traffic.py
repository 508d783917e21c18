"""The simulation's traffic as the service stores it: conversations, history, deadlines that have passed."""

import asyncio
from datetime import datetime
from typing import Any

import asyncpg

from consumer.decoding import decode_all
from consumer.lifecycle.model import Event
from consumer.postgres.store import PostgresStore
from consumer.records import Record
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings
from tests.checker.ledger import Ledger
from tests.traffic import SHORT_POLICY, Mix, Traffic

BATCH = 2000
SWEEP = 10
"""A tick for every conversation after so many batches."""
MIX = Mix(ahead=0.02)


async def store_traffic(database: str, count: int, seed: int = 0) -> datetime:
    """Applies `count` records under the short policy, then ticks until nothing is open. Returns the database's now."""
    traffic = Traffic(seed, Ledger(), MIX)
    async with PostgresStore.open(DatabaseSettings(url=database)) as store:
        service = ConversationService(store, policy=SHORT_POLICY.policy)
        for number, done in enumerate(range(0, count, BATCH), start=1):
            await service.apply(_events(traffic.records(min(BATCH, count - done))))
            if number % SWEEP == 0:
                await service.apply(_events(traffic.ticks()))
        async with asyncio.timeout(60):
            while await rows(database, "SELECT 1 FROM conversation WHERE closed_at IS NULL LIMIT 1"):
                await service.apply(_events(traffic.ticks()))
        return await store.now()


async def rows(database: str, sql: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(database)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


def _events(records: list[tuple[bytes | None, bytes | None]]) -> list[Event]:
    found, _ = decode_all([Record("events", 0, 0, 0, key, value) for key, value in records], 65536)
    return [event for _, event in found]
