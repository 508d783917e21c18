"""The histories of many conversations, in the order of their ids, a page at a time: for replays."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

import asyncpg

from consumer.lifecycle.model import HistoryRow, Session
from consumer.postgres.attempt import HISTORY_COLUMNS
from consumer.postgres.conversations import archived_sessions, history_row

SCANNED_CONVERSATIONS = 2000
PAGE_ROWS = 10_000
_IDS = "SELECT conversation_id FROM conversation WHERE conversation_id > $1 ORDER BY conversation_id LIMIT $2"
_SCAN = """
    SELECT c.conversation_id, count(e.version), count(e.version) < c.version,
        coalesce(bool_or(e.recorded_at >= $2 AND e.recorded_at < $3), false)
    FROM conversation AS c LEFT JOIN conversation_event AS e ON e.conversation_id = c.conversation_id
    WHERE c.conversation_id = ANY($1::text[]) GROUP BY c.conversation_id, c.version ORDER BY 1"""
_ROWS = f"""
    SELECT {", ".join((*HISTORY_COLUMNS, "recorded_at"))} FROM conversation_event
    WHERE conversation_id = ANY($1::text[]) AND (conversation_id, version) > ($2, $3) AND recorded_at < $4
    ORDER BY conversation_id, version LIMIT $5"""
Connect = Callable[[str], AbstractAsyncContextManager[asyncpg.Connection]]


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """History rows by conversation and version. A long history goes on in the next page.

    `archives` has the archived sessions of the conversations of which older rows are pruned. `scanned`: conversations
    passed with this page, those without a row in the range among them.
    """

    scanned: int
    rows: Sequence[tuple[HistoryRow, datetime]] = ()
    archives: dict[str, list[Session]] = field(default_factory=dict)


async def history_pages(connect: Connect, since: datetime, until: datetime) -> AsyncIterator[HistoryPage]:
    """The histories, up to `until`, of the conversations that have a row recorded from `since` on.

    No transaction lasts longer than a page.
    """
    last = ""
    while True:
        async with connect("load") as connection:
            ids = [row[0] for row in await connection.fetch(_IDS, last, SCANNED_CONVERSATIONS)]
            scanned = await connection.fetch(_SCAN, ids, since, until) if ids else ()
        if not ids:
            return
        last, wanted = ids[-1], [row for row in scanned if row[3]]
        for chunk in _chunks([(key, rows, pruned) for key, rows, pruned, _ in wanted]):
            async for page in _pages_of(connect, chunk, until):
                yield page
        yield HistoryPage(len(ids))


Chunk = Sequence[tuple[str, int, bool]]
"""(conversation id, rows, whether some are pruned)"""


def _chunks(wanted: Chunk) -> list[Chunk]:
    """Conversations that fit a page together; one that fits none has one to itself."""
    ends, total = list[int](), 0
    for _, rows, _ in wanted:
        total += rows
        ends.append(total // PAGE_ROWS)
    numbered = groupby(zip(ends, wanted, strict=True), key=lambda pair: pair[0])
    return [[conversation for _, conversation in group] for _, group in numbered]


async def _pages_of(connect: Connect, chunk: Chunk, until: datetime) -> AsyncIterator[HistoryPage]:
    ids, place = [key for key, _, _ in chunk], ("", 0)
    async with connect("load") as connection:
        archives = await archived_sessions(connection, [key for key, _, pruned in chunk if pruned])
    while True:
        async with connect("load") as connection:
            found = await connection.fetch(_ROWS, ids, *place, until, PAGE_ROWS)
        rows = [(history_row(*row[:-1]), row[-1]) for row in found]
        yield HistoryPage(0, rows, archives)
        if len(rows) < PAGE_ROWS:
            return
        place = (rows[-1][0].conversation_id, rows[-1][0].version)
