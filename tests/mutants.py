"""Changes the lifecycle and the service in every small way that mutmut knows: which do the unit tests not notice?"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

MUTMUT = str(Path(sys.executable).with_name("mutmut"))
ENVIRONMENT = {**os.environ, "CI": "1", "PYTHONHASHSEED": "0"}
"""Fixed examples in a fixed order: the same score each time."""
KILLED = {"killed", "timeout"}


def main() -> None:
    """Prints each survivor, and the score of each module."""
    shutil.rmtree("mutants", ignore_errors=True)
    subprocess.run([MUTMUT, "run", "--max-children", str(os.cpu_count())], env=ENVIRONMENT, check=True)
    results = dict(line.strip().rsplit(": ", 1) for line in mutmut("results", "--all", "true").splitlines())
    scores: dict[str, Counter[bool]] = {}
    for name, result in results.items():
        scores.setdefault(name.split(".")[1], Counter())[result in KILLED] += 1
        if result not in KILLED:
            sys.stdout.write(f"{name} {result}\n{mutmut('show', name)}\n")
    for module, score in scores.items():
        share = score[True] / score.total()
        sys.stdout.write(f"{module}.py: {score[True]} of {score.total()} mutants killed ({share:.1%})\n")


def mutmut(*arguments: str) -> str:
    return subprocess.run([MUTMUT, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
