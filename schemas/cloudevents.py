"""Decoding: a Kafka record to an event model, or the reason why not.

Both content modes of the CloudEvents Kafka binding are read, and an event means the same in either:

- structured: the value is the whole event as JSON. Also what a record is without `ce_*` headers.
- binary: the attributes are headers (`ce_id`, `ce_type`, ...) in UTF-8, the value is `data` as JSON.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from schemas.events import CloudEvent, InboundMessage, IncomingEvent, ManualClose, Tick

EARLIEST = datetime(2010, 1, 1, tzinfo=UTC)
MAX_AHEAD = timedelta(hours=24)
DEFAULT_MAX_BYTES = 64 * 1024


class Reason(StrEnum):
    """Why a record becomes a dead letter: a closed vocabulary."""

    OVERSIZED = "oversized"
    INVALID_JSON = "invalid_json"
    SCHEMA_VIOLATION = "schema_violation"
    UNKNOWN_TYPE = "unknown_type"
    KEY_MISMATCH = "key_mismatch"
    BAD_TIME = "bad_time"
    RESERVED_SOURCE = "reserved_source"
    UNSTORABLE_TEXT = "unstorable_text"
    REFUSED = "refused"


class Invalid(Exception):  # noqa: N818 - what a record is, rather than what went wrong
    """The record breaks the contract. `detail` says where and how, and never quotes the body."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


Headers = Iterable[tuple[str, bytes | None]]

_INCOMING: TypeAdapter[IncomingEvent] = TypeAdapter(Annotated[IncomingEvent, Field(discriminator="type")])
_validate_json: Callable[[bytes], IncomingEvent] = _INCOMING.validator.validate_json
"""Without the adapter's wrapping, which takes a tenth of the time."""

INCOMING_TYPES = frozenset(model.model_fields["type"].default for model in (InboundMessage, ManualClose, Tick))
"""What may be published to the input topics."""
CE_PREFIX = "ce_"
_CONTENT_TYPE = "content-type"
_STRUCTURED = b"application/cloudevents"
_ATTRIBUTES = frozenset(CE_PREFIX + name for name in ("specversion", "type", "id", "source", "subject", "time"))
"""The headers that are read in binary mode, beside `content-type`; extension attributes are ignored."""


def decode(
    key: bytes | None,
    value: bytes | None,
    headers: Headers = (),
    *,
    now: datetime,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> IncomingEvent:
    """The event in a record, or `Invalid`. `now` bounds `time` coarsely; any clock will do.

    `max_bytes` limits key and value and, in binary mode, the headers that are read.
    """
    _check_size(len(key or b"") + len(value or b""), max_bytes)
    if headers and is_binary(headers):
        event = _binary(key, value, headers, max_bytes)
    elif value is None:
        raise Invalid(Reason.INVALID_JSON, "the record has no value")
    else:
        event = _structured(value)
    if key != event.subject.encode():
        raise Invalid(Reason.KEY_MISMATCH, "the Kafka key is not the subject in UTF-8")
    check_time(event, now)
    return event


def validated(record: Mapping[str, Any], now: datetime) -> IncomingEvent:
    """The event of a JSON object that is parsed already, or `Invalid`."""
    event = _validated(record)
    check_time(event, now)
    return event


def is_binary(headers: Headers) -> bool:
    """Whether a record is in binary mode: it has `ce_*` headers, and its content type is not that of a whole event."""
    binary = False
    for header, content in headers:
        name = header.lower()
        if name == _CONTENT_TYPE and (content or b"").strip().lower().startswith(_STRUCTURED):
            return False
        binary = binary or name.startswith(CE_PREFIX)
    return binary


def check_time(event: CloudEvent, now: datetime) -> None:
    """Raises `Invalid` for a `time` before 2010 or more than 24 h ahead of `now`."""
    if not EARLIEST <= event.time <= now + MAX_AHEAD:
        raise Invalid(Reason.BAD_TIME, "time: before 2010 or more than 24 h ahead")


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise Invalid(Reason.OVERSIZED, f"{size} bytes, allowed are {max_bytes}")


def _structured(value: bytes) -> IncomingEvent:
    try:
        return _complete(_validate_json(value))
    except ValidationError as error:
        if error.errors(include_url=False)[0]["type"] != "json_invalid":
            raise _invalid(error) from None
    # The fast parser refuses a lone surrogate anywhere; one in a field that is ignored must not cost the event.
    return _validated(_loads(value))


def _binary(key: bytes | None, value: bytes | None, headers: Headers, max_bytes: int) -> IncomingEvent:
    texts = _texts(headers)
    _check_size(sum(map(len, (key or b"", value or b"", *texts.values()))), max_bytes)
    content_type = texts.pop(_CONTENT_TYPE, "")
    event: dict[str, Any] = {name.removeprefix(CE_PREFIX): text for name, text in texts.items()}
    if event.get("type", Tick.model_fields["type"].default) not in INCOMING_TYPES:
        raise Invalid(Reason.UNKNOWN_TYPE, f"ce_type: {_WORDS['union_tag_invalid']}")
    if value:
        if not _is_json(content_type):
            raise Invalid(Reason.SCHEMA_VIOLATION, "content-type: must be application/json, as data is JSON")
        event["data"] = _parsed(value)
    decoded = _validated(event, CE_PREFIX)
    if key != decoded.subject.encode() and key == unquote(decoded.subject).encode():
        raise Invalid(Reason.KEY_MISMATCH, "ce_subject: is percent-encoded; Kafka headers are plain UTF-8")
    return decoded


def _texts(headers: Headers) -> dict[str, str]:
    """The headers that are read, by their names in lower case."""
    texts: dict[str, str] = {}
    for header, content in headers:
        name = header.lower()
        if name not in _ATTRIBUTES and name != _CONTENT_TYPE:
            continue
        if name in texts:
            raise Invalid(Reason.SCHEMA_VIOLATION, f"{name}: is given more than once")
        try:
            texts[name] = (content or b"").decode()
        except UnicodeDecodeError:
            raise Invalid(Reason.SCHEMA_VIOLATION, f"{name}: must be UTF-8") from None
    return texts


def _is_json(content_type: str) -> bool:
    """CloudEvents: without a content type, data is JSON."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in ("", "application/json") or media_type.endswith("+json")


def _parsed(value: bytes) -> Any:
    try:
        return from_json(value)
    except ValueError:
        return _loads(value)


def _loads(value: bytes) -> Any:
    """As `from_json`, and takes lone surrogates."""
    try:
        return json.loads(value.decode())
    except json.JSONDecodeError as error:
        why = f"{error.msg}, line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is not UTF-8"
    except RecursionError:
        why = "nested too deeply"
    except ValueError:
        why = "a number has too many digits"
    raise Invalid(Reason.INVALID_JSON, f"not JSON in UTF-8: {why}")


def _validated(record: Any, prefix: str = "") -> IncomingEvent:
    """`prefix`: what attributes are called in the record."""
    try:
        return _complete(_INCOMING.validate_python(record), prefix)
    except ValidationError as error:
        raise _invalid(error, prefix) from None


def _complete(event: IncomingEvent, prefix: str = "") -> IncomingEvent:
    """The models have a default for it, so that upstream need not spell it out; a record has to."""
    if "specversion" not in event.model_fields_set:
        raise Invalid(Reason.SCHEMA_VIOLATION, f"{prefix}specversion: {_WORDS['missing']}")
    return event


_REASONS = {
    "union_tag_invalid": Reason.UNKNOWN_TYPE,
    "bad_time": Reason.BAD_TIME,
    "reserved_source": Reason.RESERVED_SOURCE,
    "string_pattern_mismatch": Reason.UNSTORABLE_TEXT,
    "string_unicode": Reason.UNSTORABLE_TEXT,
}
_WORDS = {
    "missing": "is required",
    "union_tag_not_found": "is required",
    "union_tag_invalid": "is not a type that this build knows",
    "dict_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "contains a NUL character",
    "string_unicode": "contains a lone surrogate",
    "literal_error": "must be {expected}",
    "bad_time": "must be an RFC 3339 date-time with an offset",
    "reserved_source": "`consumer` is reserved for the consumer's own rows",
}
"""What the contract says where pydantic speaks of inputs and discriminators. Its context never holds the input here."""


def _invalid(error: ValidationError, prefix: str = "") -> Invalid:
    """The first of the errors, the unknown type before all others."""
    first = error.errors(include_url=False, include_input=False)[0]
    kind = first["type"]
    where = ".".join(str(part) for part in first["loc"] if part not in INCOMING_TYPES)
    if kind.startswith("union_tag"):
        where = "type"
    if where and not where.startswith("data"):
        where = prefix + where
    words = _WORDS.get(kind, "is not what the contract allows ({kind})").format(**first.get("ctx", {}), kind=kind)
    return Invalid(_REASONS.get(kind, Reason.SCHEMA_VIOLATION), f"{where or 'the event'}{':' if where else ''} {words}")
