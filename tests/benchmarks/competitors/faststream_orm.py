"""Competitor B: the same work per event as A does, but in a FastStream application instead of a loop of its own."""

from datetime import UTC, datetime
from typing import Annotated

from faststream import FastStream
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage
from pydantic import Field

from consumer.decoding import to_event
from consumer.lifecycle.model import Event
from schemas import IncomingEvent, Invalid, Reason
from schemas.cloudevents import check_time
from tests.benchmarks.competitors.course import LogCourse, Run, Stopwatch, take_part
from tests.benchmarks.competitors.orm import Sessions, handle, opened_sessions, prepare

Incoming = Annotated[IncomingEvent, Field(discriminator="type")]


def application(course: LogCourse, sessions: Sessions, stopwatch: Stopwatch) -> FastStream:
    """Without the log lines that FastStream writes before and after each message."""
    broker = KafkaBroker(course.kafka, logger=None)
    app = FastStream(broker, logger=None)

    @broker.subscriber(course.topic, group_id=course.group, auto_offset_reset="earliest")
    async def on_event(model: Incoming, message: KafkaMessage) -> None:
        record = message.raw_message
        assert not isinstance(record, tuple)  # as with `batch`
        await handle(sessions, _event(model, record.key))
        if stopwatch.stops():
            app.exit()

    return app


def _event(model: IncomingEvent, key: bytes | None) -> Event:
    if key != model.subject.encode():
        raise Invalid(Reason.KEY_MISMATCH, "the Kafka key is not the subject in UTF-8")
    check_time(model, datetime.now(UTC))
    return to_event(model)


async def race(course: LogCourse) -> Run:
    await prepare(course)
    stopwatch = Stopwatch(course)
    async with opened_sessions(course.database) as sessions:
        await application(course, sessions, stopwatch).run()
    return stopwatch.run()


if __name__ == "__main__":
    take_part(LogCourse, race)
