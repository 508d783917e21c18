"""What the rollout left behind: the checker's verdicts, and how long nothing was applied at each step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

from aiokafka import ConsumerRecord

from consumer.outbox import OutboxRow, event_id
from schemas import Transition
from tests.checker.evidence import collect
from tests.checker.ledger import Evidence, Published, Verdict
from tests.checker.verdicts import liveness, safety
from tests.stack.broker import read_all
from tests.traffic import SHORT_POLICY
from tests.upgrade.rollout import Rollout, Step

MOVES = "SELECT at, partition, after - before FROM offset_trail WHERE after > before ORDER BY at"
Moves = Sequence[tuple[datetime, int, int]]
"""When a partition's offset moved, which partition's, by how many records."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A step under load. Pauses: the longest time without an applied event, anywhere and in the worst partition."""

    step: Step
    applied: int
    pause: timedelta
    partition_pause: timedelta


@dataclass(frozen=True, slots=True)
class Result:
    measured: list[Measured]
    verdicts: list[Verdict]
    evidence: Evidence

    @property
    def holds(self) -> bool:
        return all(verdict.holds for verdict in self.verdicts)


async def judge(rollout: Rollout, settled_to: datetime) -> Result:
    kafka, database = rollout.environment.kafka, rollout.environment.database
    found = await collect(kafka, database)
    records = await read_all(kafka, kafka.transition_topic)
    evidence = replace(found, published=[published(record, found) for record in records])
    moves = [tuple(row) for row in await rollout.database.fetch(MOVES)]
    failed = tuple(f"{name}: exit code {code}" for name, code in rollout.exits if code)
    wrong = tuple(
        f"{build}: {there} instead of {wanted}" for build, wanted, there in rollout.schemas if there != wanted
    )
    verdicts = [
        *safety(rollout.ledger, evidence, SHORT_POLICY.policy),
        *liveness(rollout.ledger, evidence, settled_to),
        Verdict("every process ended with exit code 0", len(rollout.exits), failed),
        Verdict("each migrate left the schema that it should", len(rollout.schemas), wrong),
    ]
    return Result([measure(step, moves) for step in rollout.steps], verdicts, evidence)


def measure(step: Step, moves: Moves) -> Measured:
    partitions = {partition for _, partition, _ in moves}
    return Measured(
        step,
        sum(count for at, _, count in moves if step.started <= at < step.ended),
        longest_pause(step, [at for at, _, _ in moves]),
        max(longest_pause(step, [at for at, own, _ in moves if own == one]) for one in partitions),
    )


def longest_pause(step: Step, times: Sequence[datetime]) -> timedelta:
    """Of the pauses that begin in the step; one may end in the next."""
    pauses = [later - at for at, later in pairwise(times) if step.started <= at < step.ended]
    return max(pauses, default=step.ended - step.started)


def published(record: "ConsumerRecord[bytes, bytes]", evidence: Evidence) -> Published:
    """A transition under the id that the checker expects.

    A build before 0005 leaves its `recorded_at` to the database, so that the id does not follow from the history. What
    else it is made of must.
    """
    event = Transition.model_validate_json(record.value or b"")
    data = event.data
    recorded_at = next(
        (at for row, at in evidence.histories.get(event.subject, ()) if row.version == data.version), data.occurred_at
    )
    what = (data.session, data.version, data.from_status, data.to_status, data.actor, data.reason, data.occurred_at)
    return Published(event.subject, data.version, event_id(OutboxRow(0, event.subject, *what, recorded_at)))
