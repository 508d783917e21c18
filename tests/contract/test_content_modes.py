"""Binary and structured mode of CloudEvents on Kafka: one event, one meaning. The official SDK is the oracle."""

import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary, to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

import schemas
from consumer.decoding import decode_all
from consumer.records import Record
from schemas import Invalid, Reason, decode

ROOT = Path(schemas.__file__).parent
NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
KEY = b"thread-4711"
HEADERS = {
    "ce_specversion": b"1.0",
    "ce_type": b"conversation.inbound-message.v1",
    "ce_id": b"wamid.1",
    "ce_source": b"whatsapp:1555",
    "ce_subject": KEY,
    "ce_time": b"2026-03-01T12:00:00Z",
    "content-type": b"application/json",
}
MESSAGE = b'{"author": "user"}'
EXAMPLES = [
    path for path in sorted(ROOT.glob("examples/*/valid/*.json")) if "transition" not in path.parent.parent.name
]


def key_of(event: Any) -> str:
    return str(event.get_subject())


def decoded(message: KafkaMessage) -> schemas.IncomingEvent:
    key = message.key.encode() if isinstance(message.key, str) else message.key
    return decode(key, message.value, tuple(message.headers.items()), now=NOW)


def binary(value: bytes | None = MESSAGE, key: bytes | None = KEY, **changes: bytes | None) -> schemas.IncomingEvent:
    """The event of a record in binary mode with other headers; None leaves one out."""
    headers = HEADERS | {name.replace("content_type", "content-type"): content for name, content in changes.items()}
    return decode(key, value, [(name, content) for name, content in headers.items() if content is not None], now=NOW)


def refused(value: bytes | None = MESSAGE, key: bytes | None = KEY, **changes: bytes | None) -> tuple[Reason, str]:
    with pytest.raises(Invalid) as caught:
        binary(value, key, **changes)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.parent.name}/{path.stem}")
@pytest.mark.parametrize("content_type", [None, "application/json"])
def test_an_event_of_the_sdk_means_the_same_in_both_modes(path: Path, content_type: str | None) -> None:
    event = JSONFormat().read(CloudEvent, path.read_bytes())
    if content_type:
        event = CloudEvent({**event.get_attributes(), "datacontenttype": content_type}, event.get_data())

    in_headers = decoded(to_binary(event, JSONFormat(), key_of))
    in_value = decoded(to_structured(event, JSONFormat(), key_of))

    assert in_headers == in_value


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200)


@given(names.filter(lambda name: name != "consumer"), names, names, st.sampled_from(["user", "agent"]))
def test_what_is_read_in_binary_mode_is_what_the_sdk_reads(
    source: str, identifier: str, subject: str, who: str
) -> None:
    texts = {"ce_source": source, "ce_id": identifier, "ce_subject": subject}
    headers = HEADERS | {name: text.encode() for name, text in texts.items()}
    message = KafkaMessage(headers, subject, json.dumps({"author": who}).encode())

    ours, theirs = decoded(message), from_binary(message, JSONFormat())

    assert (ours.source, ours.id, ours.subject) == (theirs.get_source(), theirs.get_id(), theirs.get_subject())
    assert ours.time == theirs.get_time()
    assert isinstance(ours, schemas.InboundMessage)
    assert isinstance(data := theirs.get_data(), dict)
    assert ours.data.author == data["author"]


@pytest.mark.parametrize("value", [None, b"", b"null", b"{}"])
def test_a_tick_in_binary_mode_needs_no_data(value: bytes | None) -> None:
    assert isinstance(binary(value, ce_type=b"conversation.tick.v1"), schemas.Tick)


@pytest.mark.parametrize("name", sorted(HEADERS.keys() - {"content-type"}))
def test_an_attribute_that_is_missing_is_named_by_its_header(name: str) -> None:
    reason, detail = refused(**{name: None})

    assert (reason, detail) == (Reason.SCHEMA_VIOLATION, f"{name}: is required")


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_a_header_that_is_not_utf_8_is_named(name: str) -> None:
    reason, detail = refused(**{name: b"\xff"})

    assert (reason, detail) == (Reason.SCHEMA_VIOLATION, f"{name}: must be UTF-8")


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_a_header_given_twice_is_named(name: str) -> None:
    headers = [*HEADERS.items(), (name.upper(), HEADERS[name])]

    with pytest.raises(Invalid, match=f"{name}: is given more than once"):
        decode(KEY, MESSAGE, headers, now=NOW)


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"ce_specversion": b"0.3"}, Reason.SCHEMA_VIOLATION, "ce_specversion: must be '1.0'"),
        ({"ce_type": b"conversation.tick.v9"}, Reason.UNKNOWN_TYPE, "ce_type: is not a type that this build knows"),
        ({"ce_id": b""}, Reason.SCHEMA_VIOLATION, "ce_id: must not be empty"),
        ({"ce_id": b"x" * 201}, Reason.SCHEMA_VIOLATION, "ce_id: must have at most 200 characters"),
        ({"ce_id": b"nul\0"}, Reason.UNSTORABLE_TEXT, "ce_id: contains a NUL character"),
        ({"ce_source": b"consumer"}, Reason.RESERVED_SOURCE, "ce_source: `consumer` is reserved"),
        ({"ce_time": b"yesterday"}, Reason.BAD_TIME, "ce_time: must be an RFC 3339 date-time with an offset"),
        ({"ce_time": b"2001-01-01T00:00:00Z"}, Reason.BAD_TIME, "time: before 2010"),
        ({"ce_subject": b"other"}, Reason.KEY_MISMATCH, "the Kafka key is not the subject"),
        ({"ce_subject": b"thread%2D4711"}, Reason.KEY_MISMATCH, "ce_subject: is percent-encoded"),
        ({"content_type": b"text/plain"}, Reason.SCHEMA_VIOLATION, "content-type: must be application/json"),
        ({"value": None}, Reason.SCHEMA_VIOLATION, "data: is required"),
        ({"value": b"{"}, Reason.INVALID_JSON, "not JSON in UTF-8"),
        ({"value": b"\xff"}, Reason.INVALID_JSON, "not JSON in UTF-8: byte 0 is not UTF-8"),
        ({"value": b"[]"}, Reason.SCHEMA_VIOLATION, "data: must be a JSON object"),
        ({"value": b"{}"}, Reason.SCHEMA_VIOLATION, "data.author: is required"),
        ({"value": b'{"author": "robot"}'}, Reason.SCHEMA_VIOLATION, "data.author: must be 'user', 'agent', 'support'"),
        ({"value": b" " * 65_600}, Reason.OVERSIZED, "allowed are 65536"),
        ({"ce_id": b"x" * 65_600}, Reason.OVERSIZED, "allowed are 65536"),
    ],
)
def test_what_is_wrong_in_binary_mode_is_said_in_words_of_the_contract(
    changes: dict[str, Any], reason: Reason, detail: str
) -> None:
    found, why = refused(**changes)

    assert found is reason
    assert why.startswith(detail) or detail in why


@pytest.mark.parametrize("name", ["ce_traceparent", "ce_data", "traceparent"])
def test_other_headers_are_ignored_whatever_they_hold(name: str) -> None:
    assert binary(**{name: b"\xff"}) == binary()


hostile = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.sampled_from(
        [b'{"author":"\xff"}', b'{"author":"\\ud800"}', b'{"a":' * 9999, b"[" * 30_000, b"9" * 6000, b"NaN"]
    ),
)


@given(st.dictionaries(st.sampled_from([*HEADERS, "CE_ID", "ce_", "ce_data", "x"]), hostile), hostile, hostile)
def test_whatever_a_record_holds_it_is_an_event_or_has_a_reason_why_not(
    changes: dict[str, bytes | None], key: bytes | None, value: bytes | None
) -> None:
    headers = [(name, content) for name, content in (HEADERS | changes).items()]

    for one_key, one_value in ((key, value), (KEY, value), (key, MESSAGE), (KEY, MESSAGE)):
        with suppress(Invalid):
            assert decode(one_key, one_value, headers, now=NOW).subject.encode() == one_key


@pytest.mark.parametrize("content_type", [b"application/json; charset=utf-8", b"application/problem+json", b"", None])
def test_data_is_json_by_any_of_its_names(content_type: bytes | None) -> None:
    assert binary(content_type=content_type) == binary()


def test_percent_signs_are_part_of_an_id() -> None:
    assert binary(ce_id=b"100%25").id == "100%25"


@pytest.mark.parametrize(
    "content_type", [b"application/cloudevents+json", b"Application/CloudEvents+JSON; charset=utf-8"]
)
def test_the_content_type_of_a_whole_event_makes_headers_mean_nothing(content_type: bytes) -> None:
    _, value = message().to_record()

    event = decode(KEY, value, [("ce_id", b"other"), ("content-type", content_type)], now=NOW)

    assert event == message()


@pytest.mark.parametrize("headers", [[], [("traceparent", b"00-1-2-01")], [("content-type", b"application/json")]])
def test_a_whole_event_without_attributes_in_headers_is_structured(headers: list[tuple[str, bytes]]) -> None:
    _, value = message().to_record()

    assert decode(KEY, value, headers, now=NOW) == message()


def test_a_batch_decodes_both_modes_and_keeps_their_order() -> None:
    key, value = message().to_record()
    at = datetime.now(UTC).isoformat().encode()
    structured = Record("events", 0, 0, 0, key, value)
    in_headers = Record("events", 0, 1, 0, KEY, MESSAGE, tuple((HEADERS | {"ce_time": at}).items()))
    # What would be a whole event is only data here, and not what the contract asks for.
    nested = in_headers._replace(offset=2, value=value)

    good, bad = decode_all([structured, in_headers, nested], 65_536)

    assert [(record.offset, event.event_id) for record, event in good] == [(0, "wamid.2"), (1, "wamid.1")]
    assert [(letter.record.offset, letter.error) for letter in bad] == [(2, "data.author: is required")]


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (b"{}", "type: is required"),
        (b"[]", "the event must be a JSON object"),
        (b'{"type": 1}', "type: is not a type that this build knows"),
        (b'{"type": "conversation.tick.v1"}', "id: is required"),
        (b'{"type": "conversation.tick.v1", "id": 1}', "id: must be a string"),
        (b"{", "not JSON in UTF-8: Expecting property name enclosed in double quotes, line 1, column 2"),
    ],
)
def test_what_is_wrong_in_structured_mode_is_said_in_words_of_the_contract(value: bytes, detail: str) -> None:
    with pytest.raises(Invalid, match=re.escape(detail)):
        decode(KEY, value, now=NOW)


def test_a_record_must_spell_out_its_specversion() -> None:
    value = json.dumps({**json.loads(message().to_record()[1]), "specversion": None}).encode()
    without = json.dumps({k: v for k, v in json.loads(value).items() if k != "specversion"}).encode()

    with pytest.raises(Invalid, match=re.escape("specversion: must be '1.0'")):
        decode(KEY, value, now=NOW)
    with pytest.raises(Invalid, match="specversion: is required"):
        decode(KEY, without, now=NOW)


def message() -> schemas.InboundMessage:
    return schemas.InboundMessage(
        id="wamid.2",
        source="whatsapp:1555",
        subject=KEY.decode(),
        time=NOW,
        data=schemas.InboundMessageData(author="user"),
    )


@pytest.mark.parametrize(
    "event",
    [
        message(),
        schemas.Tick(id="t", source="cron", subject="thread-4711", time=NOW),
        schemas.ManualClose(
            id="c",
            source="back-office",
            subject="thread-4711",
            time=NOW,
            data=schemas.ManualCloseData(status="user_closed", actor="agent-7"),
        ),
    ],
)
def test_a_model_becomes_a_record_in_one_call(event: schemas.IncomingEvent) -> None:
    key, value = event.to_record()

    assert decode(key, value, now=NOW) == event


def test_the_example_of_the_package_runs_as_it_stands() -> None:
    example = re.search(r"\n\n((?:    .*\n)+)", schemas.__doc__ or "")
    assert example is not None
    names: dict[str, Any] = {**vars(schemas), "datetime": datetime, "UTC": UTC}

    exec("\n".join(line.removeprefix("    ") for line in example[1].splitlines()), names)

    assert decode(names["key"], names["value"], now=datetime.now(UTC)) == names["event"]
