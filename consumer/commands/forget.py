"""`conversation forget`: removes a conversation for good, and says what Kafka still holds."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, NamedTuple

import typer

from consumer import settings as configuration
from consumer.commands.output import AsJson, Yes, print_json, print_line
from consumer.commands.query import check_schema
from consumer.durations import format_duration
from consumer.errors import ConsumerError, ContentionError
from consumer.kafka.admin import KafkaAdmin, admin
from consumer.kafka.placement import home_of
from consumer.postgres.store import PostgresStore
from consumer.retry import Backoff, retried
from consumer.settings import KafkaSettings

BACKOFF = Backoff(0.1, 1.0)
RETRY_SECONDS = 60.0
"""Longer than a frozen owner or relay may hold what is needed."""


class Copy(NamedTuple):
    """What a topic may hold of a conversation. Its key is on `partition`, unless a producer partitions otherwise."""

    topic: str
    partition: int | None
    retention: timedelta | None


def forget(
    conversation_id: Annotated[str, typer.Argument(help="The conversation id: `subject` of its events.")],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a conversation for good: its row, archive, history, transitions to publish. Kafka keeps its records."""
    settings = configuration.load()

    async def work() -> None:
        async with PostgresStore.open(settings.database) as store:
            await check_schema(store)
            rows = await store.count_rows(conversation_id)
            if not any(rows.values()):
                raise ConsumerError(f"no conversation {conversation_id!r}: the database has nothing of it")
            async with admin(settings.kafka) as client:
                copies = await _copies(client, settings.kafka, conversation_id)
            if yes:
                rows = await _delete(store, conversation_id)
            if as_json:
                print_json(_as_data(conversation_id, rows, copies, done=yes))
                return
            _print(conversation_id, rows, done=yes)
            _print_copies(settings.kafka, copies)
            if not yes:
                print_line("nothing done: add --yes")

    asyncio.run(work())


async def _delete(store: PostgresStore, conversation_id: str) -> dict[str, int]:
    """Waits for a while for whoever holds an offset, the outbox or the row. Raises `ConsumerError` if it lasts."""
    try:
        return await retried(
            lambda _: store.forget(conversation_id), ContentionError, BACKOFF, asyncio.sleep, seconds=RETRY_SECONDS
        )
    except ContentionError as error:
        raise ConsumerError("somebody holds an offset, the outbox or the conversation: run this again") from error


async def _copies(client: KafkaAdmin, settings: KafkaSettings, conversation_id: str) -> list[Copy]:
    there, key = await client.topics(), conversation_id.encode()
    return [
        Copy(
            topic,
            None if topic == settings.dead_letter_topic else home_of(key, there[topic]),
            await client.longest_retention(topic),
        )
        for topic in (*settings.topics, settings.dead_letter_topic, settings.transition_topic)
        if topic in there
    ]


def _as_data(conversation_id: str, rows: Mapping[str, int], copies: list[Copy], *, done: bool) -> dict[str, object]:
    kept = [copy._asdict() | {"retention": copy.retention and copy.retention.total_seconds()} for copy in copies]
    return {"conversation_id": conversation_id, "deleted": done, "rows": rows, "topics": kept}


def _print(conversation_id: str, rows: Mapping[str, int], *, done: bool) -> None:
    print_line(f"{conversation_id}: {'deleted' if done else 'to delete'}", style="bold")
    for table, count in rows.items():
        print_line(f"  {table}: {count:,} {'row' if count == 1 else 'rows'}")
    print_line("Another event of the same id starts a new conversation, at session 1 and version 1.")


def _print_copies(settings: KafkaSettings, copies: list[Copy]) -> None:
    print_line("Kafka may still hold records of it:")
    for topic, partition, retention in copies:
        where = f" (partition {partition})" if partition is not None else ""
        kept = f"for at most {format_duration(retention)}" if retention else "without limit"
        print_line(f"  {topic}{where}: {kept}")
    tool = f"--bootstrap-server {settings.bootstrap_servers}"
    for topic in (copy.topic for copy in copies if copy.retention is None):
        print_line(
            f"To limit that: `kafka-configs.sh {tool} --alter --entity-type topics --entity-name {topic} --add-config "
            "retention.ms=1209600000`"
        )
    print_line(
        f"To remove the records of a partition now: `kafka-delete-records.sh {tool} --offset-json-file FILE` "
        "(see docs/history.md)"
    )
