"""Bytes to event or dead letter: the event contract, and the fast path in front of it.

`plain_event` decodes plain records by msgspec, in a third of the time that the models of `schemas` take. It is a sieve,
not a second contract: what it accepts, the models accept as the same event (`tests/contract/test_plain_records.py`);
all other records are decoded, or refused, by the models.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, assert_never

from msgspec import Meta, MsgspecError, Struct
from msgspec.json import Decoder
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

import schemas
from consumer.errors import InvalidEventError
from consumer.lifecycle.model import Author, Event, Intent, ManualClose, Message, Status, Tick
from consumer.records import DeadLetter, Record
from schemas import Invalid, decode
from schemas.cloudevents import EARLIEST, MAX_AHEAD, check_time
from schemas.events import RESERVED_SOURCE, parse_time


def decode_all(records: Iterable[Record], max_bytes: int) -> tuple[list[tuple[Record, Event]], list[DeadLetter]]:
    """The events of `records`, each beside its record, and what is none. Bad input never costs good input."""
    now = datetime.now(UTC)
    good: list[tuple[Record, Event]] = []
    bad: list[DeadLetter] = []
    latest = now + MAX_AHEAD
    for record in records:
        if event := plain_event(record.key, record.value, latest, max_bytes):
            good.append((record, event))
            continue
        try:
            good.append((record, to_event(decode(record.key, record.value, now=now, max_bytes=max_bytes))))
        except Invalid as invalid:
            bad.append(DeadLetter(record, invalid.reason, invalid.detail))
    return good, bad


AUTHORS = {author.value: author for author in Author}


def to_event(model: schemas.IncomingEvent) -> Event:
    """The lifecycle's event of a decoded record."""
    match model:
        case schemas.InboundMessage(data=data):
            intent = Intent.CLOSE if data.intent else None
            return Message(model.subject, model.source, model.id, model.time, AUTHORS[data.author], intent)
        case schemas.ManualClose(data=close):
            return ManualClose(
                conversation_id=model.subject,
                source=model.source,
                event_id=model.id,
                at=model.time,
                status=Status(close.status),
                actor=close.actor,
                reason=close.reason,
            )
        case schemas.Tick():
            return Tick(conversation_id=model.subject, source=model.source, event_id=model.id, at=model.time)
        case _:
            assert_never(model)


def checked(event: Event) -> Event:
    """The event as the log would have brought it, its time in UTC. Raises `InvalidEventError` if it could not have."""
    try:
        model = schemas.EVENT_MODELS[f"conversation.{event.kind}.v1"].model_validate(as_record(event))
        check_time(model, datetime.now(UTC))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidEventError(f"{event.kind} event, {where}: {first['msg']}") from None
    except schemas.Invalid as error:
        raise InvalidEventError(f"{event.kind} event, {error.detail}") from None
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


MAX_BYTES = 2048
MAX_NESTED = 16
"""JSON parsers differ where nesting or numbers know no bounds: what is larger than these is left to the models."""
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


def plain_event(key: bytes | None, value: bytes | None, latest: datetime, max_bytes: int) -> Event | None:
    """The event of a plain record, dated `latest` at most; None for every other record, good or bad."""
    if key is None or value is None or not _is_plain(value) or len(key) + len(value) > max_bytes:
        return None
    try:
        told = _decoded(value)
        at = parse_time(told.time)
    except (MsgspecError, PydanticCustomError, RecursionError):
        return None
    if told.subject.encode() != key or told.source == RESERVED_SOURCE or not EARLIEST <= at <= latest:
        return None
    match told:
        case _InboundMessage(data=said):
            intent = Intent.CLOSE if said.intent else None
            return Message(told.subject, told.source, told.id, at, AUTHORS[said.author], intent)
        case _ManualClose(data=close):
            status = Status(close.status)
            return ManualClose(told.subject, told.source, told.id, at, status, close.actor, close.reason)
        case _:
            return Tick(told.subject, told.source, told.id, at)


def _is_plain(value: bytes) -> bool:
    """Short and shallow, ASCII without escapes: then a string is what it looks like."""
    nested = value.count(b"{") + value.count(b"[")
    return len(value) <= MAX_BYTES and nested <= MAX_NESTED and value.isascii() and b"\\" not in value
