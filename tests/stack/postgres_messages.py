"""Where a PostgreSQL client's COMMIT lies in the bytes that it sends."""

import struct
from typing import NamedTuple

LENGTH = struct.Struct("!I")
ENCRYPTION_REQUESTS = (80877103, 80877104)
"""Of TLS and of GSSAPI. Each is as a start-up packet, and refused by our servers; the real one follows."""
LONGEST_COMMIT = 32
"""Bytes of a query that may be nothing but COMMIT."""


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

    def feed(self, data: bytes) -> Span | None:
        """The next bytes of the client. Where the first simple query COMMIT that ends in them lies."""
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
        """Acts on as much of a message as was wanted; whether it is a whole COMMIT."""
        prefix = 0 if self._is_starting else 1
        total = prefix + LENGTH.unpack_from(self._head, prefix)[0]
        matters = self._is_starting or (self._head[:1] == b"Q" and total <= LONGEST_COMMIT)
        if matters and len(self._head) < total:
            self._wanted_bytes = total
            return False
        is_commit = not self._is_starting and matters and _is_commit(self._head[prefix + LENGTH.size :])
        if self._is_starting:
            code = LENGTH.unpack_from(self._head, LENGTH.size)[0]
            self._is_starting = code in ENCRYPTION_REQUESTS
        self._skipped_bytes = max(0, total - len(self._head))
        self._head.clear()
        self._wanted_bytes = LENGTH.size + (0 if self._is_starting else 1)
        return is_commit


def _is_commit(query: bytearray) -> bool:
    return bytes(query).rstrip(b"\0").rstrip(b"; \n").lstrip().upper() in (b"COMMIT", b"END", b"COMMIT TRANSACTION")
