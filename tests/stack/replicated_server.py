"""One PostgreSQL server of a replicated pair: a primary, or the standby of one."""

import signal
from pathlib import Path
from typing import Any

import asyncpg

from tests.stack.postgres_server import USER, PostgresServer
from tests.stack.programs import faketime_library
from tests.stack.small_disk import SmallDisk

CLOCK_SEEN_SECONDS = 1.1
"""By then each process has looked at its clock's file again."""


class ReplicatedServer(PostgresServer):
    """A primary, or the standby of the one behind `source`, on a disk of its own where one can be had.

    With a movable clock it runs under libfaketime. Raises `DevstackError` where that is not installed.
    """

    def __init__(self, disk: SmallDisk | None, source_port: int | None = None, *, movable_clock: bool = False) -> None:
        self.disk = disk
        self._source_port = source_port
        self._clock_library = faketime_library() if movable_clock else None
        super().__init__(disk)

    @property
    def _clock(self) -> Path:
        """The file that the library reads the offset from."""
        return self.directory / "clock"

    @property
    def is_up(self) -> bool:
        return self._server.is_up

    def end(self, with_signal: signal.Signals) -> None:
        """The data stay."""
        self._server.end(with_signal, grace_seconds=30)

    def start_again(self) -> None:
        self._server.start_again(self._accepts)

    def freeze(self) -> None:
        self._server.freeze()

    def thaw(self) -> None:
        self._server.thaw()

    def promote(self) -> None:
        """Makes the standby a primary and waits until it takes writes."""
        self._server.run([str(self._bin / "pg_ctl"), "promote", "-w", "-D", str(self._data)])

    def set_clock(self, offset_seconds: int) -> None:
        """From within a second on the server's clock is so much ahead of ours. Needs a movable clock."""
        assert self._clock_library is not None
        self._clock.write_text(f"{offset_seconds:+d}\n")

    def stop(self) -> None:
        super().stop()
        if self.disk:
            self.disk.stop()

    async def ask(self, sql: str) -> Any:
        """The first value of the answer, straight from this server."""
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            return await connection.fetchval(sql, timeout=10)
        finally:
            await connection.close()

    def _fill_data_directory(self) -> None:
        if self._source_port is None:
            return super()._fill_data_directory()
        source = f"host=127.0.0.1 port={self._source_port} user={USER}"
        copy = [str(self._bin / "pg_basebackup"), "-d", source, "-D", str(self._data)]
        return self._server.run([*copy, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"], timeout_seconds=300)

    def _command(self) -> list[str]:
        command = super()._command()
        if self._clock_library is None:
            return command
        if not self._clock.exists():
            self._clock.write_text("+0\n")
            self._clock.chmod(0o644)
        settings = {
            "LD_PRELOAD": self._clock_library,
            "FAKETIME_TIMESTAMP_FILE": self._clock,
            # For as long as a second of the real clock; 1 would be two of them.
            "FAKETIME_CACHE_DURATION": 0,
            # Timeouts go on in real time, as they do where a clock is set.
            "FAKETIME_DONT_FAKE_MONOTONIC": 1,
            "FAKETIME_DISABLE_SHM": 1,
        }
        return ["env", *(f"{name}={value}" for name, value in settings.items()), *command]

    def _options(self) -> dict[str, object]:
        return {
            **super()._options(),
            "shared_buffers": "128MB",
            "wal_level": "replica",
            "hot_standby": "on",
            "max_wal_size": "512MB",
            # For as long as a standby is held back; a slot would keep it without limit, on a small disk.
            "wal_keep_size": "512MB",
            "wal_retrieve_retry_interval": "200ms",
        }
