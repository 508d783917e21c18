"""`--from` and `--to`: the period that a command is about."""

from datetime import datetime, timedelta
from typing import Annotated, NamedTuple

import typer

from consumer.commands.output import moment
from consumer.durations import point_in_time
from consumer.errors import ConfigurationError

DEFAULT = timedelta(days=7)
Since = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="TIME",
        help="As 2026-11-01 or 2026-11-01T08:00, UTC unless it says otherwise, or how long ago, as 7d. "
        "Default: 7d before --to.",
    ),
]
Until = Annotated[str | None, typer.Option("--to", metavar="TIME", help="The same, not included. Default: now.")]


class Period(NamedTuple):
    """From `since` until just before `until`."""

    since: datetime
    until: datetime

    def __str__(self) -> str:
        return f"from {moment(self.since)} to {moment(self.until)}"


def period(since: str | None, until: str | None, now: datetime) -> Period:
    """The period of the two options; it ends now at the latest. Raises `ConfigurationError`."""
    end = min(now, _time("--to", until, now)) if until is not None else now
    start = _time("--from", since, now) if since is not None else end - DEFAULT
    if start >= end:
        raise ConfigurationError(f"--from {moment(start)} is not before --to {moment(end)}")
    return Period(start, end)


def _time(option: str, text: str, now: datetime) -> datetime:
    try:
        return point_in_time(text, now)
    except ConfigurationError as error:
        raise ConfigurationError(f"{option}: {error}") from None
