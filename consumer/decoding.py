"""Bytes to event or dead letter, and an event back to its record.

Most records are plain: `plain_event` decodes them by msgspec, in a third of the time that the models of `schemas` take.
It is a sieve, not a second contract: what it accepts, the models accept as the same event
(`tests/contract/test_plain_records.py`); all other records are decoded, or refused, by the models.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, assert_never

from msgspec import Meta, MsgspecError, Struct
from msgspec.json import Decoder
from pydantic_core import PydanticCustomError

import schemas
from consumer.errors import InvalidEventError
from consumer.lifecycle.model import Author, Event, Intent, ManualClose, Message, Status, Tick
from consumer.records import DeadLetter, Record
from schemas import EARLIEST, MAX_AHEAD, RESERVED_SOURCE, is_binary, parse_time

AUTHORS = {author.value: author for author in Author}
PLAIN_BYTES = 2048
PLAIN_NESTING = 16
"""JSON parsers differ where nesting or numbers know no bounds: what is larger than these is left to the models."""


def decode_all(records: Iterable[Record], max_bytes: int) -> tuple[list[tuple[Record, Event]], list[DeadLetter]]:
    """The events of `records`, each beside its record, and what is none. Bad input never costs good input."""
    now = datetime.now(UTC)
    good: list[tuple[Record, Event]] = []
    bad: list[DeadLetter] = []
    latest = now + MAX_AHEAD
    for record in records:
        headers = record.headers
        if not (headers and is_binary(headers)) and (event := plain_event(record.key, record.value, latest, max_bytes)):
            good.append((record, event))
            continue
        try:
            model = schemas.decode(record.key, record.value, headers, now=now, max_bytes=max_bytes)
            good.append((record, to_event(model)))
        except schemas.Invalid as invalid:
            bad.append(DeadLetter(record, invalid.reason, invalid.detail))
    return good, bad


# A plain record to an event.


def plain_event(key: bytes | None, value: bytes | None, latest: datetime, max_bytes: int) -> Event | None:
    """The event of a plain record, dated `latest` at most; None for every other record, good or bad."""
    if key is None or value is None or not _is_plain(value) or len(key) + len(value) > max_bytes:
        return None
    try:
        event = _decoded(value)
        at = parse_time(event.time)
    except (MsgspecError, PydanticCustomError, RecursionError):
        return None
    if event.subject.encode() != key or event.source == RESERVED_SOURCE or not EARLIEST <= at <= latest:
        return None
    match event:
        case _InboundMessage(data=data):
            intent = Intent.CLOSE if data.intent else None
            return Message(event.subject, event.source, event.id, at, AUTHORS[data.author], intent)
        case _ManualClose(data=close):
            status = Status(close.status)
            return ManualClose(event.subject, event.source, event.id, at, status, close.actor, close.reason)
        case _:
            return Tick(event.subject, event.source, event.id, at)


def _is_plain(value: bytes) -> bool:
    """Short and shallow, ASCII without escapes: then a string is what it looks like."""
    nested = value.count(b"{") + value.count(b"[")
    return len(value) <= PLAIN_BYTES and nested <= PLAIN_NESTING and value.isascii() and b"\\" not in value


Identifier = Annotated[str, Meta(min_length=1, max_length=200)]


class _Envelope(Struct):
    specversion: Literal["1.0"]
    id: Identifier
    source: Identifier
    subject: Identifier
    time: str


class _MessageData(Struct):
    author: Literal["user", "agent", "support", "system"]
    intent: Literal["close"] | None = None


class _CloseData(Struct):
    status: Literal["failed", "user_closed", "support_closed", "agent_closed"]
    actor: Identifier
    reason: Annotated[str, Meta(max_length=500)] | None = None


class _InboundMessage(_Envelope, tag_field="type", tag="conversation.inbound-message.v1"):
    data: _MessageData


class _ManualClose(_Envelope, tag_field="type", tag="conversation.manual-close.v1"):
    data: _CloseData


class _Tick(_Envelope, tag_field="type", tag="conversation.tick.v1"):
    pass


_decoded = Decoder(_InboundMessage | _ManualClose | _Tick).decode


# Any other record: the contract's model to an event.


def to_event(model: schemas.IncomingEvent) -> Event:
    """The lifecycle's event of a decoded record."""
    match model:
        case schemas.InboundMessage(data=data):
            intent = Intent.CLOSE if data.intent else None
            return Message(model.subject, model.source, model.id, model.time, AUTHORS[data.author], intent)
        case schemas.ManualClose(data=close):
            status = Status(close.status)
            return ManualClose(model.subject, model.source, model.id, model.time, status, close.actor, close.reason)
        case schemas.Tick():
            return Tick(model.subject, model.source, model.id, model.time)
        case _:
            assert_never(model)


# An event to its record.


def checked(event: Event) -> Event:
    """The event as the log would have brought it, its time in UTC. Raises `InvalidEventError` if it could not have."""
    try:
        model = schemas.validated(as_record(event), datetime.now(UTC))
    except schemas.Invalid as invalid:
        raise InvalidEventError(f"{event.kind} event, {invalid.detail}") from None
    return event._replace(at=model.time)


def encoded(event: Event) -> tuple[bytes, bytes]:
    """The event's Kafka record: (key, value)."""
    return event.conversation_id.encode(), json.dumps(as_record(event)).encode()


def as_record(event: Event) -> dict[str, Any]:
    """The event as the JSON object that upstream publishes."""
    envelope = {
        "specversion": "1.0",
        "type": f"conversation.{event.kind}.v1",
        "id": event.event_id,
        "source": event.source,
        "subject": event.conversation_id,
        "time": event.at.isoformat(),
    }
    match event:
        case Message():
            return envelope | {"data": {"author": event.author, "intent": event.intent}}
        case ManualClose():
            return envelope | {"data": {"status": event.status, "actor": event.actor, "reason": event.reason}}
        case Tick():
            return envelope
        case _:
            assert_never(event)
