"""`topics`: the topics of the service."""

import asyncio
from typing import Annotated

import typer

from consumer import settings as configuration
from consumer.commands.output import out, print_problem
from consumer.kafka.admin import KafkaAdmin, admin
from consumer.settings import KafkaSettings

PARTITIONS = 12
DEAD_LETTER_CONFIGS = {"max.message.bytes": str(2 * 2**20), "retention.ms": "-1"}
app = typer.Typer(add_completion=False)


@app.command()
def topics(
    partitions: Annotated[
        int | None,
        typer.Option(min=1, help=f"Partitions of the input topics and of the transitions.  [default: {PARTITIONS}]"),
    ] = None,
    replication: Annotated[int | None, typer.Option(min=1, help="Replicas of each topic.  [default: 1]")] = None,
) -> None:
    """Create the topics that are missing. Exit code 1 if one that is there is not as asked."""
    settings = configuration.load().kafka
    raise typer.Exit(0 if asyncio.run(_create(settings, partitions, replication)) else 1)


async def _create(settings: KafkaSettings, partitions: int | None, replication: int | None) -> bool:
    as_asked = True
    async with admin(settings) as client:
        for topic in (*settings.topics, settings.transition_topic):
            as_asked &= await _ensure(client, topic, partitions, replication, {})
        as_asked &= await _ensure(client, settings.dead_letter_topic, None, replication, DEAD_LETTER_CONFIGS)
    return as_asked


async def _ensure(
    client: KafkaAdmin, topic: str, partitions: int | None, replication: int | None, configs: dict[str, str]
) -> bool:
    """Creates the topic unless it is there; whether it is as asked for."""
    count = 1 if configs else partitions or PARTITIONS
    if await client.create(topic, count, replication or 1, configs):
        out.print(f"{topic}: created", markup=False)
        return True
    there = await client.describe(topic)
    out.print(f"{topic}: was there", markup=False)
    differences = []
    if partitions and there.partitions != partitions:
        differences.append(f"{there.partitions} partitions, not {partitions}")
    if replication and there.replicas != replication:
        differences.append(f"{there.replicas} replicas, not {replication}")
    if differences:
        print_problem(
            f"{topic} has {' and '.join(differences)}: this command leaves topics as they are. Kafka's own tools add "
            "partitions and replicas. More partitions send conversations elsewhere: let the consumers drain the topic "
            "first. Fewer are not possible."
        )
    return not differences
