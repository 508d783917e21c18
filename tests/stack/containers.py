"""Kafka and PostgreSQL in containers, for who asks for them (`DEVSTACK=docker`)."""

import asyncio
import base64
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import docker
from docker.errors import DockerException
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from consumer.errors import UnavailableError
from consumer.kafka.admin import admin
from consumer.settings import KafkaSettings
from tests.stack.kafka_broker import KAFKA_VERSION
from tests.stack.process import DevstackError, free_port, say

KAFKA_IMAGE = f"apache/kafka:{KAFKA_VERSION}"
POSTGRES_IMAGE = "postgres:18"
POSTGRES_COMMAND = "postgres -c max_connections=200 -c track_commit_timestamp=on"
INTERNAL_PORT = 9094
START_SECONDS = 60.0
KAFKA_ENVIRONMENT = {
    "KAFKA_PROCESS_ROLES": "broker,controller",
    "KAFKA_NODE_ID": "1",
    "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
    # The broker talks to itself, for transactions, where the port on the host is not to be reached; so do containers.
    "KAFKA_LISTENERS": f"PLAINTEXT://:9092,INTERNAL://:{INTERNAL_PORT},CONTROLLER://:9093",
    "KAFKA_INTER_BROKER_LISTENER_NAME": "INTERNAL",
    "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "1",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
    "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
}


def check_engine() -> None:
    """Has all images on the engine. Raises `DevstackError` if no engine answers, or an image cannot be had.

    Without the image of the reaper, containers are removed by this process alone.
    """
    try:
        engine = docker.from_env(timeout=5)
        engine.ping()
    except DockerException as error:
        raise DevstackError(f"DEVSTACK=docker, but no Docker engine answers: {error}") from error
    for image in (KAFKA_IMAGE, POSTGRES_IMAGE):
        if not _has(engine, image):
            raise DevstackError(f"DEVSTACK=docker, but the engine cannot pull {image}")
    if not testcontainers_config.ryuk_disabled and not _has(engine, testcontainers_config.ryuk_image):
        say(f"{testcontainers_config.ryuk_image} cannot be had: containers are removed by this process alone")
        testcontainers_config.ryuk_disabled = True


def start_kafka(stack: ExitStack, network: Network | None = None) -> tuple[str, str, tuple[()]]:
    """The advertised listener must name the port on the host, so that is chosen beforehand.

    In a network, containers reach it at `kafka:INTERNAL_PORT`.
    """
    port = free_port()
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(9092, port)
    address = f"{container.get_docker_client().host()}:{port}"
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A", 1)
    if network:
        container.with_network(network).with_network_aliases("kafka")
    advertised = f"PLAINTEXT://{address},INTERNAL://{'kafka' if network else 'localhost'}:{INTERNAL_PORT}"
    container.with_envs(**KAFKA_ENVIRONMENT, CLUSTER_ID=cluster_id, KAFKA_ADVERTISED_LISTENERS=advertised)
    stack.enter_context(_started(container, KAFKA_IMAGE))
    _await_kafka(container, address)
    return address, f"container {KAFKA_IMAGE}", ()


def start_postgres(stack: ExitStack, network: Network | None = None) -> tuple[str, str, tuple[()]]:
    """In a network, containers reach it at `postgres:5432`."""
    container = PostgresContainer(POSTGRES_IMAGE, driver=None).with_command(POSTGRES_COMMAND)
    if network:
        container.with_network(network).with_network_aliases("postgres")
    stack.enter_context(_started(container, POSTGRES_IMAGE))
    return container.get_connection_url(), f"container {POSTGRES_IMAGE}", ()


def _has(engine: docker.DockerClient, image: str) -> bool:
    """Whether the engine has the image by now; it is pulled if it is not there."""
    try:
        if not engine.images.list(name=image):
            say(f"pulling {image}")
            engine.images.pull(image)
    except DockerException:
        return False
    return True


@contextmanager
def _started(container: DockerContainer, image: str) -> Iterator[None]:
    say(f"starting a container of {image}")
    try:
        container.start()
    except Exception as error:
        raise DevstackError(f"{image} does not start: {error}; without DEVSTACK=docker, packages serve") from error
    try:
        yield
    finally:
        container.stop()


def _await_kafka(container: DockerContainer, address: str) -> None:
    """Raises `DevstackError` with what the container printed, if it does not answer in time or ends."""
    deadline = time.monotonic() + START_SECONDS
    while not asyncio.run(kafka_answers(address)):
        container.get_wrapped_container().reload()
        if time.monotonic() > deadline or container.get_wrapped_container().status != "running":
            printed = b"".join(container.get_logs()).decode(errors="replace")[-2000:]
            raise DevstackError(f"{KAFKA_IMAGE} does not answer:\n{printed}")
        time.sleep(0.2)


async def kafka_answers(address: str) -> bool:
    """Whether the broker, not only the engine's port, answers. The client would log each failure."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        async with admin(KafkaSettings(bootstrap_servers=address, request_timeout_seconds=5)) as client:
            await client.cluster_id()
    except UnavailableError:
        return False
    finally:
        logging.getLogger("aiokafka").setLevel(logging.NOTSET)
    return True
