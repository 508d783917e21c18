"""The AsyncAPI 3 document: who sends what on which topic, generated from the models, its examples from `examples/`."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from schemas.cloudevents import CE_PREFIX, Invalid, Reason, decode
from schemas.events import EVENT_MODELS, CloudEvent, IncomingEvent, Transition

Object = dict[str, Any]
EXAMPLES = Path(__file__).parent / "examples"
EVENTS, TRANSITIONS, DEAD_LETTERS = "conversation.events", "conversation.transition", "conversation.dead-letter"
GROUP = "conversation-consumer"
STRUCTURED, BINARY = "application/cloudevents+json", "application/json"
KAFKA = "0.5.0"
"""The version of AsyncAPI's Kafka bindings."""
NOTED = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
"""When the dead letter of the example was one."""
ERRORS = {
    "topic": "The topic that the record came from.",
    "partition": "The partition that it came from, in decimal.",
    "offset": "Its offset there, in decimal.",
    "timestamp": "Its timestamp in milliseconds since 1970, in decimal.",
    "group": "The consumer group that refused it.",
    "reason": "Why, from a closed vocabulary.",
    "error": "Where and how it breaks the contract. It never quotes the body.",
}
"""The headers of a dead letter that come after its own: fact -> meaning."""


def document() -> Object:
    """The whole document, as JSON values."""
    return {
        "asyncapi": "3.0.0",
        "info": _info(),
        "defaultContentType": STRUCTURED,
        "servers": {"kafka": _server()},
        "channels": {name: _channel(name) for name in (EVENTS, TRANSITIONS, DEAD_LETTERS)},
        "operations": {
            "receiveEvents": _operation("receive", EVENTS, "What upstream teams publish, and the ticker."),
            "sendTransitions": _operation("send", TRANSITIONS, "Each opening of a session and change of its status."),
            "sendDeadLetters": _operation("send", DEAD_LETTERS, "Records of upstream teams that hold no valid event."),
        },
        "components": {
            "schemas": _schemas(),
            "messages": _messages(),
            "messageTraits": {"structured": _structured_trait(), "binary": _binary_trait()},
        },
    }


def _info() -> Object:
    return {
        "title": "Conversation events",
        "version": "1.0.0",
        "description": (
            "What upstream teams send to the conversation consumer and what comes back. Events are CloudEvents 1.0 in "
            "JSON, in structured or in binary mode: one event means the same in both. The major version of an event is "
            "the end of its `type`. Within it, changes only add; consumers ignore what they do not know."
        ),
        "license": {"name": "MIT"},
    }


def _server() -> Object:
    return {
        "host": "{bootstrap}",
        "protocol": "kafka",
        "description": "The brokers that CONSUMER_KAFKA__BOOTSTRAP_SERVERS names.",
        "variables": {"bootstrap": {"default": "localhost:9092"}},
    }


def _schemas() -> Object:
    """The models and what they refer to. Inlined `$defs` would have references that lead nowhere."""
    models: list[tuple[type[BaseModel], Any]] = [(model, "validation") for model in EVENT_MODELS.values()]
    _, found = models_json_schema(models, by_alias=True, ref_template="#/components/schemas/{model}")
    return dict(found["$defs"])


# Channels and operations.


def _channel(topic: str) -> Object:
    keyed = (
        "The key is the conversation id in UTF-8; the partition is murmur2 of the key, as Java's client computes it. "
        "The number of partitions is the operator's: `conversation-consumer topics` makes 12."
    )
    described = {
        EVENTS: f"Everything that happens to conversations, in the order of decisions. {keyed}",
        TRANSITIONS: f"What became of the conversations. {keyed}",
        DEAD_LETTERS: "Records that hold no valid event: key, value, headers byte for byte. One partition as a rule.",
    }
    return {
        "address": topic,
        "description": described[topic],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _names(topic)},
        "bindings": {"kafka": {"topic": topic, "bindingVersion": KAFKA}},
    }


def _names(topic: str) -> list[str]:
    if topic == DEAD_LETTERS:
        return ["DeadLetter", "ReplayMarker"]
    published = (Transition,) if topic == TRANSITIONS else IncomingEvent.__args__
    return [name for model in published for name in _message_names(model)]


def _message_names(model: type[CloudEvent]) -> list[str]:
    """This service publishes in structured mode; it reads both."""
    return [model.__name__] if model is Transition else [model.__name__, f"{model.__name__}Binary"]


def _operation(action: str, topic: str, summary: str) -> Object:
    group: Object = {"type": "string", "const": GROUP, "description": "CONSUMER_KAFKA__GROUP_ID."}
    binding = {"groupId": group, "bindingVersion": KAFKA} if action == "receive" else {"bindingVersion": KAFKA}
    channel = f"#/channels/{topic}"
    return {
        "action": action,
        "channel": {"$ref": channel},
        "summary": summary,
        "messages": [{"$ref": f"{channel}/messages/{name}"} for name in _names(topic)],
        "bindings": {"kafka": binding},
    }


# Messages.


def _structured_trait() -> Object:
    return {
        "contentType": STRUCTURED,
        "headers": {
            "type": "object",
            "properties": {"content-type": {"type": "string", "description": f"{STRUCTURED}, or absent."}},
        },
        "bindings": _keyed(),
    }


def _binary_trait() -> Object:
    meanings = {name: field.description for name, field in CloudEvent.model_fields.items()}
    texts = {"type": "The event's type and major version.", **meanings}
    properties: Object = {CE_PREFIX + name: {"type": "string", "description": text} for name, text in texts.items()}
    return {
        "contentType": BINARY,
        "headers": {
            "type": "object",
            "required": list(properties),
            "properties": {**properties, "content-type": {"type": "string", "description": f"{BINARY}, or absent."}},
        },
        "bindings": _keyed(),
    }


def _keyed() -> Object:
    key: Object = {"type": "string", "minLength": 1, "maxLength": 200, "description": "The conversation id, in UTF-8."}
    return {"kafka": {"key": key, "bindingVersion": KAFKA}}


def _messages() -> Object:
    messages: Object = {}
    for event_type, model in EVENT_MODELS.items():
        for name, make in zip(_message_names(model), (_structured, _binary), strict=False):
            messages[name] = make(name, event_type, model)
    return {**messages, "DeadLetter": _dead_letter(), "ReplayMarker": _replay_marker()}


def _structured(name: str, event_type: str, model: type[CloudEvent]) -> Object:
    examples = [
        {"name": stem, "headers": {"content-type": STRUCTURED}, "payload": event} for stem, event in _valid(event_type)
    ]
    return {
        "name": event_type,
        "title": name,
        "summary": model.__doc__,
        "traits": [{"$ref": "#/components/messageTraits/structured"}],
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        "examples": examples,
    }


def _binary(name: str, event_type: str, model: type[CloudEvent]) -> Object:
    message: Object = {
        "name": event_type,
        "title": name,
        "summary": f"{model.__doc__} In binary mode.",
        "traits": [{"$ref": "#/components/messageTraits/binary"}],
        "headers": {"type": "object", "properties": {f"{CE_PREFIX}type": {"const": event_type}}},
    }
    if "data" in model.model_fields:
        message["payload"] = {"$ref": f"#/components/schemas/{model.__name__}Data"}
    return {**message, "examples": [_in_binary_mode(stem, event) for stem, event in _valid(event_type)]}


def _in_binary_mode(stem: str, event: Object) -> Object:
    attributes = {CE_PREFIX + name: value for name, value in event.items() if name not in ("data", "datacontenttype")}
    data = {"payload": event["data"]} if "data" in event else {}
    return {"name": stem, "headers": {**attributes, "content-type": BINARY}, **data}


def _valid(event_type: str) -> Iterator[tuple[str, Object]]:
    for path in sorted((EXAMPLES / event_type / "valid").glob("*.json")):
        yield path.stem, json.loads(path.read_text())


# Dead letters.


def _dead_letter() -> Object:
    meanings: Object = {f"__consumer.errors.{fact}": {"type": "string", "description": m} for fact, m in ERRORS.items()}
    meanings["__consumer.errors.reason"]["enum"] = [reason.value for reason in Reason]
    return {
        "name": "dead-letter",
        "title": "DeadLetter",
        "summary": "A record that holds no valid event: key, value and headers as they came, these headers after them.",
        "contentType": "application/octet-stream",
        "headers": {"type": "object", "required": list(meanings), "properties": meanings},
        "payload": {"description": "The record's value, byte for byte; it need not be JSON, and may be absent."},
        "bindings": {"kafka": {"key": {"description": "The record's key, byte for byte."}, "bindingVersion": KAFKA}},
        "examples": [_refused("conversation.inbound-message.v1", "schema_violation-author")],
    }


def _refused(event_type: str, stem: str) -> Object:
    """The invalid example as a dead letter, refused for what the decoder says."""
    value = (EXAMPLES / event_type / "invalid" / f"{stem}.json").read_bytes()
    event = json.loads(value)
    try:
        decode(event["subject"].encode(), value, now=NOTED)
    except Invalid as invalid:
        place = (EVENTS, 3, 42, int(NOTED.timestamp() * 1000), GROUP)
        facts = zip(ERRORS, (*place, invalid.reason, invalid.detail), strict=True)
        return {
            "name": stem,
            "headers": {f"__consumer.errors.{fact}": str(value) for fact, value in facts},
            "payload": event,
        }
    raise AssertionError(f"{stem} is valid")


def _replay_marker() -> Object:
    meanings = {"partition": "The partition of the dead letter.", "offset": "The offset of the dead letter."}
    headers = {f"__consumer.replayed.{fact}": {"type": "string", "description": m} for fact, m in meanings.items()}
    return {
        "name": "replay-marker",
        "title": "ReplayMarker",
        "summary": "Says that a dead letter of this topic was published again. It has the same key and no value.",
        "headers": {"type": "object", "required": list(headers), "properties": headers},
        "payload": {"type": "null"},
        "examples": [{"name": "replayed", "headers": dict.fromkeys(headers, "0"), "payload": None}],
    }
