"""A real Prometheus with our rules, on real replicas and a ticker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import count

import pytest

from consumer.lifecycle.model import Author, Status
from consumer.service.service import ConversationService
from tests.builders import close, message
from tests.conftest import opened
from tests.e2e.conftest import Group, until
from tests.observability.dashboard import PANELS
from tests.observability.plot import substituted
from tests.observability.rules import recorded, rules
from tests.observability.runbooks import QUERY, RUNBOOKS
from tests.stack.broker import delete, read_all
from tests.stack.prometheus import Prometheus
from tests.stack.replica import Replica
from tests.stack.services import Services
from tests.traffic import SHORT_POLICY, SHORT_POLICY_VARIABLES

pytestmark = pytest.mark.needs("prometheus")
HOT = [f"hot-{number}" for number in range(4)]
CONFLICTS = 20
CONFLICT_RATE = "operation:conversation_write_conflicts:ratio_rate5m"
MEAN_RETRIES = "operation:conversation_retries:mean_rate5m"
OPERATIONS = ("inbound-message", "manual-close", "tick")
Asked = Callable[[], Awaitable[bool]]


@pytest.fixture
async def replicas(group: Group) -> list[Replica]:
    return [await group.replica(**SHORT_POLICY_VARIABLES) for _ in range(2)]


@pytest.fixture
async def ticker(group: Group) -> Replica:
    ticker = await group.unready_replica("ticker")
    await until(ticker.ready, "the ticker is ready")
    return ticker


@pytest.fixture
async def relay(group: Group, stack: Services) -> AsyncIterator[Replica]:
    topic = f"{group.topic}.transition"
    await group.create_topic(topic)
    relay = await group.unready_replica("outbox", CONSUMER_KAFKA__TRANSITION_TOPIC=topic)
    await until(relay.ready, "the relay is ready")
    yield relay
    await delete(stack.kafka, topic)


@pytest.fixture
async def prometheus(replicas: list[Replica], ticker: Replica, relay: Replica) -> AsyncIterator[Prometheus]:
    """It has scraped each of them at least once before anything is published."""
    jobs = {"consumer": [replica.port for replica in replicas], "ticker": [ticker.port], "outbox": [relay.port]}
    started = Prometheus(jobs)
    try:
        await until(answers(started, "count(up == 1)", 4), "all are scraped")
        await until(answers(started, "count(conversation_ready == 1)", 4), "all are ready")
        yield started
    finally:
        started.stop()


def answers(prometheus: Prometheus, expr: str, expected: float) -> Asked:
    async def asked() -> bool:
        return await prometheus.value(expr) == expected

    return asked


async def by_operation(prometheus: Prometheus, expr: str) -> dict[str, float]:
    return {dict(labels)["operation"]: value for labels, value in (await prometheus.query(expr)).items()}


async def counts(replicas: list[Replica], name: str, **labels: str) -> dict[str, float]:
    """What the replicas themselves say, summed, by operation."""
    return {
        operation: sum([await replica.count(name, operation=operation, **labels) for replica in replicas])
        for operation in OPERATIONS
    }


@asynccontextmanager
async def back_office(group: Group) -> AsyncIterator[None]:
    """A program that writes to the same conversations through the service all the time."""
    stop, numbers = asyncio.Event(), count()

    async def write(service: ConversationService) -> None:
        while not stop.is_set():
            number = next(numbers)
            now = datetime.now(UTC)
            event = message(Author.AGENT, now, conversation_id=HOT[number % 4], source="api", event_id=f"{number}")
            await service.apply([event])

    async with opened(group.database) as store, asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(write(ConversationService(store, policy=SHORT_POLICY.policy)))
        try:
            yield
        finally:
            stop.set()


async def publish_until_conflicts(group: Group, replicas: list[Replica]) -> None:
    """Publishes to conversations that others write to, until the replicas have lost some races.

    One conversation is left alone, for the timer.
    """

    async def contended() -> bool:
        now = datetime.now(UTC)
        messages = [message(at=now, conversation_id=key) for key in HOT for _ in range(5)]
        await group.publish(*messages, *[close(Status.AGENT_CLOSED, now, conversation_id=key) for key in HOT])
        return (
            sum((await counts(replicas, "conversation_write_attempts_total", result="conflict")).values()) > CONFLICTS
        )

    await group.publish(message(at=datetime.now(UTC), conversation_id="alone"))
    await until(contended, f"more than {CONFLICTS} conflicts", 90)


async def stop_after_a_tick(group: Group, ticker: Replica, prometheus: Prometheus) -> None:
    """Stops the ticker once Prometheus has seen a tick, and waits until its last one is applied."""

    async def emitted() -> bool:
        return (await prometheus.value('sum(conversation_ticks_total{result="emitted"})') or 0) > 0

    await until(emitted, "Prometheus has seen a tick")
    assert await ticker.stop() == 0
    await group.until_applied(len(await read_all(group.kafka, group.topic)))


async def effects(group: Group, replicas: list[Replica]) -> dict[str, float]:
    """Events of the log with an effect, by operation: what the history says, and of ticks, which have no row, the
    replicas."""
    rows = await group.rows(
        "SELECT type, count(*) FROM conversation_event WHERE source NOT IN ('consumer', 'api') GROUP BY type"
    )
    ticks = [await replica.count("conversation_events_total", type="tick", outcome="applied") for replica in replicas]
    return {**dict(rows), "tick": sum(ticks)}


async def test_prometheus_answers_the_headline_queries_with_what_really_happened(
    group: Group, replicas: list[Replica], ticker: Replica, prometheus: Prometheus
) -> None:
    async with back_office(group):
        await publish_until_conflicts(group, replicas)
    await stop_after_a_tick(group, ticker, prometheus)

    async def agree() -> bool:
        committed = 'sum by (operation) (conversation_write_attempts_total{result="committed"})'
        return await by_operation(prometheus, committed) == await effects(group, replicas)

    await until(agree, "Prometheus counts what the history has", 20)
    written = await effects(group, replicas)
    conflicts = await counts(replicas, "conversation_write_attempts_total", result="conflict")
    retries = await counts(replicas, "conversation_operation_retries_sum")
    rates = await by_operation(prometheus, recorded()[CONFLICT_RATE]["expr"])
    means = await by_operation(prometheus, recorded()[MEAN_RETRIES]["expr"])

    assert written["tick"] > 0
    assert conflicts["inbound-message"] > 0
    for operation in ("inbound-message", "manual-close"):
        attempts = written[operation] + conflicts[operation]
        assert rates[operation] == pytest.approx(conflicts[operation] / attempts, rel=0.05)
        assert means[operation] == pytest.approx(retries[operation] / written[operation], rel=0.05)
    assert set(await by_operation(prometheus, CONFLICT_RATE)) == set(OPERATIONS)


async def test_a_dead_letter_raises_its_alert_and_every_panel_has_something_to_show(
    group: Group, prometheus: Prometheus
) -> None:
    firing = 'count(ALERTS{alertname="ConversationDeadLetters", reason="invalid_json", alertstate="firing"})'
    queries = [substituted(expr, 60) for panel in PANELS for expr in panel.queries.values()]
    empty: list[str] = []
    assert await prometheus.value(firing) is None

    await group.publish(message(at=datetime.now(UTC)), close(at=datetime.now(UTC)))
    await group.publish_raw([(b"c-1", b"poison")])

    async def all_show_something() -> bool:
        empty[:] = [query for query in queries if not await prometheus.query(query)]
        return not empty

    await until(answers(prometheus, firing, 1), "the alert fires")
    with suppress(AssertionError):
        await until(all_show_something, "every query has an answer", 20)
    assert empty == []


async def test_prometheus_evaluates_every_rule_and_every_query_of_a_runbook(prometheus: Prometheus) -> None:
    async def evaluated() -> bool:
        groups = (await prometheus.ask("rules"))["groups"]
        return all(rule["health"] != "unknown" for group in groups for rule in group["rules"])

    await until(evaluated, "every rule was evaluated")
    for runbook in RUNBOOKS.glob("*.md"):
        for query in QUERY.findall(runbook.read_text()):
            await prometheus.query(query)

    found = [rule for group in (await prometheus.ask("rules"))["groups"] for rule in group["rules"]]
    assert len(found) == len(rules())
    assert {rule["name"]: rule.get("lastError") for rule in found if rule["health"] != "ok"} == {}
