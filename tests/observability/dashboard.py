"""What the dashboard shows, row by row. `make docs` writes it as Grafana's JSON."""

from dataclasses import dataclass
from enum import StrEnum

INTERVAL, RANGE = "$__rate_interval", "$__range"


class Kind(StrEnum):
    LINES = "timeseries"
    NUMBER = "stat"
    HEATMAP = "heatmap"


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries`: legend -> PromQL. `unit` is Grafana's. `good_from` colours a number green from there on."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: Kind = Kind.LINES
    width: int = 6
    description: str = ""
    good_from: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, by: str, matchers: str = "") -> str:
    return f"sum by ({by}) (rate(conversation_{metric}{matchers}[{INTERVAL}]))"


def quantile(share: float, metric: str, by: str = "") -> str:
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels)})"


def quantiles(metric: str) -> dict[str, str]:
    return {"median": quantile(0.5, metric), "99 %": quantile(0.99, metric)}


AGE = "conversation_event_age_seconds"
ONLY_WRITER = "A rate of 0 is normal where the consumer is the only writer."
FRESHNESS = Row(
    "Freshness and budget",
    (
        Panel(
            "Within 30 s, in this range",
            {"": f'sum(increase({AGE}_bucket{{le="30.0"}}[{RANGE}])) / sum(increase({AGE}_count[{RANGE}]))'},
            unit="percentunit",
            kind=Kind.NUMBER,
            width=3,
            description="Goal: 99.5 % of the events are in the database within 30 s of their time.",
            good_from=0.995,
        ),
        Panel(
            "Error budget left, of 30 days",
            {"": f'1 - (1 - sum(increase({AGE}_bucket{{le="30.0"}}[30d])) / sum(increase({AGE}_count[30d]))) / 0.005'},
            unit="percentunit",
            kind=Kind.NUMBER,
            width=3,
            description="Below 0 the goal of the last 30 days is missed.",
            good_from=0.25,
        ),
        Panel(
            "Later than 30 s",
            {
                "5 minutes": "conversation:events_over_30s:ratio_rate5m",
                "1 hour": "conversation:events_over_30s:ratio_rate1h",
                "6 hours": "conversation:events_over_30s:ratio_rate6h",
                "fast burn": "vector(14.4 * 0.005)",
            },
            unit="percentunit",
        ),
        Panel(
            "Event time to commit",
            quantiles("event_age_seconds"),
            unit="s",
            description="From the event's own time. Between 5 s and 30 s it is interpolated in one wide bucket.",
        ),
        Panel(
            "Oldest record not yet applied",
            {"partition {{partition}}": "max by (partition) (conversation_lag_seconds)"},
            unit="s",
        ),
    ),
)
TRAFFIC = Row(
    "Traffic",
    (
        Panel("Events by type", {"{{type}}": rate("events_total", "type")}, unit="ops"),
        Panel("Events by outcome", {"{{outcome}}": f"{rate('events_total', 'outcome')} > 0"}, unit="ops"),
        Panel("Transitions", {"to {{to_status}}": rate("transitions_total", "to_status")}, unit="ops"),
        Panel("In hand to commit", quantiles("event_processing_seconds"), unit="s"),
    ),
)
CONFLICTS = Row(
    "Conflicts and retries",
    (
        Panel(
            "Conflict rate",
            {
                "{{operation}}": rate("write_attempts_total", "operation", '{result="conflict"}')
                + " / "
                + rate("write_attempts_total", "operation", '{result=~"committed|conflict"}')
            },
            unit="percentunit",
            description=f"Writes that lost their race to another writer. {ONLY_WRITER}",
        ),
        Panel(
            "Mean retries",
            {
                "{{operation}}": rate("operation_retries_sum", "operation")
                + " / "
                + rate("operation_retries_count", "operation")
            },
            description=f"Lost races of an event before its commit. {ONLY_WRITER}",
        ),
        Panel(
            "Written at the first attempt",
            {
                "{{operation}}": rate("operation_retries_bucket", "operation", '{le="0.0"}')
                + " / "
                + rate("operation_retries_count", "operation")
            },
            unit="percentunit",
        ),
        Panel(
            "Retries of an event",
            {"{{le}}": f"sum by (le) (increase(conversation_operation_retries_bucket[{INTERVAL}]))"},
            kind=Kind.HEATMAP,
        ),
        Panel("Write attempts by result", {"{{result}}": rate("write_attempts_total", "result")}, unit="ops"),
        Panel("Retries by cause", {"{{reason}}": rate("retries_total", "reason")}, unit="ops"),
        Panel(
            "Backing off",
            {"{{operation}}": rate("retry_backoff_seconds_total", "operation")},
            unit="s",
            description="Seconds of backoff in each second, summed over events.",
        ),
        Panel(
            "Contention that lasts",
            {
                "locked before reading": f"sum(rate(conversation_lock_escalations_total[{INTERVAL}]))",
                "calls that gave up": f"sum(rate(conversation_concurrency_errors_total[{INTERVAL}]))",
            },
            unit="ops",
        ),
    ),
)
KAFKA = Row(
    "Kafka",
    (
        Panel("Records behind", {"partition {{partition}}": "sum by (topic, partition) (conversation_lag_records)"}),
        Panel(
            "Partitions",
            {
                "owned by {{instance}}": "conversation_assigned_partitions",
                "paused": "sum(conversation_paused_partitions)",
                "stopped": "sum(conversation_stopped_partitions)",
            },
        ),
        Panel(
            "Rebalances and commits",
            {
                "rebalances: {{phase}}": rate("rebalances_total", "phase"),
                "commits: {{result}}": rate("offset_commits_total", "result"),
            },
            unit="ops",
        ),
        Panel(
            "Records per batch",
            {
                "mean": f"sum(rate(conversation_batch_events_sum[{INTERVAL}])) "
                f"/ sum(rate(conversation_batch_events_count[{INTERVAL}]))",
                "99 %": quantile(0.99, "batch_events"),
            },
        ),
    ),
)
TIMER = Row(
    "Timer",
    (
        Panel("Ticks", {"{{result}}": rate("ticks_total", "result")}, unit="ops"),
        Panel("Deadline to tick", quantiles("tick_delay_seconds"), unit="s"),
        Panel("Deadlines a minute overdue", {"": "max(conversation_expiry_overdue)"}),
        Panel(
            "Clocks",
            {"events clamped": f"sum(rate(conversation_clock_clamped_total[{INTERVAL}]))"},
            unit="ops",
            description="Events dated more than 5 s ahead of the database's clock.",
        ),
    ),
)
OUTBOX = Row(
    "Outbox",
    (
        Panel("Transitions published", {"": f"sum(rate(conversation_outbox_published_total[{INTERVAL}]))"}, unit="ops"),
        Panel("Transitions waiting", {"": "max(conversation_outbox_rows)"}),
        Panel("Oldest of them", {"": "max(conversation_outbox_oldest_seconds)"}, unit="s"),
        Panel("Transitions per turn", quantiles("outbox_batch_transitions")),
    ),
)
POSTGRESQL = Row(
    "PostgreSQL",
    (
        Panel("Transactions", {"{{operation}}": rate("db_transaction_seconds_count", "operation")}, unit="ops"),
        Panel("Duration, 99 %", {"{{operation}}": quantile(0.99, "db_transaction_seconds", "operation")}, unit="s"),
        Panel("Connections", {"{{state}}": "sum by (state) (conversation_db_pool_connections)"}),
        Panel("Rows held by somebody else", {"{{instance}}": "conversation_blocked_conversations"}),
    ),
)
DEAD_LETTERS = Row(
    "Dead letters",
    (
        Panel("Dead letters by reason", {"{{reason}}": f"{rate('dead_letters_total', 'reason')} > 0"}, unit="ops"),
        Panel(
            "Share of the records",
            {
                "dead letters": f"sum(rate(conversation_dead_letters_total[{INTERVAL}])) "
                f'/ sum(rate(conversation_events_total{{topic!="direct"}}[{INTERVAL}]))'
            },
            unit="percentunit",
        ),
        Panel(
            "In this range, by reason",
            {"{{reason}}": f"round(sum by (reason) (increase(conversation_dead_letters_total[{RANGE}]))) > 0"},
            kind=Kind.NUMBER,
        ),
        Panel("Misplaced records", {"{{topic}}": rate("misplaced_records_total", "topic")}, unit="ops"),
    ),
)
RUNTIME = Row(
    "Runtime",
    (
        Panel("Ready", {"{{instance}}": "conversation_ready"}),
        Panel("CPU", {"{{instance}}": f"rate(process_cpu_seconds_total[{INTERVAL}])"}, unit="percentunit"),
        Panel("Memory", {"{{instance}}": "process_resident_memory_bytes"}, unit="bytes"),
        Panel(
            "Event loop",
            {
                "late by, {{instance}}": "conversation_event_loop_lag_seconds",
                "since the last poll, {{instance}}": "timestamp(conversation_last_poll_timestamp_seconds) "
                "- (conversation_last_poll_timestamp_seconds > 0)",
            },
            unit="s",
        ),
    ),
)
ROWS = (FRESHNESS, TRAFFIC, CONFLICTS, KAFKA, TIMER, OUTBOX, POSTGRESQL, DEAD_LETTERS, RUNTIME)
PANELS = tuple(panel for row in ROWS for panel in row.panels)
