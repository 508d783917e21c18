"""What a run comes to, as tables: outcomes, conflicts and retries, and the verdict."""

from rich.console import Console
from rich.table import Table

from consumer.conversation import Kind, Outcome
from consumer.devstack.checker import Verdict
from consumer.metrics import INVALID, Sample, total


def report(console: Console, metrics: list[Sample], verdicts: list[Verdict]) -> None:
    console.print(_outcomes(metrics))
    console.print(_races(metrics))
    console.print(_verdicts(verdicts))


def _outcomes(metrics: list[Sample]) -> Table:
    table = Table("outcome", *Kind, INVALID, title="What became of the events")
    for outcome in Outcome:
        counts = [total(metrics, "conversation_events_total", type=kind, outcome=outcome) for kind in (*Kind, INVALID)]
        table.add_row(outcome, *(f"{count:,.0f}" if count else "" for count in counts))
    return table


def _races(metrics: list[Sample]) -> Table:
    escalations = total(metrics, "conversation_lock_escalations_total")
    caption = f"{escalations:,.0f} conversations were locked after repeated losses"
    headings = ("operation", "committed", "conflicts", "conflict rate", "mean retries")
    table = Table(*headings, title="Optimistic locking", caption=caption)
    for kind in Kind:
        table.add_row(kind, *_figures(metrics, operation=kind))
    table.add_row("all", *_figures(metrics), style="bold")
    return table


def _figures(metrics: list[Sample], **labels: str) -> tuple[str, str, str, str]:
    committed = total(metrics, "conversation_write_attempts_total", result="committed", **labels)
    conflicts = total(metrics, "conversation_write_attempts_total", result="conflict", **labels)
    retries = total(metrics, "conversation_operation_retries_sum", **labels)
    operations = total(metrics, "conversation_operation_retries_count", **labels)
    rate, mean = _ratio(conflicts, committed + conflicts), _ratio(retries, operations)
    return f"{committed:,.0f}", f"{conflicts:,.0f}", f"{rate:.2%}", f"{mean:.3f}"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _verdicts(verdicts: list[Verdict]) -> Table:
    table = Table("invariant", "looked at", "", title="Verdict")
    for verdict in verdicts:
        broken = f"[red]BROKEN[/] {len(verdict.violations)} times, {verdict.violations[0]}" if not verdict.holds else ""
        table.add_row(verdict.invariant, f"{verdict.looked_at:,}", broken or "[green]holds")
    return table
