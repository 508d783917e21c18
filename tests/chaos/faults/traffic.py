"""What producers do: duplicates, poison, records from the future, bursts, one conversation that gets everything."""

import asyncio
import json
import signal

from consumer.decoding import encoded
from tests.chaos.faults.catalogue import Track, fault
from tests.chaos.rig import SESSION_SECONDS, Rig
from tests.traffic import POISON, Mix

BURST = 10
BURST_SECONDS = 3.0
OVERSIZED = 200_000
ODD = (
    (b"c-0001", b"[" * 5000),
    (b"c-0001", b'{"type": ' + b"9" * 4000 + b"}"),
    (None, b"{}"),
    (None, None),
    (b"\xff", b"{}"),
)
"""More that is no event: depth, a number that fits nowhere, no key, nothing at all, a key that is not UTF-8."""


async def send_poison(rig: Rig, count: int) -> None:
    records = [rig.rng.choice((*POISON, *ODD)) for _ in range(count)]
    rig.ledger.poison.update(records)
    await rig.sender.send(records)


@fault(12, "what was sent is sent again, at once and after a restart", Track.TRAFFIC)
async def duplicates(rig: Rig) -> None:
    records = list(rig.sender.recent)
    rig.ledger.poison.update(record for record in records if record in rig.ledger.poison)
    await rig.sender.send(records)
    async with rig.any_replica() as member:
        await member.end(signal.SIGTERM)
    await rig.sender.send(records)


@fault(13, "late, early and out-of-order events", Track.TRAFFIC, weight=0, mix=Mix(cold=400, late=0.5, ahead=0.2))
async def out_of_order(rig: Rig) -> None:
    await asyncio.sleep(2 * SESSION_SECONDS)


@fault(14, "poison of every kind", Track.TRAFFIC)
async def poison(rig: Rig) -> None:
    await send_poison(rig, 100)


@fault(15, "records larger than the limit", Track.TRAFFIC)
async def oversized(rig: Rig) -> None:
    """Each would be an event, if it were not so large."""
    for _ in range(5):
        key, value = encoded(rig.traffic.event("c-0001", "oversized"))
        record = (key, json.dumps({**json.loads(value), "text": "x" * OVERSIZED}).encode())
        rig.ledger.poison[record] += 1
        await rig.sender.send([record])


@fault(16, "types and fields of a later version", Track.TRAFFIC)
async def future_schema(rig: Rig) -> None:
    event = rig.traffic.event("c-0001", "later-version")
    key, value = encoded(event)
    known = json.loads(value)
    extended = json.dumps({**known, "data": {**known.get("data", {}), "mood": "good"}, "traceparent": "x"}).encode()
    unknown = json.dumps({**known, "type": "conversation.inbound-message.v2"}).encode()
    rig.ledger.note(event)
    rig.ledger.poison[(key, unknown)] += 1
    await rig.sender.send([(key, extended), (key, unknown)])


@fault(20, "ten times the traffic", Track.TRAFFIC)
async def burst(rig: Rig) -> None:
    rig.sender.rate *= BURST
    await asyncio.sleep(BURST_SECONDS)
    rig.sender.rate /= BURST


@fault(
    21, "nine of ten events are of one conversation", Track.TRAFFIC, weight=0, mix=Mix(cold=400, hot=1, hot_share=0.9)
)
async def hot_key(rig: Rig) -> None:
    await asyncio.sleep(2 * SESSION_SECONDS)
