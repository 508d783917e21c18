"""One model per event type. Additive within a major version; a breaking change is a new `.v2` type beside `.v1`."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

RFC3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})")
STORABLE = r"^[^\x00]+$"
RESERVED_SOURCE = "consumer"


def parse_time(value: object) -> datetime:
    """An RFC 3339 string with an offset, to the microsecond (finer digits are cut off), in UTC."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    if isinstance(value, str) and RFC3339.fullmatch(value):
        try:
            at = datetime.fromisoformat(value if value[-1] != "z" else value.upper())
            return at if at.tzinfo is UTC else at.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise PydanticCustomError("bad_time", "must be an RFC 3339 date-time with an offset")


def _not_reserved(source: str) -> str:
    if source == RESERVED_SOURCE:
        raise PydanticCustomError("reserved_source", "`consumer` is reserved for the consumer's own rows")
    return source


Identifier = Annotated[str, Field(min_length=1, max_length=200, pattern=STORABLE)]
"""1-200 characters that PostgreSQL can store: no NUL, no lone surrogate."""

ConversationId = Identifier
Source = Annotated[
    Identifier,
    AfterValidator(_not_reserved),
    Field(json_schema_extra={"not": {"const": RESERVED_SOURCE}}),
]
Time = Annotated[
    datetime,
    PlainValidator(parse_time),
    PlainSerializer(lambda at: at.isoformat().replace("+00:00", "Z"), when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
ClosingStatus = Literal["failed", "user_closed", "support_closed", "agent_closed"]
AnyStatus = Literal["pending", "progress", "idle_timeout", "expired", ClosingStatus]


def _as_published(schema: dict[str, Any]) -> None:
    """The models have defaults for `specversion` and `type`; whoever writes JSON has to spell them out."""
    properties: dict[str, dict[str, Any]] = schema["properties"]
    for name in ("specversion", "type"):
        properties[name].pop("default", None)
    schema["required"] = [name for name in properties if name in (*schema["required"], "specversion", "type")]


class CloudEvent(BaseModel):
    """The envelope. Unknown attributes and fields are ignored, never stored, never logged."""

    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_extra=_as_published)

    specversion: Literal["1.0"] = Field("1.0", description="CloudEvents version.")
    id: Identifier = Field(description="Unique within `source`: the provider's id, so that its double delivery is one.")
    source: Source = Field(description="The provider account; never a pod. `consumer` is reserved.")
    subject: ConversationId = Field(description="The conversation id; also the Kafka key.")
    time: Time = Field(description="When it happened: RFC 3339 with an offset, kept to the microsecond.")

    def to_record(self) -> tuple[bytes, bytes]:
        """The Kafka record to publish, in structured mode: (key, value)."""
        return self.subject.encode(), self.model_dump_json(by_alias=True).encode()


class InboundMessageData(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    author: Literal["user", "agent", "support", "system"] = Field(description="Who wrote.")
    intent: Literal["close"] | None = Field(None, description="`close`: the user says goodbye. Ignored of others.")


class ManualCloseData(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    status: ClosingStatus = Field(description="What the conversation is closed as.")
    actor: Identifier = Field(description="Who or what closed it; opaque.")
    reason: Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$")] | None = Field(None, description="Why.")


class TransitionData(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    session: int = Field(ge=1, description="The conversation's how-many-th session.")
    version: int = Field(ge=1, description="The conversation's version after the transition.")
    from_status: AnyStatus | None = Field(alias="from", description="Null where the session opens.")
    to_status: AnyStatus = Field(alias="to")
    actor: Identifier
    reason: str | None = None
    occurred_at: Time


class InboundMessage(CloudEvent):
    """Somebody wrote in a conversation. Message text is not part of the contract."""

    type: Literal["conversation.inbound-message.v1"] = "conversation.inbound-message.v1"
    data: InboundMessageData


class ManualClose(CloudEvent):
    """Somebody, or something, closed a conversation on purpose."""

    type: Literal["conversation.manual-close.v1"] = "conversation.manual-close.v1"
    data: ManualCloseData


class Tick(CloudEvent):
    """A timer asks for the deadlines before `time` to take effect. It carries no data."""

    type: Literal["conversation.tick.v1"] = "conversation.tick.v1"


class Transition(CloudEvent):
    """A session opened, or its status changed."""

    type: Literal["conversation.transition.v1"] = "conversation.transition.v1"
    data: TransitionData


IncomingEvent = InboundMessage | ManualClose | Tick
EVENT_MODELS: dict[str, type[CloudEvent]] = {
    "conversation.inbound-message.v1": InboundMessage,
    "conversation.manual-close.v1": ManualClose,
    "conversation.tick.v1": Tick,
    "conversation.transition.v1": Transition,
}
