"""Where a PostgreSQL client commits in what it sends: at a COMMIT, or with a statement that writes at once."""

import struct
from typing import NamedTuple

LENGTH = struct.Struct("!I")
ENCRYPTION_REQUESTS = (80877103, 80877104)
"""Of TLS and of GSSAPI. Each is as a start-up packet, and refused by our servers; the real one follows."""
LONGEST_COMMIT = 32
"""Bytes of a query that may be nothing but COMMIT."""


NAMES_BYTES = 64
"""Of a Bind, so many hold the names of its portal and its statement."""
WRITES_AT_ONCE = b"WITH guard AS"
"""Part of a statement that is never within a transaction: see `consumer.postgres.few`."""


class Span(NamedTuple):
    """Offsets in the chunk of bytes that was fed; the start is 0 if the message began in an earlier chunk."""

    start: int
    end: int


class ClientMessages:
    """Follows the messages of one connection, without TLS, from its first byte on."""

    def __init__(self) -> None:
        self._is_starting = True
        self._head = bytearray()
        """The beginning of a message: up to its length, or all of it where its content matters."""
        self._wanted_bytes = LENGTH.size
        self._skipped_bytes = 0
        self._writing_at_once: set[bytes] = set()
        """Names of prepared statements."""
        self._is_writing = False

    def feed(self, data: bytes) -> Span | None:
        """The next bytes of the client. Where the first message that commits, and ends in them, lies."""
        found: Span | None = None
        position = start = 0
        while position < len(data):
            if self._skipped_bytes:
                step = min(self._skipped_bytes, len(data) - position)
                self._skipped_bytes -= step
                position += step
                continue
            if not self._head:
                start = position
            step = min(self._wanted_bytes - len(self._head), len(data) - position)
            self._head += data[position : position + step]
            position += step
            if len(self._head) == self._wanted_bytes and self._take_head() and found is None:
                found = Span(start, position)
        return found

    def _take_head(self) -> bool:
        """Acts on as much of a message as was wanted; whether it commits."""
        prefix = 0 if self._is_starting else 1
        total = prefix + LENGTH.unpack_from(self._head, prefix)[0]
        wanted = min(total, prefix + LENGTH.size + self._content_bytes(total))
        if len(self._head) < wanted:
            self._wanted_bytes = wanted
            return False
        commits = not self._is_starting and self._commits(bytes(self._head[prefix + LENGTH.size :]))
        if self._is_starting:
            code = LENGTH.unpack_from(self._head, LENGTH.size)[0]
            self._is_starting = code in ENCRYPTION_REQUESTS
        self._skipped_bytes = max(0, total - len(self._head))
        self._head.clear()
        self._wanted_bytes = LENGTH.size + (0 if self._is_starting else 1)
        return commits

    def _content_bytes(self, total: int) -> int:
        """How much of the message's content matters."""
        if self._is_starting or self._head[:1] == b"P":
            return total
        if self._head[:1] == b"Q":
            return total if total <= LONGEST_COMMIT else 0
        return NAMES_BYTES if self._head[:1] == b"B" else 0

    def _commits(self, content: bytes) -> bool:
        match bytes(self._head[:1]):
            case b"Q":
                return _is_commit(content)
            case b"P":
                name, sql, *_ = content.split(b"\0")
                if WRITES_AT_ONCE in sql:
                    self._writing_at_once.add(name)
            case b"B":
                _, name, *_ = content.split(b"\0")
                self._is_writing = name in self._writing_at_once
            case b"S":
                is_writing, self._is_writing = self._is_writing, False
                return is_writing
        return False


def _is_commit(query: bytes) -> bool:
    return query.rstrip(b"\0").rstrip(b"; \n").lstrip().upper() in (b"COMMIT", b"END", b"COMMIT TRANSACTION")
