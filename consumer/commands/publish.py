"""`publish`: events from a file to the log. Good lines are sent, bad ones named."""

import json
import signal
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from consumer.errors import ConfigurationError
from consumer.kafka.admin import admin
from consumer.kafka.producer import KafkaProducer
from consumer.settings import Settings
from schemas import Invalid, decode

CHUNK = 1000


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f}/s")


async def publish_lines(
    console: Console, settings: Settings, topic: str, lines: Iterable[bytes]
) -> tuple[int, list[str]]:
    """How many were sent, and what is wrong with each of the others."""
    # Reading blocks the event loop, so an interrupt must not wait for the loop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    async with admin(settings.kafka) as client:
        if topic not in await client.topics():
            raise ConfigurationError(f"topic {topic} does not exist: run `conversation-consumer topics`")
    sent, wrong = 0, list[str]()
    columns = (TextColumn("published"), MofNCompleteColumn(), Rate(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("publish", total=None)
        async with KafkaProducer.open(settings.kafka) as producer:
            for chunk in _chunks(_records(lines, settings.worker.max_record_bytes, wrong)):
                await producer.publish(topic, chunk)
                sent += len(chunk)
                progress.advance(task, len(chunk))
    return sent, wrong


def _records(lines: Iterable[bytes], max_bytes: int, wrong: list[str]) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each valid line; what is wrong with the others goes to `wrong`."""
    for number, line in enumerate(map(bytes.strip, lines), start=1):
        if not line:
            continue
        try:
            key = str(json.loads(line)["subject"]).encode()
            decode(key, line, now=datetime.now(UTC), max_bytes=max_bytes)
        except Invalid as invalid:
            wrong.append(f"line {number}: {invalid}")
        except (ValueError, LookupError, TypeError):
            wrong.append(f"line {number}: not a JSON object with a subject (one event a line)")
        else:
            yield key, line


def _chunks(records: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    while chunk := list(islice(records, CHUNK)):
        yield chunk
