"""A server process under the supervisor: started, awaited, restarted, ended with its parent."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from consumer.errors import ConsumerError
from tests.stack import supervisor

NOBODY = 65534
BELOW_OUTGOING = range(10_000, 32_768)
"""Linux takes the ports of outgoing connections from above, unless it is told otherwise."""
STOP_SECONDS = 30.0
_given: set[int] = set()


class DevstackError(ConsumerError):
    """A service could not be had; the message says what is missing and what to do."""


def say(what: str) -> None:
    """Tells what takes a while before it is done."""
    sys.stderr.write(f"{what}\n")
    sys.stderr.flush()


def free_port() -> int:
    """A port nobody listens on, another one each time. Raises `DevstackError` where none is left.

    Another process may take it before we do; then the start fails and says so.
    """
    ports = [port for port in BELOW_OUTGOING if port not in _given]
    random.Random().shuffle(ports)
    for port in ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise DevstackError(f"no port is free between {BELOW_OUTGOING.start} and {BELOW_OUTGOING.stop}")


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def unprivileged_uid() -> int:
    """Who servers that refuse to be root run as."""
    return NOBODY if os.getuid() == 0 else os.getuid()


def enter(pid: int) -> list[str]:
    """What a command begins with that has the mounts and the shared memory of another process."""
    return ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--ipc=/proc/{pid}/ns/ipc"]


class Server:
    """One server. Its data live in a directory under the temporary one and go with it.

    `namespaces_of` is a process whose mounts and shared memory the server has instead of ours.
    """

    def __init__(self, name: str, uid: int | None = None, namespaces_of: int | None = None) -> None:
        self.name = name
        self.uid = os.getuid() if uid is None else uid
        self.directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        os.chown(self.directory, self.uid, self.uid if self.uid == NOBODY else -1)
        self.pid = 0
        self._enter = enter(namespaces_of) if namespaces_of else []
        self._command: Sequence[str] = ()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str], timeout_seconds: float = 60) -> None:
        """A command of preparation, as the server's user. Raises `DevstackError` with what it printed."""
        as_user: dict[str, Any] = {}
        if self._enter:
            command = [*self._enter, f"--setuid={self.uid}", f"--setgid={self.uid}", *command]
        elif self.uid != os.getuid():
            as_user = {"user": self.uid, "group": self.uid, "extra_groups": []}
        done = subprocess.run(
            command,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_seconds,
            check=False,
            **as_user,
        )
        if done.returncode:
            raise DevstackError(f"{self.name}: {Path(command[0]).name} failed:\n{done.stdout.decode()[-2000:]}")

    def start(self, command: Sequence[str], ready: Callable[[], bool], timeout_seconds: float = 60) -> None:
        """Starts the server and waits until `ready`."""
        self._command = command
        self.start_again(ready, timeout_seconds)

    def start_again(self, ready: Callable[[], bool], timeout_seconds: float = 60) -> None:
        """Starts a server that is down, by `end` or by itself, on its data and waits until `ready`."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [*self._enter, sys.executable, supervisor.__file__, str(self.directory), str(self.uid), *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            self.pid = self._answer()
        else:
            self._order(supervisor.START)
        self._await(ready, timeout_seconds)

    def end(self, with_signal: signal.Signals, grace_seconds: float = supervisor.GRACE_SECONDS) -> None:
        """Ends the server with a signal, or SIGKILL where that takes longer. The data stay. Ended twice is fine."""
        if self.is_up:
            self._order(f"{with_signal.name} {grace_seconds}")

    def restart(
        self,
        with_signal: signal.Signals,
        ready: Callable[[], bool],
        timeout_seconds: float = 60,
        grace_seconds: float = supervisor.GRACE_SECONDS,
    ) -> None:
        """Ends the server with a signal, starts it again on its data and waits until `ready`."""
        self.end(with_signal, grace_seconds)
        self.start_again(ready, timeout_seconds)

    @property
    def is_up(self) -> bool:
        """Whether the process is there; it may be frozen."""
        return self.pid != 0 and self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raises `DevstackError`, with what the server printed, where it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise DevstackError(f"{self.name} ended by itself:\n{self.log()[-2000:]}")

    def freeze(self) -> None:
        """Stops the server with all its descendants where they are, by SIGSTOP. Returns when they stand still."""
        # The parent first: a stopped one starts no more children.
        for pid in self._family():
            _send(pid, signal.SIGSTOP)
            _await_stop(pid)

    def thaw(self) -> None:
        for pid in self._family():
            _send(pid, signal.SIGCONT)

    def _family(self) -> Iterator[int]:
        """The server's process, then its descendants; none while it is down."""
        pids = [self.pid] if self.is_up else []
        while pids:
            yield (pid := pids.pop(0))
            with contextlib.suppress(OSError):  # it has ended meanwhile
                pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def _order(self, order: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the server has ended by itself, and its supervisor
            self._process.stdin.write(f"{order}\n".encode())
            self._process.stdin.flush()
        self.pid = self._answer()

    def _answer(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        return int(self._process.stdout.readline() or 0)

    def _await(self, ready: Callable[[], bool], timeout_seconds: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise DevstackError(f"{self.name} was not ready after {timeout_seconds:.0f} s:\n{self.log()[-2000:]}")
            time.sleep(0.02)

    def log(self) -> str:
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """Ends the server and removes its data. Stopped twice is fine."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _await_stop(pid: int) -> None:
    """On a busy machine, threads of a process work on until one of them has got the signal."""
    deadline = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(OSError):  # it has ended meanwhile
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
            if time.monotonic() > deadline:
                raise DevstackError(f"process {pid} does not stop")
            time.sleep(0.001)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
