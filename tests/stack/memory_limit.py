"""A memory limit as a container has it: a control group whose processes the kernel kills beyond the limit."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from tests.stack.process import DevstackError


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where control groups are made, and what their files are called."""

    root: Path
    limit: str
    limit_with_swap: str
    swap_counts: bool
    """Whether the second limit is one of memory and swap together."""
    peak: str
    events: str


HIERARCHIES = (
    Hierarchy(
        root=Path("/sys/fs/cgroup"),
        limit="memory.max",
        limit_with_swap="memory.swap.max",
        swap_counts=False,
        peak="memory.peak",
        events="memory.events",
    ),
    Hierarchy(
        root=Path("/sys/fs/cgroup/memory"),
        limit="memory.limit_in_bytes",
        limit_with_swap="memory.memsw.limit_in_bytes",
        swap_counts=True,
        peak="memory.max_usage_in_bytes",
        events="memory.oom_control",
    ),
)
"""The second version of control groups, and the first."""
KILLED = "oom_kill"


class MemoryLimit:
    """Holds for processes that begin with `enter`. Use it as a context: the group goes at its end, once it is empty."""

    def __init__(self, limit_bytes: int) -> None:
        """Raises `DevstackError` where there can be none."""
        found = _hierarchy()
        if found is None:
            raise DevstackError(self.missing() or "a memory limit cannot be set")
        self.limit_bytes = limit_bytes
        self._hierarchy = found
        self._group = _make(found)
        (self._group / found.limit).write_text(str(limit_bytes))
        swap = self._group / found.limit_with_swap
        if swap.exists():
            swap.write_text(str(limit_bytes if found.swap_counts else 0))

    @staticmethod
    def missing() -> str | None:
        """Why there can be none here; null if there can be."""
        if os.getuid() != 0:
            return "a memory limit is a control group: making it needs root"
        return None if _hierarchy() else "a memory limit needs control groups of memory that can be written"

    @property
    def enter(self) -> tuple[str, ...]:
        """What a command begins with to be under the limit from its first page on."""
        return ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._group / "cgroup.procs"))

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        lines = (self._group / self._hierarchy.events).read_text().splitlines()
        return int(dict(line.split() for line in lines)[KILLED])

    @property
    def peak_bytes(self) -> int:
        """The most that was in use at once."""
        return int((self._group / self._hierarchy.peak).read_text())

    def pids(self) -> list[int]:
        """Who is under the limit."""
        return [int(pid) for pid in (self._group / "cgroup.procs").read_text().split()]

    def remove(self) -> None:
        """Once nobody is under it. Removed twice is fine."""
        if self._group.exists():
            self._group.rmdir()


def _hierarchy() -> Hierarchy | None:
    """The one that groups with a memory limit can be made in."""
    for each in HIERARCHIES:
        try:
            group = _make(each)
        except OSError:
            continue
        has_limit = all((group / name).exists() for name in (each.limit, each.peak, each.events))
        group.rmdir()
        if has_limit:
            return each
    return None


def _make(hierarchy: Hierarchy) -> Path:
    group = hierarchy.root / f"devstack-{secrets.token_hex(4)}"
    group.mkdir()
    return group
