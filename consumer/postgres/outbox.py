"""The outbox as its relay uses it."""

from collections.abc import Sequence

import asyncpg

from consumer.outbox import MAX_COUNTED, Backlog, OutboxRow
from consumer.postgres.errors import classified

OUTBOX = "the table transition_outbox, or rows of it"
TURN = "'transition_outbox'::regclass::oid::int, 0"
"""The advisory lock that a relay's turn is."""
# The lock ends with the transaction, so with the connection, through a pooler too. The relay is idle in the transaction
# while it waits for Kafka: only for that long may it be.
TAKE_TURN = f"""
    SELECT set_config('idle_in_transaction_session_timeout', $1, true),
        pg_try_advisory_xact_lock({TURN})"""
OLDEST = f"SELECT {', '.join(OutboxRow._fields)} FROM transition_outbox ORDER BY id LIMIT $1"
DELETE = "DELETE FROM transition_outbox WHERE id = ANY($1::bigint[])"
BACKLOG = """
    SELECT (SELECT count(*) FROM (SELECT 1 FROM transition_outbox LIMIT $1) AS counted),
        greatest(0, coalesce(extract(epoch FROM clock_timestamp() - (
            SELECT recorded_at FROM transition_outbox ORDER BY id LIMIT 1)), 0))::float8"""


class PostgresOutboxBatch:
    """See `outbox.OutboxBatch`."""

    def __init__(self, connection: asyncpg.Connection, rows: Sequence[OutboxRow]) -> None:
        self.rows = rows
        self._connection = connection

    async def delete(self) -> None:
        with classified():
            await self._connection.execute(DELETE, [row.id for row in self.rows])


async def take_turn(connection: asyncpg.Connection, limit: int, seconds: float) -> PostgresOutboxBatch | None:
    """The turn of the connection's transaction; null while another has it."""
    _, has_turn = await connection.fetchrow(TAKE_TURN, str(round(seconds * 1000)))
    if not has_turn:
        return None
    # A statement of its own: it sees what the relay before has deleted.
    return PostgresOutboxBatch(connection, [OutboxRow(*row) for row in await connection.fetch(OLDEST, limit)])


async def backlog(connection: asyncpg.Connection) -> Backlog:
    return Backlog(*await connection.fetchrow(BACKLOG, MAX_COUNTED))
