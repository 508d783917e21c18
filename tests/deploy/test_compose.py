"""deploy/compose.yaml, run as the documents say, through kills and restarts."""

import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from consumer.decoding import as_record
from consumer.settings import KafkaSettings
from tests.builders import message
from tests.deploy.conftest import ROOT
from tests.e2e.conftest import Group, until
from tests.stack.containers import kafka_answers
from tests.stack.process import free_port
from tests.stack.replica import Replica

pytestmark = pytest.mark.deploy
SECONDS = 240.0
"""Bound on what a restart may take on a small machine."""
IMAGE = "conversation-consumer:composed"
TYPED = re.findall(r"^    (docker compose .*)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)


def installed_compose() -> str:
    """`docker compose` or `docker-compose`, whichever is installed or asked for with COMPOSE."""
    for candidate in [os.environ["COMPOSE"]] if os.environ.get("COMPOSE") else ["docker compose", "docker-compose"]:
        if subprocess.run(["bash", "-c", f"{candidate} version"], capture_output=True, check=False).returncode == 0:
            return candidate
    pytest.exit("docker compose is not installed: install Docker's compose plugin, or docker-compose", returncode=1)


class Deployment:
    """The services of a project of its own, on free ports."""

    def __init__(self, engine: Any, directory: Path) -> None:
        self.engine = engine
        self.project = f"deploy-check-{secrets.token_hex(4)}"
        first = free_port()
        self._compose = installed_compose()
        self._ports = {
            "KAFKA_PORT": str(free_port()),
            "POSTGRES_PORT": str(free_port()),
            "TICKER_PORT": str(free_port()),
            "CONSUMER_PORTS": f"{first}-{first + 9}",
        }
        url = f"postgresql://consumer:consumer@127.0.0.1:{self._ports['POSTGRES_PORT']}/conversation"
        kafka = KafkaSettings(bootstrap_servers=f"localhost:{self._ports['KAFKA_PORT']}")
        self.group = Group(kafka, url, directory)
        self.published = 0

    def type(self, line: str, directory: Path = ROOT) -> str:
        """Runs a command line as an operator would from the repository; what it prints."""
        command = line.replace("docker compose", self._compose).replace("deploy/", f"{ROOT}/deploy/")
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=directory,
            env={**os.environ, **self._ports, "COMPOSE_PROJECT_NAME": self.project, "IMAGE": IMAGE},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"[-5000:]
        return done.stdout

    def compose(self, arguments: str) -> str:
        return self.type(f"docker compose -f deploy/compose.yaml {arguments}")

    def containers(self, service: str = "") -> list[Any]:
        labels = [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"]
        return list(self.engine.containers.list(all=True, filters={"label": labels if service else labels[:1]}))

    async def publish(self, count: int = 300, times: int = 2) -> None:
        """Publishes new events of a few conversations, each of them `times` times, once Kafka answers."""
        kafka = self.group.kafka.bootstrap_servers
        await until(lambda: kafka_answers(kafka), "Kafka answers on the host", SECONDS)
        now = datetime.now(UTC)
        events = [message(at=now, conversation_id=f"c-{number % 20}") for number in range(count)]
        for _ in range(times):
            await self.group.publish(*events)
        self.published += count

    async def until_applied_once(self) -> None:
        """Waits until all that was published has its effect; none has a second one."""

        async def all_applied() -> bool:
            return await self.group.history() >= self.published

        await until(all_applied, f"{self.published} events applied", SECONDS)
        await self.until_healthy()
        assert await self.group.history() == self.published
        assert await self.group.broken_version_chains() == []

    async def until_healthy(self) -> None:
        async def all_healthy() -> bool:
            return all(health(container) == "healthy" for container in served)

        served = [container for name in ("consumer", "ticker") for container in self.containers(name)]
        assert len(served) == 3
        await until(all_healthy, "two replicas and the ticker are healthy", SECONDS)


def health(container: Any) -> str:
    container.reload()
    return str(container.attrs["State"]["Health"]["Status"] if container.status == "running" else container.status)


@pytest.fixture(scope="module")
def deployment(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Started and removed by the first and the last command of the documents. Nothing is left of it."""
    made = Deployment(engine, tmp_path_factory.mktemp("compose"))
    try:
        made.type(TYPED[0])
        yield made
    finally:
        made.type(TYPED[-1])
        engine.images.remove(IMAGE, force=True)
    left = [made.containers(), engine.volumes.list(filters={"label": f"com.docker.compose.project={made.project}"})]
    assert left == [[], []]


async def test_the_commands_of_the_documents_run_as_typed(deployment: Deployment, tmp_path: Path) -> None:
    event = message(at=datetime.now(UTC), conversation_id="thread-4711")
    (tmp_path / "event.json").write_text(json.dumps(as_record(event)))
    outputs: dict[str, str] = {}
    await deployment.until_healthy()

    for line in TYPED[1:-1]:
        outputs[line.rpartition(" conversation-consumer ")[2]] = deployment.type(line, tmp_path)
        if " publish " in line:
            deployment.published += 1
            await deployment.until_applied_once()

    assert "1 published, 0 rejected" in outputs["publish - < event.json"]
    assert "- -> pending" in outputs["conversation history thread-4711"]
    assert "✗" not in outputs["doctor"]
    await deployment.until_healthy()


async def test_each_process_serves_its_metrics_on_the_loopback_interface(deployment: Deployment) -> None:
    await deployment.until_healthy()
    for container in deployment.containers("consumer") + deployment.containers("ticker"):
        (binding,) = container.attrs["NetworkSettings"]["Ports"]["8080/tcp"]
        replica = Replica({}, Path(os.devnull))
        replica.port = int(binding["HostPort"])

        assert binding["HostIp"] == "127.0.0.1"
        assert "conversation_build_info" in (await replica.get("/metrics"))[1]


async def test_a_replica_that_is_killed_comes_back_and_nothing_is_lost(deployment: Deployment) -> None:
    replica = deployment.containers("consumer")[0]
    await deployment.publish(10_000)

    kill(deployment.engine, replica)

    await until(lambda: restarted(replica), "the engine has started it again", SECONDS)
    await deployment.until_applied_once()


async def test_a_restart_of_kafka_is_waited_for(deployment: Deployment) -> None:
    await deployment.publish()

    deployment.compose("restart kafka")

    await deployment.publish()
    await deployment.until_applied_once()


async def test_stopped_and_started_again_it_goes_on_where_it_was(deployment: Deployment) -> None:
    await deployment.publish()
    await deployment.until_applied_once()

    deployment.compose("stop")
    deployment.compose("start")

    await deployment.publish()
    await deployment.until_applied_once()


async def test_a_kafka_that_comes_up_last_finds_the_replicas_waiting(deployment: Deployment) -> None:
    deployment.compose("stop kafka consumer ticker")
    replicas = deployment.containers("consumer")
    for replica in replicas:
        replica.start()
    await until(lambda: restarted(*replicas), "without Kafka they end and are started again", SECONDS)

    deployment.compose("start kafka ticker")

    await deployment.publish()
    await deployment.until_applied_once()


def kill(engine: Any, container: Any) -> None:
    """As the kernel would. The engine's own kill counts as a stop, after which it starts nothing."""
    pid = container.attrs["State"]["Pid"]
    engine.containers.run(
        IMAGE, ["-c", f"import os; os.kill({pid}, 9)"], entrypoint="python3", pid_mode="host", remove=True
    )


async def restarted(*containers: Any) -> bool:
    for container in containers:
        container.reload()
    return all(container.attrs["RestartCount"] > 0 for container in containers)
