"""Every metric of this service: name, labels, meaning. Counters only, never exported ratios; no ids as labels.

Conflict rate and mean retries are divisions made by Prometheus; the README has both lines.
"""

from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Flag, auto

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample as PrometheusSample

from consumer.lifecycle.model import EVENT_KINDS, Change, Outcome
from consumer.observability.histogram import BulkHistogram
from consumer.observability.lag import Lag, LagCollector
from schemas import Reason

Sample = PrometheusSample
DIRECT = "direct"
"""`topic` label of library calls."""
INVALID = "invalid"
"""`type` label of records that hold no event."""
ATTEMPT_RESULTS = ("committed", "conflict", "error")
RETRY_REASONS = ("version", "lock", "deadlock", "serialization", "duplicate")
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
AGE_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 3600.0, 86400.0)


class Part(Flag):
    """What a process measures: it exports only that."""

    WRITES = auto()
    CONSUMER = auto()
    TICKER = auto()
    OUTBOX = auto()
    PROCESS = auto()

    LIBRARY = WRITES
    REPLICA = WRITES | CONSUMER | PROCESS
    TICKER_PROCESS = TICKER | PROCESS
    OUTBOX_PROCESS = OUTBOX | PROCESS


class Metrics:
    """The catalogue, on a registry of its own, so that tests and several services in one process stay apart."""

    def __init__(
        self,
        topics: Collection[str] = (),
        registry: CollectorRegistry | None = None,
        parts: Part = Part.LIBRARY | Part.CONSUMER | Part.TICKER | Part.OUTBOX,
        trace_id: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`registry`: to export them with others, such as `prometheus_client.REGISTRY`; default one of its own.

        `trace_id`: the trace of now; it becomes the exemplar of processing times.
        """
        self.registry = registry or CollectorRegistry()
        self._trace_id = trace_id
        self._traffic(topics, self._of(Part.WRITES in parts))
        self._conflicts(self._of(Part.WRITES in parts))
        self._runtime(self._of(Part.CONSUMER in parts))
        self._database(self.registry)
        self._ticker(self._of(Part.TICKER in parts))
        self._outbox(self._of(Part.OUTBOX in parts))
        self.ready = Gauge(
            "conversation_ready",
            "1 while /readyz is, the database's answer aside; else 0.",
            registry=self._of(Part.PROCESS in parts),
        )
        if Part.PROCESS in parts:
            ProcessCollector(registry=self.registry)

    def _of(self, exported: bool) -> CollectorRegistry | None:
        return self.registry if exported else None

    def _traffic(self, topics: Collection[str], reg: CollectorRegistry | None) -> None:
        self.events = Counter(
            "conversation_events_total", "Events by outcome.", ["topic", "type", "outcome"], registry=reg
        )
        self.event_processing = BulkHistogram(
            "conversation_event_processing_seconds",
            "From having the event in hand to its commit.",
            ["type"],
            buckets=LATENCY_BUCKETS,
            registry=reg,
        )
        self.event_age = BulkHistogram(
            "conversation_event_age_seconds", "Event time to commit.", buckets=AGE_BUCKETS, registry=reg
        )
        self.dead_letters = Counter(
            "conversation_dead_letters_total",
            "Records sent to the dead-letter topic.",
            ["topic", "reason"],
            registry=reg,
        )
        self.transitions = Counter(
            "conversation_transitions_total", "Status changes written.", ["from_status", "to_status"], registry=reg
        )
        self.clock_clamped = Counter(
            "conversation_clock_clamped_total", "Events dated ahead of the database's clock, clamped.", registry=reg
        )
        self.misplaced = Counter(
            "conversation_misplaced_records_total",
            "Records not on the partition that murmur2 gives their key.",
            ["topic"],
            registry=reg,
        )
        for topic in topics:
            self.misplaced.labels(topic)
            for reason in Reason:
                self.dead_letters.labels(topic, reason)
        for topic in (*topics, DIRECT):
            for kind in EVENT_KINDS:
                for outcome in set(Outcome) - {Outcome.DEAD_LETTER}:
                    self.events.labels(topic, kind, outcome)

    def _conflicts(self, reg: CollectorRegistry | None) -> None:
        self.write_attempts = Counter(
            "conversation_write_attempts_total",
            "Attempts to write an event that has an effect: committed, or lost to another writer, or failed.",
            ["operation", "result"],
            registry=reg,
        )
        self.operation_retries = BulkHistogram(
            "conversation_operation_retries",
            "Lost races of an event before its commit. Events that a lost race left nothing to do are not among them.",
            ["operation"],
            buckets=(0, 1, 2, 3, 5, 8),
            registry=reg,
        )
        self.retries = Counter(
            "conversation_retries_total", "Retried writes by cause.", ["operation", "reason"], registry=reg
        )
        self.retry_backoff = Counter(
            "conversation_retry_backoff_seconds_total", "Time spent backing off.", ["operation"], registry=reg
        )
        self.lock_escalations = Counter(
            "conversation_lock_escalations_total",
            "Conversations locked before reading, after several losses.",
            registry=reg,
        )
        self.concurrency_errors = Counter(
            "conversation_concurrency_errors_total",
            "Calls of the service that gave up after losing too many races.",
            ["operation"],
            registry=reg,
        )
        for kind in EVENT_KINDS:
            self.concurrency_errors.labels(kind)
            self.operation_retries.labels(kind)
            self.retry_backoff.labels(kind)
            for result in ATTEMPT_RESULTS:
                self.write_attempts.labels(kind, result)
            for reason in RETRY_REASONS:
                self.retries.labels(kind, reason)

    def _runtime(self, reg: CollectorRegistry | None) -> None:
        self.blocked_conversations = Gauge(
            "conversation_blocked_conversations", "Conversations whose row somebody else holds for long.", registry=reg
        )
        self.stopped_partitions = Gauge(
            "conversation_stopped_partitions", "Partitions that wait for an operator to set their offset.", registry=reg
        )
        self.assigned_partitions = Gauge("conversation_assigned_partitions", "Partitions owned.", registry=reg)
        self.paused_partitions = Gauge("conversation_paused_partitions", "Partitions not being fetched.", registry=reg)
        self.rebalances = Counter("conversation_rebalances_total", "Group rebalances.", ["phase"], registry=reg)
        self.offset_commits = Counter(
            "conversation_offset_commits_total", "Advisory commits to Kafka.", ["result"], registry=reg
        )
        self.last_poll = Gauge("conversation_last_poll_timestamp_seconds", "When Kafka was last polled.", registry=reg)
        self.inflight_events = Gauge("conversation_inflight_events", "Events being applied.", registry=reg)
        self.batch_events = Histogram(
            "conversation_batch_events",
            "Records per batch.",
            buckets=(1, 2, 5, 10, 50, 100, 500, 1000, 2000, 5000),
            registry=reg,
        )
        self.event_loop_lag = Gauge(
            "conversation_event_loop_lag_seconds", "How late the event loop woke a timer.", registry=reg
        )
        for phase in ("assigned", "revoked"):
            self.rebalances.labels(phase)
        for result in ("ok", "error"):
            self.offset_commits.labels(result)

    def _database(self, reg: CollectorRegistry) -> None:
        self.db_transaction = Histogram(
            "conversation_db_transaction_seconds",
            "Duration of a transaction or a read.",
            ["operation"],
            buckets=LATENCY_BUCKETS,
            registry=reg,
        )
        self.db_pool_connections = Gauge(
            "conversation_db_pool_connections",
            "Pool connections: in_use, idle, and unopened (those that may still be opened).",
            ["state"],
            registry=reg,
        )
        self.build_info = Gauge("conversation_build_info", "Always 1.", ["version"], registry=reg)
        for operation in ("load", "save", "timers"):
            self.db_transaction.labels(operation)

    def _ticker(self, reg: CollectorRegistry | None) -> None:
        self.ticks = Counter(
            "conversation_ticks_total", "Timers that were due, by what came of them.", ["result"], registry=reg
        )
        self.tick_delay = BulkHistogram(
            "conversation_tick_delay_seconds",
            "From the deadline to its tick.",
            buckets=AGE_BUCKETS,
            registry=reg,
        )
        self.expiry_overdue = Gauge(
            "conversation_expiry_overdue",
            "Deadlines passed a minute ago or longer, still without effect.",
            registry=reg,
        )
        for result in ("emitted", "rearmed", "failed"):
            self.ticks.labels(result)

    def _outbox(self, reg: CollectorRegistry | None) -> None:
        self.outbox_published = Counter(
            "conversation_outbox_published_total", "Transitions published and deleted from the outbox.", registry=reg
        )
        self.outbox_batch = Histogram(
            "conversation_outbox_batch_transitions",
            "Transitions per turn of a relay.",
            buckets=(1, 2, 5, 10, 50, 100, 500, 1000, 2000, 5000),
            registry=reg,
        )
        self.outbox_rows = Gauge(
            "conversation_outbox_rows",
            "Transitions that wait to be published, when last counted; a million at most.",
            registry=reg,
        )
        self.outbox_oldest = Gauge(
            "conversation_outbox_oldest_seconds",
            "For how long the oldest of them had waited, when last counted.",
            registry=reg,
        )

    def relayed(self, transitions: int) -> None:
        """Counts a turn of the outbox relay."""
        self.outbox_published.inc(transitions)
        self.outbox_batch.observe(transitions)

    def attempted(self, changes: Iterable[Change], result: str) -> None:
        """Counts a write attempt per event with an effect."""
        for kind, times in Tally([event.kind for change in changes for event in change.effects]).items():
            self.write_attempts.labels(kind, result).inc(times)

    def gave_up(self, changes: Iterable[Change]) -> None:
        """Counts a `ConcurrencyError` raised to a library caller."""
        for operation in {event.kind for change in changes for event in change.events}:
            self.concurrency_errors.labels(operation).inc()

    def retried(self, change: Change, reason: str, backoff_seconds: float) -> None:
        """Counts a retry per event with an effect, and the wait before it."""
        for event in change.effects:
            self.retries.labels(event.kind, reason).inc()
            self.retry_backoff.labels(event.kind).inc(backoff_seconds)

    def committed(self, changes: Sequence[Change], losses: int, topic: str, now: float, seconds: float) -> None:
        """Counts what became of conversations' events that lost `losses` races each. `now` is a Unix time, `seconds`
        the time it took."""
        events = [event for change in changes for event in change.events]
        outcomes = [outcome for change in changes for outcome in change.outcomes]
        exemplar = {"trace_id": trace_id} if (trace_id := self._trace_id()) else None
        for (kind, outcome), times in Tally(zip([event.kind for event in events], outcomes, strict=True)).items():
            self.events.labels(topic, kind, outcome).inc(times)
            self.event_processing.labels(kind).observe_times(seconds, times, exemplar)
            if outcome.has_effect:
                self.write_attempts.labels(kind, "committed").inc(times)
                self.operation_retries.labels(kind).observe_times(losses, times)
        self.event_age.observe_all([now - event.at.timestamp() for event in events])
        moves = [(row.from_status, row.to_status) for change in changes for row in change.rows if row.is_transition]
        for (before, after), times in Tally(moves).items():
            self.transitions.labels(before or "none", after).inc(times)
        self.clock_clamped.inc(sum(change.clamped for change in changes))

    @contextmanager
    def inflight(self, events: int) -> Iterator[None]:
        self.inflight_events.inc(events)
        try:
            yield
        finally:
            self.inflight_events.dec(events)

    def watch_lag(self, read: Callable[[], Iterable[Lag]]) -> None:
        """Has the lag gauges collected at scrape, so that they vanish with the partition."""
        self.registry.register(LagCollector(read))

    def dead_lettered(self, topic: str, reason: str) -> None:
        self.events.labels(topic, INVALID, Outcome.DEAD_LETTER).inc()
        self.dead_letters.labels(topic, reason).inc()


def samples(registry: CollectorRegistry) -> list[Sample]:
    """What a scrape of `registry` would see."""
    return [sample for family in registry.collect() for sample in family.samples]


def parsed(text: str) -> list[Sample]:
    """What was seen in a scrape."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def total(some: Iterable[Sample], name: str, **labels: str) -> float:
    """The value of a sample, summed over the labels not named."""
    return sum(s.value for s in some if s.name == name and labels.items() <= s.labels.items())
