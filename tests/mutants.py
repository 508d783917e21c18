"""Changes the modules that can lose an event in every small way that mutmut knows: which do their tests not notice?

Each module has a floor, a little below its score in docs/reliability.md. Exit code 1 if one is below it.
"""

import argparse
import os
import shutil
import signal
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
COPIED = ("consumer", "schemas", "deploy", "tests")
KILLED = {"killed", "timeout"}
NOT_TRIED = "not checked"
NO_KAFKA = "127.0.0.1:1"
"""None of the tests here asks for a broker."""


@dataclass(frozen=True, slots=True)
class Module:
    """A module, the tests that judge it, and how many of a hundred mutants they notice at least."""

    name: str
    tests: tuple[str, ...]
    floor: float
    needs_postgres: bool = False

    @property
    def path(self) -> str:
        return f"consumer/{self.name}.py"


RULES = (
    "unit/test_conversation",
    "unit/test_service",
    "unit/test_worker",
    "unit/test_checker",
    "unit/test_lifecycle_machine",
    "unit/test_lifecycle_properties",
)
WRITES = ("contract/test_store", "integration/test_race_conditions", "integration/test_statements")
MODULES = (
    *(Module(f"lifecycle/{name}", RULES, floor) for name, floor in (("rules", 98), ("draft", 98), ("model", 71))),
    *(Module(f"service/{name}", RULES, floor) for name, floor in (("service", 94), ("batch", 91), ("cache", 98))),
    Module("worker", ("unit/test_worker", "unit/test_worker_progress"), floor=62),
    Module("kafka/partition", ("unit/test_partition", "unit/test_partition_lag", "unit/test_partition_revocation"), 93),
    Module("kafka/source", ("unit/test_source", "unit/test_source_group"), floor=90),
    Module("kafka/producer", ("unit/test_producer",), floor=95),
    Module("postgres/attempt", WRITES, floor=90, needs_postgres=True),
)


@dataclass(frozen=True, slots=True)
class Score:
    """How many mutants of a module were tried, and noticed."""

    tried: int
    killed: int
    late: int
    """Not tried in time."""

    @classmethod
    def of(cls, results: Counter[str]) -> "Score":
        """From how many mutants had which result."""
        late = results[NOT_TRIED]
        return cls(results.total() - late, sum(results[result] for result in KILLED), late)

    def reaches(self, floor: float) -> bool:
        """A score of none tried reaches nothing."""
        return self.tried > 0 and 100 * self.killed >= floor * self.tried

    def __str__(self) -> str:
        share = f" ({self.killed / self.tried:.1%})" if self.tried else ""
        late = f", {self.late} not tried in time" if self.late else ""
        return f"{self.killed} of {self.tried} mutants killed{share}{late}"


def main() -> int:
    """Prints each survivor, and the score of each module. The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[module.name for module in MODULES], help="one module instead of all of them")
    parser.add_argument("--minutes", type=float, help="how long to try the mutants of a module; default all of them")
    options = parser.parse_args()
    # A shell has what it starts in the background ignore this, and mutmut would inherit that: it could not be stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    modules = [module for module in MODULES if options.only in (None, module.name)]
    scores = {module: judge(module, options.minutes) for module in modules}
    return int(not all(score.reaches(module.floor) for module, score in scores.items()))


def judge(module: Module, minutes: float | None) -> Score:
    """The module's score; prints it, and the mutants that its tests do not notice."""
    workspace = prepare(module)
    with environment(module) as variables:
        try_mutants(workspace, variables, minutes)
        listed = ask(["results", "--all", "true"], workspace, variables).splitlines()
        results = dict(line.strip().rsplit(": ", 1) for line in listed)
        for name, result in results.items():
            if result not in KILLED | {NOT_TRIED}:
                sys.stdout.write(f"{name} {result}\n{ask(['show', name], workspace, variables)}\n")
    score = Score.of(Counter(results.values()))
    below = "" if score.reaches(module.floor) else f": BELOW the floor of {module.floor} %"
    sys.stdout.write(f"{module.path}: {score}{below}\n")
    sys.stdout.flush()
    return score


def prepare(module: Module) -> Path:
    """A copy of the sources, set up for this module and its tests alone."""
    workspace = WORKSPACES / module.name.replace("/", "-")
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir(parents=True)
    for name in COPIED:
        shutil.copytree(name, workspace / name, ignore=shutil.ignore_patterns("__pycache__"))
    tests = [f"tests/{name}.py" for name in module.tests]
    settings = f"only_mutate = {[module.path]}\npytest_add_cli_args_test_selection = {tests}\n"
    # The last table of the file is mutmut's.
    (workspace / "pyproject.toml").write_text(Path("pyproject.toml").read_text() + settings)
    return workspace


@contextmanager
def environment(module: Module) -> Iterator[Mapping[str, str]]:
    """Fixed examples in a fixed order, so that the score is the same each time; one PostgreSQL for all mutants."""
    variables = {**os.environ, "CI": "1", "PYTHONHASHSEED": "0", "DEVSTACK_KAFKA": NO_KAFKA}
    variables.pop("REQUIRE_KAFKA", None)
    if not module.needs_postgres or "DEVSTACK_POSTGRES" in variables:
        yield variables
        return
    server = PostgresServer()
    try:
        yield {**variables, "DEVSTACK_POSTGRES": server.dsn}
    finally:
        server.stop()


def try_mutants(workspace: Path, variables: Mapping[str, str], minutes: float | None) -> None:
    command = [MUTMUT, "run", "--max-children", str(os.cpu_count())]
    with subprocess.Popen(command, cwd=workspace, env=variables) as process:
        try:
            process.wait(minutes and 60 * minutes)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
            return
    if process.returncode:
        raise SystemExit(f"mutmut ended with exit code {process.returncode}")


def ask(arguments: list[str], workspace: Path, variables: Mapping[str, str]) -> str:
    command = [MUTMUT, *arguments]
    return subprocess.run(command, cwd=workspace, env=variables, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
