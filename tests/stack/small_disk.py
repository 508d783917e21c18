"""A file system of its own that can be full: a tmpfs in a private mount namespace.

The namespace, and with it the mount, lives as long as a process in it: nothing is left mounted, however we end. Shared
memory is private too: a server that was killed leaves its own behind, and this goes with the namespace.
"""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.stack.process import NOBODY, DevstackError, Server, enter

TRIES = 50
HOLD = """
mount -t tmpfs -o mode=1777 shared-memory /dev/shm &&
mount -t tmpfs -o "size=$1,mode=0700,uid=$2,gid=$2" small-disk "$3" &&
exec sleep infinity
"""


class SmallDisk:
    """Seen at `path` by the processes that enter the mounts of `pid`. Belongs to the unprivileged user."""

    def __init__(self, size_bytes: int) -> None:
        if why := self.missing():
            raise DevstackError(why)
        self._server = Server("disk")
        self.size_bytes = size_bytes
        self.path = self._server.directory / "disk"
        self.path.mkdir()
        self._server.directory.chmod(0o711)
        hold = ["unshare", "--mount", "--ipc", "sh", "-c", HOLD, "hold", str(size_bytes), str(NOBODY), str(self.path)]
        self._server.start(hold, self._is_mounted)

    @staticmethod
    def missing() -> str | None:
        """Why there can be none here; null if there can be."""
        if os.getuid() != 0:
            return "a disk that can be full is a tmpfs: mounting it needs root"
        if lacking := [name for name in ("unshare", "nsenter", "mount") if not shutil.which(name)]:
            return f"a disk that can be full needs {lacking[0]}: apt-get install util-linux mount"
        allowed = subprocess.run(["unshare", "--mount", "--ipc", "true"], check=False, capture_output=True, text=True)
        return f"a disk that can be full needs CAP_SYS_ADMIN: {allowed.stderr.strip()}" if allowed.returncode else None

    @property
    def pid(self) -> int:
        return self._server.pid

    def fill(self) -> None:
        """Nothing more can be written: the file system is made as small as what lies on it.

        Whoever writes meanwhile makes it too small, which is refused; then it is tried again.
        """
        for _ in range(TRIES):
            with suppress(DevstackError):
                return self._resize(self._used_bytes())
        return self._resize(self._used_bytes())

    def free(self) -> None:
        self._resize(self.size_bytes)

    def stop(self) -> None:
        """Gone once the last process that uses it is. Stopped twice is fine."""
        self._server.stop()

    def _resize(self, size_bytes: int) -> None:
        options = f"remount,size={size_bytes}"
        self._server.run([*enter(self.pid), "mount", "-o", options, str(self.path)])

    def _used_bytes(self) -> int:
        seen = os.statvfs(f"/proc/{self.pid}/root{self.path}")
        return (seen.f_blocks - seen.f_bfree) * seen.f_frsize

    def _is_mounted(self) -> bool:
        mounts = Path(f"/proc/{self.pid}/mountinfo")
        return mounts.exists() and f" {self.path} " in mounts.read_text()
