"""Finds Kafka and PostgreSQL for the demo and the tests: given ones, else from Python packages; Docker's if asked for.

`DEVSTACK_KAFKA` and `DEVSTACK_POSTGRES` name services to use. `DEVSTACK=env|packages|docker` forces one way. Never
`CONSUMER_*`: no test may meet production.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.stack.broker import least_session_seconds
from tests.stack.kafka_broker import KAFKA_VERSION, KafkaBroker
from tests.stack.postgres_server import PostgresServer
from tests.stack.process import DevstackError, Server

WAYS = ("env", "packages", "docker")
VARIABLES = ("DEVSTACK", "DEVSTACK_KAFKA", "DEVSTACK_POSTGRES")


@dataclass(frozen=True, slots=True)
class Services:
    """Addresses, and where the services are from. `servers` are those that this process has started itself."""

    kafka: str
    postgres: str
    origin: str
    servers: tuple[Server, ...] = field(default=(), compare=False)

    async def session_seconds(self, wanted: float) -> float:
        """The shortest session timeout from `wanted` on that the broker allows."""
        return max(wanted, await least_session_seconds(self.kafka))


Started = tuple[str, str, tuple[Server, ...]]
"""The address of a service, what it is, and the servers of ours that it consists of."""
Start = Callable[[ExitStack], Started]
"""Starts a service for as long as the stack lasts."""


@contextmanager
def services(environment: Mapping[str, str] = os.environ) -> Iterator[Services]:
    """Services that live until the end of the block. Raises `DevstackError` where none can be had."""
    way = environment.get("DEVSTACK") or None
    if way not in (None, *WAYS):
        raise DevstackError(f"DEVSTACK={way}: choose one of {', '.join(WAYS)}")
    if way == "env" and (missing := [name for name in VARIABLES[1:] if not environment.get(name)]):
        raise DevstackError(f"DEVSTACK=env, but {missing[0]} is not set")
    given = environment if way in (None, "env") else {}
    start_kafka, start_postgres = _containers() if way == "docker" else (_kafka_packages, _postgres_packages)
    with ExitStack() as stack:
        kafka, kafka_origin, broker = _given(given, "DEVSTACK_KAFKA") or start_kafka(stack)
        postgres, postgres_origin, server = _given(given, "DEVSTACK_POSTGRES") or start_postgres(stack)
        yield Services(kafka, postgres, f"Kafka: {kafka_origin}; PostgreSQL: {postgres_origin}", (*broker, *server))


def _given(environment: Mapping[str, str], variable: str) -> Started | None:
    address = environment.get(variable)
    return (address, variable, ()) if address else None


def _containers() -> tuple[Start, Start]:
    from tests.stack import containers  # noqa: PLC0415 - Docker's client is imported only where Docker is asked for

    containers.check_engine()
    return containers.start_kafka, containers.start_postgres


def _kafka_packages(stack: ExitStack) -> Started:
    broker = KafkaBroker()
    stack.callback(broker.stop)
    return broker.bootstrap_servers, f"Apache Kafka {KAFKA_VERSION} from Python packages", (broker.server,)


def _postgres_packages(stack: ExitStack) -> Started:
    server = PostgresServer()
    stack.callback(server.stop)
    return server.dsn, "PostgreSQL 18 from a Python package", (server.server,)
