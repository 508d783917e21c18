"""Runs one server for as long as its parent lives: `python supervisor.py DIRECTORY UID COMMAND...`.

The parent holds the other end of standard input. At end of file, which even kill -9 of the parent brings about, the
server is ended with all its descendants and DIRECTORY removed. A parent's death signal would not do: it is cleared by a
change of user and fires when a thread ends.

Orders are lines on standard input, one at a time. `SIGNAL SECONDS` ends the server with that signal, and with SIGKILL
if it is still there so much later; it stays down. `start` starts it again. The first start and each order are answered
with a line: the server's process id, or 0 while it is down. A server that ends by itself ends the supervisor, with its
data left to read.

Standard library only: it runs before anything else is known to work.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

GRACE_SECONDS = 3.0
START = "start"
PR_SET_CHILD_SUBREAPER = 36


def main(directory: str, uid: str, *command: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Orphans of the server become children of this process: PostgreSQL's backends are in sessions of their own.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server: subprocess.Popen[bytes] | None = _start(directory, int(uid), command)
    while True:
        print(server.pid if server else 0, flush=True)  # noqa: T201 - read by the parent
        order = _next_order(server)
        if order is None and server:
            return server.wait()
        if server:
            name, seconds = (order or f"{signal.SIGINT.name} {GRACE_SECONDS}").split()
            _end(server, signal.Signals[name], float(seconds))
        if not order:
            shutil.rmtree(directory, ignore_errors=True)
            return 0
        server = _start(directory, int(uid), command) if order == START else None


def _start(directory: str, uid: int, command: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    as_user = {"user": uid, "group": uid, "extra_groups": []} if uid != os.getuid() else {}
    with Path(directory, "server.log").open("ab") as log:
        server: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            start_new_session=True,
            preexec_fn=_default_signals,  # noqa: PLW1509 - this process has one thread
            **as_user,  # type: ignore[call-overload]
        )
    return server


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _next_order(server: "subprocess.Popen[bytes] | None") -> str | None:
    """An order; empty when the parent is gone; None when the server is."""
    if server is None:
        return sys.stdin.readline().strip()
    ended = os.pidfd_open(server.pid)
    try:
        readable, _, _ = select.select([sys.stdin.fileno(), ended], [], [])
    finally:
        os.close(ended)
    return None if ended in readable else sys.stdin.readline().strip()


def _end(server: "subprocess.Popen[bytes]", number: signal.Signals, grace_seconds: float) -> None:
    server.send_signal(number)
    try:
        server.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    _kill_orphans()


def _kill_orphans() -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while pids := children.read_text().split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        os.waitpid(-1, 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
