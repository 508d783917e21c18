"""Prometheus' own checks, by its own program."""

import subprocess
from pathlib import Path

from tests.stack.prometheus import program


def promtool(*arguments: str | Path) -> tuple[bool, str]:
    """Whether the check passes, and what it printed."""
    done = subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr
