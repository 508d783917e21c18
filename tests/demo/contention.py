"""Conflict rate and mean retries as the number of outside writers grows, measured and drawn."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import SecretStr
from rich.table import Table

from consumer.lifecycle.model import Author, Message
from consumer.observability.metrics import Metrics, samples
from consumer.observability.status import read_status
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings
from tests.demo.writers import apply_until_written
from tests.stack.database import migrate, new_database

WRITERS = (1, 2, 4, 8, 16)
CONVERSATIONS = 10
SECONDS = 1.0
BAR = 40


@dataclass(frozen=True, slots=True)
class Point:
    writers: int
    events_per_second: float
    conflict_rate: float
    mean_retries: float


async def sweep(server: str) -> list[Point]:
    """One point for each number of writers, all on the same few conversations of a database of their own."""
    async with new_database(server, "demo") as database:
        await migrate(database)
        return [await _measure(database, writers) for writers in WRITERS]


async def _measure(database: str, writers: int) -> Point:
    metrics = Metrics()
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        until = asyncio.get_running_loop().time() + SECONDS
        for number in range(writers):
            settings = DatabaseSettings(url=SecretStr(database), writers=1)
            store = await stack.enter_async_context(PostgresStore.open(settings, metrics))
            group.create_task(_write(ConversationService(store, metrics=metrics), f"{writers}-{number}", until))
    status = read_status(samples(metrics.registry))
    return Point(writers, status.committed / SECONDS, status.conflict_rate, status.mean_retries)


async def _write(service: ConversationService, name: str, until: float) -> None:
    count = 0
    while asyncio.get_running_loop().time() < until:
        count += 1
        key = f"contended-{count % CONVERSATIONS}"
        await apply_until_written(
            service,
            Message(
                conversation_id=key, source=name, event_id=f"{name}-{count}", at=datetime.now(UTC), author=Author.USER
            ),
        )


def plot(points: list[Point]) -> Table:
    """A bar for each point, as long as its conflict rate."""
    title = f"Outside writers on {CONVERSATIONS} conversations, one event a call"
    table = Table("writers", "events/s", "conflict rate", "", "mean retries", title=title)
    for point in points:
        bar = "█" * round(point.conflict_rate * BAR)
        table.add_row(
            f"{point.writers}",
            f"{point.events_per_second:,.0f}",
            f"{point.conflict_rate:.1%}",
            bar,
            f"{point.mean_retries:.2f}",
        )
    return table
