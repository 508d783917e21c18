"""`healthcheck`, beside a replica and a ticker."""

import signal

import pytest

from tests.e2e.conftest import PARTITIONS, Group, until
from tests.e2e.test_commands import command


@pytest.mark.parametrize("process", ["run", "ticker"])
@pytest.mark.parametrize("question", ["healthcheck", "healthcheck --live"])
async def test_a_process_that_is_ready_is_healthy(group: Group, process: str, question: str) -> None:
    replica = await group.unready_replica(process)
    await until(replica.ready, "it is ready")

    code, out, err = await command(group, *question.split(), CONSUMER_HTTP__PORT=str(replica.port))

    assert (code, out, err) == (0, "ok\n", "")


async def test_a_replica_that_is_not_ready_is_unhealthy_but_alive(group: Group) -> None:
    replica = await group.replica()
    await until(lambda: started(group), "all partitions started")
    await replica.stop()
    await group.rows("UPDATE kafka_offset SET next_offset = 1000 WHERE partition = 0 RETURNING 1")
    replica = await group.unready_replica()

    async def found() -> bool:
        return "is outside the log" in (await replica.get("/readyz"))[1]

    await until(found, "the partition stopped")
    asked = {"CONSUMER_HTTP__PORT": str(replica.port), "CONSUMER_HTTP__HOST": "127.0.0.1"}
    code, out, _ = await command(group, "healthcheck", **asked)
    alive, *_ = await command(group, "healthcheck", "--live", **asked)

    assert code == 1
    assert "is outside the log" in out
    assert alive == 0


async def test_a_replica_that_is_frozen_is_unhealthy_in_time(group: Group) -> None:
    replica = await group.replica()
    replica.send(signal.SIGSTOP)

    code, out, err = await command(group, "healthcheck", CONSUMER_HTTP__PORT=str(replica.port))

    assert (code, out) == (1, "")
    assert err == f"error: no answer from http://127.0.0.1:{replica.port}/readyz: timed out\n"


@pytest.mark.parametrize(
    ("port", "code", "said"),
    [("1", 1, "no answer from http://127.0.0.1:1/readyz: nobody listens there"), ("0", 2, "give it one")],
)
async def test_where_nobody_can_be_asked_it_says_so(group: Group, port: str, code: int, said: str) -> None:
    found, out, err = await command(group, "healthcheck", CONSUMER_HTTP__PORT=port)

    assert (found, out) == (code, "")
    assert said in err


async def started(group: Group) -> bool:
    return len(await group.stored()) == PARTITIONS
