"""What an operator runs and reads while a storm goes on: our commands and pages, nothing else."""

import asyncio
import json
import os
import sys

from tests.chaos.rig import Rig


async def not_ready(rig: Rig) -> list[str]:
    """Why replicas say on /status that they are not ready."""
    pages = [page for member in rig.replicas.members for _, page in [await member.replica.get("/status")] if page]
    return [reason for page in pages for reason in json.loads(page)["not_ready"]]


async def set_offset(rig: Rig, partition: int, offset: str) -> None:
    """`offsets set`, as the log of the stopped partition says."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "consumer", "offsets", "set", rig.kafka.topics[0], str(partition), offset, "--yes"),
        env={**inherited, **rig.settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    rig.expect(process.returncode == 0, f"`offsets set` works: {printed.decode()[-500:]}")
