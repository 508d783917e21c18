"""The memory limit of a process: what the kernel does beyond it, and that everything below it goes on."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.stack.memory_limit import MemoryLimit

LIMIT_BYTES = 64 << 20
TAKE = "bytearray(int(__import__('sys').argv[1]))"

pytestmark = pytest.mark.skipif(MemoryLimit.missing() is not None, reason=MemoryLimit.missing() or "")


@pytest.fixture
def limit() -> Iterator[MemoryLimit]:
    limit = MemoryLimit(LIMIT_BYTES)
    yield limit
    limit.remove()


def take(limit: MemoryLimit, count: int) -> int:
    """The exit code of a process that takes so many bytes."""
    return subprocess.run([*limit.enter, sys.executable, "-c", TAKE, str(count)], check=False).returncode


def test_a_process_that_takes_more_than_its_limit_is_killed_and_counted(limit: MemoryLimit) -> None:
    code = take(limit, 2 * LIMIT_BYTES)

    assert code == -signal.SIGKILL
    assert limit.kills == 1


def test_a_process_below_its_limit_goes_on(limit: MemoryLimit) -> None:
    code = take(limit, LIMIT_BYTES // 4)

    assert code == 0
    assert limit.kills == 0
    assert LIMIT_BYTES // 4 < limit.peak_bytes < LIMIT_BYTES


def test_it_is_seen_who_is_under_the_limit_from_its_first_page_on(limit: MemoryLimit) -> None:
    with subprocess.Popen([*limit.enter, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"up\n")
        process.stdin.flush()
        process.stdout.readline()

        pids = limit.pids()

        process.stdin.close()
    assert pids == [process.pid]
