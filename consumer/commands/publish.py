"""`publish`: events from files to the log. Good documents are sent, bad ones named."""

import asyncio
import json
import re
import signal
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import typer
from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from consumer import settings as configuration
from consumer.commands.output import err, out, print_problem
from consumer.errors import ConfigurationError, ConsumerError
from consumer.kafka.admin import admin
from consumer.kafka.producer import KafkaProducer
from consumer.settings import Settings
from schemas import INCOMING_TYPES, Invalid, Reason, decode

CHUNK = 1000
TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[{}\[\]]|[^\s,{}\[\]"]+')
app = typer.Typer(add_completion=False)


@app.command()
def publish(
    files: Annotated[
        list[typer.FileBinaryRead],
        typer.Argument(help="CloudEvents in JSON: one a line, pretty-printed, or in arrays. `-` is standard input."),
    ],
    topic: Annotated[str | None, typer.Option(help="Default: the first input topic.")] = None,
) -> None:
    """Publish events. A document that is no valid event is reported and left out; the others are sent.

    Exit code 1 if there is such a document, or none at all.
    """
    settings = configuration.load()
    wrong: list[str] = []
    records = (
        record for file in files for record in _records(file, file.name, settings.worker.max_record_bytes, wrong)
    )
    if topic is not None and topic not in settings.kafka.topics:
        raise typer.BadParameter(
            f"{topic} is none of CONSUMER_KAFKA__TOPICS ({', '.join(settings.kafka.topics)})", param_hint="--topic"
        )
    sent = asyncio.run(_send(settings, topic or settings.kafka.topics[0], records))
    if not sent and not wrong:
        raise ConsumerError(f"nothing was read from {', '.join(file.name for file in files)}: nothing is published")
    for problem in wrong:
        print_problem(problem)
    out.print(f"{sent} published, {len(wrong)} rejected")
    raise typer.Exit(1 if wrong else 0)


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f}/s")


async def _send(settings: Settings, topic: str, records: Iterator[tuple[bytes, bytes]]) -> int:
    """Publishes them; how many."""
    # Reading blocks the event loop, so an interrupt must not wait for the loop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    async with admin(settings.kafka) as client:
        if topic not in await client.topics():
            raise ConfigurationError(f"topic {topic} does not exist: run `conversation-consumer topics`")
    sent = 0
    columns = (TextColumn("published"), MofNCompleteColumn(), Rate(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task("publish", total=None)
        async with KafkaProducer.open(settings.kafka) as producer:
            while chunk := list(islice(records, CHUNK)):
                await producer.publish(topic, chunk)
                sent += len(chunk)
                progress.advance(task, len(chunk))
    return sent


def _records(lines: Iterable[bytes], file: str, max_bytes: int, wrong: list[str]) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each valid document; what is wrong with the others goes to `wrong`."""
    for document in documents(lines):
        place = f"{file}, line {document.line}"
        try:
            key = str(json.loads(document.text)["subject"]).encode()
            decode(key, document.text, now=datetime.now(UTC), max_bytes=max_bytes)
        except Invalid as invalid:
            known = f": {', '.join(sorted(INCOMING_TYPES))}" if invalid.reason is Reason.UNKNOWN_TYPE else ""
            wrong.append(f"{place}: {invalid}{known}")
        except KeyError:
            wrong.append(f"{place}: schema_violation: subject: required")
        except (ValueError, TypeError, RecursionError):
            wrong.append(f"{place}: not a JSON object")
        else:
            yield key, document.text


@dataclass(slots=True)
class Document:
    """A piece of a file that should be a JSON object, and the line where it starts."""

    line: int
    text: bytes


@dataclass(slots=True)
class _Splitter:
    """Cuts lines into JSON objects: one a line, pretty-printed, in arrays, or one after the other.

    An object that never ends costs only itself: one that starts at the beginning of a line starts anew.
    """

    depth: int = 0
    started: int = 0
    parts: list[bytes] = field(default_factory=list)

    def feed(self, number: int, line: bytes) -> Iterator[Document]:
        if self.depth and line.startswith(b"{"):
            yield self._cut()
        start = 0
        for token in TOKENS.finditer(line):
            text = token.group()
            if text == b"{" or (text == b"[" and self.depth):
                if not self.depth:
                    self.started, start = number, token.start()
                self.depth += 1
            elif text in (b"}", b"]") and self.depth:
                self.depth -= 1
                if not self.depth:
                    self.parts.append(line[start : token.end()])
                    yield self._cut()
            elif not self.depth and text not in (b"[", b"]"):
                yield Document(number, text)
        if self.depth:
            self.parts.append(line[start:])

    def rest(self) -> Iterator[Document]:
        if self.depth:
            yield self._cut()

    def _cut(self) -> Document:
        document = Document(self.started, b"".join(self.parts).strip())
        self.depth, self.parts = 0, []
        return document


def documents(lines: Iterable[bytes]) -> Iterator[Document]:
    """What should be JSON objects, in order; anything between them is a document of its own, and a bad one."""
    splitter = _Splitter()
    number_of_last_bad = 0
    for number, line in enumerate(lines, start=1):
        for document in splitter.feed(number, line.removeprefix(BOM_UTF8) if number == 1 else line):
            if document.text.startswith(b"{"):
                yield document
            elif document.line != number_of_last_bad:
                number_of_last_bad = document.line
                yield document
    yield from splitter.rest()
