"""What a record says of its trace."""

import pytest

from consumer.records import Record

TRACE_PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def record(*headers: tuple[str, bytes]) -> Record:
    return Record("events", 0, 0, 0, b"c-1", b"{}", headers)


@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "ce_traceparent"])
def test_a_trace_context_is_read_from_the_headers_of_both_content_modes(name: str) -> None:
    context = record((name, TRACE_PARENT), ("tracestate", b"vendor=1")).trace_context()

    assert context == {"traceparent": TRACE_PARENT.decode(), "tracestate": "vendor=1"}


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("tracestate", b"vendor=1"),),
        (("traceparent", b""),),
        (("traceparent", b"\xff"),),
        (("traceparent", TRACE_PARENT.replace(b"4", b"g")),),
        (("traceparent", b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01"),),
    ],
)
def test_what_is_no_trace_context_is_none(headers: tuple[tuple[str, bytes], ...]) -> None:
    assert record(*headers).trace_context() == {}
