"""Prometheus' own checks, by its own program."""

import shutil
import subprocess
from pathlib import Path

from tests.stack.process import DevstackError

INSTALL = "install Prometheus: apt-get install prometheus"


def program(name: str) -> str:
    """Where `prometheus` or `promtool` is. Raises `DevstackError` with what to install."""
    if (found := shutil.which(name)) is None:
        raise DevstackError(f"{name} is missing: {INSTALL}")
    return found


def promtool(*arguments: str | Path) -> tuple[bool, str]:
    """Whether the check passes, and what it printed."""
    done = subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr
