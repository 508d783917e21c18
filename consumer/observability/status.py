"""One replica at a glance, read off its metrics: what /status says of itself, and `top` of any replica."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from html import escape

from consumer.observability.health import Health
from consumer.observability.metrics import Sample, total

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 44rem; padding: 0 1rem; color: #1c2733 }
table { border-collapse: collapse; width: 100%; margin: 0 0 1.5rem }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #dde3ea }
td:last-child, th:last-child { text-align: right; font-variant-numeric: tabular-nums }
.ready { color: #19703e } .unready { color: #b3261e }
"""
STYLE_HASH = f"sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}"
"""What a content security policy knows the style by."""
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>conversation-consumer</title>
<style>{style}</style>
<h1>conversation-consumer {version}</h1>
<p id="readiness" class="{state}">{readiness}</p>
{tables}
</html>
"""


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    topic: str
    partition: int
    lag_records: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """Of an outbox relay; what waits as it was last counted."""

    published: int
    rows: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """Since the replica started. No ids of conversations or events."""

    version: str
    partitions: tuple[PartitionStatus, ...]
    events: int
    committed: int
    conflicts: int
    mean_retries: float
    lock_escalations: int
    transitions: int
    misplaced_records: int
    dead_letters: dict[str, int]
    outbox: OutboxStatus | None

    @property
    def conflict_rate(self) -> float:
        attempts = self.committed + self.conflicts
        return self.conflicts / attempts if attempts else 0.0


def read_status(samples: Sequence[Sample]) -> ReplicaStatus:
    """The status behind a scrape."""
    lags = [sample for sample in samples if sample.name == "conversation_lag_records"]
    partitions = [
        PartitionStatus(
            lag.labels["topic"],
            int(lag.labels["partition"]),
            int(lag.value),
            round(total(samples, "conversation_lag_seconds", **lag.labels), 3),
        )
        for lag in lags
    ]
    letters = [sample for sample in samples if sample.name == "conversation_dead_letters_total" and sample.value]
    operations = total(samples, "conversation_operation_retries_count")
    builds = [sample.labels["version"] for sample in samples if sample.name == "conversation_build_info"]
    return ReplicaStatus(
        version=builds[0] if builds else "",
        partitions=tuple(sorted(partitions, key=lambda p: (p.topic, p.partition))),
        events=int(total(samples, "conversation_events_total")),
        committed=int(total(samples, "conversation_write_attempts_total", result="committed")),
        conflicts=int(total(samples, "conversation_write_attempts_total", result="conflict")),
        mean_retries=total(samples, "conversation_operation_retries_sum") / operations if operations else 0.0,
        lock_escalations=int(total(samples, "conversation_lock_escalations_total")),
        transitions=int(total(samples, "conversation_transitions_total")),
        misplaced_records=int(total(samples, "conversation_misplaced_records_total")),
        dead_letters={letter.labels["reason"]: int(letter.value) for letter in letters},
        outbox=_outbox(samples),
    )


def _outbox(samples: Sequence[Sample]) -> OutboxStatus | None:
    if not any(sample.name == "conversation_outbox_rows" for sample in samples):
        return None
    return OutboxStatus(
        published=int(total(samples, "conversation_outbox_published_total")),
        rows=int(total(samples, "conversation_outbox_rows")),
        oldest_seconds=round(total(samples, "conversation_outbox_oldest_seconds"), 3),
    )


def as_json(status: ReplicaStatus, health: Health, not_ready: Sequence[str]) -> dict[str, object]:
    return {
        "version": status.version,
        "ready": not not_ready,
        "not_ready": list(not_ready),
        "partitions": [asdict(partition) for partition in status.partitions],
        "events": status.events,
        "conflict_rate": round(status.conflict_rate, 6),
        "mean_retries": round(status.mean_retries, 6),
        "lock_escalations": status.lock_escalations,
        "transitions": status.transitions,
        "misplaced_records": status.misplaced_records,
        "dead_letters": status.dead_letters,
        "last_dead_letter_reasons": list(health.last_dead_letters),
        "blocked": dict(health.blocked),
        **({"outbox": asdict(status.outbox)} if status.outbox else {}),
    }


def as_html(status: ReplicaStatus, health: Health, not_ready: Sequence[str]) -> str:
    """The same as a page."""
    figures = [
        ("events", f"{status.events:,}"),
        ("conflict rate", f"{status.conflict_rate:.2%}"),
        ("mean retries", f"{status.mean_retries:.3f}"),
        ("lock escalations", f"{status.lock_escalations:,}"),
        ("transitions", f"{status.transitions:,}"),
        ("misplaced records", f"{status.misplaced_records:,}"),
    ]
    if status.outbox:
        figures = [
            ("transitions published", f"{status.outbox.published:,}"),
            ("transitions waiting", f"{status.outbox.rows:,}"),
            ("oldest of them", f"{status.outbox.oldest_seconds:.1f} s"),
        ]
    partitions = [(p.topic, p.partition, f"{p.lag_records:,}", f"{p.oldest_seconds:.1f} s") for p in status.partitions]
    tables = [
        _table("figures", ("since start", ""), figures),
        _table("partitions", ("topic", "partition", "lag", "oldest"), partitions),
        _table("dead-letters", ("dead letters", ""), sorted(status.dead_letters.items())),
        _table("last-dead-letters", ("last dead letters",), [(reason,) for reason in health.last_dead_letters]),
        _table("blocked", ("blocked partitions", ""), list(health.blocked.items())),
    ]
    return PAGE.format(
        style=STYLE,
        version=escape(status.version),
        state="unready" if not_ready else "ready",
        readiness=escape("not ready: " + "; ".join(not_ready) if not_ready else "ready"),
        tables="\n".join(tables),
    )


def _table(name: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
