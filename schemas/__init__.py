"""The event contract: CloudEvents 1.0 in JSON, one pydantic model per `type`.

Upstream Python services import the models; everyone else reads the JSON Schema under `json/`, generated from them:

    event = InboundMessage(
        id="wamid.1", source="whatsapp:1555", subject="thread-4711", time=datetime.now(UTC),
        data=InboundMessageData(author="user"),
    )
    key, value = event.to_record()
"""

from schemas.cloudevents import (
    EARLIEST,
    INCOMING_TYPES,
    MAX_AHEAD,
    Headers,
    Invalid,
    Reason,
    decode,
    is_binary,
    validated,
)
from schemas.events import (
    EVENT_MODELS,
    RESERVED_SOURCE,
    InboundMessage,
    InboundMessageData,
    IncomingEvent,
    ManualClose,
    ManualCloseData,
    Tick,
    Transition,
    TransitionData,
    parse_time,
)

__all__ = [
    "EARLIEST",
    "EVENT_MODELS",
    "INCOMING_TYPES",
    "MAX_AHEAD",
    "RESERVED_SOURCE",
    "Headers",
    "InboundMessage",
    "InboundMessageData",
    "IncomingEvent",
    "Invalid",
    "ManualClose",
    "ManualCloseData",
    "Reason",
    "Tick",
    "Transition",
    "TransitionData",
    "decode",
    "is_binary",
    "parse_time",
    "validated",
]
