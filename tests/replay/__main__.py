"""`make what-if-check`: the simulation's traffic, stored, then decided again under the same policy and under another.

Exit code 1 if anything differs under the same policy. Prints what `what-if` and `report` print.
"""

import argparse
import asyncio
import os
import resource
import sys
import time

from consumer.commands.what_if import compare
from consumer.commands.what_if_report import Result
from consumer.settings import DatabaseSettings, Settings
from tests.replay.stored_traffic import rows, store_traffic
from tests.stack.database import migrate, new_database
from tests.stack.process import say
from tests.stack.services import services
from tests.traffic import SHORT_POLICY, SHORT_POLICY_VARIABLES

COMMANDS = ("what-if --from 1d --policy pending_ttl=2s", "report conversations --from 1d", "report races --from 1d")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.replay", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with services() as found:
        try:
            asyncio.run(_run(found.postgres, options.events, options.seed))
        except AssertionError as error:
            say(f"differs: {error}")
            return 1
    return 0


async def _run(server: str, events: int, seed: int) -> None:
    async with new_database(server, "what_if") as database:
        await migrate(database)
        result = await check(database, events, seed)
        say(f"nothing differs under the same policy: {result.decided / result.seconds:,.0f} history rows/s")
        for command in COMMANDS:
            await _run_command(command, database)


async def _run_command(command: str, database: str) -> None:
    """As typed, with its time and the most memory that any of them has taken so far."""
    started = time.monotonic()
    environment = {**os.environ, **SHORT_POLICY_VARIABLES, "CONSUMER_DATABASE__URL": database}
    say(f"$ conversation-consumer {command}")
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "consumer", *command.split(), env=environment)
    assert await process.wait() == 0, command
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    say(f"{time.monotonic() - started:.1f} s, at most {peak:.0f} MiB\n")


async def check(database: str, events: int, seed: int = 0) -> Result:
    """Stores so much traffic and decides it again under the policy of then. Raises `AssertionError` if that differs."""
    started = time.monotonic()
    now = await store_traffic(database, events, seed)
    say(f"{events:,} records stored in {time.monotonic() - started:.0f} s")
    policy = SHORT_POLICY.policy
    result = await compare(_settings(database), (policy, policy), since="1d", until=now.isoformat())
    tally = result.tally
    stored = await rows(database, "SELECT status, count(*) FROM conversation_session GROUP BY 1")
    outcomes = await rows(
        database, "SELECT outcome, count(*) FROM conversation_event WHERE source <> 'consumer' GROUP BY 1"
    )
    assert (tally.not_as_stored, tally.left_out, tally.otherwise, tally.at_another_time) == (0, 0, 0, 0), tally
    assert tally.sessions_before == tally.sessions_after == dict(stored), stored
    assert tally.outcomes_before == tally.outcomes_after == dict(outcomes), outcomes
    return result


def _settings(database: str) -> Settings:
    return Settings(database=DatabaseSettings(url=database), policy=SHORT_POLICY)


if __name__ == "__main__":
    sys.exit(main())
