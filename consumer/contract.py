"""Between the event contract and the lifecycle: contract models to events, and events held against their model."""

import json
from datetime import UTC, datetime
from typing import Any, assert_never

from pydantic import ValidationError

import schemas
from consumer.conversation import Author, Event, Intent, ManualClose, Message, Status, Tick
from consumer.errors import InvalidEventError
from schemas.cloudevents import check_time

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
