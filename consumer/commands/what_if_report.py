"""What `what-if` prints: tables, JSON, a picture."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from consumer.commands.output import out, print_json, print_line, print_table
from consumer.commands.period import Period
from consumer.commands.plot import plot_bars
from consumer.durations import format_duration
from consumer.history.what_if import Ends, Tally
from consumer.lifecycle.model import Outcome, Policy, Session, Status

Word = TypeVar("Word", bound=StrEnum)


class Source(StrEnum):
    HISTORY = "history"
    TOPIC = "topic"


@dataclass(slots=True)
class Result:
    """A comparison and what came of it."""

    source: Source
    period: Period
    policies: tuple[Policy, Policy]
    tally: Tally
    dead_letters: int = 0
    decided: int = 0
    seconds: float = 0.0


def print_result(result: Result, *, ids: bool, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(result, ids=ids))
    else:
        _print_tables(result, ids=ids)


def _print_tables(result: Result, *, ids: bool) -> None:
    tally = result.tally
    for name, before, after in _changes(result):
        out.print(f"{name}: {before} in force, what if {after}")
    out.print(f"{result.source} {result.period}")
    what = "history rows" if result.source is Source.HISTORY else "events"
    out.print(
        f"{result.decided:,} {what} of {tally.conversations:,} conversations decided twice "
        f"in {result.seconds:.1f} s, {result.decided / result.seconds:,.0f}/s"
    )
    for note in _notes(result):
        print_line(note)
    headings = ("in force", "changed", "difference")
    print_table(
        None, ("sessions at the end", *headings), _compared(tally.sessions_before, tally.sessions_after, Status)
    )
    print_table(None, ("events by outcome", *headings), _compared(tally.outcomes_before, tally.outcomes_after, Outcome))
    share = f" ({tally.otherwise / tally.conversations:.1%})" if tally.conversations else ""
    print_line(
        f"{tally.otherwise:,} of {tally.conversations:,} conversations{share} would have ended otherwise, "
        f"{tally.at_another_time:,} more the same way at another time"
    )
    if ids and tally.examples:
        print_table(None, ("conversation", "session", "in force", "changed"), _session_rows(tally.examples))
        if tally.otherwise > len(tally.examples):
            out.print(f"{tally.otherwise - len(tally.examples):,} more: --limit")


def _notes(result: Result) -> Iterator[str]:
    tally = result.tally
    if tally.not_as_stored:
        yield (
            f"{tally.not_as_stored:,} conversations are not stored as the policy in force has them: "
            "it was another one when they were decided"
        )
    if tally.left_out:
        yield f"{tally.left_out:,} events left out: the beginning of their session is pruned"
    if tally.duplicates or result.dead_letters:
        yield f"{tally.duplicates:,} duplicates and {result.dead_letters:,} records without a valid event left out"


def _changes(result: Result) -> list[tuple[str, str, str]]:
    """What differs: (name, in force, changed)."""
    before, after = result.policies
    pairs = [(field.name, getattr(before, field.name), getattr(after, field.name)) for field in fields(Policy)]
    changed = [(name, one, other) for name, one, other in pairs if one != other] or pairs[:1]
    return [(name, format_duration(one), format_duration(other)) for name, one, other in changed]


def _compared(before: Counter[Word], after: Counter[Word], order: type[Word]) -> list[tuple[str, str, str, str]]:
    rows = [(str(value), before[value], after[value]) for value in order if before[value] or after[value]]
    rows.append(("all", before.total(), after.total()))
    return [(name, f"{one:,}", f"{other:,}", f"{other - one:+,}" if one != other else "0") for name, one, other in rows]


def _session_rows(examples: Sequence[Ends]) -> Iterator[tuple[str, int, str, str]]:
    """The sessions that differ."""
    for ends in examples:
        before = {session.number: session for session in ends.before}
        after = {session.number: session for session in ends.after}
        for number in sorted(before.keys() | after.keys()):
            one, other = _ending(before.get(number)), _ending(after.get(number))
            if one != other:
                yield ends.conversation_id, number, one, other


def _ending(session: Session | None) -> str:
    if session is None:
        return "-"
    return f"{session.status} ({session.close_reason})" if session.close_reason else str(session.status)


def plot_result(result: Result, file: Path) -> None:
    before, after = result.tally.sessions_before, result.tally.sessions_after
    statuses = [status for status in Status if before[status] or after[status]]
    changes = ", ".join(f"{name} {after} instead of {before}" for name, before, after in _changes(result))
    groups = {"in force": [before[status] for status in statuses], "changed": [after[status] for status in statuses]}
    plot_bars(file, f"What if: {changes}", statuses, groups, "sessions at the end")


def _as_json(result: Result, *, ids: bool) -> dict[str, Any]:
    tally = result.tally
    found = {
        "source": result.source,
        "from": result.period.since,
        "to": result.period.until,
        "policy": {name: {"in_force": before, "changed": after} for name, before, after in _changes(result)},
        "decided": result.decided,
        "events": tally.events,
        "conversations": tally.conversations,
        "sessions": {
            status: {"in_force": tally.sessions_before[status], "changed": tally.sessions_after[status]}
            for status in Status
        },
        "outcomes": {
            outcome: {"in_force": tally.outcomes_before[outcome], "changed": tally.outcomes_after[outcome]}
            for outcome in Outcome
            if tally.outcomes_before[outcome] or tally.outcomes_after[outcome]
        },
        "ended_otherwise": tally.otherwise,
        "ended_at_another_time": tally.at_another_time,
        "not_as_stored": tally.not_as_stored,
        "left_out": tally.left_out,
        "duplicates": tally.duplicates,
        "dead_letters": result.dead_letters,
        "seconds": round(result.seconds, 3),
    }
    if ids:
        found["ids"] = [_ends_as_json(ends) for ends in tally.examples]
    return found


def _ends_as_json(ends: Ends) -> dict[str, Any]:
    def sessions(some: Sequence[Session]) -> list[dict[str, Any]]:
        names = ("status", "closed_at", "close_reason")
        return [{"session": session.number} | {name: getattr(session, name) for name in names} for session in some]

    return {"conversation_id": ends.conversation_id, "in_force": sessions(ends.before), "changed": sessions(ends.after)}
