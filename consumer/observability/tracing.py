"""Traces: a span for each batch, linked to the traces of its records. Needs the extra `otel`; off unless asked for.

Names and attributes are those of OpenTelemetry's semantic conventions for messaging. Exporter, sampler and service name
are set by OpenTelemetry's own variables (`OTEL_*`).
"""

import atexit
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from consumer.errors import ConfigurationError
from consumer.settings import TracingSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer

MAX_LINKS = 128
"""Links of a span that OpenTelemetry keeps by default."""
Carrier = Mapping[str, str]
"""The headers of a record that carry its trace: `traceparent`, and `tracestate` if there is one."""


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What the span of a batch says of it."""

    group: str
    topic: str
    partition: int
    first_offset: int
    records: int


class Tracing(Protocol):
    """Traces of the batches of a process."""

    def batch(self, facts: BatchFacts, carriers: Callable[[], Iterable[Carrier]]) -> AbstractContextManager[None]:
        """A span around the work on a batch. One record is continued; several are linked."""

    def trace_id(self) -> str | None:
        """The id of the trace of now, if it is sampled: 32 hexadecimal digits."""


class NoTracing:
    """Where nobody asked for traces."""

    def batch(self, facts: BatchFacts, carriers: Callable[[], Iterable[Carrier]]) -> AbstractContextManager[None]:
        return nullcontext()

    def trace_id(self) -> str | None:
        return None


class OpenTelemetryTracing:
    """Spans of OpenTelemetry."""

    def __init__(self, tracer: "Tracer") -> None:
        self._tracer = tracer

    @contextmanager
    def batch(self, facts: BatchFacts, carriers: Callable[[], Iterable[Carrier]]) -> "Iterator[None]":
        from opentelemetry import trace  # noqa: PLC0415 - the extra may not be installed
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        extract = TraceContextTextMapPropagator().extract
        contexts = [extract(carrier) for carrier in islice(carriers(), MAX_LINKS)]
        links = [trace.Link(trace.get_current_span(context).get_span_context()) for context in contexts]
        with self._tracer.start_as_current_span(
            f"process {facts.topic}",
            context=contexts[0] if facts.records == 1 and contexts else None,
            kind=trace.SpanKind.CONSUMER,
            links=[link for link in links if link.context.is_valid],
            attributes=_attributes(facts),
            record_exception=False,  # a partition that is given up is no error, and an error may quote a row
            set_status_on_exception=False,
        ):
            yield

    def trace_id(self) -> str | None:
        from opentelemetry import trace  # noqa: PLC0415 - the extra may not be installed

        context = trace.get_current_span().get_span_context()
        return trace.format_trace_id(context.trace_id) if context.trace_flags.sampled else None


def tracing(settings: TracingSettings, version: str) -> Tracing:
    """What the settings ask for. Raises `ConfigurationError` where the extra is missing."""
    if not settings.enabled:
        return NoTracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor  # noqa: PLC0415
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            f"CONSUMER_TRACING__ENABLED needs the extra otel ({error}): pip install 'conversation-consumer[otel]'"
        ) from None
    named = Resource({"service.name": "conversation-consumer", "service.version": version})
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(without_texts_of_errors())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    atexit.register(provider.shutdown)
    AsyncPGInstrumentor().instrument(tracer_provider=provider)  # type: ignore[no-untyped-call]
    return OpenTelemetryTracing(provider.get_tracer("conversation-consumer", version))


def without_texts_of_errors() -> "SpanProcessor":
    """Leaves the types of errors in spans, and nothing else of them: PostgreSQL's may quote the row that it refused."""
    from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor  # noqa: PLC0415
    from opentelemetry.trace import Status  # noqa: PLC0415

    class WithoutTexts(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            span._status = Status(span.status.status_code)  # noqa: SLF001 - a finished span has no setters
            kinds = [(event.attributes or {}).get("exception.type", "") for event in span.events]
            span._events = [  # noqa: SLF001
                Event(event.name, {"exception.type": kind}, event.timestamp)
                for event, kind in zip(span.events, kinds, strict=True)
            ]

    return WithoutTexts()


def _attributes(facts: BatchFacts) -> dict[str, str | int]:
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": facts.topic,
        "messaging.destination.partition.id": str(facts.partition),
        "messaging.consumer.group.name": facts.group,
        "messaging.batch.message_count": facts.records,
        "messaging.kafka.offset": facts.first_offset,
    }
