"""Records of the log, and dead letters."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from schemas import Reason

TRACE_HEADERS = {
    "traceparent": re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(rb"[\x20-\x7e]{1,512}"),
}

MAX_ID = 200
"""No valid id is longer."""


class Record(NamedTuple):
    """A record as it lies in the log, byte for byte. `timestamp` is in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    def trace_context(self) -> dict[str, str]:
        """`traceparent` and `tracestate` of its headers, also of those of CloudEvents in binary mode; empty without.

        Source: W3C Trace Context; CloudEvents' extension for distributed tracing.
        """
        context: dict[str, str] = {}
        for header, content in self.headers:
            name = header.lower().removeprefix("ce_")
            if name in TRACE_HEADERS and TRACE_HEADERS[name].fullmatch(content or b""):
                context.setdefault(name, content.decode())
        return context if "traceparent" in context else {}

    def identity(self, event_id: str | None) -> dict[str, object]:
        """What a log line says of it, beside topic and partition; never anything of its body.

        `event_id` is null where it holds no event.
        """
        conversation_id = self.key.decode(errors="replace")[:MAX_ID] if self.key is not None else None
        trace_id = self.trace_context().get("traceparent", "")[3:35] or None
        return {"offset": self.offset} | known(conversation_id=conversation_id, event_id=event_id, trace_id=trace_id)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be applied, and why. `error` never quotes the body.

    `event_id` is null where no event could be decoded.
    """

    record: Record
    reason: Reason
    error: str
    event_id: str | None = None


def known(**values: object) -> dict[str, object]:
    """Those that are not null."""
    return {name: value for name, value in values.items() if value is not None}
