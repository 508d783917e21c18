"""A real Prometheus with the rules of deploy/, scraping ports of this machine."""

import asyncio
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.stack.process import DevstackError, Server, free_port
from tests.stack.programs import find, missing

DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus"
Labels = tuple[tuple[str, str], ...]


def program(name: str) -> str:
    """Where `prometheus` or `promtool` is. Raises `DevstackError` with what to install."""
    if why := missing(name):
        raise DevstackError(why)
    return str(find(name))


class Prometheus:
    """Runs deploy/prometheus/prometheus.yml as it is, but for the addresses and how often it scrapes and evaluates."""

    def __init__(self, jobs: Mapping[str, Sequence[int]], interval_seconds: float = 1.0) -> None:
        """`jobs`: the ports on the loopback interface to scrape, by job."""
        binary = program("prometheus")
        self.port = free_port()
        self._server = Server("prometheus")
        directory = self._server.directory
        shutil.copy(DEPLOYED / "rules.yaml", directory)
        (directory / "prometheus.yml").write_text(yaml.safe_dump(_configuration(jobs, interval_seconds)))
        command = [binary, f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
        command += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"]
        self._server.start(command, lambda: self._get("/-/ready") is not None)

    def stop(self) -> None:
        self._server.stop()

    async def query(self, expr: str) -> dict[Labels, float]:
        """What an instant query answers now: label sets and values."""
        answer = await self.ask("query", query=expr)
        return {tuple(sorted(series["metric"].items())): float(series["value"][1]) for series in answer["result"]}

    async def value(self, expr: str, **labels: str) -> float | None:
        """The value of the one series with these labels; None if there is none."""
        return (await self.query(expr)).get(tuple(sorted(labels.items())))

    async def ask(self, what: str, **parameters: str) -> Any:
        """The data of an answer of the HTTP API. Raises `DevstackError` where Prometheus takes no such question."""
        address = f"/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        text: str | None = await asyncio.to_thread(self._get, address)
        answer = json.loads(text) if text else {"error": "no answer"}
        if "data" not in answer:
            raise DevstackError(f"Prometheus, {parameters}: {answer['error']}")
        return answer["data"]

    def _get(self, path: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode() if error.code in (400, 422) else None
        except OSError:
            return None


def _configuration(jobs: Mapping[str, Sequence[int]], interval_seconds: float) -> dict[str, Any]:
    configuration: dict[str, Any] = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    interval = f"{round(1000 * interval_seconds)}ms"
    configuration["global"] = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    deployed = {scrape["job_name"] for scrape in configuration["scrape_configs"]}
    if others := jobs.keys() - deployed:
        raise DevstackError(f"prometheus.yml has no job {others}")
    configuration["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
        for job, ports in jobs.items()
    ]
    return configuration
