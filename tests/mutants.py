"""Changes the rooms that can lose an event in every small way that mutmut knows: which do their tests not notice?"""

import argparse
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.stack.postgres_server import PostgresServer

MUTMUT = str(Path(sys.executable).with_name("mutmut"))
WORKSPACES = Path("mutants")
COPIED = ("consumer", "schemas", "tests")
KILLED = {"killed", "timeout"}
NO_KAFKA = "127.0.0.1:1"
"""None of the tests here asks for a broker."""


@dataclass(frozen=True, slots=True)
class Room:
    """A module, and the tests that judge it."""

    module: str
    tests: tuple[str, ...]
    needs_postgres: bool = False

    @property
    def path(self) -> str:
        return f"consumer/{self.module}.py"


RULES = (
    "unit/test_conversation",
    "unit/test_service",
    "unit/test_worker",
    "unit/test_checker",
    "unit/test_lifecycle_machine",
    "unit/test_lifecycle_properties",
)
WRITES = ("contract/test_store", "integration/test_race_conditions", "integration/test_statements")
ROOMS = (
    *(Room(f"lifecycle/{name}", RULES) for name in ("rules", "draft", "model")),
    *(Room(f"service/{name}", RULES) for name in ("service", "batch", "cache")),
    Room("worker", ("unit/test_worker", "unit/test_service")),
    Room("kafka/partition", ("unit/test_partition",)),
    Room("kafka/source", ("unit/test_source",)),
    Room("kafka/producer", ("unit/test_producer",)),
    Room("postgres/attempt", WRITES, needs_postgres=True),
)


def main() -> None:
    """Prints each survivor, and the score of each module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[room.module for room in ROOMS], help="one module instead of all of them")
    only = parser.parse_args().only
    scores = [(room, judge(room)) for room in ROOMS if only in (None, room.module)]
    for room, score in scores:
        share = score[True] / score.total()
        sys.stdout.write(f"{room.path}: {score[True]} of {score.total()} mutants killed ({share:.1%})\n")


def judge(room: Room) -> Counter[bool]:
    """How many mutants of the module its tests kill, and how many they do not; prints the latter."""
    workspace = prepare(room)
    with environment(room) as variables:
        run(["run", "--max-children", str(os.cpu_count())], workspace, variables)
        results = run(["results", "--all", "true"], workspace, variables, captured=True).splitlines()
        score: Counter[bool] = Counter()
        for name, result in (line.strip().rsplit(": ", 1) for line in results):
            score[result in KILLED] += 1
            if result not in KILLED:
                shown = run(["show", name], workspace, variables, captured=True)
                sys.stdout.write(f"{name} {result}\n{shown}\n")
    return score


def prepare(room: Room) -> Path:
    """A copy of the sources, set up for this module and its tests alone."""
    workspace = WORKSPACES / room.module.replace("/", "-")
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir(parents=True)
    for name in COPIED:
        shutil.copytree(name, workspace / name, ignore=shutil.ignore_patterns("__pycache__"))
    tests = [f"tests/{name}.py" for name in room.tests]
    settings = f"only_mutate = {[room.path]}\npytest_add_cli_args_test_selection = {tests}\n"
    # The last table of the file is mutmut's.
    (workspace / "pyproject.toml").write_text(Path("pyproject.toml").read_text() + settings)
    return workspace


@contextmanager
def environment(room: Room) -> Iterator[Mapping[str, str]]:
    """Fixed examples in a fixed order, so that the score is the same each time; one PostgreSQL for all mutants."""
    variables = {**os.environ, "CI": "1", "PYTHONHASHSEED": "0", "DEVSTACK_KAFKA": NO_KAFKA}
    variables.pop("REQUIRE_KAFKA", None)
    if not room.needs_postgres or "DEVSTACK_POSTGRES" in variables:
        yield variables
        return
    server = PostgresServer()
    try:
        yield {**variables, "DEVSTACK_POSTGRES": server.dsn}
    finally:
        server.stop()


def run(arguments: list[str], workspace: Path, variables: Mapping[str, str], captured: bool = False) -> str:
    command = [MUTMUT, *arguments]
    done = subprocess.run(
        command, cwd=workspace, env=variables, stdout=subprocess.PIPE if captured else None, check=True
    )
    return done.stdout.decode() if captured else ""


if __name__ == "__main__":
    main()
