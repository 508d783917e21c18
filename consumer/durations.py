"""Durations and times as people write them: `30d`, `48h`, `15m`, `90s`, `20ms`, or ISO 8601."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from consumer.errors import ConfigurationError

OWN_ERROR = "value_error"
"""The type that pydantic gives to errors of our own validators."""
LONGEST = timedelta(days=36_500)
"""A hundred years: what lies so far ahead, or so long ago, is still a date."""


def _iso_duration(value: object) -> object:
    """`90s`, `20ms`, `15m`, `48h`, `30d`, `1h30m`: as ISO 8601, which is understood anyway. A unit is never guessed."""
    if not isinstance(value, str):
        return value
    if value == "0":
        return 0
    if re.fullmatch(r"\s*[0-9.]+\s*", value):
        number = value.strip()
        raise ValueError(f"has no unit: write {number}d, {number}h, {number}m or {number}s")
    if parts := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|ms)", value):
        return float(parts[1]) / (1000 if parts[2] == "ms" else 1)
    if parts := re.fullmatch(r"([0-9]+d)?((?:[0-9]+h)?(?:[0-9]+m)?(?:[0-9]+s)?)", value):
        days, time = parts[1] or "", parts[2] and f"T{parts[2]}"
        return f"P{days}{time}".upper()
    return value


_Written = Annotated[timedelta, BeforeValidator(_iso_duration)]
Duration = Annotated[_Written, Field(gt=timedelta(0), le=LONGEST)]
DurationOrNone = Annotated[_Written, Field(ge=timedelta(0))]
"""0 is a duration too."""


def duration(text: str) -> timedelta:
    """What a duration setting would understand by `text`. Raises `ConfigurationError` if nothing."""
    try:
        understood: timedelta = TypeAdapter(Duration).validate_python(text)
    except ValidationError as error:
        (detail,) = error.errors()
        form = f"is no duration: write it as 30d, 48h, 15m, 90s or in ISO 8601, {format_duration(LONGEST)} at most"
        raise ConfigurationError(
            f"{text!r} {detail['ctx']['error'] if detail['type'] == OWN_ERROR else form}"
        ) from None
    return understood


def timestamp(text: str) -> datetime:
    """A time, or a date for its first moment; in UTC where it has no offset. Raises `ConfigurationError`."""
    with suppress(ValueError, OverflowError):
        at = datetime.fromisoformat(text.upper())
        return at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC)
    raise ConfigurationError(
        f"{text!r} is no time: write 2026-03-01T12:00:00Z, or 2026-03-01 for its first moment (UTC without an offset)"
    )


def point_in_time(text: str, now: datetime) -> datetime:
    """A timestamp, or how long before `now`. Raises `ConfigurationError`."""
    with suppress(ConfigurationError):
        return timestamp(text)
    with suppress(ConfigurationError):
        return now - duration(text)
    raise ConfigurationError(
        f"{text!r} is no time: write it as 2026-11-01, 2026-11-01T08:00Z, or how long ago, as 2h or 7d"
    )


def format_duration(duration: timedelta) -> str:
    """As one would write it: `15m`, `48h`, `14d2h`, `20ms`; days from three on."""
    rest, parts = duration.total_seconds(), list[str]()
    if 0 < rest < 1:
        return f"{1000 * rest:g}ms"
    for unit, size, least in (("d", 86_400, 3), ("h", 3600, 1), ("m", 60, 1)):
        if rest >= least * size:
            parts.append(f"{rest // size:g}{unit}")
            rest %= size
    return "".join(parts) + (f"{rest:g}s" if rest or not parts else "")
