"""One schedule: everything that happens, and in which order, follows from its seed."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from consumer.decoding import encoded
from consumer.kafka import source
from consumer.lifecycle.model import Event, ManualClose, Status
from tests.checker.ledger import Verdict
from tests.checker.verdicts import liveness, safety
from tests.simulation.loop import VirtualLoop
from tests.simulation.operator import Operator
from tests.simulation.processes import OtherWriter, Process, RelayProcess, TickerProcess
from tests.simulation.replacing import replaced
from tests.simulation.replica import Replica
from tests.simulation.services import Services
from tests.simulation.traces import count_traffic, logged
from tests.simulation.world import REFUSED, Fault, World
from tests.traffic import SHORT_POLICY, Mix, Traffic

SESSION_SECONDS = 10.0
READY_SECONDS = 30.0
"""How long a replica at rest may take to say that it is ready."""
PATIENCE_SECONDS = 1000.0
"""Of virtual time: a lost tick comes again after a minute, and then after longer."""
ACTS = (
    *(Fault.CRASH, Fault.RESTART, Fault.STALL, Fault.ZOMBIE, Fault.REBALANCE),
    *(Fault.OUTAGE, Fault.REWIND, Fault.CLOCK, Fault.ROW_LOCK),
    *(Fault.NO_KAFKA, Fault.RETENTION, Fault.OTHER_CLUSTER),
)
POLL_SECONDS = 1.0
"""Ten times as long as in production: half of the time would go into polls that bring nothing."""
COUNTED_BY_EFFECT = (Fault.REWIND, Fault.RETENTION)


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a schedule."""

    seed: int
    verdicts: list[Verdict]
    struck: Counter[Fault]
    trace: list[tuple[float, str, str]]

    @property
    def broken(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.holds]


def run(seed: int) -> Run:
    """Plays a schedule to its end and judges it."""
    with replaced(source, "POLL_SECONDS", POLL_SECONDS), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(Schedule(seed).play())


class Schedule:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.world = World(seed)
        self.replicas: list[Replica] = []
        self.others: list[Process] = []
        self._names = Counter[str]()
        self._assigning = asyncio.Lock()
        self._helpers = set[asyncio.Task[None]]()
        shape = self.world.shape
        self.traffic = self._traffic(0, poison=0.05 if Fault.POISON in shape.faults else 0.0)

    def _traffic(self, number: int, poison: float = 0.0) -> Traffic:
        faults = self.world.shape.faults
        mix = Mix(
            cold=self.world.shape.conversations,
            hot=0,
            hot_share=0,
            poison=poison,
            duplicate=0.15 if Fault.DUPLICATE in faults else 0.0,
            late=0.3 if Fault.LATE in faults else 0.0,
            ahead=0.1 if Fault.AHEAD in faults else 0.0,
        )
        return Traffic(self.world.rng.randrange(2**32) + number, self.world.ledger, mix, self.world.now)

    async def play(self) -> Run:
        world = self.world
        with logged(world.tell):
            await self._chaos()
            verdicts = safety(world.ledger, world.evidence(), SHORT_POLICY.policy)
            await self._heal()
            at_rest = await self._rest()
            for process in self.others:
                if not isinstance(process, RelayProcess):
                    process.crash()
            at_rest = at_rest and await self._rest()
            await asyncio.sleep(READY_SECONDS)
            not_ready = self._not_ready()
            for replica in self._living():
                await replica.stop()
        evidence = world.evidence()
        verdicts += safety(world.ledger, evidence, SHORT_POLICY.policy)
        verdicts += liveness(world.ledger, evidence, settled_to=world.now() - timedelta(seconds=1))
        verdicts.append(Verdict("all comes to rest", 1, () if at_rest else ("not in time",)))
        verdicts.append(Verdict("dead letters come before the offset", len(evidence.letters), tuple(world.early)))
        verdicts.append(Verdict("all are ready in the end", len(self.replicas), tuple(not_ready)))
        verdicts.append(Verdict("nobody fails", len(world.failures), tuple(world.failures)))
        count_traffic(world.struck, evidence)
        return Run(self.seed, verdicts, world.struck, world.trace)

    async def _chaos(self) -> None:
        """Producer, replicas, ticker and other writers at work while faults strike."""
        shape = self.world.shape
        self.replicas = [self._replica() for _ in range(shape.replicas)]
        self.others = [self._ticker(), *(self._relay() for _ in range(shape.relays))]
        self.operator = Operator(self.world, self._living)
        if Fault.OTHER_WRITER in shape.faults:
            own = [self._traffic(number) for number in range(1, shape.other_writers + 1)]
            self.others += [
                OtherWriter(self.world, self._name("other writer"), traffic, self.traffic) for traffic in own
            ]
        self._producing = asyncio.create_task(self._produce())
        self._help(self._rebalance())
        self._help(self._strike())
        await asyncio.sleep(shape.chaos_seconds)

    async def _produce(self) -> None:
        shape, world = self.world.shape, self.world
        for _ in range(shape.events):
            await asyncio.sleep(world.rng.expovariate(shape.events / shape.chaos_seconds))
            while world.kafka_is_away:  # noqa: ASYNC110 - producers try again now and then
                await asyncio.sleep(1)
            if world.strikes(Fault.REFUSED, 0.05):
                refused = encoded(self._refused())
                world.ledger.poison[refused] += 1
                world.append(*refused)
            else:
                world.append(*self.traffic.records(1)[0])

    def _refused(self) -> Event:
        key = self.world.rng.choice(self.traffic.cold)
        close = self.traffic.event(key, "back-office")
        return ManualClose(
            conversation_id=key,
            source="refused",
            event_id=close.event_id,
            at=close.at,
            status=Status.AGENT_CLOSED,
            actor=REFUSED,
        )

    async def _strike(self) -> None:
        """One fault after the other; they take time, and so overlap."""
        world, services = self.world, Services(self.world, self.traffic.cold)
        enabled = [fault for fault in ACTS if fault in world.shape.faults]
        acts: dict[Fault, Callable[[], Any]] = {
            Fault.CRASH: self._crash,
            Fault.RESTART: self._restart,
            Fault.STALL: self._stall,
            Fault.ZOMBIE: self._deafen,
            Fault.REBALANCE: self._rebalance,
            Fault.OTHER_CLUSTER: self._move_to_another_cluster,
            Fault.OUTAGE: services.database_outage,
            Fault.REWIND: services.rewind,
            Fault.CLOCK: services.set_the_clock,
            Fault.ROW_LOCK: services.hold_rows,
            Fault.NO_KAFKA: services.kafka_outage,
            Fault.RETENTION: services.retention,
        }
        while enabled:
            await asyncio.sleep(world.rng.expovariate(1 / 4))
            fault = world.rng.choice(enabled)
            world.struck[fault] += fault not in COUNTED_BY_EFFECT
            world.tell("fault", fault)
            self._help(acts[fault]())

    def _help(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._helpers.add(task)
        task.add_done_callback(self._helped)

    def _helped(self, task: asyncio.Task[None]) -> None:
        self._helpers.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.world.failures.append(f"the schedule itself: {error!r}")

    def _replica(self) -> Replica:
        return Replica(self.world, self._name("replica"))

    def _ticker(self) -> Process:
        return TickerProcess(self.world, self._name("ticker"))

    def _relay(self) -> Process:
        return RelayProcess(self.world, self._name("relay"))

    def _name(self, kind: str) -> str:
        self._names[kind] += 1
        return f"{kind}-{self._names[kind]}"

    def _living(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.alive]

    def _members(self) -> list[Replica]:
        """The replicas in touch with the cluster of now."""
        return [replica for replica in self._living() if replica.hears and replica.cluster is self.world.kafka]

    def _any_replica(self) -> Replica:
        if not self._living():
            self.replicas.append(self._replica())
        return self.world.rng.choice(self._living())

    def _any_process(self) -> Process:
        return self.world.rng.choice([self._any_replica(), *(other for other in self.others if other.alive)])

    async def _rebalance(self) -> None:
        """All who hear it give up what they own; then it is dealt anew. The others do not know."""
        async with self._assigning:
            await asyncio.sleep(self.world.rng.expovariate(10))
            members = self._members()
            if not members:
                self.replicas.append(self._replica())
                members = self.replicas[-1:]
            await asyncio.gather(*(member.release() for member in members))
            members = [replica for replica in members if replica.alive and replica.hears]
            for place, member in enumerate(members):
                numbers = range(self.world.shape.partitions)
                member.assign(number for number in numbers if (number + self.seed) % len(members) == place)

    async def _crash(self) -> None:
        """Its successors wait until its session has ended; a new one starts in its place."""
        process = self._any_process()
        process.crash()
        await self._replace(process)

    async def _replace(self, dead: Process) -> None:
        await asyncio.sleep(self.world.rng.uniform(0, SESSION_SECONDS))
        if isinstance(dead, Replica):
            self.replicas.append(self._replica())
            await self._rebalance()
        elif isinstance(dead, TickerProcess):
            self.others.append(self._ticker())
        elif isinstance(dead, RelayProcess):
            self.others.append(self._relay())

    async def _restart(self) -> None:
        """As by SIGTERM: what is still busy at the end of the drain is killed."""
        await self._start_anew(self._any_replica())
        await self._rebalance()

    async def _start_anew(self, replica: Replica) -> None:
        await replica.stop()
        self.replicas.append(self._replica())

    async def _stall(self) -> None:
        process, seconds = self._any_process(), self.world.rng.uniform(0, 2.5 * SESSION_SECONDS)
        process.stall()
        if isinstance(process, Replica) and seconds > SESSION_SECONDS:
            process.hears = False
            await asyncio.sleep(SESSION_SECONDS)
            await self._rebalance()
            await asyncio.sleep(seconds - SESSION_SECONDS)
            process.go_on()
            await self._hear(process)
        else:
            await asyncio.sleep(seconds)
            process.go_on()

    async def _deafen(self) -> None:
        """Cut off from Kafka, but not from the database: it goes on with what it has."""
        replica = self._any_replica()
        replica.hears = False
        await self._rebalance()
        await asyncio.sleep(self.world.rng.uniform(0, SESSION_SECONDS))
        await self._hear(replica)

    async def _hear(self, replica: Replica) -> None:
        """Back in touch, it learns that what it owned is no longer its own."""
        await asyncio.sleep(self.world.rng.expovariate(2))
        await self._rejoin(replica)
        await self._rebalance()

    async def _rejoin(self, replica: Replica) -> None:
        if replica.stops or replica.cluster is not self.world.kafka:
            await self._start_anew(replica)
        else:
            await replica.release()
            replica.hears = not replica.stops  # it may have been told to in the meantime

    async def _move_to_another_cluster(self) -> None:
        """Everybody who is in touch is stopped, and started with the other cluster."""
        async with self._assigning:
            stopped = self._members()
            await asyncio.gather(*(replica.stop() for replica in stopped))
            self.world.move_to_another_cluster()
            self.replicas += [self._replica() for _ in stopped]
        await self._rebalance()

    async def _heal(self) -> None:
        """No more faults: who is dead is replaced, who stalls goes on, who is deaf hears."""
        self.world.heal()
        for task in self._helpers:
            task.cancel()
        await asyncio.gather(*self._helpers, return_exceptions=True)
        await self._producing
        for process in (*self.replicas, *self.others):
            process.go_on()
        members = self._members()
        stray = [replica for replica in self._living() if replica not in members]
        for replica in stray:
            await self._rejoin(replica)
        if not any(process.alive and isinstance(process, TickerProcess) for process in self.others):
            self.others.append(self._ticker())
        if not any(process.alive and isinstance(process, RelayProcess) for process in self.others):
            self.others.append(self._relay())
        owned = [number for replica in self._members() for number in replica.owned]
        if any(member.awaits_assignment for member in self._members()) or sorted(owned) != sorted(self.world.log):
            await self._rebalance()

    def _not_ready(self) -> list[str]:
        """What replicas complain about."""
        return [f"{replica.name}: {why}" for replica in self._living() for why in replica.health.not_ready()]

    async def _rest(self) -> bool:
        """Whether the log was read to its end and every deadline took effect in time."""
        world = self.world
        limit = world.time + PATIENCE_SECONDS
        while world.time < limit:
            await asyncio.sleep(2)
            if world.is_read and not world.database.wake_at and not world.database.outbox:
                return True
        return False
