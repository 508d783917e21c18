"""Becomes a command that the kernel kills when its parent ends: `python die_with_parent.py PARENT_PID COMMAND...`.

It stays the same process, so its id, its signals and its exit code are those of the command. The kernel looks at the
thread that started it: start it in one that lives as long as the parent. A command that changes its user is not killed;
for servers there is the supervisor.

Standard library only: it runs before anything else is known to work.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: str, *command: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it has ended before we asked
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
