"""The local services: found in order, said which, and gone with whoever started them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from tests.stack.postgres_server import PostgresServer
from tests.stack.process import DevstackError, Server
from tests.stack.services import Services, services

START_AND_WAIT = """
import time
from tests.stack.postgres_server import PostgresServer
server = PostgresServer()
print(server.pid, server.directory, flush=True)
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


def test_a_server_that_fails_to_start_says_what_it_printed() -> None:
    server = Server("broken")

    with pytest.raises(DevstackError, match="no such option"):
        server.start(["sh", "-c", "echo no such option; exit 3"], ready=lambda: False)
    server.stop()


class TestResolver:
    def test_given_services_are_taken_as_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DEVSTACK_KAFKA", "kafka.test:9092")
        monkeypatch.setenv("DEVSTACK_POSTGRES", "postgresql://postgres.test/db")

        with services() as found:
            assert found == Services(
                "kafka.test:9092",
                "postgresql://postgres.test/db",
                "Kafka: DEVSTACK_KAFKA; PostgreSQL: DEVSTACK_POSTGRES",
            )

    @pytest.mark.parametrize(
        ("forced", "told"),
        [
            ("env", "DEVSTACK=env, but DEVSTACK_KAFKA is not set"),
            ("mainframe", "DEVSTACK=mainframe: choose one of env, docker, packages"),
        ],
    )
    def test_what_cannot_be_had_is_one_clear_line(
        self, monkeypatch: pytest.MonkeyPatch, forced: str, told: str
    ) -> None:
        monkeypatch.setenv("DEVSTACK", forced)
        monkeypatch.delenv("DEVSTACK_KAFKA", raising=False)

        with pytest.raises(DevstackError, match=told), services():
            pass

    def test_without_an_engine_docker_cannot_be_forced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DEVSTACK", "docker")
        monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")

        with pytest.raises(DevstackError, match="no Docker engine answers"), services():
            pass

    def test_the_consumers_own_settings_are_never_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DEVSTACK", "env")
        monkeypatch.delenv("DEVSTACK_KAFKA", raising=False)
        monkeypatch.setenv("CONSUMER_KAFKA__BOOTSTRAP_SERVERS", "production:9092")

        with pytest.raises(DevstackError), services():
            pass
