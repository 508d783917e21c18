"""Sends events at an even pace from a process of its own: `python -m tests.benchmarks.sender ERRAND`.

It encodes everything and connects first, prints a line, and starts when it reads one. A client in C on a thread that
sleeps in between takes little of the cores that it shares with what is measured, and gives way to it.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import islice

from confluent_kafka import Producer
from pydantic import BaseModel, ConfigDict

from consumer.decoding import encoded
from tests.benchmarks.workload import Workload

NICE = 5
READY = "ready"


class Errand(BaseModel):
    """The talk of a workload, and where it goes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kafka: str
    topic: str
    conversations: int
    events: int
    starting: datetime
    per_second: int

    @property
    def workload(self) -> Workload:
        return Workload(self.conversations, self.events)


class Sent(BaseModel):
    """How long it took, the CPU of this process meanwhile, and by how much an event was late at most, in seconds."""

    events: int
    seconds: float
    cpu_seconds: float
    latest_seconds: float


def send(producer: Producer, topic: str, records: Sequence[tuple[bytes, bytes]], per_second: int) -> Sent:
    """Returns when the broker has acknowledged all of them; raises if it has not within a minute."""
    began, cpu, latest = time.monotonic(), time.process_time(), 0.0
    for number, (key, value) in enumerate(records):
        early = began + number / per_second - time.monotonic()
        if early > 0:
            time.sleep(early)
        else:
            latest = max(latest, -early)
        producer.produce(topic, value, key)
        producer.poll(0)
    seconds = time.monotonic() - began
    if unsent := producer.flush(60):
        raise TimeoutError(f"{unsent} events were not acknowledged within a minute")
    return Sent(events=len(records), seconds=seconds, cpu_seconds=time.process_time() - cpu, latest_seconds=latest)


def main(argument: str) -> None:
    errand = Errand.model_validate_json(argument)
    talk = islice(errand.workload.all(errand.starting), errand.workload.opening, None)
    records = [encoded(event) for event in talk]
    producer = Producer({"bootstrap.servers": errand.kafka, "linger.ms": 0, "partitioner": "murmur2_random", "acks": 1})
    producer.list_topics(errand.topic, timeout=30)
    os.nice(NICE)
    _print(READY)
    sys.stdin.readline()
    _print(json.dumps(send(producer, errand.topic, records, errand.per_second).model_dump()))


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - read by the parent


if __name__ == "__main__":
    main(sys.argv[1])
