"""The builds that run side by side: today's, and an old one that is installed from a commit of this repository."""

import asyncio
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from tests.stack.process import DevstackError
from tests.stack.replica import Replica

ROOT = Path(__file__).parents[2]
MIGRATIONS = "consumer/postgres/migrations/versions"
UV = Path(sys.executable).parent / "uv"
INSTALL_SECONDS = 600
COMMAND_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Build:
    """An installed build. `python` starts an interpreter that imports this build and no other."""

    name: str
    python: tuple[str, ...]

    def replica(self, command: str, settings: Mapping[str, str], log: Path) -> Replica:
        """A process that serves: `run`, `ticker`, `outbox`. Not yet started."""
        return Replica(settings, log, "consumer", command, python=self.python)

    async def run(self, settings: Mapping[str, str], *arguments: str) -> tuple[int, str]:
        """A command that ends: its exit code, and what it printed."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
        process = await asyncio.create_subprocess_exec(
            *self.python,
            *("-m", "consumer", *arguments),
            env={**inherited, **settings},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
        return process.returncode or 0, out.decode()


def new_build() -> Build:
    """The working tree."""
    return Build("new", (sys.executable,))


def install(revision: str | None, directory: Path) -> Build:
    """Installs a commit or tag with the dependencies that it locked; by default the last one with an older schema.

    Raises `DevstackError` where the history of the repository is not there.
    """
    commit = find_commit(revision)
    source, wheels, environment = directory / "source", directory / "wheels", directory / "environment"
    with tarfile.open(fileobj=BytesIO(_git("archive", commit))) as archive:
        archive.extractall(source, filter="data")
    python = environment / "bin" / "python"
    to_environment = ("--quiet", "--python", str(python))
    _uv("venv", "--quiet", "--python", sys.executable, str(environment))
    _uv("pip", "sync", *to_environment, "--require-hashes", str(source / "requirements.lock"))
    build_lock = ("--require-hashes", "--build-constraints", str(source / "requirements-build.lock"))
    _uv("build", "--wheel", *to_environment, *build_lock, "--out-dir", str(wheels), str(source))
    _uv("pip", "install", *to_environment, "--no-deps", *map(str, wheels.glob("*.whl")))
    # Isolated: what lies in the working directory is the new build.
    return Build(f"old ({commit[:7]})", (str(python), "-I"))


def find_commit(revision: str | None, root: Path = ROOT) -> str:
    """The commit of a revision; by default the last one before the newest migration."""
    try:
        wanted = revision or _before_the_newest_migration(root)
        return (
            _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{wanted}^{{commit}}", root=root)
            .decode()
            .strip()
        )
    except DevstackError as error:
        what = f"OLD={revision} is no commit of" if revision else "the commit before the newest migration is not in"
        raise DevstackError(
            f"the old build comes from git, and {what} this copy of the repository: "
            "clone it with its history (`git fetch --unshallow`), or name a commit or tag with OLD="
        ) from error


def _before_the_newest_migration(root: Path) -> str:
    """The last commit of the branch itself whose newest migration is an older one. Branches that were merged may have
    had the newest under other names."""
    newest = _newest(path.name for path in (root / MIGRATIONS).glob("0*.py"))
    for commit in _git("rev-list", "--first-parent", "HEAD", root=root).decode().split():
        names = _git("ls-tree", "-r", "--name-only", commit, "--", MIGRATIONS, root=root).decode().split()
        if (older := _newest(Path(name).name for name in names)) and older < newest:
            return commit
    raise DevstackError("no commit has an older migration")


def _newest(names: Iterable[str]) -> str:
    """The number of the newest migration among files; empty if there is none."""
    return max((name.split("_")[0] for name in names if name.startswith("0")), default="")


def _git(*arguments: str, root: Path = ROOT) -> bytes:
    return _output("git", "-C", str(root), *arguments)


def _uv(*arguments: str) -> None:
    _output(str(UV), *arguments)


def _output(*command: str) -> bytes:
    """What a command prints. Raises `DevstackError` with its errors."""
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=INSTALL_SECONDS, check=False)
    except OSError as error:
        raise DevstackError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-2000:]
        raise DevstackError(f"{Path(command[0]).name} {' '.join(command[1:4])} failed: {said}")
    return done.stdout
