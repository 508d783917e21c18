"""Between processes and servers: silence, half-open connections, one way only, resets, bytes cut."""

import asyncio
from collections.abc import Sequence

from tests.chaos.faults.catalogue import Track, fault
from tests.chaos.rig import SESSION_SECONDS, Rig
from tests.stack.proxy import Proxy


def to_brokers(rig: Rig) -> Sequence[Proxy]:
    """One of them, or all."""
    proxies = [rig.brokers.proxy(number) for number in range(rig.brokers.count)]
    return proxies if rig.rng.random() < 0.3 else [rig.rng.choice(proxies)]


async def _silence(rig: Rig, proxies: Sequence[Proxy]) -> None:
    for proxy in proxies:
        proxy.fall_silent()
    try:
        await asyncio.sleep(rig.rng.uniform(1, 2 * SESSION_SECONDS))
    finally:
        for proxy in proxies:
            proxy.heal()


@fault(9, "the network to PostgreSQL is silent", Track.DATABASE)
async def postgres_silent(rig: Rig) -> None:
    await _silence(rig, [rig.postgres.proxy])


@fault(9, "the network to brokers is silent", Track.BROKERS)
async def kafka_silent(rig: Rig) -> None:
    await _silence(rig, to_brokers(rig))


@fault(9, "connections to PostgreSQL are half open", Track.DATABASE, weight=2)
async def postgres_half_open(rig: Rig) -> None:
    rig.postgres.proxy.half_open()


@fault(9, "connections to brokers are half open", Track.BROKERS, weight=3)
async def kafka_half_open(rig: Rig) -> None:
    for proxy in to_brokers(rig):
        proxy.half_open()
    await asyncio.sleep(SESSION_SECONDS)


@fault(9, "PostgreSQL hears, and is not heard", Track.DATABASE)
async def postgres_one_way(rig: Rig) -> None:
    rig.postgres.proxy.fall_silent(to_server=False)
    await asyncio.sleep(SESSION_SECONDS)
    rig.postgres.proxy.heal()


@fault(9, "all connections are reset", Track.BROKERS)
async def resets(rig: Rig) -> None:
    for proxy in (rig.postgres.proxy, *to_brokers(rig)):
        proxy.reset_all()


@fault(9, "connections end in the middle of a message", Track.DATABASE)
async def bytes_cut(rig: Rig) -> None:
    rig.postgres.proxy.cut_after(rig.rng.randint(1, 5000))
    await asyncio.sleep(1)
    rig.postgres.proxy.heal()
