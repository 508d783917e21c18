"""The table of faults in docs/reliability.md."""

from tests.chaos.faults import FAULTS


def markdown() -> str:
    """Every fault, in the order of its number."""
    rows = [
        f"| {fault.number} | `{fault.name}` | {fault.what} |"
        for fault in sorted(FAULTS.values(), key=lambda fault: fault.number)
    ]
    return "\n".join(("| # | `SCENARIO=` | What happens |", "|---|---|---|", *rows))
