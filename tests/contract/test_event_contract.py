"""The contract both ways: every example parses or fails for its reason, by the models and by the generated schema."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from jsonschema import Draft202012Validator
from pydantic import ValidationError

import schemas
from schemas import EVENT_MODELS, Invalid, Reason, decode
from schemas.__main__ import generate

ROOT = Path(schemas.__file__).parent
NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
INCOMING = sorted(name for name in EVENT_MODELS if "transition" not in name)


def examples(kind: str) -> list[Any]:
    paths = sorted(ROOT.glob(f"examples/*/{kind}/*.json"))
    return [pytest.param(path, id=f"{path.parent.parent.name}/{path.stem}") for path in paths]


def validator(event_type: str) -> Draft202012Validator:
    schema = json.loads((ROOT / "json" / f"{event_type}.schema.json").read_text())
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def record(**changes: Any) -> dict[str, Any]:
    event = json.loads((ROOT / "examples/conversation.inbound-message.v1/valid/user.json").read_text())
    return {**event, **changes}


def rejected(value: bytes | None, key: bytes | None = b"thread-4711", **limits: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        decode(key, value, now=NOW, **limits)
    return caught.value


def test_the_committed_schemas_are_the_generated_ones() -> None:
    paths = [*(ROOT / "json").iterdir(), ROOT / "asyncapi.yaml"]
    committed = {str(path.relative_to(ROOT)): path.read_text() for path in paths}

    assert committed == generate()


def test_every_type_has_valid_and_invalid_examples() -> None:
    for event_type in EVENT_MODELS:
        for kind in ("valid", "invalid"):
            assert list(ROOT.glob(f"examples/{event_type}/{kind}/*.json")), (event_type, kind)


@pytest.mark.parametrize("path", examples("valid"))
def test_a_valid_example_passes_the_model_the_schema_and_the_cloudevents_sdk(path: Path) -> None:
    event_type, value = path.parent.parent.name, path.read_bytes()

    parsed = EVENT_MODELS[event_type].model_validate_json(value)
    oracle = JSONFormat().read(CloudEvent, value)

    assert validator(event_type).is_valid(json.loads(value))
    assert (parsed.id, parsed.source, parsed.subject) == (oracle.get_id(), oracle.get_source(), oracle.get_subject())
    oracle_time = oracle.get_time()
    assert oracle_time is not None
    assert abs(parsed.time - oracle_time) < timedelta(microseconds=1)
    if event_type in INCOMING:
        assert decode(parsed.subject.encode(), value, now=NOW) == parsed


@pytest.mark.parametrize("path", examples("invalid"))
def test_an_invalid_example_fails_for_the_reason_it_is_named_for(path: Path) -> None:
    event_type, value = path.parent.parent.name, path.read_bytes()
    reason = Reason(path.stem.split("-")[0])

    if event_type in INCOMING:
        assert rejected(value).reason is reason
    else:
        with pytest.raises(ValidationError):
            EVENT_MODELS[event_type].model_validate_json(value)
    assert not validator(event_type).is_valid(json.loads(value))


def test_a_parsed_event_dumps_to_what_parses_again() -> None:
    for path in ROOT.glob("examples/*/valid/*.json"):
        model = EVENT_MODELS[path.parent.parent.name]
        parsed = model.model_validate_json(path.read_bytes())

        dumped = parsed.model_dump_json(by_alias=True)

        assert model.model_validate_json(dumped) == parsed
        assert validator(path.parent.parent.name).is_valid(json.loads(dumped))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.INVALID_JSON),
        (b"", Reason.INVALID_JSON),
        (b"\xff\xfe", Reason.INVALID_JSON),
        (b"{", Reason.INVALID_JSON),
        (b"[" * 20_000, Reason.INVALID_JSON),
        (b'{"n":' + b"9" * 6_000 + b"}", Reason.INVALID_JSON),
        (b"[]", Reason.SCHEMA_VIOLATION),
        (b"{}", Reason.SCHEMA_VIOLATION),
        (b'"text"', Reason.SCHEMA_VIOLATION),
        (json.dumps(record(type="conversation.escalation.v1")).encode(), Reason.UNKNOWN_TYPE),
        (json.dumps(record(id="\ud800")).encode(), Reason.UNSTORABLE_TEXT),
        (json.dumps(record(subject="\ud800")).encode(), Reason.UNSTORABLE_TEXT),
        (json.dumps(record(time="2009-12-31T23:59:59Z")).encode(), Reason.BAD_TIME),
        (json.dumps(record(time="2026-03-02T12:30:01Z")).encode(), Reason.BAD_TIME),
        (json.dumps(record(time="2026-02-30T00:00:00Z")).encode(), Reason.BAD_TIME),
        (json.dumps(record(time="0001-01-01T00:00:00+23:59")).encode(), Reason.BAD_TIME),
    ],
)
def test_a_record_that_is_no_event_has_a_reason(value: bytes | None, reason: Reason) -> None:
    assert rejected(value).reason is reason


@pytest.mark.parametrize("key", [None, b"", b"another", b"\xff"])
def test_the_key_must_be_the_subject(key: bytes | None) -> None:
    assert rejected(json.dumps(record()).encode(), key).reason is Reason.KEY_MISMATCH


def test_size_is_judged_before_anything_is_parsed() -> None:
    assert rejected(b"{" * 100, max_bytes=99).reason is Reason.OVERSIZED


def test_a_lone_surrogate_in_a_field_that_is_ignored_costs_nothing() -> None:
    event = record(text="half an emoji: \ud83d")

    assert decode(b"thread-4711", json.dumps(event).encode(), now=NOW).id == event["id"]


def test_an_unknown_type_is_named_even_if_its_envelope_is_unknown_too() -> None:
    assert rejected(b'{"type": "conversation.inbound-message.v9"}').reason is Reason.UNKNOWN_TYPE


def test_times_are_kept_to_the_microsecond_in_utc() -> None:
    event = decode(b"thread-4711", json.dumps(record(time="2026-03-01T14:00:00.1234567+02:00")).encode(), now=NOW)

    assert event.time == datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def test_the_reason_never_quotes_the_body() -> None:
    secret = "4111-1111-1111-1111"
    for field in ("id", "source", "subject", "type", "time", "specversion"):
        assert secret not in str(rejected(json.dumps(record(**{field: {"text": secret}})).encode()))
    assert secret not in str(rejected(json.dumps(record(type=secret)).encode()))
    assert secret not in str(rejected(json.dumps(record(data={"author": secret})).encode()))


def test_the_contract_imports_nothing_of_the_consumer() -> None:
    for path in ROOT.glob("*.py"):
        assert "import consumer" not in path.read_text()
        assert "from consumer" not in path.read_text()
