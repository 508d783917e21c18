"""The container image: what is in it, and that it works with as few rights as a container can have."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.network import Network

import consumer
from consumer.settings import KafkaSettings
from tests.builders import message
from tests.deploy.conftest import IMAGE, ROOT
from tests.e2e.conftest import Group, until
from tests.stack.containers import INTERNAL_PORT, check_engine, start_kafka, start_postgres

pytestmark = pytest.mark.deploy
EVENTS = 20_000
GRACE_SECONDS = 45
LOCKED_DOWN = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "mem_limit": "256m",
}
CONTENTS = """
import importlib.metadata, importlib.util, json, pathlib
names = ("pip", "setuptools", "wheel", "ensurepip", "pytest", "hypothesis", "mypy", "testcontainers", "tests")
print(json.dumps({
    "importable": [name for name in names if importlib.util.find_spec(name)],
    "installed": sorted(each.metadata["Name"] for each in importlib.metadata.distributions()),
    "tests": [str(path) for path in pathlib.Path("/app").rglob("tests")],
}))
"""
REAL_INTERPRETER = "import os, sys; print(os.path.realpath(sys.executable))"
BASE_INTERPRETER = "the one that it is made of"
Start = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Servers:
    """Kafka and PostgreSQL: their addresses for this process, and the network in which containers know their names."""

    kafka: str
    postgres: str
    network: str

    @property
    def environment(self) -> dict[str, str]:
        credentials, _, path = self.postgres.rpartition("@")
        return {
            "CONSUMER_DATABASE__URL": f"{credentials}@postgres:5432/{path.partition('/')[2]}",
            "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": f"kafka:{INTERNAL_PORT}",
        }


@pytest.fixture(scope="module")
def servers(image: Any) -> Iterator[Servers]:
    check_engine()
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        kafka, postgres = start_kafka(stack, network)[0], start_postgres(stack, network)[0]
        yield Servers(kafka, postgres, network.name)


@pytest.fixture(scope="module")
def start(engine: Any, servers: Servers) -> Iterator[Start]:
    """Starts a container of the image with a command; it is removed in the end."""
    started: list[Any] = []

    def start_container(*command: str) -> Any:
        settings = {"network": servers.network, "environment": servers.environment, **LOCKED_DOWN}
        started.append(engine.containers.run(IMAGE, [*command], detach=True, **settings))
        return started[-1]

    yield start_container
    for container in started:
        container.remove(force=True, v=True)


@pytest.fixture
def group(servers: Servers, tmp_path: Path) -> Group:
    """The same group that the containers are in."""
    return Group(KafkaSettings(bootstrap_servers=servers.kafka), servers.postgres, tmp_path)


def printed_by(engine: Any, interpreter: str, script: str) -> str:
    if interpreter == BASE_INTERPRETER:
        interpreter = printed_by(engine, "/app/bin/python", REAL_INTERPRETER).strip()
    arguments = {"entrypoint": [interpreter, "-c"], "network_mode": "none", "remove": True, **LOCKED_DOWN}
    output: bytes = engine.containers.run(IMAGE, [script], **arguments)
    return output.decode()


def test_it_runs_as_a_user_without_rights(engine: Any, image: Any) -> None:
    user = printed_by(engine, "python3", "import os; print(os.getuid(), os.getgid(), os.getgroups())")

    assert image.attrs["Config"]["User"] == "65532:65532"
    assert user == "65532 65532 [65532]\n"


def test_it_says_what_it_is(image: Any) -> None:
    prefix = "org.opencontainers.image."
    labels = {name.removeprefix(prefix): value for name, value in image.labels.items() if name.startswith(prefix)}
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)

    assert labels["title"] == "conversation-consumer"
    assert labels["licenses"] == "MIT"
    assert labels["version"] == consumer.__version__
    assert labels["revision"].removesuffix("-dirty") == head.stdout.strip()
    assert datetime.now(UTC) - datetime.fromisoformat(labels["created"]) < timedelta(hours=1)
    assert set(labels) >= {"description", "source", "base.name"}


@pytest.mark.parametrize("interpreter", ["/app/bin/python", BASE_INTERPRETER])
def test_it_has_no_installer_no_tests_and_no_tools(engine: Any, image: Any, interpreter: str) -> None:
    contents = json.loads(printed_by(engine, interpreter, CONTENTS))

    assert contents["importable"] == []
    assert contents["tests"] == []


def test_it_has_the_locked_requirements_and_nothing_else(engine: Any, image: Any) -> None:
    locked = set(re.findall(r"^([a-z0-9_.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    contents = json.loads(printed_by(engine, "/app/bin/python", CONTENTS))
    installed = {name.lower().replace("_", "-") for name in contents["installed"]}

    assert "aiokafka" in installed
    assert installed - locked == {"conversation-consumer"}


async def test_it_consumes_with_few_rights_drains_in_time_and_another_goes_on(start: Start, group: Group) -> None:
    for command in ("topics", "migrate"):
        done = start(command)
        assert done.wait(timeout=120)["StatusCode"] == 0, done.logs().decode()
    first = start("run")
    await until(lambda: healthy(first), "the replica is healthy", 120)
    now = datetime.now(UTC)
    events = [message(at=now, conversation_id=f"c-{number % 1000}") for number in range(EVENTS)]
    await group.publish(*events)
    await group.until_applied(1)

    stopped_at = time.monotonic()
    first.stop(timeout=GRACE_SECONDS)
    took = time.monotonic() - stopped_at
    code = first.wait(timeout=10)["StatusCode"]
    start("run")
    await group.until_applied(EVENTS, 120)

    assert (code, took < GRACE_SECONDS) == (0, True), first.logs().decode()[-3000:]
    assert await group.history() == EVENTS
    assert await group.broken_version_chains() == []


async def healthy(container: Any) -> bool:
    container.reload()
    assert container.status == "running", container.logs().decode()[-3000:]
    return bool(container.attrs["State"]["Health"]["Status"] == "healthy")
