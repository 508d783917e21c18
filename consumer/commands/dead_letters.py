"""`dead-letters`: what the service could not apply; listed, shown, replayed."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from consumer import settings as configuration
from consumer.commands.output import AsJson, Yes, moment, out, print_json, print_table, printable
from consumer.decoding import decode_all
from consumer.durations import point_in_time
from consumer.errors import ConfigurationError, ConsumerError
from consumer.kafka import dead_letters as kafka
from consumer.kafka.admin import admin
from consumer.kafka.dead_letters import Position, ReplayMarker, StoredDeadLetter
from consumer.kafka.producer import KafkaProducer
from consumer.settings import KafkaSettings, Settings
from schemas import Reason


def _time(text: str) -> datetime:
    try:
        return point_in_time(text, datetime.now(UTC))
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from None


CHUNK = 500
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Reasons = Annotated[
    list[Reason] | None,
    typer.Option("--reason", metavar="REASON", help=f"Only this one; may be repeated: {', '.join(Reason)}."),
]
Topics = Annotated[
    list[str] | None, typer.Option("--topic", metavar="TOPIC", help="Only records of this one; may be repeated.")
]
Since = Annotated[
    datetime | None,
    typer.Option(parser=_time, metavar="TIME", help="Only those dead-lettered at this time, UTC, or later; 2h: ago."),
]
Until = Annotated[
    datetime | None, typer.Option(parser=_time, metavar="TIME", help="Only those dead-lettered before this time, UTC.")
]
app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Records that hold no valid event, in the dead-letter topic."
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters a command is about; an empty collection: all. Times are aware."""

    reasons: Collection[str] = ()
    topics: Collection[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    positions: Collection[Position] = ()

    def has(self, letter: StoredDeadLetter) -> bool:
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.topics or letter.record.topic in self.topics)
            and (self.since is None or self.since <= letter.at)
            and (self.until is None or letter.at < self.until)
            and (not self.positions or letter.position in self.positions)
        )


class Fate(StrEnum):
    """What a replay does with a dead letter."""

    REPLAY = "to replay"
    REPLAYED = "already replayed"
    INVALID = "still invalid for this build"
    NO_TOPIC = "of a topic that does not exist any more"
    TOO_OLD = "older than CONSUMER_PRUNE__HORIZON: its history may be pruned, so it could be applied twice"


@app.command("list")
def list_letters(
    *,
    reason: Reasons = None,
    topic: Topics = None,
    since: Since = None,
    until: Until = None,
    each: Annotated[bool, typer.Option("--each", help="One line for each dead letter.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count dead letters by topic and reason, or list each."""
    selection = Selection(reason or (), topic or (), since, until)
    letters, replayed = asyncio.run(_select(configuration.load().kafka, selection, bodies=False))
    if as_json:
        for letter in letters:
            print_json(_facts(letter) | {"replayed": letter.position in replayed})
    elif each:
        headings = ("position", "dead-lettered", "reason", "error", "replayed", "topic", "partition", "offset", "key")
        print_table(_count(letters), headings, [_row(letter, letter.position in replayed) for letter in letters])
    else:
        print_table(
            _count(letters), ("topic", "reason", "count", "replayed", "first", "last"), _groups(letters, replayed)
        )


@app.command()
def show(
    position: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="As `list --each` names it.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Print value and headers too: they may hold personal data.")
    ] = False,
) -> None:
    """One dead letter: where it lay, why it is one, and with --raw its content."""
    wanted = _position(position)
    letters, replayed = asyncio.run(_select(configuration.load().kafka, Selection(positions={wanted})))
    if not letters:
        raise ConsumerError(
            f"no dead letter at {position}: `conversation-consumer dead-letters list --each` has them all"
        )
    letter = letters[0]
    facts = _facts(letter) | {"replayed": _yes(letter.position in replayed)}
    for name, value in facts.items():
        _print_fact(
            name, moment(value) if isinstance(value, datetime) else printable("none" if value is None else str(value))
        )
    for name, content in [*letter.record.headers, ("value", letter.record.value)]:
        _print_fact(name, _content(content, raw=raw))


@app.command()
def replay(
    *,
    reason: Reasons = None,
    topic: Topics = None,
    since: Since = None,
    until: Until = None,
    at: Annotated[
        list[str] | None, typer.Option("--at", metavar="PARTITION:OFFSET", help="Only these; may be repeated.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Publish records again, key, value and headers as they were, to the topic they came from."""
    settings = configuration.load()
    positions = {_position(text) for text in at or ()}
    asyncio.run(_replay(settings, Selection(reason or (), topic or (), since, until, positions), yes=yes))


async def _replay(settings: Settings, selection: Selection, *, yes: bool) -> None:
    letters, replayed = await _select(settings.kafka, selection)
    if missing := set(selection.positions) - {letter.position for letter in letters}:
        raise ConsumerError(f"no such dead letter: {', '.join(f'{p}:{o}' for p, o in sorted(missing))}")
    async with admin(settings.kafka) as client:
        topics = await client.topics()
    now = datetime.now(UTC)
    fates = [_fate(letter, replayed, topics, settings, now) for letter in letters]
    print_table(_count(letters), ("count", "what"), [(count, fate) for fate, count in Counter(fates).most_common()])
    todo = [letter for letter, fate in zip(letters, fates, strict=True) if fate is Fate.REPLAY]
    if not yes:
        out.print("nothing done: add --yes" if todo else "nothing to replay")
        return
    async with KafkaProducer.open(settings.kafka) as producer:
        for start in range(0, len(todo), CHUNK):
            await kafka.replay(producer, settings.kafka, todo[start : start + CHUNK])
    out.print(f"{len(todo)} replayed")


def _fate(
    letter: StoredDeadLetter, replayed: set[Position], topics: Collection[str], settings: Settings, now: datetime
) -> Fate:
    if letter.position in replayed:
        return Fate.REPLAYED
    if letter.at < now - settings.prune.horizon:
        return Fate.TOO_OLD
    if letter.record.topic not in topics:
        return Fate.NO_TOPIC
    _, invalid = decode_all([letter.record], settings.worker.max_record_bytes)
    return Fate.INVALID if invalid else Fate.REPLAY


async def _select(
    settings: KafkaSettings, selection: Selection, *, bodies: bool = True
) -> tuple[list[StoredDeadLetter], set[Position]]:
    """The dead letters selected, and the positions of all that were replayed. Many of them fit without their bodies."""
    letters, replayed = list[StoredDeadLetter](), set[Position]()
    async for found in kafka.read(settings, selection.since):
        if isinstance(found, ReplayMarker):
            replayed.add(found.position)
        elif selection.has(found):
            letters.append(found if bodies else found.without_body())
    return letters, replayed


def _groups(letters: Sequence[StoredDeadLetter], replayed: set[Position]) -> list[tuple[object, ...]]:
    groups: dict[tuple[str, str], list[StoredDeadLetter]] = {}
    for letter in letters:
        groups.setdefault((letter.record.topic, letter.reason), []).append(letter)
    return [
        (
            *(topic, reason, len(group), sum(letter.position in replayed for letter in group)),
            *(moment(min(letter.at for letter in group)), moment(max(letter.at for letter in group))),
        )
        for (topic, reason), group in sorted(groups.items())
    ]


def _facts(letter: StoredDeadLetter) -> dict[str, object]:
    record = letter.record
    return {
        "position": f"{letter.position[0]}:{letter.position[1]}",
        "dead_lettered_at": letter.at,
        "reason": letter.reason,
        "error": letter.error,
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "recorded_at": _as_time(record.timestamp),
        "group": letter.group,
        "key": None if record.key is None else record.key.decode(errors="backslashreplace"),
        "bytes": letter.value_bytes,
    }


def _as_time(milliseconds: int) -> datetime | None:
    """Null for what is no date: a producer may have given microseconds."""
    with suppress(OverflowError):
        return EPOCH + timedelta(milliseconds=milliseconds)
    return None


def _row(letter: StoredDeadLetter, replayed: bool) -> tuple[object, ...]:
    facts = _facts(letter)
    return (
        *(facts["position"], moment(letter.at), letter.reason, letter.error, _yes(replayed)),
        *(facts["topic"], facts["partition"], facts["offset"], facts["key"]),
    )


def _count(letters: Sequence[StoredDeadLetter]) -> str:
    return f"{f'{len(letters):,}' if letters else 'no'} dead letter{'' if len(letters) == 1 else 's'}"


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _print_fact(name: str, value: str) -> None:
    out.print(f"{printable(name)}: {value}", markup=False, soft_wrap=True)


def _content(content: bytes | None, *, raw: bool) -> str:
    if content is None:
        return "none"
    if raw:
        return printable(content.decode(errors="backslashreplace"), keep="\n\t")
    return f"{len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()[:16]} (--raw prints it)"


def _position(text: str) -> Position:
    partition, colon, offset = text.partition(":")
    if not (colon and partition.isdecimal() and offset.isdecimal()):
        raise typer.BadParameter(f"{text!r} is no position: PARTITION:OFFSET, as 0:42")
    return int(partition), int(offset)
