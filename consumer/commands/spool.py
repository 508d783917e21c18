"""Events of the log, put in the order of their conversations: on disk, so that memory stays flat."""

import pickle
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import groupby

from consumer.lifecycle.model import Event


class Spool:
    """A temporary file of events. Those of a conversation come by time, and of the same time as they were added."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.execute("CREATE TABLE event (conversation_id BLOB, milliseconds INTEGER, content BLOB)")

    @classmethod
    @contextmanager
    def open(cls) -> Iterator["Spool"]:
        # Without a name SQLite takes a file that is gone once it is closed.
        with closing(sqlite3.connect("", isolation_level=None)) as database:
            database.execute("PRAGMA synchronous = OFF")
            database.execute("PRAGMA journal_mode = OFF")
            yield cls(database)

    def add(self, events: Iterable[tuple[int, Event]]) -> None:
        """Events, each with the time of its record in milliseconds since 1970."""
        rows = [(event.conversation_id.encode(), at, pickle.dumps(event, protocol=5)) for at, event in events]
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO event VALUES (?, ?, ?)", rows)
        self._database.execute("COMMIT")

    def conversations(self) -> Iterator[tuple[str, Iterator[tuple[int, Event]]]]:
        found = self._database.execute("SELECT * FROM event ORDER BY conversation_id, milliseconds, rowid")
        for key, rows in groupby(found, key=lambda row: row[0]):
            # What `add` has written.
            yield key.decode(), ((at, pickle.loads(content)) for _, at, content in rows)  # noqa: S301
