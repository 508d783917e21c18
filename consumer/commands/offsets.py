"""`offsets`: where the partitions go on, as the database has it."""

import asyncio
from typing import Annotated

import typer

from consumer import settings as configuration
from consumer.commands.output import AsJson, Yes, out, print_json, print_table
from consumer.commands.query import ask
from consumer.errors import ConfigurationError
from consumer.kafka.admin import admin, log_bounds
from consumer.offsets import Partition, StoredOffset
from consumer.postgres.store import PostgresStore
from consumer.settings import Settings

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Where the partitions go on, as the database has it."
)


@app.command()
def show(as_json: AsJson = False) -> None:
    """Print where each partition goes on."""
    headings = ("group", "topic", "partition", "next offset", "cluster")
    rows = [
        (partition.group, partition.topic, partition.number, offset.next_offset, offset.cluster_id)
        for partition, offset in ask(PostgresStore.stored_offsets)
    ]
    if as_json:
        print_json([dict(zip((name.replace(" ", "_") for name in headings), row, strict=True)) for row in rows])
        return
    print_table(None if rows else "no offset is stored: no partition was ever assigned", headings, rows)


def _checked(offset: str) -> str:
    if not (offset.isdecimal() or offset.lower() in ("start", "end")):
        raise typer.BadParameter(f"{offset!r} is neither a number nor `start` nor `end`")
    return offset.lower()


@app.command("set")
def set_offset(
    topic: Annotated[str, typer.Argument(help="Input topic.")],
    partition: Annotated[int, typer.Argument(min=0, help="Its partition.")],
    offset: Annotated[
        str, typer.Argument(callback=_checked, help="Offset of the record to go on with; `start` or `end` of the log.")
    ],
    yes: Yes = False,
) -> None:
    """Have a partition go on elsewhere, in the cluster of now. Records in between are skipped, or seen again."""
    settings = configuration.load()
    if topic not in settings.kafka.topics:
        raise typer.BadParameter(
            f"{topic} is none of CONSUMER_KAFKA__TOPICS ({', '.join(settings.kafka.topics)})", param_hint="TOPIC"
        )
    asyncio.run(_move(settings, Partition(settings.kafka.group_id, topic, partition), offset, yes=yes))


async def _move(settings: Settings, place: Partition, wanted: str, *, yes: bool) -> None:
    name = f"{place.topic}[{place.number}]"
    async with admin(settings.kafka) as client, PostgresStore.open(settings.database) as store:
        if (partitions := (await client.topics()).get(place.topic, 0)) == 0:
            raise ConfigurationError(f"topic {place.topic} does not exist: run `conversation-consumer topics`")
        if place.number not in range(partitions):
            raise ConfigurationError(f"there is no {name}: {place.topic} has {partitions} partitions, from 0 on")
        first, end = (await log_bounds(settings.kafka, [place]))[place]
        offset = {"start": first, "end": end}[wanted] if wanted in ("start", "end") else int(wanted)
        if not first <= offset <= end:
            raise ConfigurationError(f"{name} has offsets {first} to {end}")
        before = await store.stored_offset(place)
        out.print(f"{name}: {before.next_offset if before else 'nothing'} -> {offset}", markup=False)
        if yes:
            await store.set_offset(place, StoredOffset(await client.cluster_id(), offset))
        else:
            out.print("nothing done: add --yes")
