"""The local services: found in order, said which, and gone with whoever started them."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.e2e.conftest import until
from tests.stack.broker import least_session_seconds
from tests.stack.database import new_database
from tests.stack.postgres_server import PostgresServer
from tests.stack.process import DevstackError, Server, answers, free_port
from tests.stack.replica import Replica
from tests.stack.services import Services, services

START_AND_WAIT = """
import time
from tests.stack.postgres_server import PostgresServer
server = PostgresServer()
print(server.pid, server.directory, flush=True)
time.sleep(60)
"""

START_A_REPLICA = """
import asyncio, sys, time
from pathlib import Path
from tests.stack.replica import Replica
replica = Replica({}, Path(sys.argv[1]), "http.server", "--bind", "127.0.0.1", "0")
print(asyncio.run(replica.start()).process.pid, flush=True)
time.sleep(60)
"""


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_server_and_its_data_go_even_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", START_AND_WAIT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, directory = parent.stdout.readline().split()
        assert alive(int(pid))
        parent.send_signal(signal.SIGKILL)

    eventually(lambda: not alive(int(pid)), "the server is gone")
    eventually(lambda: not Path(directory).exists(), "its data are gone")


def test_a_replica_goes_when_its_parent_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START_A_REPLICA, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)

    eventually(lambda: not alive(pid), "the replica is gone")


def test_a_restart_keeps_the_data() -> None:
    server = PostgresServer()
    try:
        asyncio.run(run(server.dsn, "CREATE TABLE kept (id int)"))
        before = server.pid

        server.restart(signal.SIGKILL)

        assert server.pid != before
        asyncio.run(run(server.dsn, "SELECT * FROM kept"))
    finally:
        server.stop()


async def run(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(sql)
    await connection.close()


async def one(dsn: str, sql: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval(sql))
    finally:
        await connection.close()


def test_no_port_is_handed_out_twice() -> None:
    ports = [free_port() for _ in range(300)]

    assert len(set(ports)) == len(ports)


def test_a_frozen_server_stands_still_until_it_is_thawed() -> None:
    server = Server("sleeper")
    server.start(["sleep", "60"], ready=lambda: True)
    try:
        server.freeze()
        frozen = state(server.pid)
        server.thaw()
        eventually(lambda: state(server.pid) == "S", "it goes on")
    finally:
        server.stop()

    assert frozen == "T"


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_server_that_fails_to_start_says_what_it_printed() -> None:
    server = Server("broken")

    with pytest.raises(DevstackError, match="no such option"):
        server.start(["sh", "-c", "echo no such option; exit 3"], ready=lambda: False)
    server.stop()


class TestResolver:
    """`services` is given an environment: what the caller of the tests has set does not matter."""

    def test_given_services_are_taken_as_they_are(self) -> None:
        given = {"DEVSTACK_KAFKA": "kafka.test:9092", "DEVSTACK_POSTGRES": "postgresql://postgres.test/db"}

        with services(given) as found:
            assert found == Services(
                "kafka.test:9092",
                "postgresql://postgres.test/db",
                "Kafka: DEVSTACK_KAFKA; PostgreSQL: DEVSTACK_POSTGRES",
            )

    @pytest.mark.parametrize(
        ("environment", "message"),
        [
            ({"DEVSTACK": "env"}, "DEVSTACK=env, but DEVSTACK_KAFKA is not set"),
            (
                {"DEVSTACK": "env", "DEVSTACK_KAFKA": "kafka.test:9092"},
                "DEVSTACK=env, but DEVSTACK_POSTGRES is not set",
            ),
            ({"DEVSTACK": "mainframe"}, "DEVSTACK=mainframe: choose one of env, packages, docker"),
        ],
    )
    def test_what_cannot_be_had_is_one_clear_line(self, environment: dict[str, str], message: str) -> None:
        with pytest.raises(DevstackError, match=message), services(environment):
            pass

    def test_without_an_engine_docker_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")

        with pytest.raises(DevstackError, match="no Docker engine answers"), services({"DEVSTACK": "docker"}):
            pass

    def test_the_consumers_own_settings_are_never_looked_at(self) -> None:
        production = {"DEVSTACK": "env", "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": "production:9092"}

        with pytest.raises(DevstackError), services(production):
            pass

    def test_packages_are_the_default_even_where_docker_answers(self) -> None:
        with services({}) as found:
            assert "from Python packages" in found.origin
            assert "from a Python package" in found.origin
            assert asyncio.run(found.session_seconds(3)) == 3

    def test_the_simulation_and_the_demo_import_no_docker(self) -> None:
        script = "import sys, tests.simulation.__main__, tests.demo.demo; sys.exit('docker' in sys.modules)"

        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


async def test_given_services_that_do_not_answer_are_named_with_their_variable() -> None:
    with pytest.raises(DevstackError, match=r"Kafka does not answer at 127.0.0.1:1: check DEVSTACK_KAFKA"):
        await least_session_seconds("127.0.0.1:1")

    with pytest.raises(DevstackError, match=r"does not answer at 127.0.0.1:1: .*check DEVSTACK_POSTGRES"):
        async with new_database("postgresql://user:secret@127.0.0.1:1/postgres", "test"):
            pass


def test_a_broker_of_default_settings_bounds_the_session_timeout(stack: Services) -> None:
    assert asyncio.run(stack.session_seconds(7)) == 7
    assert asyncio.run(stack.session_seconds(0.1)) >= 1


async def start_once(settings: dict[str, str], log: Path) -> None:
    """Starts a replica, and stops it when it is ready."""
    replica = await Replica(settings, log).start()
    try:
        await until(replica.ready, "the replica is ready")
    finally:
        await replica.stop()


def test_the_services_to_play_with_serve_as_printed_and_leave_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.stack"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEVSTACK")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as playing:
        assert playing.stdout is not None
        printed = "".join(iter(playing.stdout.readline, "They run, with their data, until Ctrl-C.\n"))
        exports = dict(re.findall(r"export (\w+)=(\S+)", printed))
        consumer = [sys.executable, "-m", "consumer"]
        try:
            for arguments in (["migrate"], ["topics", "--partitions", "2"], ["doctor"]):
                subprocess.run([*consumer, *arguments], env={**environment, **exports}, check=True, timeout=60)
            asyncio.run(start_once(exports, tmp_path / "replica.log"))
        finally:
            playing.send_signal(signal.SIGINT)
        kafka = urlsplit(f"//{exports['CONSUMER_KAFKA__BOOTSTRAP_SERVERS']}")

    assert playing.returncode == 0
    logged = (tmp_path / "replica.log").read_text()
    assert "partition started" in logged
    assert '"level": "error"' not in logged
    assert kafka.port is not None
    assert not answers(kafka.port)


def test_the_services_to_play_with_end_with_an_error_when_one_of_them_dies() -> None:
    command = [sys.executable, "-m", "tests.stack"]
    given = {**os.environ, "DEVSTACK_KAFKA": "kafka.test:9092", "DEVSTACK_POSTGRES": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given) as playing:
        assert playing.stdout is not None
        printed = "".join(iter(playing.stdout.readline, "They run, with their data, until Ctrl-C.\n"))
        address = urlsplit(re.findall(r"CONSUMER_DATABASE__URL=(\S+)", printed)[0])
        server = asyncio.run(one(address.geturl(), "SELECT pg_read_file('postmaster.pid')")).split()[0]

        os.kill(int(server), signal.SIGKILL)
        _, said = playing.communicate(timeout=60)

    assert playing.returncode == 1
    assert "error: postgres ended by itself" in said
