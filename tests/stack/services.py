"""Finds Kafka and PostgreSQL for the demo and the tests: given ones, else Docker's, else Python packages'.

`DEVSTACK_KAFKA` and `DEVSTACK_POSTGRES` name services to use; `DEVSTACK=env|docker|packages` forces one way. Never
`CONSUMER_*`: no test may meet production.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import docker
from docker.errors import DockerException
from testcontainers.community.kafka import KafkaContainer
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.container import DockerContainer

from tests.stack.kafka_broker import KAFKA_VERSION, KafkaBroker
from tests.stack.postgres_server import PostgresServer
from tests.stack.process import DevstackError

KAFKA_IMAGE = "confluentinc/cp-kafka:8.1.0"
POSTGRES_IMAGE = "postgres:18"
C = TypeVar("C", bound=DockerContainer)
WAYS = ("env", "docker", "packages")


@dataclass(frozen=True, slots=True)
class Services:
    """Addresses, and how they were come by."""

    kafka: str
    postgres: str
    how: str


Start = Callable[[ExitStack], tuple[str, str]]
"""Starts a service for as long as the stack lasts; its address, and what it is."""


@contextmanager
def services() -> Iterator[Services]:
    """Services that live until the end of the block. Raises `DevstackError` where none can be had."""
    forced = os.environ.get("DEVSTACK")
    if forced not in (None, *WAYS):
        raise DevstackError(f"DEVSTACK={forced}: choose one of {', '.join(WAYS)}")
    no_docker = _docker_missing() if forced in (None, "docker") else f"DEVSTACK={forced}"
    if forced == "docker" and no_docker:
        raise DevstackError(f"DEVSTACK=docker, but {no_docker}")
    with ExitStack() as stack:
        kafka, kafka_how = _given("DEVSTACK_KAFKA", forced) or (
            _because(_kafka_packages(stack), no_docker) if no_docker else _kafka_container(stack)
        )
        postgres, postgres_how = _given("DEVSTACK_POSTGRES", forced) or (
            _because(_postgres_packages(stack), no_docker) if no_docker else _postgres_container(stack)
        )
        yield Services(kafka, postgres, f"Kafka: {kafka_how}; PostgreSQL: {postgres_how}")


def _given(variable: str, forced: str | None) -> tuple[str, str] | None:
    address = os.environ.get(variable)
    if forced == "env" and not address:
        raise DevstackError(f"DEVSTACK=env, but {variable} is not set")
    return (address, variable) if address and forced in (None, "env") else None


def _because(started: tuple[str, str], no_docker: str) -> tuple[str, str]:
    return started[0], f"{started[1]} ({no_docker})"


def _docker_missing() -> str:
    """Why Docker cannot be used; empty if it can. A client alone, or an engine without the images, is not enough."""
    try:
        engine = docker.from_env(timeout=5)
        engine.ping()
    except DockerException:
        return "no Docker engine answers"
    for image in (KAFKA_IMAGE, POSTGRES_IMAGE):
        try:
            if not engine.images.list(name=image):
                engine.images.pull(image)
        except DockerException:
            return f"the Docker engine cannot pull {image}"
    return ""


def _kafka_container(stack: ExitStack) -> tuple[str, str]:
    kafka = stack.enter_context(_started(KafkaContainer(KAFKA_IMAGE).with_kraft()))
    return kafka.get_bootstrap_server(), f"container {KAFKA_IMAGE}"


def _postgres_container(stack: ExitStack) -> tuple[str, str]:
    postgres = stack.enter_context(_started(PostgresContainer(POSTGRES_IMAGE)))
    return postgres.get_connection_url(driver=None), f"container {POSTGRES_IMAGE}"


@contextmanager
def _started(container: C) -> Iterator[C]:
    try:
        container.start()
    except Exception as error:
        raise DevstackError(f"{container.image} does not start: {error}; try DEVSTACK=packages") from error
    try:
        yield container
    finally:
        container.stop()


def _kafka_packages(stack: ExitStack) -> tuple[str, str]:
    broker = KafkaBroker()
    stack.callback(broker.stop)
    return broker.bootstrap_servers, f"Apache Kafka {KAFKA_VERSION} from Python packages"


def _postgres_packages(stack: ExitStack) -> tuple[str, str]:
    server = PostgresServer()
    stack.callback(server.stop)
    return server.dsn, "PostgreSQL 18 from a Python package"
