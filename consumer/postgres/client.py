"""A connection to PostgreSQL as the store uses it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from consumer.postgres.errors import REFUSED_PARAMETER, classified, connecting
from consumer.settings import DatabaseSettings

APPLICATION = "conversation-consumer"
UNPREPARED = {"prepared_statement_name_func": str}
"""Argument for SQLAlchemy: its own statements get no name, so that they may pass through a pooler."""
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_SAME_PLAN = {
    "jit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}
"""Every statement looks its rows up by key, also while the statistics of a new table still call it empty. It is planned
once in a session: no other plan comes into question, and for few rows planning takes longer than the rest."""


class StoreConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection of the store."""

    __slots__ = ("transaction_settings",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.transaction_settings = ""


class Connector:
    """Makes the connections of a store. Raises `ConfigurationError` and `UnavailableError`.

    A pooler such as PgBouncer may refuse or ignore the parameters of a session, and may give each transaction to
    another session of the server's. There, the parameters are set in each transaction, and no statement stays prepared.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._parameters = _parameters(settings)
        self._has_pooler = False

    async def __call__(self) -> asyncpg.Connection:
        with connecting(self._settings.url.get_secret_value()):
            connection = await self._connect()
        try:
            with classified():
                # The driver's own codec takes twice as long, and times are most of what is written.
                await connection.set_type_codec(
                    "timestamptz", schema="pg_catalog", encoder=_encode_time, decoder=_decode_time, format="tuple"
                )
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _connect(self) -> StoreConnection:
        if not self._has_pooler:
            connection = await self._connect_directly()
            if connection is not None:
                return connection
            self._has_pooler = True
        connection = await self._open({}, statement_cache_size=0)
        connection.transaction_settings = "; ".join(f"SET LOCAL {name} = {to}" for name, to in self._parameters.items())
        return connection

    async def _connect_directly(self) -> StoreConnection | None:
        """None if there is a pooler in between."""
        try:
            connection = await self._open(self._parameters)
        except asyncpg.ProtocolViolationError as error:
            if REFUSED_PARAMETER in str(error):
                return None
            raise
        is_direct = False
        try:
            # A pooler tells its clients process ids of its own making.
            is_direct = await connection.fetchval("SELECT pg_backend_pid()") == connection.get_server_pid()
        finally:
            if not is_direct:
                connection.terminate()
        return connection if is_direct else None

    async def _open(self, parameters: Mapping[str, str], statement_cache_size: int = 100) -> StoreConnection:
        connection: StoreConnection = await asyncpg.connect(
            self._settings.url.get_secret_value(),
            timeout=self._settings.connect_timeout_seconds,
            command_timeout=self._settings.command_timeout_seconds,
            connection_class=StoreConnection,
            statement_cache_size=statement_cache_size,
            server_settings={"application_name": APPLICATION, **parameters},
        )
        return connection


async def connected(settings: DatabaseSettings) -> asyncpg.Connection:
    """A connection of the driver's, as the store uses it."""
    return await Connector(settings)()


def keeps_its_session(connection: asyncpg.Connection) -> bool:
    """Whether all its statements run in one session of the server's, whose parameters are set: no pooler is between."""
    return not getattr(connection, "transaction_settings", "")


async def set_for_transaction(connection: asyncpg.Connection) -> None:
    """To be called first in each transaction. Takes a round trip where there is a pooler, else nothing."""
    if settings := getattr(connection, "transaction_settings", ""):
        await connection.execute(settings)


def _parameters(settings: DatabaseSettings) -> dict[str, str]:
    """Every wait has a limit, so that neither a stalled server nor a stalled owner holds others for long."""
    return {
        "statement_timeout": _milliseconds(settings.statement_timeout_seconds),
        "lock_timeout": _milliseconds(settings.lock_timeout_seconds),
        "idle_in_transaction_session_timeout": _milliseconds(settings.idle_in_transaction_timeout_seconds),
        **_SAME_PLAN,
    }


def _encode_time(at: datetime) -> tuple[int]:
    """A time as PostgreSQL keeps it: microseconds since 2000."""
    since = at - _POSTGRES_EPOCH
    return (since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds,)


def _decode_time(at: tuple[int]) -> datetime:
    return _POSTGRES_EPOCH + timedelta(microseconds=at[0])


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
