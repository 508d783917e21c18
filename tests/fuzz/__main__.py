"""Feeds odd, broken and hostile records to real workers on real PostgreSQL: python -m tests.fuzz --records 1000000."""

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import structlog
from rich.console import Console

from consumer.errors import UnavailableError
from consumer.lifecycle.model import Policy
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics, samples, total
from consumer.offsets import Partition
from consumer.outbox import OutboxRelay
from consumer.postgres.store import PostgresStore
from consumer.records import DeadLetter, Record
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings, OutboxSettings, WorkerSettings
from consumer.worker import PartitionWorker
from schemas import Transition
from tests.checker.evidence import conversations
from tests.checker.ledger import Evidence, Ledger, Letter, Published, Verdict
from tests.checker.verdicts import event_in, liveness, safety
from tests.fuzz.records import Fuzzer, Made
from tests.memory_log import FiniteLog
from tests.stack.database import migrate, new_database
from tests.stack.services import Services, services

console = Console(soft_wrap=True, highlight=False)
PARTITIONS = 4
ROUND = 50_000
REFUSED = 0.1
"""Share of the relay's turns that the topic refuses."""
RELAY = OutboxSettings(batch=500, interval_seconds=0.05, outage_backoff_max_seconds=0.05)
PUBLISHED_SECONDS = 60.0
REACHING_APPLY = 0.3
"""Share of the records that must be events, or the fuzzer finds out little."""


class FuzzedLog(FiniteLog):
    """The records of one partition."""

    def __init__(self, number: int, made: Sequence[Made]) -> None:
        now = round(time.time() * 1000)
        records = [Record("events", number, i, now, one.key, one.value) for i, one in enumerate(made)]
        super().__init__(Partition("group", "events", number), records)


@dataclass
class Letters:
    sent: list[Letter] = field(default_factory=list)

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        self.sent += [Letter(r.topic, r.partition, r.offset, r.key, r.value) for r in (one.record for one in letters)]


class TransitionTopic:
    """Takes what the relay publishes, as a service downstream reads it. Refuses turns, in the middle of them too."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.published: list[Published] = []

    async def publish(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        fails, chance = self._rng.random() < REFUSED, self._rng.random()
        for key, value in records[: round(chance * len(records)) if fails else None]:
            event = Transition.model_validate_json(value)
            assert event.subject.encode() == key
            self.published.append(Published(event.subject, event.data.version, event.id))
        if fails:
            raise UnavailableError("the topic takes nothing now")


@dataclass
class Tally:
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    @property
    def records(self) -> int:
        return self.outcomes.total()

    @property
    def reaching_apply(self) -> float:
        return 1 - self.outcomes["dead_letter"] / self.records


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--records", type=int, default=ROUND)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    started, tally = time.monotonic(), Tally()
    with services() as found:
        for number, first in enumerate(range(0, options.records, ROUND)):
            count = min(ROUND, options.records - first)
            asyncio.run(play(found, Fuzzer(options.seed + number), count, tally))
            if tally.broken:
                break
    report(tally, options.seed, time.monotonic() - started)
    return 1 if tally.broken or tally.reaching_apply < REACHING_APPLY else 0


async def play(found: Services, fuzzer: Fuzzer, count: int, tally: Tally) -> None:
    """One round on a database of its own, judged by the checker."""
    made = [[fuzzer.record() for _ in range(count // PARTITIONS)] for _ in range(PARTITIONS)]
    logs = [FuzzedLog(number, of_one) for number, of_one in enumerate(made)]
    metrics, letters, topic = Metrics(["events"]), Letters(), TransitionTopic(Random(fuzzer.seed))
    async with new_database(found.postgres, "fuzz") as url:
        await migrate(url)
        async with PostgresStore.open(DatabaseSettings(url=url), metrics) as store:
            service = ConversationService(store, metrics=metrics)
            relay = OutboxRelay(store, topic.publish, settings=RELAY, metrics=metrics, health=Health())
            async with asyncio.TaskGroup() as relaying:
                relaying.create_task(relay.run())
                async with asyncio.TaskGroup() as group:
                    for log in logs:
                        worker = PartitionWorker(
                            log, service, store, letters, settings=WorkerSettings(), metrics=metrics, health=Health()
                        )
                        group.create_task(worker.run())
                await until_published(store)
                relay.stop()
            offsets = {(p.topic, p.number): offset.next_offset for p, offset in await store.stored_offsets()}
        rows, histories = await conversations(url)
    records = [record for log in logs for record in log.records]
    evidence = Evidence(rows, histories, records, letters.sent, offsets, [], topic.published)
    seen = samples(metrics.registry)
    for sample in seen:
        if sample.name == "conversation_events_total":
            tally.outcomes[sample.labels["outcome"]] += int(sample.value)
        if sample.name == "conversation_dead_letters_total":
            tally.reasons[sample.labels["reason"]] += int(sample.value)
    tally.broken += broken(judged(evidence), made, letters)
    if total(seen, "conversation_events_total") != len(records):
        tally.broken.append(f"{len(records)} records, but {total(seen, 'conversation_events_total')} outcomes")


async def until_published(store: PostgresStore) -> None:
    async with asyncio.timeout(PUBLISHED_SECONDS):
        while (await store.backlog()).rows:  # noqa: ASYNC110 - the relay empties it
            await asyncio.sleep(0.05)


def judged(evidence: Evidence) -> list[Verdict]:
    ledger = Ledger()
    for record in evidence.log:
        event = event_in(record)
        if event is None:
            ledger.poison[record.key, record.value] += 1
        else:
            ledger.note(event)
    return [*safety(ledger, evidence, Policy()), *liveness(ledger, evidence)]


def broken(verdicts: list[Verdict], made: Sequence[Sequence[Made]], letters: Letters) -> list[str]:
    """Invariants that do not hold, and records whose fate was another than they were made for."""
    dead_lettered = {(letter.partition, letter.offset) for letter in letters.sent}
    wrong = [
        f"{'valid but dead-lettered' if one.valid else 'invalid but applied'}: {one.key!r} {(one.value or b'')[:300]!r}"
        for number, of_one in enumerate(made)
        for offset, one in enumerate(of_one)
        if one.valid is not None and one.valid == ((number, offset) in dead_lettered)
    ]
    return [f"{v.invariant}: {v.violations[0]}" for v in verdicts if not v.holds] + wrong


def report(tally: Tally, seed: int, seconds: float) -> None:
    for title, counts in (("outcomes", tally.outcomes), ("dead letters", tally.reasons)):
        console.print(f"{title}: " + ", ".join(f"{name} {times:,}" for name, times in counts.most_common() if times))
    console.print(
        f"{tally.records:,} records from seed {seed} in {seconds:.0f} s, {tally.reaching_apply:.0%} of them reached "
        f"apply, {len(tally.broken)} broken"
    )
    for line in tally.broken[:10]:
        console.print(line, markup=False)


if __name__ == "__main__":
    sys.exit(main())
