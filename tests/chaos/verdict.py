"""Whether a storm was survived: the checker's invariants, and what the rig itself saw."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from consumer.kafka.admin import admin
from tests.chaos.rig import CANARY, Rig
from tests.chaos.waiting import within
from tests.checker.evidence import collect
from tests.checker.ledger import Evidence, Verdict, place_of
from tests.checker.verdicts import liveness, safety
from tests.traffic import SHORT_POLICY

REST_SECONDS = 180.0
TRACEBACK = "Traceback (most recent call last):"
DUE = "SELECT count(*) FROM conversation WHERE wake_at IS NOT NULL"
UNPUBLISHED = "SELECT count(*) FROM transition_outbox"
SILENT = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND (state LIKE 'idle in transaction%' OR state = 'active' AND wait_event IN ('ClientRead', 'ClientWrite'))
        AND state_change < clock_timestamp() - interval '10 s'"""


@dataclass(frozen=True, slots=True)
class Recovery:
    """After the last fault: how long until all were ready and had passed what was in the log by then."""

    seconds: float
    """Infinite where it did not come to that."""
    records: int
    """How many were behind."""


async def recovery(rig: Rig) -> Recovery:
    loop = asyncio.get_running_loop()
    began, ends = loop.time(), await rig.log_ends()
    behind = sum(ends.values()) - sum((await rig.offsets()).values())

    async def recovered() -> bool:
        return await rig.is_past(ends) and await rig.replicas.ready()

    in_time = await within(REST_SECONDS, recovered)
    return Recovery(loop.time() - began if in_time else float("inf"), behind)


async def rest(rig: Rig) -> tuple[str, ...]:
    """Waits until nothing is left to do; what is left at the end of the wait."""

    async def at_rest() -> bool:
        return not await _left(rig)

    return () if await within(REST_SECONDS, at_rest) else await _left(rig)


async def _left(rig: Rig) -> tuple[str, ...]:
    due, unpublished, silent = [(await rig.fetch(sql))[0][0] for sql in (DUE, UNPUBLISHED, SILENT)]
    facts = {
        "records not applied": not await rig.is_past(await rig.log_ends()),
        f"timers without effect: {due}": due,
        f"transitions not published: {unpublished}": unpublished,
        f"transactions of silent clients: {silent}": silent,
        "not all are ready": not all([await deployment.ready() for deployment in rig.deployments]),
    }
    return tuple(what for what, is_left in facts.items() if is_left)


async def judge(rig: Rig, recovered: Recovery, left: tuple[str, ...], codes: Sequence[int]) -> list[Verdict]:
    """After everybody has stopped."""
    evidence = await _evidence(rig)
    now: datetime = (await rig.fetch("SELECT now()"))[0][0]
    verdicts = await asyncio.to_thread(
        lambda: [
            *safety(rig.ledger, evidence, SHORT_POLICY.policy),
            *liveness(rig.ledger, evidence, settled_to=now if not left else None),
        ]
    )
    return [
        *verdicts,
        Verdict("all comes to rest", 1, left),
        Verdict("all replicas are ready again without help", 1, _too_late(recovered)),
        Verdict("what each fault promises", rig.promises, tuple(rig.broken)),
        Verdict("processes leave in good order", len(codes), tuple(f"exit code {code}" for code in codes if code)),
        _crashes(rig),
        await _committed(rig, evidence),
        _canaries(rig),
    ]


def _too_late(recovered: Recovery) -> tuple[str, ...]:
    return () if recovered.seconds < REST_SECONDS else ("not in time",)


async def _evidence(rig: Rig) -> Evidence:
    """What is left in tables and topics, and what retention took from the log."""
    evidence = await collect(rig.kafka, rig.database)
    return replace(
        evidence,
        log=[*rig.read, *rig.unread, *evidence.log],
        rewinds=rig.rewinds,
        given_up=frozenset(map(place_of, rig.unread)),
    )


async def _committed(rig: Rig, evidence: Evidence) -> Verdict:
    """After a clean stop."""
    async with admin(rig.kafka) as client:
        offsets = await client._client.list_consumer_group_offsets(rig.kafka.group_id)
    committed = {tp.partition: offset.offset for tp, offset in offsets.items()}
    stored = {partition: offset for (_, partition), offset in evidence.offsets.items()}
    wrong = [f"[{p}] {committed.get(p)} in Kafka, {at} stored" for p, at in stored.items() if at != committed.get(p)]
    return Verdict("offsets committed to Kafka are those of the database", len(stored), tuple(wrong))


def _crashes(rig: Rig) -> Verdict:
    """Exit code 1 is a service that is away at the start, or a client of Kafka that stalls; nothing else ends one."""
    ended = [f"{name}: exit code {code}" for name, code in rig.crashes if code != 1]
    failed = [log.name for log in _logs(rig) if TRACEBACK in log.read_text(errors="replace").splitlines()]
    return Verdict("no process ends by an error of its own", len(rig.crashes), (*ended, *failed))


def _logs(rig: Rig) -> list[Path]:
    return sorted(rig.logs.glob("*.log"))


def _canaries(rig: Rig) -> Verdict:
    """Whether the password of the database is in a log, or was on a page."""
    told = [log.name for log in _logs(rig) if CANARY in log.read_text(errors="replace")]
    return Verdict(
        "no secret is told", len(_logs(rig)) + len(rig.pages), (*told, *(p for p in rig.pages if CANARY in p))
    )
