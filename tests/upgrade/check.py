"""Plays the rollout on a group and a database of its own, and judges it."""

import asyncpg

from tests.checker.ledger import Ledger
from tests.demo.environment import unmigrated
from tests.stack.services import Services
from tests.upgrade.build import Build
from tests.upgrade.judge import Result, judge
from tests.upgrade.rollout import Plan, Rollout, play


async def check(found: Services, old: Build, new: Build, plan: Plan) -> Result:
    async with unmigrated(found, "upgrade") as environment:
        connection = await asyncpg.connect(environment.database)
        rollout = Rollout(environment, plan, Ledger(), connection)
        try:
            return await judge(rollout, await play(rollout, old, new))
        finally:
            await rollout.kill()
            await connection.close()
