"""Programs that some tests need and that no Python package brings: Debian's packages, which `.ci/run` installs."""

import shutil

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
