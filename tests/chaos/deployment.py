"""Processes of one kind, each started again whenever it ends, as Kubernetes would."""

import asyncio
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.chaos.failpoints import VARIABLE
from tests.chaos.waiting import within
from tests.stack.process import DevstackError
from tests.stack.replica import Replica

RESTART_SECONDS = 0.5
REPLACED_SECONDS = 30.0
STOP_SECONDS = 60.0
FAILPOINTS = ("tests.chaos.failpoints",)


class Member:
    """One of them. What ends it from outside is told here first, so that an end of its own accord stands out."""

    def __init__(self, settings: Mapping[str, str], log: Path, module: tuple[str, ...]) -> None:
        self._settings = settings
        self._log = log
        self._module = module
        self.replica = Replica(settings, log, *module)
        self.enter: tuple[str, ...] = ()
        """What the commands of later processes begin with, such as a memory limit."""
        self.crashes: list[int] = []
        """The exit codes that nobody asked for."""
        self.taken = asyncio.Lock()
        """Held by a fault, so that another one does not freeze what is to stop in time, or end what is to fail."""
        self._ended: set[Replica] = set()
        self._changing = asyncio.Lock()
        self._once: Mapping[str, str] = {}
        self._stopping = False
        self._up = asyncio.Event()
        self._up.set()
        self._kept: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._launch()
        self._kept = asyncio.create_task(self._keep())

    async def _launch(self) -> None:
        async with self._changing:
            once, self._once = self._once, {}
            module = FAILPOINTS if VARIABLE in once else self._module
            python = (*self.enter, sys.executable)
            self.replica = await Replica({**self._settings, **once}, self._log, *module, python=python).start()

    async def _keep(self) -> None:
        while True:
            code = await self.replica.process.wait()
            if code != -signal.SIGKILL and not self.was_ended(self.replica):
                self.crashes.append(code)
            if self._stopping:
                return
            await self._up.wait()
            await asyncio.sleep(RESTART_SECONDS)
            if self._stopping:
                return
            await self._launch()

    async def end(self, number: signal.Signals) -> int:
        """Sends the signal and waits for the end; another process follows, once it may."""
        async with self._changing:
            replica = self.replica
            self._ended.add(replica)
            replica.send(signal.SIGCONT)
            replica.send(number)
        return await replica.process.wait()

    def count_in_log(self, text: str) -> int:
        """Of all its processes so far."""
        return self._log.read_text(errors="replace").count(text)

    def was_ended(self, replica: Replica) -> bool:
        """Whether somebody has ended this process, so that what it does proves nothing."""
        return replica in self._ended

    async def replace(self, **environment: str) -> Replica:
        """By a process that has these variables as well, and is returned; the one after it has not."""
        self._once, old = environment, self.replica

        async def replaced() -> bool:
            return self.replica is not old

        await self.end(signal.SIGTERM)
        if not await within(REPLACED_SECONDS, replaced):
            raise DevstackError(f"no process came after the one that ended: {self._log}")
        return self.replica

    async def freeze(self, seconds: float) -> None:
        replica = self.replica
        replica.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            replica.send(signal.SIGCONT)

    async def until_ready(self, seconds: float) -> bool:
        async def ready() -> bool:
            return await self.replica.ready()

        return await within(seconds, ready)

    def hold_down(self) -> None:
        """The next process waits for `let_up`."""
        self._up.clear()

    def let_up(self) -> None:
        self._up.set()

    async def stop(self) -> int:
        """The exit code after SIGTERM, or after SIGKILL if that does not end it in time. No process follows."""
        self._stopping = True
        self.let_up()
        try:
            code = await asyncio.wait_for(self.end(signal.SIGTERM), STOP_SECONDS)
        except TimeoutError:
            code = await self.end(signal.SIGKILL)
        if self._kept is not None:
            await self._kept
        return code


class Deployment:
    """So many members with the same settings."""

    def __init__(
        self,
        name: str,
        settings: Mapping[str, str],
        logs: Path,
        *module: str,
        count: int,
        modules: Mapping[int, tuple[str, ...]] | None = None,
    ) -> None:
        """`modules`: what the members of these numbers run instead."""
        own = modules or {}
        self.members = [
            Member(settings, logs / f"{name}-{number}.log", own.get(number, module)) for number in range(count)
        ]

    async def start(self) -> None:
        for member in self.members:
            await member.start()

    async def stop(self) -> list[int]:
        """Their exit codes after SIGTERM, all at once."""
        return await asyncio.gather(*(member.stop() for member in self.members))

    async def ready(self) -> bool:
        return all(await asyncio.gather(*(member.replica.ready() for member in self.members)))

    async def until_ready(self, seconds: float) -> bool:
        """Whether all were ready at once within the time."""
        return await within(seconds, self.ready)

    @property
    def crashes(self) -> list[int]:
        return [code for member in self.members for code in member.crashes]
