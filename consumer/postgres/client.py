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
HAS_CITUS = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"
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

_ON_CITUS = {
    "plan_cache_mode": "auto",
    "citus.override_table_visibility": "off",
    "citus.max_adaptive_executor_pool_size": "1",
    "citus.enable_deadlock_prevention": "off",
    "citus.propagate_set_commands": "local",
}
"""A coordinator plans a statement by its parameters. It need not hide shards from the driver, which looks types up. It
opens one connection to each worker for a transaction, as each is committed in two phases. Statements on several shards
do not wait for each other: writers lock rows in one order, and Citus ends a deadlock. SET LOCAL holds on workers."""


class StoreConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection of the store.

    `on_citus`: to a coordinator, which passes the statements on to where the conversations lie. `transaction_settings`:
    the statement that begins each transaction; empty where the session itself has its parameters.
    """

    __slots__ = ("on_citus", "transaction_settings")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.transaction_settings = ""
        self.on_citus = False


class Connector:
    """Makes the connections of a store. Raises `ConfigurationError` and `UnavailableError`.

    A pooler such as PgBouncer may refuse or ignore the parameters of a session, and may give each transaction to
    another session of the server's. There, the parameters are set in each transaction, and no statement stays prepared.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._parameters = _parameters(settings)
        self._has_pooler = False

    async def __call__(self) -> StoreConnection:
        with connecting(self._settings.url.get_secret_value()):
            connection = await self._connect()
        try:
            with classified():
                if await _is_distributed(connection):
                    await self._set_for_citus(connection)
                # The driver's own codec takes twice as long, and times are most of what is written.
                await connection.set_type_codec(
                    "timestamptz", schema="pg_catalog", encoder=_encode_time, decoder=_decode_time, format="tuple"
                )
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _set_for_citus(self, connection: StoreConnection) -> None:
        """The workers know no parameter of the session: without this, a wait for a lock there has no limit."""
        connection.on_citus = True
        lock_timeout = {"lock_timeout": self._parameters["lock_timeout"]}
        if self._has_pooler:
            others = {name: value for name, value in self._parameters.items() if name not in lock_timeout}
            connection.transaction_settings = _set("SET LOCAL", {**others, **_ON_CITUS, **lock_timeout})
        else:
            await connection.execute(_set("SET", _ON_CITUS))
            connection.transaction_settings = _set("SET LOCAL", lock_timeout)

    async def _connect(self) -> StoreConnection:
        if not self._has_pooler:
            connection = await self._connect_directly()
            if connection is not None:
                return connection
            self._has_pooler = True
        connection = await self._open({}, statement_cache_size=0)
        connection.transaction_settings = _set("SET LOCAL", self._parameters)
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


async def _is_distributed(connection: asyncpg.Connection) -> bool:
    """Whether this is a node of a Citus cluster over which the conversations are distributed."""
    if not await connection.fetchval(HAS_CITUS):
        return False
    distributed = "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = to_regclass('conversation'))"
    return bool(await connection.fetchval(distributed))


def on_citus(connection: StoreConnection) -> bool:
    """Whether a Citus coordinator passes the statements on to where the conversations lie."""
    return connection.on_citus


def keeps_its_session(connection: StoreConnection) -> bool:
    """Whether all its statements run in one session of one server, whose parameters are set.

    Not with a pooler in between, nor where Citus passes statements on.
    """
    return not connection.transaction_settings


async def set_for_transaction(connection: StoreConnection) -> None:
    """To be called first in each transaction. Takes a round trip where there is a pooler or Citus, else nothing."""
    if connection.transaction_settings:
        await connection.execute(connection.transaction_settings)


def _set(command: str, parameters: Mapping[str, str]) -> str:
    return "; ".join(f"{command} {name} = {value}" for name, value in parameters.items())


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
    """One at least: zero would be no limit."""
    return str(max(1, round(seconds * 1000)))
