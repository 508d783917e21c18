"""The AsyncAPI document: valid by AsyncAPI's own schema, its examples what the consumer reads and writes."""

import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator

import schemas
from consumer.kafka.dead_letters import MARKER
from consumer.kafka.producer import FACTS, HEADER
from consumer.settings import KafkaSettings
from schemas import EVENT_MODELS, Reason, decode

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
PUBLISHED = json.loads((Path(__file__).parent / "asyncapi" / "3.0.0.json").read_text())
DOCUMENT: dict[str, Any] = yaml.safe_load((Path(schemas.__file__).parent / "asyncapi.yaml").read_text())
MESSAGES = DOCUMENT["components"]["messages"]
EXAMPLES = [
    pytest.param(name, example, id=f"{name}/{example['name']}")
    for name, message in MESSAGES.items()
    for example in message["examples"]
]
KINDS = ["InboundMessage", "ManualClose", "Tick"]
INCOMING = [param for param in EXAMPLES if str(param.values[0]).removesuffix("Binary") in KINDS]


def resolved(reference: str) -> Any:
    """What a reference within the document leads to; `KeyError` if nowhere."""
    target: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        target = target[step]
    return target


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def merged(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its traits, merged as AsyncAPI says: what the message has itself wins."""

    def merge(onto: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
        for name, value in patch.items():
            both = isinstance(value, dict) and isinstance(onto.get(name), dict)
            onto[name] = merge(onto[name], value) if both else value
        return onto

    whole: dict[str, Any] = {}
    for trait in message.get("traits", []):
        whole = merge(whole, copy.deepcopy(resolved(trait["$ref"])))
    return merge(whole, copy.deepcopy(message))


def fits(content: Any, schema: dict[str, Any]) -> bool:
    whole = {**schema, "components": DOCUMENT["components"]}
    return Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER).is_valid(content)


def test_the_document_is_valid_by_the_published_schema() -> None:
    assert [error.message for error in Draft7Validator(PUBLISHED).iter_errors(DOCUMENT)] == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("asyncapi", "2.6.0"),
        ("operations/receiveEvents/action", "consume"),
        ("operations/receiveEvents/bindings/kafka/groupId", "conversation-consumer"),
        ("channels/conversation.events/bindings/kafka/partitions", 0),
        ("components/messages/DeadLetter/bindings/kafka/schemaIdLocation", "nowhere"),
        ("components/messageTraits/binary/payload", {}),
    ],
)
def test_the_published_schema_finds_a_mistake(path: str, wrong: Any) -> None:
    broken = copy.deepcopy(DOCUMENT)
    *parents, name = path.split("/")
    target = broken
    for parent in parents:
        target = target[parent]
    target[name] = wrong

    assert not Draft7Validator(PUBLISHED).is_valid(broken)


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))

    assert found
    assert all(resolved(reference) for reference in found)


def test_every_event_type_has_a_message() -> None:
    assert {message["name"] for message in MESSAGES.values()} - {"dead-letter", "replay-marker"} == set(EVENT_MODELS)


def test_the_topics_and_the_group_are_those_of_the_settings() -> None:
    settings = KafkaSettings()
    group = DOCUMENT["operations"]["receiveEvents"]["bindings"]["kafka"]["groupId"]["const"]

    assert list(DOCUMENT["channels"]) == [*settings.topics, settings.transition_topic, settings.dead_letter_topic]
    assert group == settings.group_id


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_an_example_fits_the_schemas_of_its_message(name: str, example: dict[str, Any]) -> None:
    message = merged(MESSAGES[name])

    assert fits(example["headers"], message["headers"])
    assert fits(example.get("payload"), message.get("payload", {}))


@pytest.mark.parametrize(("name", "example"), INCOMING)
def test_an_example_is_read_as_the_event_of_its_message(name: str, example: dict[str, Any]) -> None:
    model = EVENT_MODELS[MESSAGES[name]["name"]]
    headers = [(header, content.encode()) for header, content in example["headers"].items()]
    value = json.dumps(example["payload"]).encode() if "payload" in example else None

    event = decode(b"thread-4711", value, headers, now=NOW)

    assert type(event) is model


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_has_the_same_example_in_both_modes(kind: str) -> None:
    def names(message: str) -> list[str]:
        return [example["name"] for example in MESSAGES[message]["examples"]]

    assert names(kind) == names(f"{kind}Binary")


def test_a_dead_letter_has_the_headers_that_the_consumer_sends() -> None:
    described = MESSAGES["DeadLetter"]["headers"]["properties"]

    assert list(described) == [HEADER + fact for fact in FACTS]
    assert described[HEADER + "reason"]["enum"] == [reason.value for reason in Reason]
    assert list(MESSAGES["ReplayMarker"]["headers"]["properties"]) == [MARKER + "partition", MARKER + "offset"]
