"""`make audit`: known vulnerabilities of the locked requirements. What could not be asked is not taken for a pass.

Exit code 0: all were looked up and none is known; 1: some are; 3: not all could be looked up.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

CLEAN, VULNERABLE, NOT_AUDITED = 0, 1, 3


def main(lock: str) -> int:
    """Asks pip-audit and prints the verdict; the exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--progress-spinner=off", "--disable-pip", "--format=json", "-r", lock],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        code, text = NOT_AUDITED, f"{lock} was NOT audited: {(done.stderr.strip().splitlines() or ['no report'])[-1]}"
    else:
        code, text = verdict(lock, report)
    print(text, file=sys.stdout if code == CLEAN else sys.stderr)
    return code


def verdict(lock: str, report: Mapping[str, Any]) -> tuple[int, str]:
    """(exit code, what to print) for a report of pip-audit."""
    dependencies = report["dependencies"]
    skipped = [each for each in dependencies if "skip_reason" in each]
    vulnerable = [
        f"{each['name']} {each['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'no version'}"
        for each in dependencies
        for known in each.get("vulns", [])
    ]
    if vulnerable:
        return VULNERABLE, "\n".join(vulnerable)
    if skipped or not dependencies:
        reason = skipped[0]["skip_reason"] if skipped else "no requirement found"
        return NOT_AUDITED, f"{lock} was NOT audited: {len(skipped)} of {len(dependencies)} not looked up; {reason}"
    return CLEAN, f"{lock}: {len(dependencies)} requirements looked up, no known vulnerability"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
