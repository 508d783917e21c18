"""`make dashboard`: replicas under traffic, and what a real Prometheus answers to the dashboard, as a picture."""

import asyncio

from tests.observability.plot import ask, draw
from tests.observability.rules import ROOT
from tests.observability.run import recorded_run
from tests.stack.process import say
from tests.stack.services import Services, services

PICTURE = ROOT / "docs" / "dashboard.png"


async def main(found: Services) -> None:
    say("three minutes of traffic for Prometheus to look at")
    async with recorded_run(found) as recording:
        answers = await ask(recording)
    draw(answers, PICTURE)
    say(f"drawn: {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    with services() as found:
        asyncio.run(main(found))
