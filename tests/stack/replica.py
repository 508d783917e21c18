"""One replica of the consumer, or a ticker, as a process of its own, as an operator would run it."""

import asyncio
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from consumer.observability.metrics import Sample, parsed, total
from tests.stack import die_with_parent
from tests.stack.process import free_port


class Replica:
    """`conversation-consumer run`, or another module that serves, under the given settings, its log in a file.

    It is killed when we end, whatever ends us: start it in the main thread.
    """

    def __init__(
        self, settings: Mapping[str, str], log: Path, *module: str, python: Sequence[str] = (sys.executable,)
    ) -> None:
        self._command = (*python, "-m", *(module or ("consumer", "run")))
        self.port = free_port()
        self.log = log
        own = {
            "CONSUMER_HTTP__PORT": str(self.port),
            "CONSUMER_HTTP__HOST": "127.0.0.1",
            "CONSUMER_LOG__FORMAT": "json",
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
        self._environment = {**inherited, **settings, **own}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> "Replica":
        bound = (sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()))
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *bound, *self._command, env=self._environment, stdout=log, stderr=log
            )
        return self

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def is_frozen(self) -> bool:
        """Whether the process was stopped by a signal."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "T"

    def send(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal and waits; the exit code. Stopped twice is fine."""
        self.send(number)
        return await self.process.wait()

    async def get(self, path: str) -> tuple[int, str]:
        """(status, body) of a page; 0 where nobody answers."""
        return await asyncio.to_thread(self._get, path)

    async def ready(self) -> bool:
        return (await self.get("/readyz"))[0] == 200

    async def metrics(self) -> list[Sample]:
        """What Prometheus would scrape; empty where nobody answers."""
        _, text = await self.get("/metrics")
        return parsed(text)

    async def count(self, name: str, **labels: str) -> float:
        """The value of a sample, summed over the labels not named."""
        return total(await self.metrics(), name, **labels)

    def _get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""
