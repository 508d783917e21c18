"""Programs that some tests need and that no Python package brings: Debian's packages, which `.ci/run` installs."""

import shutil
from pathlib import Path

from tests.stack.process import DevstackError

PACKAGES = {
    "chromium": "chromium",
    "faketime": "faketime",
    "kcat": "kcat",
    "openssl": "openssl",
    "pgbouncer": "pgbouncer",
    "prometheus": "prometheus",
    "promtool": "prometheus",
}
"""Program -> its package."""


def find(program: str) -> str | None:
    """Where it is; Debian puts some where only root looks."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin")


def missing(program: str) -> str | None:
    """What to install; null if the program is there."""
    return None if find(program) else f"{program} is not installed: apt-get install {PACKAGES[program]}"


def faketime_library() -> Path:
    """The library that, preloaded, gives a process another clock. Raises `DevstackError` where it is missing."""
    for found in Path("/usr/lib").glob("*/faketime/libfaketime.so.1"):  # in a folder of the architecture
        return found
    raise DevstackError(missing("faketime") or "libfaketime.so.1 is not in /usr/lib/*/faketime")
