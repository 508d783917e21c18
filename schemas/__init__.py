"""The event contract: CloudEvents 1.0, structured JSON, one pydantic model per `type`.

Upstream Python services import the models; everyone else reads the JSON Schema under `json/`, generated from them.
"""

from schemas.cloudevents import Invalid, Reason, decode
from schemas.events import EVENT_MODELS, InboundMessage, IncomingEvent, ManualClose, Tick, Transition

__all__ = [
    "EVENT_MODELS",
    "InboundMessage",
    "IncomingEvent",
    "Invalid",
    "ManualClose",
    "Reason",
    "Tick",
    "Transition",
    "decode",
]
