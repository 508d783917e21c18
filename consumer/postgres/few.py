"""An attempt of few events in two statements: one reads, the other writes everything, under the guard, and commits.

Between them nothing is locked, and no transaction is open. In one session of one server that is safe. What was read
there is not of a time that a failover has undone, for no session outlives that time. What others have written since,
the second statement finds: rows by their version, offsets by the fencing token.
"""

from collections.abc import Sequence

from consumer.lifecycle.model import Change
from consumer.postgres.attempt import (
    HISTORY_COLUMNS,
    INSERT_ROW,
    OF_PARTITION,
    OFFSET_GUARD,
    OUTBOX_COLUMNS,
    SET_ROW,
    VERSION_GUARD,
    PostgresAttempt,
    advance_offset,
    changes_to_write,
    offset_parameters,
    row_to_write,
    save,
    stale_owner,
    superseded,
    transaction,
)
from consumer.postgres.errors import classified
from consumer.service.ports import Decided, Lost

_HISTORY = ", ".join(HISTORY_COLUMNS)
_OUTBOX = ", ".join(OUTBOX_COLUMNS)
_NOT_TEXT = {"session": "int", "version": "bigint", "occurred_at": "timestamptz"}
_GUARD = f"SELECT FROM kafka_offset WHERE {OF_PARTITION} AND {OFFSET_GUARD} FOR NO KEY UPDATE"
_ADVANCE = f"""
    UPDATE kafka_offset SET mark = $7, next_offset =
        CASE WHEN (SELECT count(*) FROM written) = cardinality($8::conversation_write[]) THEN $6 ELSE $4 END
    FROM guard WHERE {OF_PARTITION} RETURNING 1"""


def _write_statement(*, moves_offset: bool) -> str:
    """Writes the rows that are as their guard asks, and what belongs to them, and returns their ids.

    With an offset it returns a null as well, or else has written nothing. The offset moves to the end if all were
    written. Its parameters come first.
    """
    first = 8 if moves_offset else 1
    rows = f"FROM guard, unnest(${first}::conversation_write[]) AS n"
    columns = [f"${first + 2 + i}::{_NOT_TEXT.get(name, 'text')}[]" for i, name in enumerate(HISTORY_COLUMNS)]
    return f"""
    WITH guard AS ({_GUARD if moves_offset else "SELECT"}),
    updated AS ({SET_ROW} {rows}
        WHERE c.conversation_id = n.conversation_id AND n.loaded > 0 AND {VERSION_GUARD} RETURNING c.conversation_id),
    inserted AS ({INSERT_ROW} {rows} WHERE n.loaded = 0 ON CONFLICT DO NOTHING RETURNING conversation_id),
    written AS (SELECT conversation_id FROM updated UNION ALL SELECT conversation_id FROM inserted),
    history AS (
        SELECT h.*, ${first + 1}::timestamptz AS recorded_at
        FROM unnest({", ".join(columns)}) WITH ORDINALITY AS h({_HISTORY}, place) JOIN written USING (conversation_id)),
    recorded AS (INSERT INTO conversation_event ({_HISTORY}, recorded_at) SELECT {_HISTORY}, recorded_at FROM history),
    published AS (
        INSERT INTO transition_outbox ({_OUTBOX})
        SELECT {_OUTBOX} FROM history WHERE from_status IS DISTINCT FROM to_status ORDER BY place),
    moved AS ({_ADVANCE if moves_offset else "SELECT"})
    SELECT conversation_id FROM written UNION ALL SELECT NULL FROM moved"""


WRITE = _write_statement(moves_offset=False)
WRITE_AND_ADVANCE = _write_statement(moves_offset=True)


class AttemptOfFew(PostgresAttempt):
    """Saves and commits in one statement; in a transaction where a conversation has several sessions to write."""

    async def save(self, decided: Decided) -> Lost:
        changes = changes_to_write(decided)
        with classified():
            if any(superseded(change) for change in changes):
                async with transaction(self.connection, self.progress):
                    return await save(self.connection, decided, self.progress)
            if changes:
                return await self._write(changes, decided)
        if self.progress is not None:
            await advance_offset(self.connection, self.progress)
        return {}

    async def _write(self, changes: Sequence[Change], decided: Decided) -> Lost:
        rows = [row_to_write(change, change.after.sessions[-1]) for change in changes]
        history = zip(*(row for change in changes for row in change.rows), strict=True)
        if self.progress is None:
            found = await self.connection.fetch(WRITE, rows, decided.now, *history)
        else:
            offset = offset_parameters(self.progress)
            found = await self.connection.fetch(WRITE_AND_ADVANCE, *offset, rows, decided.now, *history)
            if not found:
                raise stale_owner(self.progress)
        written = {row[0] for row in found}
        return {change.after.id: "version" for change in changes if change.after.id not in written}
