"""A connection to PostgreSQL as the store uses it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from consumer.settings import DatabaseSettings


class Connector:
    """Makes connections as the store uses them."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings

    async def __call__(self) -> asyncpg.Connection:
        return await connected(self._settings)


_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


async def connected(settings: DatabaseSettings) -> asyncpg.Connection:
    """A connection of the driver's, as the store uses it."""
    connection = await asyncpg.connect(**_connect_arguments(settings))
    # The driver's own way takes twice as long, and times are most of what is written.
    await connection.set_type_codec("timestamptz", schema="pg_catalog", encoder=_ticks, decoder=_moment, format="tuple")
    return connection


def _ticks(at: datetime) -> tuple[int]:
    """A time as PostgreSQL keeps it: microseconds since 2000."""
    since = at - _POSTGRES_EPOCH
    return (since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds,)


def _moment(ticks: tuple[int]) -> datetime:
    return _POSTGRES_EPOCH + timedelta(microseconds=ticks[0])


def _connect_arguments(settings: DatabaseSettings) -> dict[str, Any]:
    """Every wait has a limit, so that neither a stalled server nor a stalled owner holds others for long."""
    return {
        "dsn": settings.url.get_secret_value(),
        "timeout": settings.connect_timeout_seconds,
        "command_timeout": settings.command_timeout_seconds,
        "server_settings": {
            "application_name": "conversation-consumer",
            "statement_timeout": _milliseconds(settings.statement_timeout_seconds),
            "lock_timeout": _milliseconds(settings.lock_timeout_seconds),
            "idle_in_transaction_session_timeout": _milliseconds(settings.idle_in_transaction_timeout_seconds),
            **_SAME_PLAN,
        },
    }


_SAME_PLAN = {"jit": "off", "enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
"""Every statement looks its rows up by key, whatever the statistics say of a table that has just begun to grow."""


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
