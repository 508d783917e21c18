"""Records of the log, and dead letters."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from schemas import Reason

TRACE_HEADERS = {
    "traceparent": re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(rb"[\x20-\x7e]{1,512}"),
}


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


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be applied, and why. `error` never quotes the body.

    `event_id` is null where no event could be decoded.
    """

    record: Record
    reason: Reason
    error: str
    event_id: str | None = None
