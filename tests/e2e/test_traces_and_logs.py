"""What a replica says of its work: log lines that name their event, and traces that go on from the producer's."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from consumer.decoding import encoded
from consumer.kafka.producer import KafkaProducer
from consumer.records import Record
from tests.builders import message
from tests.e2e.conftest import Group, until
from tests.stack.database import execute
from tests.stack.replica import Replica
from tests.stack.roles import as_owner

NOW = datetime.now(UTC)
TRACE, OTHER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"


def traceparent(trace_id: str) -> tuple[str, bytes]:
    return "traceparent", f"00-{trace_id}-00f067aa0ba902b7-01".encode()


class Collector:
    """Receives spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: set[str] = set()
        self.url = ""

    async def receive(self, request: web.Request) -> web.Response:
        received = ExportTraceServiceRequest.FromString(await request.read())
        for of_resource in received.resource_spans:
            self.resources |= {a.value.string_value for a in of_resource.resource.attributes if a.key == "service.name"}
            self.spans += [span for scope in of_resource.scope_spans for span in scope.spans]
        return web.Response()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", made.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def publish(group: Group, *records: tuple[bytes, bytes, tuple[str, bytes]]) -> None:
    async with KafkaProducer.open(group.kafka) as producer:
        await producer.send_records(
            [Record(group.topic, 0, 0, 0, key, value, (header,)) for key, value, header in records]
        )


def lines(replica: Replica, event: str) -> list[dict[str, object]]:
    parsed = [json.loads(line) for line in replica.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in parsed if line["event"] == event]


async def test_a_line_about_an_event_names_its_place_its_ids_and_its_trace(group: Group) -> None:
    replica = await group.replica(CONSUMER_LOG__LEVEL="debug")

    await publish(group, (b"c-1", b'{"not": "an event"}', traceparent(TRACE)))
    await group.until_applied(1)

    (letter,) = lines(replica, "dead letter")
    assert letter["topic"] == group.topic
    assert letter["conversation_id"] == "c-1"
    assert letter["trace_id"] == TRACE
    assert (letter["partition"], letter["offset"]) in {(0, 0), (1, 0), (2, 0)}


async def test_a_line_about_a_refused_event_names_the_event(group: Group) -> None:
    await execute(as_owner(group.database), "ALTER TABLE conversation_event ADD CHECK (event_id <> 'refuse-me')")
    replica = await group.replica()

    await group.publish(message(at=NOW, event_id="refuse-me"))
    await group.until_applied(1)

    (letter,) = lines(replica, "dead letter")
    assert (letter["conversation_id"], letter["event_id"]) == ("c-1", "refuse-me")


async def test_debug_says_one_line_a_batch(group: Group) -> None:
    replica = await group.replica(CONSUMER_LOG__LEVEL="debug")

    await group.publish(*[message(at=NOW) for _ in range(20)])
    await group.until_applied(20)
    await until(lambda: asyncio.sleep(0, bool(lines(replica, "batch applied"))), "the batch is logged")

    batches = lines(replica, "batch applied")
    assert sum(int(str(batch["events"])) for batch in batches) == 20
    assert len(batches) == await replica.count("conversation_batch_events_count")
    assert {batch["topic"] for batch in batches} == {group.topic}


async def test_a_trace_goes_on_from_the_producer_into_the_database(group: Group, collector: Collector) -> None:
    replica = await group.replica(
        CONSUMER_TRACING__ENABLED="true", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100"
    )

    await publish(group, (*encoded(message(at=NOW)), traceparent(TRACE)))
    await until(lambda: asyncio.sleep(0, bool(collector.named(f"process {group.topic}"))), "the span arrives")

    (span,) = collector.named(f"process {group.topic}")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, "00f067aa0ba902b7")
    assert span.kind == Span.SPAN_KIND_CONSUMER
    assert any(child.parent_span_id == span.span_id for child in collector.spans)
    assert collector.resources == {"conversation-consumer"}
    assert TRACE in await open_metrics(replica)


async def test_a_batch_is_linked_to_the_traces_of_its_records(group: Group, collector: Collector) -> None:
    first, second = (encoded(message(at=NOW)) for _ in range(2))
    await publish(group, (*first, traceparent(TRACE)), (*second, traceparent(OTHER_TRACE)))

    await group.replica(
        CONSUMER_TRACING__ENABLED="true", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100"
    )
    await until(lambda: asyncio.sleep(0, bool(collector.named(f"process {group.topic}"))), "the span arrives")

    (span,) = collector.named(f"process {group.topic}")
    assert {link.trace_id.hex() for link in span.links} == {TRACE, OTHER_TRACE}
    assert span.trace_id.hex() not in {TRACE, OTHER_TRACE}


async def open_metrics(replica: Replica) -> str:
    """What a scrape sees that asks for exemplars."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{replica.port}/metrics", headers={"Accept": "application/openmetrics-text"}
    )

    def get() -> str:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(get)
