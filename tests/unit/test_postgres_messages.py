"""The COMMITs that a proxy finds in the bytes of a PostgreSQL client."""

import struct
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from tests.stack.postgres_messages import ClientMessages

STARTUP = struct.pack("!II", 8 + len(b"user\0me\0\0"), 196608) + b"user\0me\0\0"
TLS_REQUEST = struct.pack("!II", 8, 80877103)


def message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(content)) + content


COMMIT = message(b"Q", b"COMMIT;\0")
PARSE = message(b"P", b"write\0 WITH guard AS (SELECT) SELECT 1\0\0\0")
WRITE = message(b"B", b"\0write\0" + b"x" * 300) + message(b"E", b"\0\0\0\0\0") + message(b"S", b"")
HARMLESS = [
    message(b"P", b"read\0SELECT 1\0\0\0"),
    message(b"B", b"\0read\0" + b"y" * 20) + message(b"E", b"\0\0\0\0\0") + message(b"S", b""),
    message(b"Q", b"SELECT 'COMMIT;'\0"),
    message(b"Q", b"COMMIT;" * 20 + b"\0"),
    message(b"d", COMMIT),
    message(b"d", b"x" * 300),
    message(b"S", b""),
]
messages = st.lists(st.sampled_from([COMMIT, WRITE, *HARMLESS]), max_size=12)
sizes = st.lists(st.integers(1, 60), min_size=1)


def chunks(data: bytes, of_bytes: list[int]) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        size = of_bytes[position % len(of_bytes)]
        yield data[position : position + size]
        position += size


def commits(following: ClientMessages, parts: list[bytes]) -> int:
    return sum(following.feed(part) is not None for part in parts)


@given(messages, sizes, st.booleans())
def test_a_commit_is_found_however_the_bytes_are_cut(sent: list[bytes], of_bytes: list[int], asks_tls: bool) -> None:
    following = ClientMessages()
    following.feed(TLS_REQUEST * asks_tls + STARTUP + PARSE)

    found = sum(commits(following, list(chunks(each, of_bytes))) for each in sent)

    assert found == sent.count(COMMIT) + sent.count(WRITE)


@given(sizes)
def test_nothing_in_the_start_up_is_a_commit(of_bytes: list[int]) -> None:
    assert commits(ClientMessages(), list(chunks(TLS_REQUEST + STARTUP, of_bytes))) == 0


def test_the_place_of_a_commit_among_others_is_exact() -> None:
    following = ClientMessages()
    following.feed(STARTUP)
    before, after = HARMLESS[4], HARMLESS[5]

    place = following.feed(before + COMMIT + after)

    assert place == (len(before), len(before + COMMIT))
